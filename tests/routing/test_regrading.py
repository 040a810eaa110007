"""Grades that come later leave a router where it would be, had they come with the outcome."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.routing import regrading
from flowray.routing.live import POOLED, LiveRouter
from flowray.routing.posteriors import PosteriorPolicy, Posteriors
from flowray.routing.regrading import Gradable

from .test_live import Sayer, ask, past, teach

__all__ = ["past"]

NEVER = PosteriorPolicy(half_life=20.0, alarm_at=1e9)  # nobody is ever found to have changed
shares = st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3).map(
    lambda v: np.array(v, np.float32) / max(sum(v), 1)
)
outcomes = st.lists(
    st.tuples(st.sampled_from("ab"), shares, st.floats(0, 1), st.floats(0, 1), st.booleans()),
    min_size=1,
    max_size=25,
)


@given(outcomes, st.randoms(), st.integers(1, 30), st.integers(1, 5))
def test_a_later_grade_is_as_good_as_an_early_one(made, random, most, together):
    """Sums are linear, whatever came between, however late grades come and in whichever order."""
    late, early, gradable = Posteriors("xyz", NEVER), Posteriors("xyz", NEVER), Gradable(most)
    grades = {}  # that were taken
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regrading, "_TOGETHER", together)
        for number, (agent, kinds, expected, grade, graded) in enumerate(made):
            late.observe(agent, kinds, expected, grade)
            gradable.note(str(number), [(late, agent)], kinds, grade - expected, expected, answered=graded)
            for _ in range(2):
                which, opinion = random.randrange(number + 1), random.random()
                taken = gradable.regrade(str(which), opinion)
                assert taken == (made[which][4] and which > number - most)
                if taken:
                    grades[which] = opinion
    for number, (agent, kinds, expected, grade, _) in enumerate(made):
        early.observe(agent, kinds, expected, grades.get(number, grade))
    for agent in "ab":
        for kinds in np.eye(3, dtype=np.float32):
            found = [p.corrected([agent], kinds[None], np.array([[0.5]], np.float32)) for p in (late, early)]
            assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
            assert found[0][1] == pytest.approx(found[1][1], abs=1e-6)


def test_evidence_that_was_given_up_is_not_revised():
    """After an alarm only what came since the change counts; a grade of an answer from before says nothing of it."""
    posteriors, gradable = Posteriors("xyz", PosteriorPolicy()), Gradable()
    kinds = np.zeros(3, np.float32)
    for number in range(300):
        grade = 1.0 if number < 200 else 0.0
        posteriors.observe("a", kinds, 0.9, grade)
        gradable.note(str(number), [(posteriors, "a")], kinds, grade - 0.9, 0.9, answered=True)
    assert posteriors.detections()
    before = posteriors.corrected(["a"], kinds[None], np.array([[0.9]], np.float32))[0]
    assert gradable.regrade("5", 0.0)
    assert (posteriors.corrected(["a"], kinds[None], np.array([[0.9]], np.float32))[0] == before).all()
    assert gradable.regrade("299", 1.0)
    assert (posteriors.corrected(["a"], kinds[None], np.array([[0.9]], np.float32))[0] > before).all()


def test_only_the_newest_answers_are_remembered():
    posteriors, gradable = Posteriors("", NEVER), Gradable(most=10)
    none = np.zeros(0, np.float32)
    for number in range(25):
        posteriors.observe("a", none, 0.5, 1.0)
        gradable.note(str(number), [(posteriors, "a")], none, 0.5, 0.5, answered=number % 2 == 0)
    assert len(gradable) == 5  # of the last ten outcomes every other one is an answer
    assert not gradable.regrade("0", 0.5)
    assert not gradable.regrade("23", 0.5)  # not an answer
    assert not gradable.regrade("nobody", 0.5)
    assert gradable.regrade("24", 0.5) and gradable.regrade("16", 0.5)
    assert not gradable.regrade("14", 0.5)


class TestRouter:
    def test_an_agent_whose_answers_prove_bad_is_chosen_less(self, past):
        router = LiveRouter(Sayer(), past)
        names = tuple(router._column)[:2]
        teach(router, names[0], 1.0, 60, candidates=names)
        believed = ask(router, candidates=names)[names[0]]
        for number in range(60):
            assert router.regrade(f"sum-{number}", 0.0)
        after = ask(router, candidates=names)[names[0]]
        assert after.success < 0.6 < believed.success
        assert after.deviation > 0
        assert ask(router, candidates=names)[names[1]].success == pytest.approx(0.6)

    def test_strangers_and_what_is_thought_of_all_of_them(self):
        router = LiveRouter()
        teach(router, "a", 1.0, 30)
        for number in range(30):
            router.regrade(f"sum-{number}", 0.0)
        graded = ask(router, candidates=("a", "nobody"))
        other = LiveRouter()
        teach(other, "a", 1.0, 30, quality=0.0)
        at_once = ask(other, candidates=("a", "nobody"))
        for name in ("a", "nobody"):
            assert graded[name].success == pytest.approx(at_once[name].success, abs=0.05)
        assert POOLED > 30

    def test_a_failure_cannot_be_graded_and_a_reported_quality_is_replaced(self, past):
        router = LiveRouter(Sayer(), past)
        names = tuple(router._column)[:2]
        ask(router, "t", candidates=names)
        assert router.learn("t", names[0], False)
        assert not router.regrade("t", 1.0)
        assert router.learn("t", names[1], True, quality=0.2)
        router.forget("t")
        assert router.regrade("t", 0.9)
        assert ask(router, candidates=names)[names[1]].success > 0.6

"""Residuals learned online: nothing without outcomes, a change soon, a stable world left alone."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.routing.posteriors import PosteriorPolicy, Posteriors

KINDS = ("code", "maths", "prose")
CODE, MATHS, PROSE = np.eye(3, dtype=np.float32)
TEAM = tuple(f"agent-{number}" for number in range(8))


def one(posteriors: Posteriors, agent: str, kinds: np.ndarray, expected: float) -> tuple[float, float]:
    """Corrected success and its deviation of one agent at one task."""
    found = posteriors.corrected([agent], kinds[None, :], np.array([[expected]], np.float32))
    return float(found[0][0, 0]), float(found[1][0, 0])


def stream(
    posteriors: Posteriors, chance: float, n: int, *, seed: int = 0, agent: str = "a", expected: float = 0.8
) -> int:
    """Outcomes of one agent at tasks of all kinds; gives how many there were when a change was detected (n: never)."""
    rng = np.random.default_rng(seed)
    before = len(posteriors.detections())
    for number in range(n):
        kinds = np.eye(3, dtype=np.float32)[rng.integers(3)]
        posteriors.observe(agent, kinds, expected, float(rng.random() < chance))
        if len(posteriors.detections()) > before:
            return number + 1
    return n


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8))
def test_without_outcomes_nothing_is_changed(row):
    success = np.array([row], np.float32)
    shares = np.full((1, 3), 1 / 3, np.float32)
    posteriors = Posteriors(KINDS)
    assert (posteriors.corrected(TEAM[: len(row)], shares, success)[0] == success).all()
    assert (posteriors.corrected_seconds(TEAM[: len(row)], shares, success)[0] == success).all()
    posteriors.observe("somebody else", CODE, 0.9, 0.0)
    assert (posteriors.corrected(TEAM[: len(row)], shares, success)[0] == success).all()


def test_means_are_shrunk_as_the_formula_says():
    """One failure at code where 0.8 was expected, with strengths of 3 and 1 and no forgetting to speak of."""
    posteriors = Posteriors(KINDS, PosteriorPolicy(half_life=1e12, agent_strength=3.0, kind_strength=1.0))
    posteriors.observe("a", CODE, 0.8, 0.0)
    overall = -0.8 / 4
    at_code = (-0.8 + overall) / 2
    corrected, deviation = one(posteriors, "a", CODE, 0.8)
    assert corrected == pytest.approx(0.8 + at_code)
    assert deviation == pytest.approx(math.sqrt(corrected * (1 - corrected) * (1 / 4 + 1 / 2)))
    assert one(posteriors, "a", MATHS, 0.8)[0] == pytest.approx(0.8 + overall)
    half = (CODE + MATHS) / 2
    assert one(posteriors, "a", half, 0.8)[0] == pytest.approx(0.8 + (at_code + overall) / 2)
    assert one(posteriors, "a", half / 2, 0.8)[0] == pytest.approx(0.8 + at_code / 4 + overall * 3 / 4)


def test_old_outcomes_count_less():
    policy = PosteriorPolicy(half_life=10.0, agent_strength=1.0, kind_strength=1e9, alarm_at=1e9)
    posteriors = Posteriors((), policy)
    none = np.zeros(0, np.float32)
    posteriors.observe("a", none, 0.5, 0.0)
    for _ in range(10):
        posteriors.observe("a", none, 0.5, 0.5)
    weight = sum(0.5 ** (age / 10) for age in range(11))
    assert one(posteriors, "a", none, 0.5)[0] == pytest.approx(0.5 - 0.25 / (weight + 1))


def test_an_agent_that_always_fails_is_known_soon():
    """It was good for 300 outcomes; 15 failures later nobody is sent to it any more, whatever the kind of task."""
    posteriors = Posteriors(KINDS)
    stream(posteriors, 0.8, 300)
    assert stream(posteriors, 0.0, 15) <= 15
    for kinds in (CODE, MATHS, PROSE):
        assert one(posteriors, "a", kinds, 0.8)[0] < 0.4


def test_a_change_at_one_kind_is_learned_for_that_kind():
    posteriors = Posteriors(KINDS)
    rng = np.random.default_rng(0)
    for number in range(600):
        kinds, chance = (CODE, 0.2) if number % 3 == 0 else (MATHS, 0.8)
        posteriors.observe("a", kinds, 0.8, float(rng.random() < chance))
    assert one(posteriors, "a", CODE, 0.8)[0] < 0.4
    assert one(posteriors, "a", MATHS, 0.8)[0] > 0.7


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("chance", [0.2, 1.0])
def test_a_change_is_detected_and_learned(seed, chance):
    """From 0.6 to 0.2 or 1.0: found within 100 outcomes, and within 100 more believed to within a tenth."""
    posteriors = Posteriors(KINDS)
    stream(posteriors, 0.6, 300, seed=seed, expected=0.6)
    assert posteriors.detections() == ()
    assert stream(posteriors, chance, 100, seed=100 + seed, expected=0.6) < 100
    (detection,) = posteriors.detections()
    assert detection.agent == "a"
    assert detection.better == (chance > 0.6)
    assert 300 < detection.at_outcome <= 400
    stream(posteriors, chance, 100, seed=200 + seed, expected=0.6)
    mean = np.mean([one(posteriors, "a", kinds, 0.6)[0] for kinds in (CODE, MATHS, PROSE)])
    assert mean == pytest.approx(chance, abs=0.1)


@pytest.mark.slow
def test_a_stable_world_raises_few_alarms():
    """The bound: one in 8,000 outcomes of eight agents whom the router describes rightly."""
    posteriors = Posteriors(KINDS)
    rng = np.random.default_rng(0)
    for _ in range(8_000):
        expected = rng.choice([0.2, 0.5, 0.8, 0.95])
        agent, kinds = TEAM[rng.integers(8)], rng.dirichlet(np.ones(3)).astype(np.float32)
        posteriors.observe(agent, kinds, expected, float(rng.random() < expected))
    assert len(posteriors.detections()) <= 1
    corrected = posteriors.corrected(TEAM, np.eye(3, dtype=np.float32), np.full((3, 8), 0.5, np.float32))[0]
    assert np.abs(corrected - 0.5).max() < 0.1


def test_one_alarm_is_about_one_agent():
    posteriors = Posteriors(KINDS)
    stream(posteriors, 0.8, 100, agent="b")
    before = {agent: one(posteriors, agent, CODE, 0.8) for agent in ("b", "never seen")}
    for _ in range(2):
        stream(posteriors, 0.0, 100, agent="a")
    assert {agent: one(posteriors, agent, CODE, 0.8) for agent in before} == before


def test_two_alarms_make_everybody_doubted_until_outcomes_say_otherwise():
    posteriors = Posteriors(KINDS)
    stream(posteriors, 0.8, 100, agent="b")
    before = {agent: one(posteriors, agent, CODE, 0.8)[1] for agent in ("b", "never seen")}
    for agent in ("a", "c"):
        assert stream(posteriors, 0.0, 30, agent=agent) < 30
    after = {agent: one(posteriors, agent, CODE, 0.8)[1] for agent in before}
    assert all(after[agent] > before[agent] for agent in before)
    stream(posteriors, 0.8, 5_000, agent="b")
    assert one(posteriors, "b", CODE, 0.8)[1] < after["b"] / 2


def test_alarms_far_apart_are_not_taken_together():
    posteriors = Posteriors(KINDS, PosteriorPolicy(together=50))
    before = one(posteriors, "never seen", CODE, 0.8)
    stream(posteriors, 0.0, 30, agent="a")
    stream(posteriors, 0.8, 50, agent="b")
    stream(posteriors, 0.0, 30, agent="c")
    assert len(posteriors.detections()) == 2
    assert one(posteriors, "never seen", CODE, 0.8) == before


def test_deviations_shrink_with_outcomes():
    posteriors = Posteriors(KINDS)
    found = []
    for _ in range(5):
        found.append(one(posteriors, "a", CODE, 0.5)[1])
        for grade in (0.0, 1.0) * 20:
            posteriors.observe("a", CODE, 0.5, grade)
    assert (np.diff(found) < 0).all()
    assert found[0] == pytest.approx(one(posteriors, "b", CODE, 0.5)[1])


def test_drift_grows_on_the_way_to_an_alarm():
    posteriors = Posteriors(KINDS)
    found = [posteriors.drift("a")]
    while not posteriors.detections():
        posteriors.observe("a", CODE, 0.8, 0.0)
        found.append(posteriors.drift("a"))
    assert found[0] == 0.0 == found[-1]
    assert (np.diff(found[:-1]) > 0).all()
    assert max(found) <= 1.0


def test_seconds_and_dollars_follow_what_is_usual():
    """Twice as slow and three times as dear from now on, with one attempt in ten stuck for a thousand times as long."""
    rng = np.random.default_rng(0)
    posteriors = Posteriors(KINDS)
    for number in range(200):
        outlier = 1000.0 if number % 10 == 0 else 1.0
        posteriors.observe_seconds("a", CODE, 4.0, 8.0 * outlier * math.exp(rng.normal(0, 0.3)))
        posteriors.observe_dollars("a", CODE, 0.01, 0.03)
    seconds, unsure = posteriors.corrected_seconds(["a", "b"], CODE[None, :], np.array([[4.0, 4.0]], np.float32))
    dollars, _ = posteriors.corrected_dollars(["a"], CODE[None, :], np.array([[0.01]], np.float32))
    assert seconds[0, 0] == pytest.approx(8.0, rel=0.25)
    assert seconds[0, 1] == 4.0
    assert unsure[0, 0] < unsure[0, 1]
    assert dollars[0, 0] == pytest.approx(0.03, rel=0.1)
    assert one(posteriors, "a", CODE, 0.5)[0] == 0.5


def test_what_is_not_known_changes_nothing():
    posteriors = Posteriors(KINDS)
    unknown = np.full(3, np.nan, np.float32)
    posteriors.observe("a", CODE, math.nan, 1.0)
    posteriors.observe("a", CODE, 0.5, math.nan)
    for value in (math.nan, 0.0, -1.0, math.inf):
        posteriors.observe_seconds("a", CODE, 1.0, value)
        posteriors.observe_dollars("a", CODE, value, 1.0)
    assert posteriors.observed == 0
    posteriors.observe("a", unknown, 0.9, 0.0)
    overall = one(posteriors, "a", unknown, 0.9)[0]
    assert overall < 0.9
    assert one(posteriors, "a", CODE, 0.9)[0] == pytest.approx(overall)
    corrected, deviation = posteriors.corrected(["a", "b"], CODE[None, :], np.array([[math.nan, 0.5]], np.float32))
    assert np.isnan([corrected[0, 0], deviation[0, 0]]).all()
    assert np.isfinite([corrected[0, 1], deviation[0, 1]]).all()
    seconds, unsure = posteriors.corrected_seconds(["a"], CODE[None, :], np.array([[math.nan]], np.float32))
    assert np.isnan([seconds[0, 0], unsure[0, 0]]).all()


@pytest.mark.parametrize(("expected", "grade"), [(1.1, 0.0), (-0.1, 0.0), (0.5, 2.0), (0.5, -1.0)])
def test_what_cannot_be_is_refused(expected, grade):
    posteriors = Posteriors(KINDS)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        posteriors.observe("a", CODE, expected, grade)
    assert posteriors.snapshot() == Posteriors(KINDS).snapshot()


@pytest.mark.parametrize("field", PosteriorPolicy.__dataclass_fields__)
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_policy_names_the_field_that_is_wrong(field, value):
    with pytest.raises(ValueError, match=field):
        PosteriorPolicy(**{field: value})


def test_the_order_of_agents_does_not_matter():
    rng = np.random.default_rng(0)
    posteriors = Posteriors(KINDS)
    for _ in range(400):
        posteriors.observe(TEAM[rng.integers(8)], rng.dirichlet(np.ones(3)), rng.random(), rng.random())
    success = rng.random((5, 8)).astype(np.float32)
    shares = rng.dirichlet(np.ones(3), 5).astype(np.float32)
    whole = posteriors.corrected(TEAM, shares, success)
    turned = rng.permutation(8)
    again = posteriors.corrected([TEAM[at] for at in turned], shares, success[:, turned])
    for forth, back in zip(whole, again, strict=True):
        np.testing.assert_allclose(back, forth[:, turned], rtol=1e-6)
    alone = posteriors.corrected(TEAM, shares[2:3], success[2:3])
    np.testing.assert_allclose(alone[0], whole[0][2:3], rtol=1e-6)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1), st.floats(0, 1)), max_size=60), st.integers(0, 2**32 - 1))
def test_what_was_kept_goes_on_as_if_nothing_had_been(outcomes, seed):
    rng = np.random.default_rng(seed)
    policy = PosteriorPolicy(max_agents=4, alarm_at=3.0)
    first = Posteriors(KINDS, policy)
    split = len(outcomes) // 2
    for number, expected, grade in outcomes[:split]:
        first.observe(TEAM[number], rng.dirichlet(np.ones(3)), expected, grade)
        first.observe_seconds(TEAM[number], CODE, 1.0 + expected, 1.0 + grade)
    second = Posteriors.restore(json.loads(json.dumps(first.snapshot())), policy)
    assert second.snapshot() == first.snapshot()
    for number, expected, grade in outcomes[split:]:
        kinds = rng.dirichlet(np.ones(3))
        for each in (first, second):
            each.observe(TEAM[number], kinds, expected, grade)
            each.observe_dollars(TEAM[number], CODE, 1.0 + expected, 1.0 + grade)
    assert second.snapshot() == first.snapshot()
    asked = TEAM, np.eye(3, dtype=np.float32), np.full((3, 8), 0.5, np.float32)
    for name in ("corrected", "corrected_seconds", "corrected_dollars"):
        np.testing.assert_array_equal(getattr(second, name)(*asked), getattr(first, name)(*asked))


def test_a_snapshot_that_does_not_fit_itself_is_refused():
    posteriors = Posteriors(KINDS)
    posteriors.observe("a", CODE, 0.5, 1.0)
    with pytest.raises(ValueError, match="success"):
        Posteriors.restore({**posteriors.snapshot(), "kinds": ["code"]})
    with pytest.raises(ValueError, match="agents"):
        Posteriors.restore({**posteriors.snapshot(), "agents": ["a", "b"]})
    with pytest.raises(ValueError, match="doubt"):
        Posteriors.restore({**posteriors.snapshot(), "doubt": [0.0]})


def test_only_so_many_agents_are_remembered():
    """Who was observed longest ago makes room; what it did is not taken for what its successor did."""
    posteriors = Posteriors(KINDS, PosteriorPolicy(max_agents=3))
    for agent in ("a", "b", "c", "a", "d"):
        posteriors.observe(agent, CODE, 0.9, 0.0)
        posteriors.observe_seconds(agent, CODE, 1.0, 2.0)
    assert posteriors.snapshot()["agents"] == ["c", "a", "d"]
    assert one(posteriors, "b", CODE, 0.9)[0] == pytest.approx(0.9)
    assert one(posteriors, "d", CODE, 0.9)[0] == pytest.approx(one(posteriors, "c", CODE, 0.9)[0])
    smaller = Posteriors.restore(posteriors.snapshot(), PosteriorPolicy(max_agents=2))
    assert smaller.snapshot()["agents"] == ["a", "d"]
    assert one(smaller, "a", CODE, 0.9)[0] == pytest.approx(one(posteriors, "a", CODE, 0.9)[0])


def test_detections_are_bounded():
    posteriors = Posteriors(KINDS, PosteriorPolicy(max_detections=2, alarm_at=3.0))
    for number in range(400):
        posteriors.observe("a", CODE, 0.5, float(number // 20 % 2))
    assert len(posteriors.detections()) == 2
    assert posteriors.detections()[0].at_outcome < posteriors.detections()[1].at_outcome


def test_several_outcomes_at_once_leave_the_evidence_that_one_after_another_leave():
    rng = np.random.default_rng(5)
    names = [f"agent-{number}" for number in rng.integers(0, 4, 200)]
    kinds = rng.dirichlet([0.3] * 3, 200).astype(np.float32)
    expected, grades = rng.uniform(0.3, 0.9, 200), (rng.random(200) < 0.6).astype(float)
    seconds = rng.lognormal(0.0, 0.1, 200)  # no pull beyond the limit, which depends on what is believed
    one_by_one, at_once = Posteriors(("a", "b", "c")), Posteriors(("a", "b", "c"))
    for agent, shares, p, grade, took_s in zip(names, kinds, expected, grades, seconds, strict=True):
        one_by_one.observe(agent, shares, p, grade)
        one_by_one.observe_seconds(agent, shares, 1.0, took_s)
    for first in range(0, 200, 32):
        some = slice(first, first + 32)
        at_once.observe_all(names[some], kinds[some], expected[some], grades[some])
        at_once.observe_all_seconds(names[some], kinds[some], np.ones(len(names[some])), seconds[some])
    one, other = one_by_one.snapshot(), at_once.snapshot()
    assert one["observed"] == other["observed"] == 200 and one["detections"] == other["detections"] == []
    by_name = [dict(zip([""] + each["agents"], each["success"], strict=True)) for each in (one, other)]
    timed = [dict(zip([""] + each["agents"], each["seconds"], strict=True)) for each in (one, other)]
    for agent in by_name[0]:
        np.testing.assert_allclose(np.array(by_name[0][agent])[0], np.array(by_name[1][agent])[0], rtol=1e-9)
        np.testing.assert_allclose(timed[0][agent], timed[1][agent], rtol=1e-9)


def test_an_alarm_among_several_outcomes_forgets_what_was_before_it_and_keeps_what_follows():
    posteriors = Posteriors(())
    kinds = np.zeros((120, 0), np.float32)
    posteriors.observe_all(["a"] * 120, kinds, np.full(120, 0.9), np.ones(120))
    for _ in range(4):  # a change that one call alone shows
        posteriors.observe_all(["a"] * 30, kinds[:30], np.full(30, 0.9), np.zeros(30))
    assert [each.better for each in posteriors.detections()][:1] == [False]
    success, _ = posteriors.corrected(("a",), kinds[:1], np.full((1, 1), 0.9, np.float32))
    assert success[0, 0] < 0.3
    assert posteriors.observed == 240


def test_more_agents_at_once_than_are_remembered():
    posteriors = Posteriors((), PosteriorPolicy(max_agents=2))
    names = ["a", "b", "c", "a", "d"]
    posteriors.observe_all(names, np.zeros((5, 0), np.float32), np.full(5, 0.5), np.ones(5))
    assert posteriors.snapshot()["agents"] == ["a", "d"]
    unseen, _ = posteriors.corrected(("nobody",), np.zeros((1, 0), np.float32), np.full((1, 1), 0.5, np.float32))
    assert unseen[0, 0] == 0.5

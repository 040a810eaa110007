"""What like tasks say: exact leave-one-out, silence where nothing is known, no luck taken for skill."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.routing.estimates import Outcomes
from flowray.routing.memory import Memory, Views


def outcomes_of(success: np.ndarray, **others: np.ndarray) -> Outcomes:
    success = success.astype(np.float32)
    none = np.full_like(success, np.nan)
    return Outcomes(**{"success": success, "quality": success, "latency_s": none, "cost_usd": none, "tokens": none} | {
        name: values.astype(np.float32) for name, values in others.items()
    })  # fmt: skip


def views(traits: np.ndarray, sense: np.ndarray | None = None) -> Views:
    nothing = np.zeros((len(traits), 0), np.float32)
    return Views(traits=traits, sense=nothing if sense is None else sense.astype(np.float32))


def two_kinds(seed: int, n_tasks: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Traits, and the success of three agents: the first follows one trait, the second its opposite, the third luck."""
    rng = np.random.default_rng(seed)
    traits = rng.normal(size=(n_tasks, 4)).astype(np.float32)
    chance = 1 / (1 + np.exp(-3 * traits[:, :1] * np.array([1, -1, 0])))
    return traits, (rng.random(chance.shape) < chance).astype(np.float32)


def test_each_agent_is_recalled_for_what_it_is_good_at():
    traits, success = two_kinds(0)
    new, _ = two_kinds(1)
    recalled = Memory.of(views(traits), outcomes_of(success)).recall(views(new))
    assert np.corrcoef(recalled.success[:, 0], new[:, 0])[0, 1] > 0.8
    assert np.corrcoef(recalled.success[:, 1], new[:, 0])[0, 1] < -0.8
    assert recalled.success[:, 2].std() < 0.1


def test_outcomes_that_follow_nothing_are_not_recalled_from_themselves():
    rng = np.random.default_rng(0)
    traits, success = rng.normal(size=(300, 6)).astype(np.float32), rng.integers(2, size=(300, 5))
    kept = Memory.of(views(traits), outcomes_of(success))
    assert abs(np.corrcoef(kept.recalled_past().ravel(), success.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("n_tasks", [0, 1, 2])
def test_hardly_any_past_gives_the_prior_and_no_nan(n_tasks):
    traits, success = two_kinds(0, n_tasks)
    recalled = Memory.of(views(traits), outcomes_of(success)).recall(views(two_kinds(1, 3)[0]))
    assert np.isfinite(recalled.success).all()
    assert ((recalled.success > 0) & (recalled.success < 1)).all()
    assert np.isnan(recalled.log_latency).all()


def test_an_agent_without_a_past_is_taken_for_an_average_one():
    traits, success = two_kinds(0)
    success[:, 2] = np.nan
    recalled = Memory.of(views(traits), outcomes_of(success)).recall(views(traits))
    assert recalled.success[:, 2].mean() == pytest.approx(np.nanmean(success), abs=0.05)


def test_holes_in_the_past_do_not_turn_an_agent_around():
    traits, success = two_kinds(0, 400)
    holes = np.where(np.random.default_rng(1).random(success.shape) < 0.5, np.nan, success)
    recalled = Memory.of(views(traits), outcomes_of(holes)).recall(views(two_kinds(1)[0]))
    whole = Memory.of(views(traits), outcomes_of(success)).recall(views(two_kinds(1)[0]))
    assert np.corrcoef(recalled.success[:, 0], whole.success[:, 0])[0, 1] > 0.9


def test_no_agents_at_all():
    recalled = Memory.of(views(two_kinds(0)[0]), outcomes_of(np.zeros((200, 0)))).recall(views(two_kinds(1)[0]))
    assert recalled.success.shape == (200, 0)


def test_seconds_are_recalled_by_kind_of_task():
    traits, success = two_kinds(0)
    seconds = np.exp(1.0 + traits[:, :1] + np.array([0.0, 0.5, 1.0]))
    recalled = Memory.of(views(traits), outcomes_of(success, latency_s=seconds)).recall(views(traits))
    assert np.median(np.abs(np.exp(recalled.log_latency) / seconds - 1)) < 0.1


def test_an_attempt_by_one_agent_says_something_of_those_who_fail_with_it():
    rng = np.random.default_rng(0)
    hard = rng.random((500, 1)) < 0.5
    success = np.where(rng.random((500, 3)) < 0.9, hard, rng.random((500, 3)) < 0.5)
    success[:, 2] = rng.random(500) < 0.5  # the third goes its own way
    kept = Memory.of(views(np.zeros((500, 4), np.float32)), outcomes_of(success))
    before = np.full((2, 3), 0.5, np.float32)
    attempts = np.array([[1, np.nan, np.nan], [0, np.nan, np.nan]])
    after = kept.conditioned(before, attempts)
    assert after[0, 1] > 0.65
    assert after[1, 1] < 0.35
    assert after[:, 2] == pytest.approx(0.5, abs=0.1)


@given(st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=3, max_size=3))
def test_probabilities_stay_probabilities_after_any_attempts(attempts):
    traits, success = two_kinds(0, 50)
    kept = Memory.of(views(traits), outcomes_of(success))
    after = kept.conditioned(kept.recall(views(traits[:1])).success, np.array([attempts]))
    assert ((after > 0) & (after < 1)).all()


def test_kinds_that_the_past_was_said_to_be_of_are_guessed_and_help():
    """A kind is a corner of two traits, which neither trait tells alone, and each agent is good at one kind."""
    rng = np.random.default_rng(0)
    traits = rng.normal(size=(600, 12)).astype(np.float32)
    kind = (traits[:, 0] > 0).astype(int) * 2 + (traits[:, 1] > 0)
    success = (rng.random((600, 4)) < np.where(kind[:, None] == np.arange(4), 0.8, 0.35)).astype(np.float32)
    names = tuple(f"kind-{number}" for number in kind)
    past, new = np.arange(400), np.arange(400, 600)
    told = Memory.of(views(traits[past]), outcomes_of(success[past]), names[:400]).recall(views(traits[new]))
    untold = Memory.of(views(traits[past]), outcomes_of(success[past])).recall(views(traits[new]))
    assert (told.kinds.argmax(axis=1) == kind[new]).mean() > 0.9
    assert untold.kinds.shape == (200, 0)
    right = kind[new][:, None] == np.arange(4)
    gap = [each.success[right].mean() - each.success[~right].mean() for each in (told, untold)]
    assert gap[0] > gap[1] + 0.05


def test_what_a_text_is_about_counts_where_it_tells_something():
    rng = np.random.default_rng(0)
    about = rng.normal(size=(2, 16))
    topic = rng.integers(2, size=500)
    sense = about[topic] + 0.3 * rng.normal(size=(500, 16))
    sense /= np.linalg.norm(sense, axis=1, keepdims=True)
    success = (rng.random((500, 2)) < np.where(topic[:, None] == np.arange(2), 0.9, 0.2)).astype(np.float32)
    traits = rng.normal(size=(500, 4)).astype(np.float32)
    past, new = np.arange(300), np.arange(300, 500)
    seeing = Memory.of(views(traits[past], sense[past]), outcomes_of(success[past]))
    assert seeing.uses_sense
    recalled = seeing.recall(views(traits[new], sense[new])).success
    assert ((recalled[:, 1] > recalled[:, 0]) == topic[new]).mean() > 0.95
    noise = rng.permutation(sense)  # of other tasks
    assert not Memory.of(views(traits[past], noise[past]), outcomes_of(success[past])).uses_sense


@pytest.mark.parametrize("names", [(), ("",) * 200, ("only",) * 200, tuple(map(str, range(200)))])
def test_kinds_that_tell_nothing_are_none(names):
    traits, success = two_kinds(0)
    kept = Memory.of(views(traits), outcomes_of(success), names)
    assert kept.kinds is None
    assert np.isfinite(kept.recall(views(traits)).success).all()


def test_each_past_task_is_recalled_without_its_own_outcome_and_kind():
    """Agents that succeed by chance at tasks of random kinds: none of the past may show in what is recalled."""
    rng = np.random.default_rng(0)
    traits, success = rng.normal(size=(300, 6)).astype(np.float32), rng.integers(2, size=(300, 5))
    names = tuple(str(number) for number in rng.integers(3, size=300))
    kept = Memory.of(views(traits), outcomes_of(success), names)
    assert abs(np.corrcoef(kept.recalled_past().ravel(), success.ravel())[0, 1]) < 0.1

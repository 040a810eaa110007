"""What like tasks say: exact leave-one-out, silence where nothing is known, no luck taken for skill."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowray.routing import memory
from flowray.routing.estimates import Outcomes
from flowray.routing.memory import Memory


def outcomes_of(success: np.ndarray, **others: np.ndarray) -> Outcomes:
    success = success.astype(np.float32)
    none = np.full_like(success, np.nan)
    return Outcomes(**{"success": success, "quality": success, "latency_s": none, "cost_usd": none, "tokens": none} | {
        name: values.astype(np.float32) for name, values in others.items()
    })  # fmt: skip


def two_kinds(seed: int, n_tasks: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Traits, and the success of three agents: the first follows one trait, the second its opposite, the third luck."""
    rng = np.random.default_rng(seed)
    traits = rng.normal(size=(n_tasks, 4)).astype(np.float32)
    chance = 1 / (1 + np.exp(-3 * traits[:, :1] * np.array([1, -1, 0])))
    return traits, (rng.random(chance.shape) < chance).astype(np.float32)


def test_each_agent_is_recalled_for_what_it_is_good_at():
    traits, success = two_kinds(0)
    new, _ = two_kinds(1)
    recalled = Memory.of(traits, outcomes_of(success)).recall(new)
    assert np.corrcoef(recalled.success[:, 0], new[:, 0])[0, 1] > 0.8
    assert np.corrcoef(recalled.success[:, 1], new[:, 0])[0, 1] < -0.8
    assert recalled.success[:, 2].std() < 0.1


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_leaving_one_out_is_the_same_as_fitting_without_it(seed):
    rng = np.random.default_rng(seed)
    features, targets = rng.normal(size=(12, 5)), rng.normal(size=(12, 2))
    noises = np.array([2, 6])
    _, loo = memory._Basis.of(features).solve(targets, noises)
    for left in range(12):
        others = np.arange(12) != left
        for column, noise in enumerate(memory._NOISES[noises]):
            gram = features[others].T @ features[others] + noise * np.eye(5)
            weights = np.linalg.solve(gram, features[others].T @ targets[others, column])
            assert loo[left, column] == pytest.approx(features[left] @ weights, abs=1e-8)


def test_outcomes_that_follow_nothing_are_not_recalled_from_themselves():
    rng = np.random.default_rng(0)
    traits, success = rng.normal(size=(300, 6)).astype(np.float32), rng.integers(2, size=(300, 5))
    kept = Memory.of(traits, outcomes_of(success))
    assert abs(np.corrcoef(kept.recalled_past().ravel(), success.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("n_tasks", [0, 1, 2])
def test_hardly_any_past_gives_the_prior_and_no_nan(n_tasks):
    traits, success = two_kinds(0, n_tasks)
    recalled = Memory.of(traits, outcomes_of(success)).recall(two_kinds(1, 3)[0])
    assert np.isfinite(recalled.success).all()
    assert ((recalled.success > 0) & (recalled.success < 1)).all()
    assert np.isnan(recalled.log_latency).all()


def test_an_agent_without_a_past_is_taken_for_an_average_one():
    traits, success = two_kinds(0)
    success[:, 2] = np.nan
    recalled = Memory.of(traits, outcomes_of(success)).recall(traits)
    assert recalled.success[:, 2].mean() == pytest.approx(np.nanmean(success), abs=0.05)


def test_holes_in_the_past_do_not_turn_an_agent_around():
    traits, success = two_kinds(0, 400)
    holes = np.where(np.random.default_rng(1).random(success.shape) < 0.5, np.nan, success)
    recalled = Memory.of(traits, outcomes_of(holes)).recall(two_kinds(1)[0])
    whole = Memory.of(traits, outcomes_of(success)).recall(two_kinds(1)[0])
    assert np.corrcoef(recalled.success[:, 0], whole.success[:, 0])[0, 1] > 0.9


def test_no_agents_at_all():
    recalled = Memory.of(two_kinds(0)[0], outcomes_of(np.zeros((200, 0)))).recall(two_kinds(1)[0])
    assert recalled.success.shape == (200, 0)


def test_seconds_are_recalled_by_kind_of_task():
    traits, success = two_kinds(0)
    seconds = np.exp(1.0 + traits[:, :1] + np.array([0.0, 0.5, 1.0]))
    recalled = Memory.of(traits, outcomes_of(success, latency_s=seconds)).recall(traits)
    assert np.median(np.abs(np.exp(recalled.log_latency) / seconds - 1)) < 0.1


def test_an_attempt_by_one_agent_says_something_of_those_who_fail_with_it():
    rng = np.random.default_rng(0)
    hard = rng.random((500, 1)) < 0.5
    success = np.where(rng.random((500, 3)) < 0.9, hard, rng.random((500, 3)) < 0.5)
    success[:, 2] = rng.random(500) < 0.5  # the third goes its own way
    kept = Memory.of(np.zeros((500, 4), np.float32), outcomes_of(success))
    before = np.full((2, 3), 0.5, np.float32)
    attempts = np.array([[1, np.nan, np.nan], [0, np.nan, np.nan]])
    after = kept.conditioned(before, attempts)
    assert after[0, 1] > 0.65
    assert after[1, 1] < 0.35
    assert after[:, 2] == pytest.approx(0.5, abs=0.1)


@given(st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=3, max_size=3))
def test_probabilities_stay_probabilities_after_any_attempts(attempts):
    traits, success = two_kinds(0, 50)
    kept = Memory.of(traits, outcomes_of(success))
    after = kept.conditioned(kept.recall(traits[:1]).success, np.array([attempts]))
    assert ((after > 0) & (after < 1)).all()

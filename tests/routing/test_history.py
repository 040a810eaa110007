"""Records per capability: laws of counting, forgetting and leaving out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.routing.estimates import Outcomes
from flowray.routing.history import HistoryTable, discounts

FIELDS = ("count", "success", "quality", "latency_count", "log_latency", "cost_count", "cost_usd")


def past(seed: int, n_tasks: int, n_agents: int = 3, n_capabilities: int = 4) -> tuple[np.ndarray, Outcomes]:
    """Weights and outcomes with holes."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(n_capabilities), size=n_tasks).astype(np.float32)
    success = np.where(rng.random((n_tasks, n_agents)) < 0.3, np.nan, rng.integers(2, size=(n_tasks, n_agents)))
    seconds = np.where(rng.random(success.shape) < 0.3, np.nan, rng.lognormal(size=success.shape))
    dollars = np.where(rng.random(success.shape) < 0.3, np.nan, rng.random(success.shape))
    float32 = [a.astype(np.float32) for a in (success, seconds, dollars)]
    outcomes = Outcomes(
        success=float32[0], quality=float32[0], latency_s=float32[1], cost_usd=float32[2], tokens=float32[2]
    )
    return weights, outcomes


def assert_same(one: HistoryTable, other: HistoryTable) -> None:
    for field in FIELDS:
        np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=1e-5, atol=1e-6, err_msg=field)


def test_hard_labels_give_plain_counts():
    weights = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    success = np.array([[1, 0], [0, np.nan], [1, 1]], np.float32)
    none = np.full_like(success, np.nan)
    outcomes = Outcomes(success=success, quality=success, latency_s=none, cost_usd=none, tokens=none)
    table = HistoryTable.of(weights, outcomes)
    np.testing.assert_array_equal(table.count, [[2, 1], [1, 1]])
    np.testing.assert_array_equal(table.success, [[1, 1], [0, 1]])
    np.testing.assert_allclose(table.success_rates(0.0)[0], [0.5, 1.0])


@given(seed=st.integers(0, 10**6), n_tasks=st.integers(1, 12), decay=st.floats(0.5, 1.0))
def test_without_a_task_is_the_table_of_the_others(seed, n_tasks, decay):
    weights, outcomes = past(seed, n_tasks)
    discount = discounts(outcomes.known, decay)
    each = HistoryTable.of(weights, outcomes, decay=decay).without(weights, outcomes, discount)
    for task in range(n_tasks):
        others = Outcomes(  # the same log with this task's outcomes blotted out; what the others count for stays
            **{
                name: np.where(np.arange(n_tasks)[:, None] == task, np.nan, getattr(outcomes, name)).astype(np.float32)
                for name in ("success", "quality", "latency_s", "cost_usd", "tokens")
            }
        )
        left = {
            "count": others.known * discount,
            "success": np.where(others.known, others.success, 0) * discount,
        }
        for field, values in left.items():
            np.testing.assert_allclose(getattr(each, field)[task], values.T @ weights, rtol=1e-4, atol=1e-5)
    if decay == 1.0:
        for task in range(n_tasks):
            kept = np.arange(n_tasks) != task
            alone = HistoryTable.of(weights[kept], outcomes.take(kept))
            assert_same(HistoryTable(**{f: getattr(each, f)[task] for f in FIELDS}), alone)


@given(seed=st.integers(0, 10**6), n_tasks=st.integers(1, 12), cut=st.integers(0, 12), decay=st.floats(0.5, 1.0))
def test_adding_newer_tasks_is_the_table_of_all(seed, n_tasks, cut, decay):
    weights, outcomes = past(seed, n_tasks)
    cut = min(cut, n_tasks)
    older = HistoryTable.of(weights[:cut], outcomes.take(slice(cut)), decay=decay)
    both = older.updated(weights[cut:], outcomes.take(slice(cut, None)), decay=decay)
    assert_same(both, HistoryTable.of(weights, outcomes, decay=decay))


def test_an_attempt_fades_with_its_own_agents_later_ones():
    known = np.array([[True, True], [False, True], [True, True]])
    np.testing.assert_allclose(discounts(known, 0.5), [[0.5, 0.25], [0, 0.5], [1, 1]])


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.5, float("nan")])
def test_a_decay_that_is_no_decay_is_refused(decay):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        discounts(np.ones((2, 2), np.bool_), decay)


@given(seed=st.integers(0, 10**6), n_tasks=st.integers(0, 12), strength=st.floats(0.1, 100))
def test_rates_are_probabilities_and_nobody_is_without_one(seed, n_tasks, strength):
    weights, outcomes = past(seed, n_tasks)
    rates = HistoryTable.of(weights, outcomes).success_rates(strength)
    assert np.isfinite(rates).all()
    assert (rates >= 0).all() and (rates <= 1).all()


def test_a_rate_moves_from_the_prior_to_the_record_as_attempts_come():
    weights = np.eye(2, dtype=np.float32)[[0] * 20 + [1]]
    success = np.array([[1.0]] * 20 + [[0.0]], np.float32)
    none = np.full_like(success, np.nan)
    table = HistoryTable.of(
        weights, Outcomes(success=success, quality=success, latency_s=none, cost_usd=none, tokens=none)
    )
    often, once = table.success_rates(4.0)[0]
    assert often > 0.98
    assert 0.7 < once < table.agent_success_rates()[0]  # one failure moves it a little


def test_seconds_are_known_by_the_geometric_mean_and_dollars_by_the_mean():
    success = np.ones((2, 2), np.float32)
    pairs = np.array([[1.0, np.nan], [4.0, np.nan]], np.float32)
    outcomes = Outcomes(success=success, quality=success, latency_s=pairs, cost_usd=pairs, tokens=pairs)
    table = HistoryTable.of(np.ones((2, 1), np.float32), outcomes)
    np.testing.assert_allclose(table.latencies_s(1.0)[:, 0], [2.0, 2.0])  # a silent agent is as quick as the others
    np.testing.assert_allclose(table.costs_usd(1.0)[:, 0], [2.5, np.nan])  # and its price is its own


def test_nobody_did_anything_yet():
    table = HistoryTable.empty(2, 3)
    np.testing.assert_allclose(table.success_rates(1.0), 0.5)
    assert np.isnan(table.latencies_s(1.0)).all()

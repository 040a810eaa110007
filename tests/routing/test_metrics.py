"""Metrics against plain definitions, and the law that makes their intervals: a weight is a repetition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.routing import metrics

SEEDS = st.integers(0, 10**6)


def cells(seed: int, n_tasks: int = 9, n_agents: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Estimates with ties, and outcomes with holes."""
    rng = np.random.default_rng(seed)
    probability = (rng.integers(0, 8, size=(n_tasks, n_agents)) / 7).astype(np.float32)
    success = np.where(rng.random((n_tasks, n_agents)) < 0.2, np.nan, rng.integers(2, size=(n_tasks, n_agents)))
    return probability, success.astype(np.float32)


def value(statistic: metrics.Statistic, n_tasks: int) -> float:
    return float(statistic(np.ones((1, n_tasks), np.float32))[0])


def area(scores: np.ndarray, truth: np.ndarray) -> float:
    """The Mann-Whitney statistic, pair by pair."""
    pairs = [(s > t) + (s == t) / 2 for s in scores[truth] for t in scores[~truth]]
    return float(np.mean(pairs)) if pairs else math.nan


@given(seed=SEEDS)
def test_the_area_is_the_share_of_pairs_in_the_right_order(seed):
    p, y = cells(seed)
    known = np.isfinite(y)
    expected = area(p[known], y[known] == 1)
    np.testing.assert_allclose(value(metrics.auc(p, y), len(p)), expected, atol=1e-6)


@given(seed=SEEDS)
def test_the_area_within_agents_is_the_mean_of_theirs(seed):
    p, y = cells(seed)
    areas = [area(p[np.isfinite(y[:, a]), a], y[np.isfinite(y[:, a]), a] == 1) for a in range(3)]
    areas = [one for one in areas if math.isfinite(one)]
    expected = float(np.mean(areas)) if areas else math.nan
    np.testing.assert_allclose(value(metrics.within_agent_auc(p, y), len(p)), expected, atol=1e-6)


def test_a_constant_ranks_nothing():
    _, y = cells(0)
    assert value(metrics.auc(np.full_like(y, 0.7), y), len(y)) == 0.5


STATISTICS = {
    "accuracy": metrics.accuracy,
    "brier": metrics.brier,
    "ece": metrics.calibration_error,
    "auc": metrics.auc,
    "within": metrics.within_agent_auc,
    "median": lambda p, y: metrics.median(np.where(np.isfinite(y), p, np.nan).astype(np.float32)),
    "mean": lambda p, y: metrics.mean(y[:, 0]),
    "apgr": lambda p, y: metrics.apgr(p[:, 0] - p[:, 1], np.ones(len(p), np.float32), np.nan_to_num(y[:, 1])),
}


@pytest.mark.parametrize("name", STATISTICS)
@given(seed=SEEDS)
def test_a_weight_is_a_repetition(name, seed):
    p, y = cells(seed)
    counts = np.random.default_rng(seed).integers(0, 4, size=len(p))
    counts[0] = max(counts[0], 1)
    rows = np.repeat(np.arange(len(p)), counts)
    weighted = STATISTICS[name](p, y)(counts[None].astype(np.float32))[0]
    repeated = value(STATISTICS[name](p[rows], y[rows]), len(rows))
    np.testing.assert_allclose(weighted, repeated, atol=1e-5)


def test_calibration_error_by_hand():
    """0.9 said of ten, seven of which succeed; 0.1 said of ten, one of which does: (10*0.2 + 10*0) / 20."""
    p = np.array([[0.9]] * 10 + [[0.1]] * 10, np.float32)
    y = np.array([[1.0]] * 7 + [[0.0]] * 3 + [[1.0]] + [[0.0]] * 9, np.float32)
    assert value(metrics.calibration_error(p, y), 20) == pytest.approx(0.1, abs=1e-6)
    bins = metrics.reliability(p, y)
    filled = bins.count > 0
    np.testing.assert_allclose(bins.predicted[filled], [0.1, 0.9], atol=1e-6)
    np.testing.assert_allclose(bins.observed[filled], [0.1, 0.7], atol=1e-6)
    assert np.isnan(bins.predicted[~filled]).all()


def test_a_certain_probability_has_a_bin():
    ones = np.ones((3, 1), np.float32)
    assert metrics.reliability(ones, ones).count[-1] == 3


def test_accuracy_and_brier_by_hand():
    p, y = np.array([[0.5, 0.2]], np.float32), np.array([[1.0, 1.0]], np.float32)
    assert value(metrics.accuracy(p, y), 1) == 0.5
    assert value(metrics.brier(p, y), 1) == pytest.approx((0.25 + 0.64) / 2)


@given(seed=SEEDS)
def test_random_routing_recovers_half_of_the_gap(seed):
    rng = np.random.default_rng(seed)
    strong, weak = (rng.random(20).astype(np.float32) for _ in range(2))
    strong += 1.0
    assert value(metrics.apgr(np.zeros(20, np.float32), strong, weak), 20) == pytest.approx(0.5, abs=1e-5)


def test_sending_first_what_gains_most_recovers_most():
    strong, weak = np.ones(4, np.float32), np.array([0, 0, 1, 1], np.float32)
    good, bad = np.array([4, 3, 2, 1], np.float32), np.array([1, 2, 3, 4], np.float32)
    assert value(metrics.apgr(good, strong, weak), 4) == pytest.approx(0.75)
    assert value(metrics.apgr(bad, strong, weak), 4) == pytest.approx(0.25)
    curve = metrics.call_curve(good, strong, weak)
    assert curve.call_share(0.5) == pytest.approx(0.25)
    assert curve.call_share(0.8) == pytest.approx(0.4)
    assert math.isnan(curve.call_share(1.1))


def test_an_interval_holds_the_value_and_narrows_with_tasks():
    rng = np.random.default_rng(0)
    widths = []
    for n in (100, 10_000):
        flips = (rng.random(n) < 0.3).astype(np.float32)
        found = metrics.measure(metrics.mean(flips), np.arange(n), resamples=400)
        assert found.interval is not None
        low, high = found.interval
        assert low < found.value < high
        widths.append(high - low)
        assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.21 / n), rel=0.25)
    assert widths[1] < widths[0] / 5


def test_tasks_of_one_group_are_drawn_together():
    """Twenty copies of five tasks tell as much as the five tasks."""
    flips = np.array([1, 0, 1, 0, 0], np.float32)
    five = metrics.measure(metrics.mean(flips), np.arange(5), resamples=500)
    copies = metrics.measure(metrics.mean(np.tile(flips, 20)), np.tile(np.arange(5), 20), resamples=500)
    assert copies == five


def test_resamples_in_small_blocks_are_the_same(monkeypatch):
    flips = (np.random.default_rng(1).random(50) < 0.5).astype(np.float32)
    one_block = metrics.measure(metrics.mean(flips), np.arange(50), resamples=40)
    monkeypatch.setattr(metrics, "_CHUNK", 120)
    assert metrics.measure(metrics.mean(flips), np.arange(50), resamples=40) == one_block


def test_there_is_no_interval_where_draws_have_no_value():
    rare = np.array([1.0] + [np.nan] * 9, np.float32)
    found = metrics.measure(metrics.mean(rare), np.arange(10), resamples=200)
    assert found == metrics.Measured(value=1.0)


def test_nothing_measured_is_not_a_number():
    nothing = np.full((4, 2), np.nan, np.float32)
    for statistic in (metrics.auc, metrics.within_agent_auc, metrics.accuracy, metrics.calibration_error):
        assert math.isnan(value(statistic(np.zeros_like(nothing), nothing), 4))
    assert math.isnan(value(metrics.median(nothing), 4))

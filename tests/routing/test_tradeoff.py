"""Cost against quality: the hull, and what is read off it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.routing import tradeoff
from flowray.routing.tradeoff import Points, choose, hull, market

NUMBERS = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=12)
ALL = np.ones((1, 2), np.float32)


def stage(success: list[list[float]], cost: list[list[float]], best: int = 0) -> tradeoff.Market:
    y, c = np.array(success, np.float32), np.array(cost, np.float32)
    return market(y, c, np.full_like(c, 100.0), best)


def value(statistic: tradeoff.Statistic, n_tasks: int) -> float:
    return float(statistic(np.ones((1, n_tasks), np.float32))[0])


@given(points=NUMBERS)
def test_the_hull_rises_bends_down_and_covers_every_point(points):
    cost, success = (np.array(column, float) for column in zip(*points, strict=True))
    kept = hull(cost, success)
    x, y = cost[kept], success[kept]
    assert (np.diff(x) > 0).all() and (np.diff(y) > 0).all()
    if len(kept) > 2:
        assert (np.diff(np.diff(y) / np.diff(x)) < 1e-9).all()
    assert (np.interp(cost, x, y) >= success - 1e-9).all()


def test_two_agents_mixed_at_random():
    """One agent costs 10 and succeeds always, the other costs 1 and succeeds half the time."""
    both = stage([[1, 1], [1, 0]], [[10, 1], [10, 1]])
    single, cheapest = both.single(0), both.single(1)
    mixed = both.singles()
    third = (4 - 1) / (10 - 1)
    assert value(tradeoff.quality_share(mixed, single), 2) == pytest.approx(0.5 + 0.5 * third)
    assert value(tradeoff.quality_area(mixed, single, cheapest), 2) == pytest.approx(0.75)


def test_knowing_the_outcomes_costs_less():
    """The oracle sends the first task to the cheap agent and the second to the dear one: all succeed for 5.5."""
    both = stage([[1, 1], [1, 0]], [[10, 1], [10, 1]])
    single, oracle = both.single(0), both.oracle()
    assert value(tradeoff.quality_share(oracle, single, budget=0.55), 2) == pytest.approx(1.0)
    assert value(tradeoff.dollars_per_million_tokens(oracle, single, kept_share=1.0), 2) == pytest.approx(55_000)
    assert value(tradeoff.dollars_per_million_tokens(single, single), 2) == pytest.approx(100_000)


def test_what_is_not_reached_is_not_a_number():
    both = stage([[1, 0], [1, 0]], [[10, 9], [10, 9]])
    assert math.isnan(value(tradeoff.quality_share(both.singles(), both.single(0)), 2))  # nothing is 60 % cheaper
    assert math.isnan(value(tradeoff.dollars_per_million_tokens(both.single(1), both.single(0)), 2))


def test_rates_reach_from_quality_alone_to_the_cheapest():
    success, cost = np.array([[0.9, 0.8]], np.float32), np.array([[0.01, 0.001]], np.float32)
    rates = tradeoff.rates_for(cost)
    may = np.ones((1, 2), np.bool_)
    taken = [int(choose(success, cost, may, rate)[0]) for rate in rates]
    assert (rates[0], rates[-1]) == (0.0, np.inf)
    assert taken == sorted(taken)
    assert set(taken) == {0, 1}


def test_ties_go_to_the_cheaper_and_nobody_is_taken_who_may_not():
    success, cost = np.array([[0.9, 0.9, 1.0]], np.float32), np.array([[2.0, 1.0, 0.1]], np.float32)
    may = np.array([[True, True, False]])
    assert choose(success, cost, may, 0.0).tolist() == [1]
    assert choose(success, cost, may, np.inf).tolist() == [1]


@given(seed=st.integers(0, 10**6))
def test_a_weight_is_a_repetition(seed):
    rng = np.random.default_rng(seed)
    n = 8
    y = rng.integers(2, size=(n, 3)).astype(np.float32)
    c = rng.uniform(1, 5, size=(n, 3)).astype(np.float32)
    counts = rng.integers(0, 3, size=n)
    counts[0] = 1
    rows = np.repeat(np.arange(n), counts)

    def figures(rows: np.ndarray) -> list[tradeoff.Statistic]:
        def of(values: np.ndarray) -> Points:
            return Points(success=values[rows], cost_usd=c[rows], tokens=np.full_like(c, 50.0)[rows])

        points = of(y)
        single, cheapest = points.at(0), points.at(1)
        return [
            tradeoff.quality_share(points, single, budget=0.9),
            tradeoff.quality_area(points, single, cheapest),
            tradeoff.dollars_per_million_tokens(points, single),
        ]

    pairs = zip(figures(np.arange(n)), figures(rows), strict=True)
    for weighted, repeated in pairs:
        if y[rows, 0].any():
            found = weighted(counts[None].astype(np.float32))[0]
            np.testing.assert_allclose(found, value(repeated, len(rows)), rtol=1e-4)


def test_an_attempt_without_a_cost_costs_what_its_agent_usually_does():
    y = np.array([[1, 0], [0, 1], [np.nan, 1]], np.float32)
    c = np.array([[1.0, 4.0], [3.0, np.nan], [np.nan, 6.0]], np.float32)
    made = market(y, c, np.full_like(c, np.nan), best=1)
    np.testing.assert_array_equal(made.cost_usd, [[1, 4], [3, 5], [np.nan, 6]])
    assert made.cheapest == 0
    with pytest.raises(ValueError, match="without any known cost"):
        market(y, np.full_like(c, np.nan), c, best=0)

"""Open-loop arrivals: as many as promised, at times of their own, whenever they are asked for."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from arrivals import BURST, Arrivals


def all_until(end: float, every_s: float, *, most: int = 10**9, seed: int = 1) -> list[float]:
    arrivals = Arrivals(100.0, 50.0, random.Random(seed))
    times: list[float] = []
    for step in range(1, round((end - 50.0) / every_s) + 1):
        while some := arrivals.due(50.0 + step * every_s, most):
            times += some
    return times


def test_the_rate_is_the_mean() -> None:
    times = all_until(1050.0, 10.0)
    assert len(times) == pytest.approx(100_000, rel=0.03)
    assert times == sorted(times) and times[0] > 50.0 and times[-1] <= 1050.0


def test_who_asks_late_or_for_a_few_gets_the_same_times() -> None:
    assert all_until(80.0, 0.01) == all_until(80.0, 30.0) == all_until(80.0, 30.0, most=7)


def test_some_come_in_bursts_and_the_gaps_vary_as_those_of_a_poisson_process() -> None:
    together = Counter(all_until(1050.0, 10.0))
    assert set(together.values()) == {1, BURST}
    moments = sorted(together)
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation / mean == pytest.approx(1.0, abs=0.03)


def test_nothing_comes_before_its_time_and_a_batch_has_an_end() -> None:
    arrivals = Arrivals(100.0, 50.0, random.Random(1))
    assert arrivals.due(50.0, 100) == []
    assert 100 <= len(arrivals.due(1050.0, 100)) < 100 + BURST


def test_no_rate_is_an_error() -> None:
    with pytest.raises(ValueError, match="rate_per_s"):
        Arrivals(0.0, 0.0, random.Random(1))

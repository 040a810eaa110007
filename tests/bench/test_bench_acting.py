"""What second attempts are worth: the parts of these benchmarks that need no data."""

from __future__ import annotations

import numpy as np
import pytest

from bench.workers import hedged_alone
from bench.workers.acting_replayed import DOUBLING, Decided, Split, within
from flowray.core.acting import ActingPolicy
from flowray.core.model import Estimate
from flowray.routing.queries import Query


def decided() -> Decided:
    """Four tasks and two classes: the first choice fails at half of them, the second one mends one of these."""
    success = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    cost_usd = np.array([[1.0, 2.0]] * 4)
    second = np.ones(4, np.intp)
    gain = np.array([0.3, 0.2, 0.1, 0.02])
    confidence = np.array([0.9, 0.4, 0.4, 0.4])
    return Decided(Split(success, cost_usd, cost_usd, []), [], np.zeros(4, np.intp), confidence, second, gain)


def test_thresholds_say_which_tasks_are_copied():
    assert decided().copied(ActingPolicy(apart=1.0, copy_gain=0.1)).tolist() == [True, True, True, False]
    assert decided().copied(ActingPolicy(apart=0.5, copy_gain=0.1)).tolist() == [True, True, False, False]
    assert decided().copied(ActingPolicy(unsure=0.5, copy_gain=0.05)).tolist() == [False, True, True, False]


def test_copies_are_paid_from_credits():
    policy = ActingPolicy(copy_gain=0.0, copy_share=0.25, copy_burst=1.0)
    assert decided().copied(policy).tolist() == [True, False, False, False]


def test_what_copies_bring_is_weighed_against_their_money():
    assert decided().added() == (0.25, pytest.approx(0.155))
    assert decided().net(1.0, 0.0) == pytest.approx(0.25 - DOUBLING * 2.0)  # all four
    assert decided().net(1.0, 0.075) == pytest.approx(0.25 - DOUBLING * 1.0)  # the first two
    assert decided().net(0.3, 0.0) == 0.0


class Said:
    """A router that expects the same of each task; who has failed at it is expected to fail again."""

    def estimates(self, queries: list[Query]) -> list[tuple[Estimate, ...]]:
        return [
            tuple(
                Estimate(name, 0.0 if (name, 0.0) in query.tried else success, cost_usd=usd)
                for name, success, usd in (("dear", 0.9, 4.0), ("cheap", 0.85, 1.0), ("other", 0.5, 2.0))
            )
            for query in queries
        ]


def ladder() -> Decided:
    """Four tasks and three classes: the dear one fails at two; the cheap one mends one of them, the other one both."""
    success = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    cost_usd = np.array([[4.0, 1.0, 2.0]] * 4)
    queries = [Query(f"task {row}", ("dear", "cheap", "other")) for row in range(4)]
    nothing = np.zeros(4)
    estimates = Said().estimates(queries)
    of_set = Split(success, cost_usd, cost_usd, queries)
    return Decided(of_set, estimates, np.zeros(4, np.intp), nothing, np.ones(4, np.intp), nothing)


@pytest.mark.parametrize(
    ("quality", "attempts", "mended", "usd"),
    [
        (1.0, 1, 0.0, 16.0),
        (1.0, 2, 0.5, 16.0 + 2.0),  # the dear one first, then twice the cheap one
        (1.0, 3, 1.0, 16.0 + 2.0 + 2.0),  # and once the other one
        (0.9, 1, 0.5, 4.0),  # the cheap one first: it fails at the last two
        (0.9, 2, 0.5, 4.0 + 8.0),  # at which the dear one is asked then
        (0.9, 3, 1.0, 4.0 + 8.0 + 2.0),
    ],
)
def test_a_ladder_goes_on_until_somebody_does_it(quality, attempts, mended, usd):
    assert ladder().mended(Said(), quality, attempts) == (mended, pytest.approx(usd / 16.0 - 1.0))


def test_the_most_that_is_mended_for_the_money_there_is():
    curve = [(0.6, 0.3), (0.5, 0.2), (0.55, -0.1), (0.4, -0.5)]
    assert within(0.2, curve) == 2
    assert within(0.5, curve) == 0
    assert within(-0.9, curve) == 3  # nothing is that cheap


def test_hedges_help_where_agents_get_stuck_and_stay_within_their_budget():
    settings = {"tasks": 800, "seeds": 1, "load": 0.5}
    stuck = hedged_alone.work({**settings, "blame": "agent"})
    long = hedged_alone.work({**settings, "blame": "task"})
    assert stuck["p99_hedged_ratio"] < 0.5
    assert stuck["extra_busy_ratio"] < 0.0 < long["extra_busy_ratio"]
    assert 0.0 < stuck["hedges_ratio"] <= 0.1 + 10 / 800

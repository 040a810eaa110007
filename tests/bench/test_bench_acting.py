"""What second attempts are worth: the parts of these benchmarks that need no data."""

from __future__ import annotations

import numpy as np
import pytest

from bench.workers import hedged_alone
from bench.workers.acting_replayed import DOUBLING, Decided, Split
from flowray.core.acting import ActingPolicy


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


def test_hedges_help_where_agents_get_stuck_and_stay_within_their_budget():
    settings = {"tasks": 800, "seeds": 1, "load": 0.5}
    stuck = hedged_alone.work({**settings, "blame": "agent"})
    long = hedged_alone.work({**settings, "blame": "task"})
    assert stuck["p99_hedged_ratio"] < 0.5
    assert stuck["extra_busy_ratio"] < 0.0 < long["extra_busy_ratio"]
    assert 0.0 < stuck["hedges_ratio"] <= 0.1 + 10 / 800

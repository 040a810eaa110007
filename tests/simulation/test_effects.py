"""Worlds that are hard on side effects: long exclusive attempts with steps, agents that are given up and live on,
coordinators that come and go, a slow disk that loses its tail. And the bugs that such a world must find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest

from flowray.core.commands import AnswerStep
from flowray.core.coordination import Coordination
from flowray.core.fencing import Lease
from flowray.core.model import AgentSpec, Task, TaskId
from flowray.core.policy import CorePolicy
from flowray.core.retry import RetryPolicy
from flowray.testing.agent import AgentProcess
from flowray.testing.callers import Plan
from flowray.testing.coordinator import CoordinatorProcess
from flowray.testing.faults import (
    CoordinatorCrash,
    CoordinatorZombie,
    Delay,
    Drop,
    FalseDeath,
    Hang,
    LostTail,
    SlowDisk,
)
from flowray.testing.swarm import Options, run_options

from . import mutants

OWNERS = (Coordination, CoordinatorProcess, AgentProcess, Lease, AnswerStep)
SAFETY_S = 40.0
SEEDS = 25
PLANTED = (
    "a stale attempt records",
    "goes on before its step is on disk",
    "is given steps that are not on disk",
    "exclusive tasks do not wait",
    "told to stop and not waited for",
    "exclusive attempts start before they are on disk",
    "nobody fences itself off",
    "leases are for ever",
    "leases for those given up",
)


def options(seed: int) -> Options:
    rng = Random(f"{seed}/effects")
    plans = [
        Plan(
            task=Task(
                id=TaskId(f"t{number:02d}"),
                needs=("read",),
                exclusive=rng.random() < 0.8,
                attempt_timeout_s=rng.choice((None, 6.0)),
                max_attempts=5,
                labels={"steps": "2"},
            ),
            at_s=rng.uniform(0.5, SAFETY_S * 0.7),
        )
        for number in range(25)
    ]
    possible = (
        FalseDeath(rate_per_s=0.3, lives_on_s=30.0),
        Hang(rate_per_s=0.1, lasts_s=20.0),
        Drop(ratio=0.02),
        Delay(max_s=10.0, ratio=0.1),
        CoordinatorCrash(rate_per_s=0.15, down_s=rng.choice((0.1, 6.0))),
        CoordinatorZombie(rate_per_s=0.1, pause_s=8.0, replaced_after_s=1.0),
        LostTail(ratio=1.0),
        SlowDisk(sync_s=rng.choice((0.1, 1.5))),
    )
    return Options(
        seed=seed,
        specs=(AgentSpec(name="reader", tier="primary", capabilities=("read",), count=5, slots=2),),
        plans=tuple(plans),
        rescales=(),
        faults=tuple(fault for fault in possible if rng.random() < 0.7),
        policy=CorePolicy(
            fence_s=3.0, adoption_s=1.0, cancel_grace_s=1.0, retry=RetryPolicy(max_losses=30, poison_kills=30)
        ),
        safety_s=SAFETY_S,
        median_s=4.0,
    )


@pytest.fixture
def mended() -> Iterator[None]:
    """What is planted in a test is gone after it."""
    saved = {owner: dict(vars(owner)) for owner in OWNERS}
    yield
    for owner, before in saved.items():
        for attribute, value in before.items():
            if vars(owner)[attribute] is not value:
                setattr(owner, attribute, value)


@pytest.mark.slow
def test_steps_and_exclusive_tasks_hold() -> None:
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        report = run_options(options(seed))
        assert not report.violation, f"{report.violation}\n{report.options}"
        seen.update(report.sometimes)
    wanted = ("held back", "fenced itself off", "waited for a lease", "step given to a later attempt", "step stale")
    assert not [point for point in wanted if not seen[point]]


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, mended: None) -> None:
    mutants.MUTANTS[name]()
    assert any(run_options(options(seed)).violation for seed in range(4 * SEEDS))

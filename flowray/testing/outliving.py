"""Worlds that are hard on what outlives a coordinator: leases that one of old might give, attempts that the journal
lost, reports that come late, and states that nobody was told of.

As in `special`, whose seeds these are, each has one subject and draws little else.
"""

from __future__ import annotations

from random import Random

from flowray.core.model import AgentSpec, StatefulSpec, Task, TaskId
from flowray.core.placement import PlacementPolicy
from flowray.core.policy import CorePolicy
from flowray.core.registry import RestartPolicy
from flowray.core.retry import RetryPolicy
from flowray.testing.callers import Plan
from flowray.testing.drawing import Options
from flowray.testing.faults import (
    CoordinatorCrash,
    CoordinatorZombie,
    Crash,
    Delay,
    Duplicate,
    Fault,
    FullDisk,
    LateNews,
    LostTail,
    Reorder,
    Slow,
    SlowDisk,
)


def draw_replaced(seed: int) -> Options:
    """Hard on leases: a few long exclusive attempts, agents that stay with a coordinator that was replaced and goes
    on, and hardly anything that it would have to write, so that it does not notice."""
    rng = Random(f"{seed}/replaced")
    safety_s = 40.0
    plans = tuple(
        Plan(
            task=Task(id=TaskId(f"t{number}"), needs=("read",), exclusive=True, max_attempts=5),
            at_s=rng.uniform(0.5, 2.0),
        )
        for number in range(rng.choice((2, 4)))
    )
    return Options(
        seed=seed,
        specs=(AgentSpec(name="reader", tier="primary", capabilities=("read",), count=5, slots=rng.choice((1, 2))),),
        plans=plans,
        rescales=(),
        faults=(
            CoordinatorZombie(rate_per_s=0.1, pause_s=rng.choice((0.3, 1.0, 3.0)), replaced_after_s=0.2),
            LateNews(max_s=rng.choice((8.0, 30.0))),
        ),
        policy=CorePolicy(
            fence_s=rng.choice((2.0, 3.0)), adoption_s=0.3, retry=RetryPolicy(max_losses=30, poison_kills=30)
        ),
        safety_s=safety_s,
        median_s=10.0,
    )


def draw_lost_numbers(seed: int) -> Options:
    """Hard on numbers of attempts that the journal lost: tasks that are tried again and again while no sync ends, by
    agents that do not stop, so that they still have a high number when the journal is at a lower one of a later
    epoch."""
    rng = Random(f"{seed}/lost numbers")
    plans = tuple(
        Plan(
            task=Task(id=TaskId(f"t{number:02d}"), attempt_timeout_s=rng.choice((0.1, 0.4)), max_attempts=30),
            at_s=rng.uniform(0.5, 14.0),
        )
        for number in range(rng.choice((10, 30)))
    )
    return _of_readers(
        seed,
        plans,
        count=rng.randint(2, 4),
        slots=rng.choice((1, 2, 4)),
        faults=(
            CoordinatorCrash(rate_per_s=rng.choice((0.2, 0.6)), down_s=0.1),
            LostTail(ratio=1.0),
            SlowDisk(sync_s=rng.choice((0.3, 1.5))),
            FullDisk(rate_per_s=0.3, lasts_s=rng.choice((2.0, 6.0))),
        ),
        backoff_s=rng.choice((0.05, 0.5)),
        adoption_s=rng.choice((2.0, 10.0)),
        median_s=rng.choice((2.0, 5.0)),
    )


def draw_overtaken(seed: int) -> Options:
    """Hard on reports that come late: an agent says what it has to a new coordinator whose journal lost that, and its
    answer overtakes the report, while the task waits for an agent."""
    rng = Random(f"{seed}/overtaken")
    plans = tuple(
        Plan(task=Task(id=TaskId(f"t{number:02d}"), max_attempts=30), at_s=rng.uniform(0.5, 6.0))
        for number in range(rng.choice((20, 60)))
    )
    return _of_readers(
        seed,
        plans,
        count=rng.randint(1, 3),
        slots=rng.choice((1, 2)),
        faults=(
            CoordinatorCrash(rate_per_s=rng.choice((0.3, 0.6)), down_s=0.1),
            LostTail(ratio=1.0),
            SlowDisk(sync_s=rng.choice((0.3, 1.5))),
            FullDisk(rate_per_s=0.2, lasts_s=2.0),
            Reorder(ratio=0.5),
            Duplicate(ratio=0.3),
            Delay(max_s=rng.choice((1.0, 4.0)), ratio=0.6),
        ),
        backoff_s=0.05,
        adoption_s=10.0,
        median_s=rng.choice((0.2, 0.5)),
    )


def _of_readers(
    seed: int,
    plans: tuple[Plan, ...],
    *,
    count: int,
    slots: int,
    faults: tuple[Fault, ...],
    backoff_s: float,
    adoption_s: float,
    median_s: float,
) -> Options:
    """One class of agents, which nobody gives up soon."""
    return Options(
        seed=seed,
        specs=(AgentSpec(name="reader", tier="primary", count=count, slots=slots),),
        plans=plans,
        rescales=(),
        faults=faults,
        policy=CorePolicy(
            retry=RetryPolicy(backoff_s=backoff_s, backoff_max_s=1.0, max_losses=1000, poison_kills=30),
            placement=PlacementPolicy(prefetch_s=0.0),
            restart=RestartPolicy(delay_s=0.1, delay_max_s=1.0),
            cancel_grace_s=30.0,
            adoption_s=adoption_s,
            fence_s=3.0,
        ),
        safety_s=20.0,
        median_s=median_s,
    )


def draw_unseen(seed: int) -> Options:
    """Hard on states that a new coordinator has not been told of: a standby that is ahead of the active process and
    hears late of a new coordinator, while the active one dies on an input that the standby has applied."""
    rng = Random(f"{seed}/unseen")
    safety_s = 20.0
    plans = tuple(
        Plan(
            task=Task(id=TaskId(f"v{number:03d}"), agent="vault", entity=rng.choice(("", "a", "b", "c"))),
            at_s=rng.uniform(0.5, safety_s * 0.8),
        )
        for number in range(rng.choice((60, 150)))
    )
    spec = StatefulSpec(standby="warm", snapshot_every=rng.choice((5, 20)), snapshot_every_s=rng.choice((5.0, 30.0)))
    return Options(
        seed=seed,
        specs=(AgentSpec(name="vault", tier="primary", count=rng.choice((1, 3)), stateful=spec),),
        plans=plans,
        rescales=(),
        faults=(
            Crash(rate_per_s=rng.choice((0.3, 1.0)), notice_s=0.05),
            Slow(factor=20.0, share=0.5),
            CoordinatorCrash(rate_per_s=rng.choice((0.2, 0.5)), down_s=0.1),
            LateNews(max_s=rng.choice((2.0, 5.0))),
        ),
        policy=CorePolicy(
            retry=RetryPolicy(max_losses=30, poison_kills=1),
            restart=RestartPolicy(delay_s=0.1, delay_max_s=1.0),
            adoption_s=5.0,
        ),
        safety_s=safety_s,
        median_s=0.1,
    )

"""Which world a seed is: most are drawn from everything there is, ten in thirty-two are hard on one thing.

Bugs that need three rare things at once are found in few of the former; each of the latter has a subject, and draws
little else.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from flowray.core.model import AgentSpec, Task, TaskId
from flowray.core.placement import PlacementPolicy
from flowray.core.policy import CorePolicy
from flowray.core.registry import RestartPolicy
from flowray.core.retry import RetryPolicy
from flowray.testing.callers import Plan
from flowray.testing.drawing import Options, draw_acting, draw_anything, draw_routing, with_count
from flowray.testing.faults import (
    AgentStartFailure,
    CoordinatorCrash,
    CoordinatorZombie,
    Crash,
    Delay,
    Drop,
    FalseDeath,
    Fault,
    FullDisk,
    Hang,
    LateNews,
    LostTail,
    Partition,
    Reorder,
    Slow,
    SlowDisk,
)
from flowray.testing.outliving import draw_lost_numbers, draw_overtaken, draw_replaced, draw_unseen

EVERY = 32  # seeds, of which ten are such worlds


def draw_options(seed: int) -> Options:
    """The options of a seed; the same for ever, as long as nothing here and in `drawing` changes."""
    return _SUBJECTS.get(seed % EVERY, draw_anything)(seed)


def draw_effects(seed: int) -> Options:
    """Hard on side effects: long exclusive attempts with steps, agents that are given up or cut off and live on,
    coordinators that come and go, a slow disk that loses its tail."""
    rng = Random(f"{seed}/effects")
    safety_s = 40.0
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
            at_s=rng.uniform(0.5, safety_s * 0.7),
        )
        for number in range(25)
    ]
    possible: tuple[Fault, ...] = (
        FalseDeath(rate_per_s=0.3, lives_on_s=30.0),
        Hang(rate_per_s=0.1, lasts_s=20.0),
        Drop(ratio=0.02),
        Delay(max_s=10.0, ratio=0.1),
        CoordinatorCrash(rate_per_s=0.15, down_s=rng.choice((0.1, 6.0))),
        CoordinatorZombie(rate_per_s=0.1, pause_s=rng.choice((1.0, 1.0, 3.0, 8.0)), replaced_after_s=1.0),
        LostTail(ratio=1.0),
        SlowDisk(sync_s=rng.choice((0.1, 1.5, 5.0))),
        LateNews(max_s=15.0),
    )
    faults = tuple(fault for fault in possible if rng.random() < 0.7)
    if rng.random() < 0.5:
        cut = Partition(share=0.7, rate_per_s=0.2, lasts_s=rng.choice((6.0, 20.0)), one_way=True, staggered=True)
        faults = (*faults, cut)
    return Options(
        seed=seed,
        specs=(AgentSpec(name="reader", tier="primary", capabilities=("read",), count=5, slots=rng.choice((1, 2, 2))),),
        plans=tuple(plans),
        rescales=(),
        faults=faults,
        policy=CorePolicy(
            fence_s=3.0, adoption_s=1.0, cancel_grace_s=1.0, retry=RetryPolicy(max_losses=30, poison_kills=30)
        ),
        safety_s=safety_s,
        median_s=4.0,
    )


def draw_leaving(seed: int) -> Options:
    """Hard on who leaves: classes that are scaled down, to nothing and up again while their agents work, hold work
    ahead and hand it back, tasks that have a fallback, and coordinators that come and go meanwhile."""
    rng = Random(f"{seed}/leaving")
    safety_s = 20.0
    specs = tuple(
        AgentSpec(name=name, tier="primary", capabilities=("read",), count=rng.randint(1, 4), slots=rng.choice((1, 2)))
        for name in ("reader", "writer")[: rng.choice((1, 2, 2))]
    )
    idempotent = rng.choice((0.0, 0.5))
    plans = [
        Plan(
            task=Task(
                id=TaskId(f"t{number:03d}"),
                needs=("read",),
                agent=rng.choice(("", *(spec.name for spec in specs))),
                fallback=rng.choice(("", specs[-1].name)),
                attempt_timeout_s=rng.choice((None, 3.0)),
                max_attempts=rng.choice((1, 2, 3)),
                idempotent=rng.random() < idempotent,
            ),
            at_s=rng.uniform(0.5, safety_s * 0.9),
            cancel_after_s=rng.uniform(0.0, 5.0) if rng.random() < 0.2 else None,
        )
        for number in range(rng.choice((40, 120)))
    ]
    rescales = sorted(
        ((rng.uniform(1.0, safety_s), with_count(spec, rng.choice((0, 1, 1, spec.count)))) for spec in specs * 4),
        key=lambda change: change[0],
    )
    possible: tuple[Fault, ...] = (
        Crash(rate_per_s=0.3, notice_s=1.0),
        FalseDeath(rate_per_s=0.2, lives_on_s=5.0),
        Hang(rate_per_s=0.3, lasts_s=5.0),
        Slow(factor=10.0),
        Drop(ratio=rng.choice((0.02, 0.1))),
        Delay(max_s=2.0, ratio=0.2),
        Reorder(ratio=0.1),
        CoordinatorCrash(rate_per_s=0.4, down_s=rng.choice((0.1, 2.0))),
        LostTail(ratio=1.0),
        SlowDisk(sync_s=rng.choice((0.1, 1.5))),
        Partition(share=0.5, rate_per_s=0.1, lasts_s=5.0, one_way=False, staggered=True),
        AgentStartFailure(ratio=0.6),
    )
    return Options(
        seed=seed,
        specs=specs,
        plans=tuple(plans),
        rescales=tuple(rescales),
        faults=tuple(fault for fault in possible if rng.random() < 0.5),
        policy=CorePolicy(
            retry=RetryPolicy(backoff_s=0.05, max_losses=30, poison_kills=30),
            placement=PlacementPolicy(prefetch_s=rng.choice((0.0, 0.5, 2.0)), max_prefetch=4),
            routing=draw_routing(rng),
            restart=RestartPolicy(delay_s=0.1, delay_max_s=5.0, max_start_failures=rng.choice((1, 3))),
            acting=draw_acting(rng),
            cancel_grace_s=rng.choice((0.3, 5.0)),
            adoption_s=rng.choice((0.3, 2.0)),
            fence_s=3.0,
        ),
        safety_s=safety_s,
        median_s=rng.choice((0.1, 0.5)),
    )


def draw_late(seed: int) -> Options:
    """Hard on what agents still have of attempts that the journal never had: a tail that is lost, epochs that follow
    one another, and agents that were silent meanwhile."""
    rng = Random(f"{seed}/late")
    safety_s, killers, timeout_s = 20.0, rng.choice((0.0, 0.1, 0.4)), rng.choice((None, 0.5, 4.0))
    plans = [
        Plan(
            task=Task(
                id=TaskId(f"t{number:02d}"),
                attempt_timeout_s=timeout_s,
                max_attempts=30,
                labels={"kills": "yes"} if rng.random() < killers else {},
            ),
            at_s=rng.uniform(0.5, safety_s * 0.7),
        )
        for number in range(rng.choice((20, 60)))
    ]
    possible: tuple[Fault, ...] = (
        Crash(rate_per_s=0.3, notice_s=rng.choice((0.05, 10.0))),
        Hang(rate_per_s=0.5, lasts_s=8.0),
        Drop(ratio=rng.choice((0.02, 0.1))),
        Delay(max_s=5.0, ratio=0.1),
        Partition(share=0.5, rate_per_s=0.2, lasts_s=6.0, one_way=rng.random() < 0.5, staggered=True),
        CoordinatorZombie(rate_per_s=0.1, pause_s=3.0, replaced_after_s=1.0),
        FullDisk(rate_per_s=0.15, lasts_s=20.0),
        LateNews(max_s=10.0),
    )
    return Options(
        seed=seed,
        specs=(AgentSpec(name="reader", tier="primary", count=rng.randint(2, 4), slots=rng.choice((1, 2))),),
        plans=tuple(plans),
        rescales=(),
        faults=(
            CoordinatorCrash(rate_per_s=rng.choice((0.2, 0.6)), down_s=0.1),
            LostTail(ratio=1.0),
            SlowDisk(sync_s=rng.choice((1.5, 5.0))),
            *(fault for fault in possible if rng.random() < 0.7),
        ),
        policy=CorePolicy(
            retry=RetryPolicy(backoff_s=rng.choice((0.1, 2.0)), max_losses=30, poison_kills=6),
            placement=PlacementPolicy(prefetch_s=rng.choice((0.0, 2.0)), max_prefetch=8),
            restart=RestartPolicy(delay_s=0.1, delay_max_s=1.0),
            cancel_grace_s=rng.choice((0.3, 5.0)),
            adoption_s=rng.choice((0.3, 2.0)),
            fence_s=3.0,
        ),
        safety_s=safety_s,
        median_s=rng.choice((0.05, 0.2, 1.0)),
    )


_SUBJECTS: dict[int, Callable[[int], Options]] = {
    5: draw_late,
    9: draw_effects,
    13: draw_leaving,
    18: draw_replaced,
    21: draw_late,
    22: draw_lost_numbers,
    25: draw_effects,
    27: draw_overtaken,
    29: draw_leaving,
    31: draw_unseen,
}

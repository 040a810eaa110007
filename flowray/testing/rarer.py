"""The rarer half of the faults that a seed may draw, and the points that a large run must come by because of them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from flowray.testing.faults import (
    AgentCrashLoop,
    BitFlip,
    ClockJump,
    CoordinatorCrashLoop,
    CrashMidway,
    Drain,
    Fault,
    FullDisk,
    Partition,
    SyncError,
    TornWrite,
)

RARER_POINTS = (
    "agent crashed again",
    "agents scaled while some were cut off",
    "asked to leave",
    "clock ahead",
    "clock behind",
    "coordinator crashed again",
    "could not be ended yet",
    "crashed between two effects",
    "cut off",
    "cut off one way",
    "damaged journal refused",
    "death told twice",
    "declared dead while cut off",
    "disk full",
    "ended task found in the store",
    "heard late of a new coordinator",
    "held by a partition, then delivered",
    "kept with few agents",
    "node drained",
    "recovered from a snapshot",
    "recovered with back-offs",
    "recovered with running attempts",
    "sent together",
    "silent stream given up",
    "submitted again after its end",
    "sync failed",
    "three coordinators at once",
    "torn write dropped",
    "zombie was told an answer",
)


def draw_rarer_faults(rng: Random, safety_s: float) -> tuple[Fault, ...]:
    """Most worlds have none or two of these, some have all."""

    def rate(count: float) -> float:
        """So many in the whole run, at most."""
        return max(1.0, count * rng.random()) / safety_s

    possible: list[Callable[[], Fault]] = [
        lambda: Partition(
            share=rng.random(),
            rate_per_s=rate(6.0),
            lasts_s=rng.choice((1.0, 6.0, 15.0, 60.0)),
            one_way=rng.random() < 0.5,
            staggered=rng.random() < 0.5,
        ),
        lambda: ClockJump(max_s=rng.choice((1.0, 300.0))),
        lambda: SyncError(ratio=rng.random() ** 2 * 0.1),
        lambda: FullDisk(rate_per_s=rate(4.0), lasts_s=rng.choice((1.0, 5.0, 20.0))),
        lambda: CrashMidway(ratio=rng.random() ** 2 * 0.05),
        lambda: CoordinatorCrashLoop(ratio=rng.random() * 0.8),
        lambda: AgentCrashLoop(ratio=rng.random() * 0.8, within_s=rng.choice((0.1, 2.0))),
        lambda: TornWrite(ratio=rng.choice((0.5, 1.0))),
        lambda: BitFlip(ratio=rng.random() * 0.5),
        lambda: Drain(rate_per_s=rate(20.0)),
    ]
    chance = rng.choice((0.0, 0.15, 0.3, 0.3, 0.6))
    return tuple(make() for make in possible if rng.random() < chance)

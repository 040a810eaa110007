"""What a seed draws of stateful agents: in some worlds a class of them, with inputs and faults of their own."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from flowray.core.model import AgentSpec, StatefulSpec, Task, TaskId
from flowray.core.stateful import StatefulPolicy
from flowray.testing.callers import Plan
from flowray.testing.faults import Fault, OddState, SnapshotFailure

EVERY = 5  # seeds
STATEFUL_POINTS = (
    "expired with its number",
    "input left out",
    "input waits for a number",
    "kept outputs released",
    "mismatch found",
    "output of an earlier term",
    "promoted",
    "promoted with open inputs",
    "restored from a snapshot",
    "snapshot kept",
    "snapshot raced with a loss",
)


class StatefulWorld(NamedTuple):
    """What is added to a world; nothing in most."""

    specs: tuple[AgentSpec, ...] = ()
    plans: tuple[Plan, ...] = ()
    faults: tuple[Fault, ...] = ()
    policy: StatefulPolicy = StatefulPolicy()


def draw_stateful(seed: int, safety_s: float) -> StatefulWorld:
    """Draws of its own for every fifth seed: all other worlds are what they were before there were stateful agents."""
    if seed % EVERY != EVERY - 1:
        return StatefulWorld()
    rng = Random(f"{seed}/stateful")
    stateful = StatefulSpec(
        standby=rng.choice(("cold", "warm", "warm")),
        snapshot_every=rng.choice((1, 3, 20)),
        snapshot_every_s=rng.choice((0.5, 5.0, 30.0)),
    )
    spec = AgentSpec(name="vault", tier="primary", count=rng.choice((1, 1, 3)), stateful=stateful)
    killed, failed, hurried, cancelled = rng.random() * 0.03, rng.random() * 0.2, rng.random() * 0.2, rng.random() * 0.2
    plans = tuple(
        Plan(
            task=Task(
                id=TaskId(f"v{number:03d}"),
                agent=spec.name,
                entity=rng.choice(("", "a", "b", "c", "d")),
                priority=rng.choice((0, 0, 5)),
                deadline_s=rng.uniform(0.02, 5.0) if rng.random() < hurried else None,
                labels=({"kills": "yes"} if rng.random() < killed else {})
                | ({"fails": "yes"} if rng.random() < failed else {}),
            ),
            at_s=rng.uniform(0.5, min(60.0, safety_s * 0.8)),
            cancel_after_s=rng.random() ** 3 * 5.0 if rng.random() < cancelled else None,
            twice=rng.random() < 0.1,
        )
        for number in range(rng.choice((10, 40, 150)))
    )
    faults: tuple[Fault, ...] = tuple(
        fault
        for fault in (OddState(ratio=rng.random()), SnapshotFailure(ratio=rng.random() ** 2))
        if rng.random() < 0.3
    )
    policy = StatefulPolicy(
        max_inputs=rng.choice((3, 20, 10_000)),
        max_bytes=rng.choice((2048, 64 << 20, 64 << 20)),
        window=rng.choice((1, 4, 256, 256)),
        mismatches=rng.choice((1, 2)),
    )
    return StatefulWorld((spec,), plans, faults, policy)

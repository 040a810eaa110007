"""What a seed draws of chunks: in half of the worlds tasks that give some out, with readers, and bounds of these."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from msgspec import structs

from flowray.core.streaming import StreamingPolicy
from flowray.testing.callers import Plan


def with_streams(rng: Random, plans: tuple[Plan, ...], median_s: float) -> tuple[Plan, ...]:
    """The same plans, in some worlds with tasks that give out chunks, and with readers of these."""
    streamed, flaky = rng.choice((0.0, 0.0, 0.3, 1.0)), rng.choice((0.0, 0.3, 1.0))
    resuming, most = rng.choice((0.0, 0.5)), rng.choice((2, 8, 40))
    found = []
    for plan in plans:
        if rng.random() >= streamed:
            found.append(plan)
            continue
        labels = dict(plan.task.labels) | {"chunks": str(rng.randint(1, most))}
        labels |= {"flaky": "yes"} if rng.random() < flaky else {}
        labels |= {"resumes": "yes"} if rng.random() < resuming else {}
        readers = [(rng.choice((0.0, 0.0, 5.0, 200.0)) * rng.random(), rng.choice((0.0, median_s, 5.0)))]
        if rng.random() < 0.3:
            readers.append((rng.random() * 10.0 * median_s, 0.0))
        found.append(replace(plan, task=structs.replace(plan.task, labels=labels), readers=tuple(readers)))
    return tuple(found)


def draw_streaming(rng: Random) -> StreamingPolicy:
    """How many chunks there may be."""
    return StreamingPolicy(
        max_chunks=rng.choice((10, 50, 200_000, 200_000, 200_000)),
        max_bytes=rng.choice((500, 1 << 20, 1 << 20, 1 << 20)),
        max_open_bytes=rng.choice((5_000, 1 << 30, 1 << 30, 1 << 30)),
    )

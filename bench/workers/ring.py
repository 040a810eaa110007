"""All agents ask at the same time, each its neighbour: who asks whom, and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from bench.workers.loads import Ask, in_flight

SETTLE_S = 1.0  # processes go on freeing and loading for a moment after they are ready
T = TypeVar("T")


def neighbours(agents: Sequence[T]) -> Iterator[tuple[T, T]]:
    """Each agent with the one that it asks: each is asked by one, and the last asks the first."""
    return zip(agents, [*agents[1:], agents[0]], strict=True)


def parts(whole: int, largest: int) -> list[int]:
    """A whole in parts of at most this size."""
    full, rest = divmod(whole, largest)
    return [largest] * full + [rest] * (rest > 0)


def begin_at(agents: int) -> float:
    """When all begin, in seconds of time.time: late enough for each to have been told, and to have asked once."""
    return time.time() + 2.0 + 0.03 * agents


async def ask_all_along(ask: Ask, settings: Mapping[str, Any], moment: float) -> int:
    """One agent's part: how many answers it got between `moment` and `seconds` later, a few questions under way.

    Raises:
        RuntimeError: it was told too late to take part from the beginning.
    """
    body = b"x" * settings["bytes"]
    await ask(body)  # whatever has to be connected is connected now
    left_s = wait_s(moment)
    await asyncio.sleep(left_s)
    done, _ = await in_flight(ask, body, settings["each"], moment + settings["seconds"] - time.time())
    return done


def wait_s(moment: float) -> float:
    """Until then. Raises RuntimeError when it is past."""
    left_s = moment - time.time()
    if left_s < 0:
        raise RuntimeError(f"told {-left_s:.1f} s after all were to begin")
    return left_s

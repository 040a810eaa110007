"""What is asked of every side that carries messages: the same loops, whatever carries them.

Standard library only: these loops also run in the environments of peers, inside their agents.

A closed loop sends the next message when the last was answered: it gives the round trip, and hides what a stalled side
does to those who would have come meanwhile. An open loop sends by the clock and counts from the moment a message should
have left, so a stall is in the figures of all whom it kept waiting (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from bench.measure import percentile
from bench.workers.ticks import ticks

Ask = Callable[[bytes], Awaitable[object]]
Clock = Callable[[], float]
_DRAIN_S = 120.0  # for what an open loop sent to be answered, when the side is slower than its rate


async def closed_loop(ask: Ask, body: bytes, count: int, *, now: Clock = time.perf_counter) -> list[float]:
    """Seconds of each of `count` round trips, one after another; a tenth more before, to warm up."""
    warm = count // 10
    found = []
    for number in range(count + warm):
        at = now()
        await ask(body)
        if number >= warm:
            found.append(now() - at)
    return found


async def in_flight(
    ask: Ask, body: bytes, width: int, seconds: float, *, now: Clock = time.perf_counter
) -> tuple[int, float]:
    """Answers, and the seconds they took, with `width` messages on their way all the time."""
    done = 0
    began_at = now()
    stop_at = began_at + seconds

    async def one() -> None:
        nonlocal done
        while now() < stop_at:
            await ask(body)
            done += 1

    await asyncio.gather(*(one() for _ in range(width)))
    return done, now() - began_at


async def one_way(
    send: Callable[[bytes], Awaitable[object]],
    arrived: Callable[[], Awaitable[int]],
    body: bytes,
    seconds: float,
    *,
    chunk: int = 500,
    now: Clock = time.perf_counter,
) -> float:
    """Messages per second that reached the other side; the wait for the last of them counts.

    `arrived` asks the receiver how many it has. `chunk` messages go between two looks at the clock.

    Raises:
        RuntimeError: some are missing after two minutes.
    """
    before = await arrived()
    sent = 0
    began_at = now()
    while now() - began_at < seconds:
        for _ in range(chunk):
            await send(body)
        sent += chunk
    while (there := await arrived() - before) < sent:
        if now() - began_at > seconds + _DRAIN_S:
            raise RuntimeError(f"{sent - there} of {sent} messages did not arrive")
        await asyncio.sleep(0.001)
    return sent / (now() - began_at)


async def open_loop(
    ask: Ask,
    body: bytes,
    rate_per_s: float,
    seconds: float,
    *,
    now: Clock = time.perf_counter,
    beat: Callable[[float, int], AsyncIterator[float]] = ticks,
) -> list[float]:
    """Seconds from when each message should have left until its answer; the first tenth is to warm up.

    Raises:
        TimeoutError: not everything was answered within two minutes after the last was sent.
    """
    count = math.ceil(rate_per_s * seconds)
    found = [math.inf] * count
    under_way: set[asyncio.Task[None]] = set()

    async def one(number: int, due_at: float) -> None:
        await ask(body)
        found[number] = now() - due_at

    async with asyncio.timeout(seconds + _DRAIN_S):
        number = 0
        async for due_at in beat(rate_per_s, count):
            task = asyncio.create_task(one(number, due_at))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            number += 1
        if under_way:
            await asyncio.gather(*under_way)
    if any(math.isinf(value) for value in found):
        raise RuntimeError("a message of the open loop failed")
    return found[count // 10 :]


def latency(prefix: str, seconds: Sequence[float]) -> dict[str, float]:
    """PREFIX_p50_ms and PREFIX_p99_ms."""
    return {f"{prefix}_p{share}_ms": percentile(seconds, share / 100) * 1e3 for share in (50, 99)}


async def one_at_a_time(ask: Ask, settings: Mapping[str, Any]) -> dict[str, float]:
    """Round trips, the next when the last is back."""
    return latency("ask", await closed_loop(ask, b"x" * settings["bytes"], settings["asks"]))


async def by_the_clock(ask: Ask, settings: Mapping[str, Any]) -> dict[str, float]:
    """Round trips at each of the rates."""
    figures: dict[str, float] = {}
    for rate in settings["rates"]:
        figures |= latency(f"open_{rate}", await open_loop(ask, b"x" * settings["bytes"], rate, settings["seconds"]))
    return figures


async def answers_per_s(ask: Ask, settings: Mapping[str, Any]) -> float:
    """Throughput with calls in flight: one way, for a side whose messages are all answered."""
    body = b"x" * settings["bytes"]
    await in_flight(ask, body, settings["in_flight"], settings["seconds"] / 5)
    done, took_s = await in_flight(ask, body, settings["in_flight"], settings["seconds"])
    return done / took_s

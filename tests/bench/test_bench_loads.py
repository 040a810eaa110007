"""The loops that ask: what they count, with a clock that stands still unless somebody works."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator

import pytest

from bench.workers.loads import closed_loop, in_flight, latency, one_way, open_loop
from bench.workers.ring import neighbours, parts, wait_s
from bench.workers.ticks import ticks


class World:
    """A clock, and a side that needs time to answer: `cost_s(number)` for its message of that number."""

    def __init__(self, cost_s: float = 0.001) -> None:
        self.at = 100.0
        self.bodies: list[bytes] = []
        self.cost_s = cost_s
        self.shared = True  # does it let others on while it works?
        self.stall: tuple[int, float] | None = None  # number of a message, and what it takes

    def now(self) -> float:
        return self.at

    async def ask(self, body: bytes) -> bytes:
        number = len(self.bodies)
        self.bodies.append(body)
        stalled = self.stall is not None and self.stall[0] == number
        self.at += self.stall[1] if stalled and self.stall else self.cost_s
        if self.shared:
            await asyncio.sleep(0)
        return body

    async def beat(self, rate_per_s: float, count: int) -> AsyncIterator[float]:
        """As `ticks`: each moment when it has come, all that were missed at once."""
        began_at = self.at
        for number in range(count):
            due_at = began_at + number / rate_per_s
            if self.at < due_at:
                await asyncio.sleep(0)  # who was asked by now answers first
                self.at = max(self.at, due_at)
            yield due_at


async def test_a_closed_loop_times_each_round_trip_and_forgets_its_warm_up() -> None:
    world = World(0.002)
    world.stall = (0, 9.0)
    found = await closed_loop(world.ask, b"x", 20, now=world.now)
    assert found == pytest.approx([0.002] * 20)
    assert len(world.bodies) == 22


async def test_calls_in_flight_are_counted_until_the_last_is_back() -> None:
    world = World(0.001)
    done, took_s = await in_flight(world.ask, b"x", 10, 1.0, now=world.now)
    assert done == len(world.bodies)
    assert took_s == pytest.approx(done * 0.001)
    assert 1000 <= done <= 1010


async def test_one_way_counts_what_arrived_and_waits_for_the_last() -> None:
    world = World(0.001)
    looks = 0

    async def arrived() -> int:
        nonlocal looks
        looks += 1
        world.at += 0.5
        return len(world.bodies) - (100 if looks == 2 else 0)  # the receiver is behind at first

    rate = await one_way(world.ask, arrived, b"x", 1.0, chunk=500, now=world.now)
    assert looks == 3
    assert rate == pytest.approx(len(world.bodies) / (len(world.bodies) * 0.001 + 2 * 0.5))


async def test_one_way_does_not_wait_for_ever_for_what_is_lost() -> None:
    world = World(0.001)

    async def arrived() -> int:
        world.at += 50.0
        return 0

    with pytest.raises(RuntimeError, match="of 500 messages did not arrive"):
        await one_way(world.ask, arrived, b"x", 0.1, chunk=500, now=world.now)


async def test_an_open_loop_charges_a_stall_to_all_whom_it_kept_waiting() -> None:
    """The reason for having one: a closed loop would show this stall in one figure out of a hundred."""
    world = World(0.0)
    world.shared = False
    world.stall = (50, 0.4)
    found = await open_loop(world.ask, b"x", 100, 1.0, now=world.now, beat=world.beat)
    assert len(found) == 90  # the first tenth is to warm up
    waited = [value for value in found if value > 0.005]
    assert len(waited) == pytest.approx(40, abs=2)
    assert waited == sorted(waited, reverse=True)
    assert max(waited) == pytest.approx(0.4, abs=0.02)


async def test_a_message_that_fails_fails_the_open_loop() -> None:
    async def ask(body: bytes) -> None:
        raise ConnectionError("gone")

    with pytest.raises((ConnectionError, RuntimeError)):
        await open_loop(ask, b"x", 1000, 0.05)


def test_latency_names_its_shares() -> None:
    assert latency("ask", [0.001, 0.002, 0.003]) == {
        "ask_p50_ms": pytest.approx(2.0),
        "ask_p99_ms": pytest.approx(2.98),
    }


async def test_ticks_are_evenly_spaced_and_none_is_missed_by_a_loop_that_was_held_up() -> None:
    moments, seen = [], []
    async for due_at in ticks(1000, 60):
        moments.append(due_at)
        seen.append(time.perf_counter())
        if len(moments) == 10:
            time.sleep(0.02)  # the loop is held up, and with it the beat's own task
    assert len(moments) == 60
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert gaps == pytest.approx([0.001] * 59, abs=1e-9)
    assert all(at >= due_at for at, due_at in zip(seen, moments, strict=True))


def test_in_a_ring_each_asks_one_and_is_asked_by_one() -> None:
    pairs = list(neighbours(["a", "b", "c"]))
    assert pairs == [("a", "b"), ("b", "c"), ("c", "a")]


def test_who_is_told_too_late_says_so() -> None:
    with pytest.raises(RuntimeError, match="after all were to begin"):
        wait_s(0.0)


@pytest.mark.parametrize(("whole", "sizes"), [(1, [1]), (24, [24]), (25, [24, 1]), (120, [24] * 5)])
def test_a_whole_is_cut_into_parts_of_a_largest_size(whole: int, sizes: list[int]) -> None:
    assert parts(whole, 24) == sizes

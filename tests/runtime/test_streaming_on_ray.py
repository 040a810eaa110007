"""Chunks on real Ray: what a reader is shown while agents, coordinators and both are killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_streamers import Careless, Emitter, Reciter, Resumer, Waiter, Yielder

import flowray as fr

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 90.0
Lines = Callable[[str], list[str]]
MANY = 100_000


@pytest.fixture(scope="module")
def rt(start_runtime: Callable[..., fr.Runtime]) -> Iterator[fr.Runtime]:
    with start_runtime("streaming", core__adoption_s=600.0) as runtime:
        for made in (Reciter, Emitter, Yielder, Resumer, Waiter):
            runtime.agents.add(made, count=2, capabilities={made.__name__.lower()})
        runtime.wait_ready()
        yield runtime


class Reading(threading.Thread):
    """A reader on a thread of its own: everything that it is shown, and when."""

    def __init__(self, handle: fr.Handle, start: int = 0) -> None:
        super().__init__(daemon=True)
        self._handle, self._first = handle, start
        self.items: list[Any] = []
        self.at: list[float] = []
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            for item in self._handle.stream(self._first):
                self.items.append(item)
                self.at.append(time.monotonic())
        except fr.FlowrayError as error:
            self.error = error

    def parts(self) -> list[Any]:
        """What stands, once it has come to the end. Numbers without a gap, or this fails."""
        self.join(WAIT_S)
        assert not self.is_alive(), f"it still reads, after {self.items[-3:]}"
        kept: list[Any] = []
        for item in self.items:
            if isinstance(item, fr.Restarted):
                assert item.seq <= self._first + len(kept)
                del kept[item.seq - self._first :]
            else:
                assert item.seq == self._first + len(kept), f"chunk {item.seq} after {len(kept)}"
                kept.append(item.value)
        return kept

    @property
    def restarts(self) -> list[int]:
        return [item.seq for item in self.items if isinstance(item, fr.Restarted)]

    def longest_gap_s(self) -> float:
        return max(later - earlier for earlier, later in zip(self.at, self.at[1:], strict=False))


def plan(tmp_path: Path, count: int, **more: Any) -> dict[str, Any]:
    return {"count": count, "gate": str(tmp_path / "gate"), "file": str(tmp_path / "ran"), **more}


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def runner_of(handle: fr.Handle) -> str:
    return [line.agent_id for line in handle.story().lines if line.what == "started"][-1]


@pytest.mark.parametrize("kind", ["reciter", "emitter", "yielder"])
def test_chunks_are_shown_while_the_agent_works_and_again_later(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], kind: str
) -> None:
    handle = rt.submit(plan(tmp_path, 6, gate_at=3), needs={kind})
    reading = Reading(handle)
    eventually(lambda: len(reading.items) == 3, "three chunks are shown before the agent goes on")
    time_free = handle.done
    (tmp_path / "gate").touch()
    assert reading.parts() == numbers(6) and not reading.restarts and not time_free
    assert handle.result(WAIT_S) == ("5" if kind == "yielder" else "attempt 1")
    assert [chunk.value for chunk in handle.stream(start=4)] == ["4", "5"]
    outcome = handle.outcome()
    assert (outcome.chunks, outcome.restarts) == (6, ())

    async def read() -> list[Any]:
        return [chunk.value async for chunk in handle.stream()]

    assert asyncio.run(read()) == numbers(6)


def test_another_driver_reads_from_where_it_likes(rt: fr.Runtime, tmp_path: Path) -> None:
    handle = rt.submit(plan(tmp_path, 10), needs={"reciter"})
    handle.result(WAIT_S)
    with fr.Runtime.connect("streaming") as other:
        assert [chunk.seq for chunk in other.handle(handle.task_id).stream(start=7)] == [7, 8, 9]
    done = subprocess.run(
        [sys.executable, "-m", "flowray.cli", "follow", handle.task_id, "--name", "streaming", "--start", "8"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == ["8", "9"]


def test_a_killed_producer_that_gives_the_same_again_is_not_noticed(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Lines
) -> None:
    rt.wait_ready(WAIT_S)
    handle = rt.submit(plan(tmp_path, 40, gate_at=20), needs={"reciter"})
    reading = Reading(handle)
    eventually(lambda: len(reading.items) == 20, "half is shown")
    rt.kill_agent(runner_of(handle))
    assert reading.parts() == numbers(40) and reading.restarts == []
    assert handle.result(WAIT_S) == "attempt 2"
    print(f"gap after kill -9 of the producer: {reading.longest_gap_s():.3f} s")  # noqa: T201


def test_a_killed_producer_that_gives_something_else_is_told(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    rt.wait_ready(WAIT_S)
    handle = rt.submit(plan(tmp_path, 8, gate_at=6, flaky_from=4), needs={"emitter"})
    reading = Reading(handle)
    eventually(lambda: len(reading.items) == 6, "six are shown")
    rt.kill_agent(runner_of(handle))
    assert reading.parts() == [*numbers(4), *(f"{n} of attempt 2" for n in range(4, 8))]
    assert reading.restarts == [4]
    assert [chunk.value for chunk in handle.stream()] == reading.parts(), "who reads later is shown what stands"
    assert "restarted" in [line.what for line in handle.story().lines]


def test_a_resuming_producer_makes_nothing_twice(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Lines
) -> None:
    rt.wait_ready(WAIT_S)
    handle = rt.submit(plan(tmp_path, 30, gate_at=15, flaky_from=15), needs={"resumer"})
    reading = Reading(handle)
    eventually(lambda: len(reading.items) == 15, "half is shown")
    rt.kill_agent(runner_of(handle))
    assert reading.parts() == [*numbers(15), *(f"{n} of attempt 2" for n in range(15, 30))]
    assert reading.restarts == [] and handle.result(WAIT_S) == "done"
    made = [line.split("/")[1:] for line in lines("ran") if line.startswith("makes")]
    assert made == [[str(n), "1" if n < 15 else "2"] for n in range(30)]


@pytest.mark.parametrize("kind", ["reciter", "emitter"])
def test_a_killed_coordinator_is_not_noticed(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], kind: str
) -> None:
    """The agent goes on, and keeps its chunks until a coordinator is there."""
    rt.wait_ready(WAIT_S)
    handle = rt.submit(plan(tmp_path, 400, gate_at=20, pause_s=0.005), needs={kind})
    reading = Reading(handle)
    eventually(lambda: len(reading.items) == 20, "the first are shown")
    before = rt.status()
    (tmp_path / "gate").touch()
    os.kill(before.pid, signal.SIGKILL)
    assert reading.parts() == numbers(400) and reading.restarts == []
    assert handle.result(WAIT_S) == "attempt 1" and rt.status().epoch == before.epoch + 1
    print(f"gap after kill -9 of the coordinator: {reading.longest_gap_s():.3f} s")  # noqa: T201


@pytest.mark.parametrize("flaky_from", [None, 10])
def test_what_was_shown_outlives_producer_and_coordinator_together(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], flaky_from: int | None
) -> None:
    rt.wait_ready(WAIT_S)
    more = {} if flaky_from is None else {"flaky_from": flaky_from}
    handle = rt.submit(plan(tmp_path, 40, gate_at=20, **more), needs={"reciter"})
    reading = Reading(handle)
    eventually(lambda: len(reading.items) == 20, "half is shown")
    status, victim = rt.status(), runner_of(handle)
    os.kill(status.pid, signal.SIGKILL)
    os.kill(next(a.pid for a in status.agents if a.agent_id == victim), signal.SIGKILL)
    parts = reading.parts()
    assert reading.restarts == ([] if flaky_from is None else [10])
    assert parts == (
        numbers(40) if flaky_from is None else [*numbers(10), *(f"{n} of attempt 2" for n in range(10, 40))]
    )


def test_a_producer_that_asks_for_it_waits_for_its_readers(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Lines
) -> None:
    """Under the next coordinator as well, which nobody has told of it."""
    rt.wait_ready(WAIT_S)
    handle = rt.submit(plan(tmp_path, 40), needs={"waiter"})
    eventually(lambda: len(lines("ran")) == 6, "the sixth is made, and not given out")
    stream = iter(handle.stream())
    assert [next(stream).seq for _ in range(5)] == list(range(5))
    os.kill(rt.status().pid, signal.SIGKILL)
    assert [item.seq for item in stream] == list(range(5, 40))
    assert handle.result(WAIT_S) == "done" and len(lines("ran")) == 40


def test_a_cancelled_task_ends_its_stream_and_its_generator(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Lines
) -> None:
    rt.wait_ready(WAIT_S)
    handle = rt.submit(plan(tmp_path, 100_000, pause_s=0.01), needs={"reciter"})
    reading = Reading(handle)
    eventually(lambda: len(reading.items) > 3, "some are shown")
    assert handle.cancel() == "cancelled"
    shown = len(reading.parts())
    assert isinstance(reading.error, fr.TaskCancelled) and shown < 100_000
    eventually(lambda: "closed/1" in lines("ran"), "the generator is closed")


def test_a_hundred_thousand_small_chunks(rt: fr.Runtime) -> None:
    """Its figures are printed: chunks a second from the agent to a reader, and bytes of the database for each."""
    rt.wait_ready(WAIT_S)
    journal = Path(rt.status().journal)
    before = stored(journal)
    began = time.monotonic()
    handle = rt.submit({"count": MANY}, needs={"reciter"})
    reading = Reading(handle)
    assert reading.parts() == numbers(MANY)
    took_s = time.monotonic() - began
    assert handle.outcome(WAIT_S).chunks == MANY
    rows, size = stored(journal)
    again = time.monotonic()
    assert sum(1 for _ in handle.stream()) == MANY
    print(  # noqa: T201
        f"{MANY / took_s:,.0f} chunks/s live, {MANY / (time.monotonic() - again):,.0f} read again; "
        f"{rows - before[0]} rows, {(size - before[1]) / MANY:.1f} bytes for each chunk, load {os.getloadavg()[0]:.1f}"
    )


def stored(journal: Path) -> tuple[int, int]:
    """Rows of chunks, and the bytes of the pages in which they and their index lie."""
    with sqlite3.connect(f"file:{journal / 'flowray.db'}?mode=ro", uri=True) as connection:
        size = "SELECT coalesce(sum(pgsize), 0) FROM dbstat WHERE name LIKE '%chunks%'"
        return tuple(connection.execute(f"SELECT (SELECT count(*) FROM chunks), ({size})").fetchone())


def test_a_bound_ends_the_task_and_what_was_shown_stays(start_runtime: Callable[..., fr.Runtime]) -> None:
    with start_runtime("bounded", core__streaming__max_chunks=50) as runtime:
        runtime.agents.add(Careless)
        runtime.wait_ready()
        handle = runtime.submit("many")
        shown: list[int] = []
        with pytest.raises(fr.TaskFailed, match="StreamLimit"):
            for chunk in handle.stream():
                shown.append(chunk.value)
        assert shown == list(range(len(shown))) and len(shown) <= 50
        assert handle.outcome().attempts == 1
        with pytest.raises(fr.TaskFailed, match="chunk: 300005 bytes; 262144 is the most"):
            list(runtime.submit("large").stream())


def test_streams_stay_whole_while_everything_is_killed(start_runtime: Callable[..., fr.Runtime]) -> None:
    """Agents and coordinators die at random moments, for as long as it takes; every reader is shown the truth."""
    rng = random.Random(5)
    bounds = {"core__retry__poison_kills": 10_000, "core__retry__max_losses": 10_000, "core__restart__delay_s": 0.1}
    with start_runtime("streams-killed", **bounds) as runtime:
        runtime.agents.add(Reciter, count=4)
        runtime.agents.add(Resumer, count=2)
        runtime.wait_ready()
        handles, readings = [], []
        for number in range(24):
            work = {"count": 300, "pause_s": 0.005, "file": "/dev/null", "gate_at": -1}
            work |= {"flaky_from": rng.randrange(300)} if number % 3 == 0 else {}
            handle = runtime.submit(work, agent="resumer" if number % 3 == 2 else "reciter")
            handles.append(handle)
            readings.append(Reading(handle))
        kills = {"agent": 0, "coordinator": 0}
        deadline = time.monotonic() + 60
        while any(reading.is_alive() for reading in readings) and time.monotonic() < deadline:
            time.sleep(rng.uniform(0.1, 0.5))
            status = runtime.status()
            victims = [status.pid] if rng.random() < 0.15 else [a.pid for a in status.agents if a.state == "ready"]
            if victims:
                kills["coordinator" if victims == [status.pid] else "agent"] += 1
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(victims), signal.SIGKILL)
        restarts = 0
        for number, (handle, reading) in enumerate(zip(handles, readings, strict=True)):
            parts = reading.parts()
            assert reading.error is None and len(parts) == 300
            assert parts == [chunk.value for chunk in handle.stream() if isinstance(chunk, fr.Chunk)]
            assert len(handle.outcome().restarts) >= len(reading.restarts)
            restarts += len(reading.restarts)
            if number % 3:
                assert parts == numbers(300) and not reading.restarts
        gaps = sorted(reading.longest_gap_s() for reading in readings)
        print(f"{kills} killed, {restarts} restarts told, longest gap of a stream p50 {gaps[12]:.2f} s")  # noqa: T201
        assert kills["agent"] > 10 and restarts > 0

"""A store alone: in SQLite where journals are kept, in a PostgreSQL in /tmp; beside them the bare disk."""

from __future__ import annotations

import os
import queue
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.measure import SideAbsent, percentile
from bench.workers.common import main
from flowray.core.commands import AcceptTask, DurableCommand, ResolveTask, StartAttempt
from flowray.core.model import AgentId, Choice, Outcome, Payload, StoryLine, Task, TaskId
from flowray.core.states import TaskState
from flowray.errors import StoreError
from flowray.runtime.recovering import prepare_process
from flowray.store import SqliteStore, Store, StoreConfig, open_store
from flowray.testing import postgres

_GROUP = 64  # tasks in one append
_AHEAD = 16  # appends handed in and not yet answered: about 1,000 tasks, as in the benchmark of tasks
_PAGE = b"x" * 4096


def work(settings: dict[str, Any]) -> dict[str, float]:
    home = Path.home() / ".flowray"
    home.mkdir(mode=0o700, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=home))
    try:
        if settings["side"] == "flowray":
            return _store(SqliteStore.open(directory), settings)
        if settings["side"] == "postgresql":
            return _in_postgresql(directory, settings)
        return _bare_disk(directory / "file", settings)
    finally:
        shutil.rmtree(directory)


def _in_postgresql(directory: Path, settings: dict[str, Any]) -> dict[str, float]:
    """A server of its own on this machine, with the settings that it comes with."""
    if reason := postgres.missing():
        raise SideAbsent(reason)
    with postgres.started() as server:
        return _store(open_store(directory, StoreConfig(url=server.url, schema="bench")), settings)


def _store(store: Store, settings: dict[str, Any]) -> dict[str, float]:
    prepare_process()
    store.begin_epoch("bench")
    groups = [[c for n in range(g * _GROUP, (g + 1) * _GROUP) for c in life(n)] for g in range(settings["groups"])]
    answers: queue.SimpleQueue[StoreError | None] = queue.SimpleQueue()
    warm = len(groups) // 10
    began_at, cpu_s = 0.0, 0.0
    for number, group in enumerate(groups):
        if number >= _AHEAD:
            _must(answers.get(timeout=60))
        if number == warm + _AHEAD:  # so many have been answered: warm + 1
            began_at, cpu_s = time.perf_counter(), time.process_time()
        store.append(group, answers.put)
    for _ in range(_AHEAD):
        _must(answers.get(timeout=60))
    seconds, cpu_s = time.perf_counter() - began_at, time.process_time() - cpu_s
    tasks = (len(groups) - warm - 1) * _GROUP
    figures = {"tasks_per_s": tasks / seconds, "us_per_task": cpu_s / tasks * 1e6}
    figures |= _paced(store, settings["rate"], settings["paced_s"])
    lone = [_lone(store, number) for number in range(10_000_000, 10_000_000 + settings["lone"])]
    store.close()
    return figures | _latency(lone)


def _paced(store: Store, rate: int, seconds: float) -> dict[str, float]:
    """Milliseconds from append to done while so many tasks come each second, whatever the journal does.

    They come at random times (Poisson). Each is appended when it is accepted and sent out, and again when it has an
    outcome, 20 ms later: it waits for the disk twice.
    """
    rng, at = random.Random(1), 0.0
    due: list[tuple[float, int, list[DurableCommand]]] = []
    for number in range(20_000_000, 20_000_000 + int(rate * seconds)):
        at += rng.expovariate(rate)
        commands = list(life(number))
        due += [(at, number, commands[:2]), (at + 0.02, number, commands[2:])]
    due.sort(key=lambda each: each[:2])
    answers: queue.SimpleQueue[tuple[int, float, StoreError | None]] = queue.SimpleQueue()
    late_s: list[float] = []
    began_at = time.perf_counter()
    for at, number, commands in due:
        while (left_s := began_at + at - time.perf_counter()) > 0:
            time.sleep(left_s)
        late_s.append(-left_s)
        appended_at = time.perf_counter()

        def done(error: StoreError | None, number: int = number, appended_at: float = appended_at) -> None:
            answers.put((number, time.perf_counter() - appended_at, error))

        store.append(commands, done)
    waits_s: list[float] = []
    of_task_s: dict[int, float] = {}
    for _ in due:
        number, wait_s, error = answers.get(timeout=60)
        _must(error)
        waits_s.append(wait_s)
        of_task_s[number] = of_task_s.get(number, 0.0) + wait_s
    return {
        "adds_p50_ms": percentile(waits_s, 0.50) * 1e3,
        "adds_p99_ms": percentile(waits_s, 0.99) * 1e3,
        "adds_to_task_p50_ms": percentile(list(of_task_s.values()), 0.50) * 1e3,
        "adds_to_task_p99_ms": percentile(list(of_task_s.values()), 0.99) * 1e3,
        "late_p99_ms": percentile(late_s, 0.99) * 1e3,  # of whoever appends: much of it, and the machine was busy
    }


def _lone(store: Store, number: int) -> float:
    """Seconds from handing in one command until it is on disk and the caller's thread knows."""
    written, errors = threading.Event(), []

    def done(error: StoreError | None) -> None:
        errors.append(error)
        written.set()

    at = time.perf_counter()
    store.append([accept(number)], done)
    if not written.wait(60):
        raise RuntimeError("the store did not answer within a minute")
    _must(errors[0])
    return time.perf_counter() - at


def _bare_disk(path: Path, settings: dict[str, Any]) -> dict[str, float]:
    """What the disk alone takes: append a page, fdatasync. Nothing that promises durability can be quicker."""
    found = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for _ in range(settings["lone"]):
            at = time.perf_counter()
            os.write(descriptor, _PAGE)
            os.fdatasync(descriptor)
            found.append(time.perf_counter() - at)
    finally:
        os.close(descriptor)
    return _latency(found)


def _latency(seconds: list[float]) -> dict[str, float]:
    return {"lone_p50_ms": percentile(seconds, 0.50) * 1e3, "lone_p99_ms": percentile(seconds, 0.99) * 1e3}


def _must(error: StoreError | None) -> None:
    if error is not None:
        raise error


# ── one task's life, as the core would journal it ────────────────────────────────────────────────────────────────────


def accept(number: int) -> AcceptTask:
    return AcceptTask(Task(id=TaskId(f"t-{number:08d}"), prompt="x", needs=("noop",)), float(number), number)


def life(number: int) -> Iterator[DurableCommand]:
    """From acceptance to the outcome."""
    accepted, agent, choice = accept(number), AgentId(f"noop-{number % 24}"), Choice("power_of_two", 24)
    task_id, at = accepted.task.id, accepted.at
    yield accepted
    yield StartAttempt(task_id, 1, 1, agent, 1, at + 0.1, "first", choice)
    story = (
        StoryLine(at, "accepted"),
        StoryLine(at + 0.1, "started", 1, agent),
        StoryLine(at + 0.2, "resolved", 1, agent),
    )
    yield ResolveTask(
        Outcome(
            task_id=task_id,
            state=TaskState.SUCCEEDED,
            value=Payload(data=b"\xc0", size_bytes=1),
            agent_id=agent,
            attempts=1,
            accepted_at=at,
            resolved_at=at + 0.2,
            queue_s=0.1,
            run_s=0.1,
            story=story,
            choices=(choice,),
        )
    )


if __name__ == "__main__":
    main(work)

"""A coordinator's recovery in one process, without Ray: from opening the journal until tasks are sent out again."""

from __future__ import annotations

import os
import queue
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.workers.common import main
from flowray.core.book import Book
from flowray.core.commands import (
    AcceptTask,
    AddAgents,
    Command,
    DurableCommand,
    ResolveTask,
    StartAgent,
    StartAttempt,
)
from flowray.core.events import AgentReady, AttemptFinished, Ticked
from flowray.core.model import AgentId, AgentSpec, Choice, Outcome, Payload, Running, StoryLine, Task, TaskId
from flowray.core.policy import CorePolicy
from flowray.core.states import TaskState
from flowray.errors import StoreError
from flowray.runtime.recovering import prepare_process, recover
from flowray.store import SqliteStore, StoreConfig

_LIFE = "bench"
_SLOTS = 4
_PER_APPEND = 512


def work(settings: dict[str, Any]) -> dict[str, float]:
    home = Path.home() / ".flowray"
    home.mkdir(mode=0o700, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=home))
    try:
        writer = os.fork()
        if not writer:  # it ends without closing, as one that is killed does
            status = 1
            try:
                write(directory, settings)
                status = 0
            except BaseException:  # noqa: BLE001 - this process must not go on with what its parent does
                traceback.print_exc()
            os._exit(status)
        if os.waitpid(writer, 0)[1]:
            raise RuntimeError("the journal could not be written")
        return recovered(directory, settings)
    finally:
        shutil.rmtree(directory)


# ── before ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def write(directory: Path, settings: dict[str, Any], config: StoreConfig | None = None) -> None:
    """A journal as a coordinator leaves it that is killed."""
    store = SqliteStore.open(directory, config)
    store.begin_epoch(_LIFE)
    book, asked = Book(), 0
    answers: queue.SimpleQueue[StoreError | None] = queue.SimpleQueue()
    group: list[DurableCommand] = []

    def flush() -> None:
        nonlocal asked
        if group:
            store.append(list(group), answers.put)
            group.clear()
            asked += 1

    for command in _history(settings):
        book.apply(command)
        group.append(command)
        if len(group) == _PER_APPEND:
            flush()
        if isinstance(command, AcceptTask) and command.seq + 1 == settings["in_snapshot"]:
            flush()
            store.save_snapshot(book.snapshot(command.at), answers.put)
            asked += 1
    flush()
    for _ in range(asked):
        if (error := answers.get(timeout=60)) is not None:
            raise error
    if len(book.open) != settings["open"]:
        raise RuntimeError(f"{len(book.open)} tasks are open")


def _history(settings: dict[str, Any]) -> Iterator[DurableCommand]:
    """A team, its open tasks, and `ended` others that came and went meanwhile."""
    agents = [AgentId(f"noop-{n}") for n in range(settings["running"] // _SLOTS)]
    spec = AgentSpec(name="noop", tier="secondary", capabilities=("noop",), count=len(agents), slots=_SLOTS)
    began_at = time.time() - 300.0
    yield AddAgents(spec, began_at)
    for agent in agents:
        yield StartAgent(agent, 1, "noop", began_at)
    choice = Choice("power_of_two", len(agents), (("noop-1", 0.25), ("noop-7", 0.5)))
    every = settings["open"] / max(1, settings["ended"])
    ended = 0
    for number in range(settings["open"]):
        yield AcceptTask(_task(_id(number)), began_at + number * 1e-3, number)
        while (ended + 1) * every <= number + 1:
            ended += 1
            yield from _ended(f"done-{ended:08d}", began_at + number * 1e-3, agents[ended % len(agents)], choice)
    for number in range(settings["running"]):
        agent = agents[number // _SLOTS]
        yield StartAttempt(_id(number), 1, 1, agent, 1, began_at + 200.0 + number * 1e-3, "first", choice)


def _task(name: str) -> Task:
    data = random.Random(name).randbytes(200)
    return Task(
        id=TaskId(name),
        prompt="Summarise the report in three sentences, for readers who know nothing of the matter.",
        payload=Payload(data=data, size_bytes=len(data)),
        needs=("noop",),
        deadline_s=86_400.0,
        key=f"key-{name}",
        fingerprint="f" * 32,
        labels={"customer": "17"},
    )


def _ended(name: str, at: float, agent: AgentId, choice: Choice) -> Iterator[DurableCommand]:
    task = _task(name)
    yield AcceptTask(task, at, 0)
    yield StartAttempt(task.id, 1, 1, agent, 1, at, "first", choice)
    yield ResolveTask(
        Outcome(
            task_id=task.id,
            state=TaskState.SUCCEEDED,
            value=task.payload,
            agent_id=agent,
            attempts=1,
            accepted_at=at,
            resolved_at=at,
            key=task.key,
            fingerprint=task.fingerprint,
            story=(StoryLine(at, "accepted"), StoryLine(at, "started", 1, agent), StoryLine(at, "succeeded", 1, agent)),
            choices=(choice,),
        )
    )


# ── measured ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def recovered(directory: Path, settings: dict[str, Any], config: StoreConfig | None = None) -> dict[str, float]:
    """Recover, as a coordinator does; let the agents report what they run; let one of them end an attempt."""
    prepare_process()
    began_at, began_cpu_s = time.perf_counter(), time.process_time()
    store = SqliteStore.open(directory, config)
    core, clock = recover(store, life=_LIFE, policy=CorePolicy(), seed=1)
    ready_at, ready_cpu_s = time.perf_counter(), time.process_time()
    again: list[Command] = []
    for place in range(settings["running"] // _SLOTS):
        mine = range(place * _SLOTS, (place + 1) * _SLOTS)
        running = tuple(Running(_id(number), 1, 1) for number in mine)
        again += core.handle(AgentReady(AgentId(f"noop-{place}"), 1, running), clock())
    again += core.handle(Ticked(), clock())
    if again:
        raise RuntimeError(f"running attempts were to be adopted, and it came to {again[:3]}")
    ended = AttemptFinished(_id(0), 1, 1, AgentId("noop-0"), Payload(data=b"x", size_bytes=1), None, 0.5)
    commands = core.handle(ended, clock())
    dispatched_at = time.perf_counter()
    if [command.task_id for command in commands if isinstance(command, StartAttempt)] != [_id(settings["running"])]:
        raise RuntimeError(f"the oldest task was to be sent out, and it came to {commands}")
    core.check()
    store.close()
    return {
        "ready_s": ready_at - began_at,
        "ready_cpu_s": ready_cpu_s - began_cpu_s,
        "dispatch_s": dispatched_at - began_at,
    }


def _id(number: int) -> TaskId:
    return TaskId(f"open-{number:08d}")


if __name__ == "__main__":
    main(work)

"""Chunks from an agent's own code to a reader, over a real journal; what processes and Ray add is tested on Ray."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shells import Shell
from test_showing import Reader

import flowray as fr
from flowray.agents import Context, Task, Voice, agent
from flowray.core import model
from flowray.core.commands import AnswerChunks, CancelAttempt, Command, RecordChunks, ResolveTask, StartAttempt
from flowray.core.events import AgentsAdded, CancelRequested, TaskSubmitted
from flowray.core.model import AgentSpec, TaskId
from flowray.runtime import emitting, messages
from flowray.runtime.agent import AgentHost
from flowray.runtime.messages import Begin, Cancel, Emit, Report, Start
from flowray.runtime.reports import results_as_events
from flowray.runtime.showing import ShowDesk

T = TaskId("t0000")
CALLED: list[str] = []  # what agents' code noted


class Nobody:
    """There are no other agents."""


class Process(Shell):
    """A coordinator's shell and the process of one agent, in one loop; each message is encoded and decoded."""

    def __init__(self, directory: Path, target: Callable[..., Any]) -> None:
        super().__init__(directory, answer=False)
        self.loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.batches: list[Emit] = []
        self.showing = ShowDesk(self.pump.core, self.store, wait_s=0.2)
        spec = AgentSpec(name="a", tier="t")
        begin = Begin("a-0", 1, 1, spec, 65_536, 1 << 30, "team", "node", str(directory))
        self.host = AgentHost(begin, self)
        self.target = target
        self.spec = spec
        self.running = self.loop.create_task(self.pump.run())

    async def begin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("flowray.runtime.agent.load_target", lambda spec: self.target)
        assert self.host.construct() is None
        self.pump.put(AgentsAdded(self.spec))
        await self.pump.synced()

    async def run(self, prompt: str = "") -> model.Outcome:
        """Give it the task; its outcome."""
        self.pump.put(TaskSubmitted(model.Task(id=T, prompt=prompt)))
        await self.until(ResolveTask, 1)
        return next(c.outcome for c in self.performed if isinstance(c, ResolveTask))

    def perform(self, command: Command) -> None:
        super().perform(command)
        if isinstance(command, StartAttempt):
            entry = self.pump.core.book.open[command.task_id]
            self.host.take(self._sent(Start("a-0", entry.task, command.attempt, command.epoch), Start))
        elif isinstance(command, RecordChunks):
            self.showing.recorded(command)
        elif isinstance(command, AnswerChunks):
            answer = emitting.answer_of(command, self.showing.read(command.task_id))
            self.host.emitting.answered(self._sent(answer, type(answer)))
        elif isinstance(command, CancelAttempt):
            self.host.cancel(Cancel("a-0", command.task_id, command.attempt, command.epoch, command.epoch))
        elif isinstance(command, ResolveTask):
            self.showing.resolved(command.outcome)

    def _sent(self, message: Any, kind: Any) -> Any:
        return messages.decode(messages.encode(message), kind)

    def soon(self, call: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            self.loop.call_soon(call)
        else:
            self.loop.call_soon_threadsafe(call)

    def stir(self) -> None:
        """Nothing gets stuck here."""

    def voice(self, agent_id: str) -> Voice:
        return Nobody()  # type: ignore[return-value]

    def report(self, message: Any) -> bool:
        if isinstance(message, Report):
            for event in results_as_events("a-0", 1, self._sent(message, Report).results):
                self.pump.put(event)
            self.host.acknowledged(message.last)
        elif isinstance(message, Emit):
            self.batches.append(message)
            if message.paced:
                self.showing.paced(T)
            self.pump.put(emitting.event_of(self._sent(message, Emit)))
        return True

    async def read(self) -> list[Any]:
        """All chunks of the task, from the first to the end."""
        reader, told = Reader(self, 0), ""  # type: ignore[arg-type]
        while not reader.state:
            told += await reader.read()
        return list(told)

    async def close(self) -> None:
        self.pump.stop()
        await self.running
        self.host.retire()
        self.store.close()


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    CALLED.clear()
    made: list[Process] = []

    async def make(target: Callable[..., Any]) -> Process:
        process = Process(tmp_path, target)
        made.append(process)
        await process.begin(monkeypatch)
        return process

    yield make
    for process in made:
        await process.close()


def yielding(task: Task) -> Iterator[str]:
    yield from task.prompt
    return task.prompt.upper()


async def yielding_async(task: Task, ctx: Context) -> AsyncIterator[str]:
    for letter in task.prompt:
        await asyncio.sleep(0)
        yield letter


def emitting_sync(task: Task, ctx: Context) -> str:
    for letter in task.prompt:
        ctx.emit(letter)
    return task.prompt.upper()


async def emitting_async(task: Task, ctx: Context) -> str:
    for letter in task.prompt:
        await ctx.emit(letter)
    return task.prompt.upper()


class Both:
    """A generator that calls `ctx.emit` as well."""

    def run(self, task: Task, ctx: Context) -> Iterator[str]:
        for at, letter in enumerate(task.prompt):
            if at % 2:
                ctx.emit(letter)
            else:
                yield letter
        return task.prompt.upper()


def returning(task: Task) -> Iterator[str]:
    """No generator itself: it returns one."""
    return yielding(task)


@pytest.mark.parametrize("target", [yielding, yielding_async, emitting_sync, emitting_async, Both, returning])
async def test_every_kind_of_agent_gives_out_chunks(make: Any, target: Callable[..., Any]) -> None:
    process = await make(target)
    outcome = await process.run("abcdef")
    assert outcome.state.value == "succeeded" and (outcome.chunks, outcome.restarts) == (6, ())
    assert outcome.value is not None and outcome.value.data in (b"\xa6ABCDEF", b"\xa1f")
    assert await process.read() == list("abcdef")


async def test_an_agent_that_gives_out_nothing_sends_nothing(make: Any) -> None:
    process = await make(lambda task: task.prompt)
    assert (await process.run("x")).chunks == 0 and process.batches == []
    assert await process.read() == []


async def test_what_was_given_out_before_a_failure_is_kept(make: Any) -> None:
    def failing(task: Task, ctx: Context) -> None:
        for letter in "abc":
            ctx.emit(letter)
            time.sleep(0.05)
        raise ValueError("odd")

    process = await make(failing)
    outcome = await process.run()
    assert outcome.state.value == "dead" and outcome.failure is not None and outcome.failure.type == "ValueError"
    assert "emitting.py" not in outcome.failure.traceback
    assert await process.read() == list("abc")


async def test_a_slow_disk_makes_the_agent_wait_and_its_batches_larger(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emitting, "_FULL_CHUNKS", 20)

    def counting(task: Task) -> Iterator[str]:
        for number in range(100):
            CALLED.append(str(number))
            yield "x"

    process = await make(counting)
    written, go_on = process.store._journal.write_group, threading.Event()

    def slow(commands: Any) -> None:
        if any(isinstance(command, RecordChunks) for command in commands):
            assert go_on.wait(20)
        written(commands)

    process.store._journal.write_group = slow
    running = asyncio.create_task(process.run())
    async with asyncio.timeout(20):
        while len(CALLED) < 21:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert len(CALLED) == 21, "twenty are given out, and not on disk; the next one waits"
    go_on.set()
    assert (await running).chunks == 100
    assert len(process.batches) < 30, "what waited went together"


async def test_a_cancelled_generator_is_closed(make: Any) -> None:
    def endless(task: Task) -> Iterator[str]:
        try:
            while True:
                yield "x"
                time.sleep(0.005)
        finally:
            CALLED.append("closed")

    process = await make(endless)
    running = asyncio.create_task(process.run())
    await process.until(RecordChunks, 2)
    process.pump.put(CancelRequested(T))
    assert (await running).state.value == "cancelled"
    async with asyncio.timeout(20):
        while CALLED != ["closed"]:
            await asyncio.sleep(0.01)


async def test_one_that_waits_for_its_readers_goes_on_with_them(make: Any) -> None:
    @agent(ahead=3)
    def waiting(task: Task) -> Iterator[str]:
        for letter in "abcdefgh":
            CALLED.append(letter)
            yield letter

    process = await make(waiting)
    process.showing._on_read = lambda task_id, seq: process.host.emitting.read(messages.Read("a-0", task_id, seq))
    running = asyncio.create_task(process.run())
    async with asyncio.timeout(20):
        while len(CALLED) < 4:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert list("abcd") == CALLED, "the fourth is made, and waits"
    assert await process.read() == list("abcdefgh")
    assert (await running).state.value == "succeeded"


async def test_one_chunk_too_many_ends_the_task(make: Any) -> None:
    process = await make(yielding)
    process.pump.core.streaming._policy = fr.Config().core.streaming.__class__(max_chunks=3)
    outcome = await process.run("abcdef")
    assert outcome.state.value == "dead" and outcome.failure is not None and outcome.failure.type == "StreamLimit"
    assert outcome.attempts == 1 and outcome.chunks <= 3

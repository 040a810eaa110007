"""What drivers bring and fetch, over a real journal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from shells import Line, Shell

from flowray.core.commands import AcceptTask, Command, KnownTask, ResolveTask
from flowray.core.events import AgentsAdded
from flowray.core.model import AgentSpec, Payload, Task, TaskId
from flowray.errors import PayloadError
from flowray.runtime import intake as module
from flowray.runtime.clients import Client, Clients
from flowray.runtime.intake import Intake
from flowray.runtime.messages import Answer, Answers, Outcomes, Submit


class Desk(Shell):
    """A shell in which what is decided reaches clients."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.line = Line()
        self.clients = Clients(asyncio.get_running_loop().call_soon, _never, _none)
        self.clients.client("c", self.line)
        self.intake = Intake(self.pump.core, self.store, self.clients, self.pump.put)

    def perform(self, command: Command) -> None:
        super().perform(command)
        if isinstance(command, AcceptTask):
            self.clients.answer(command.task.id, Answer(command.task.id))
        elif isinstance(command, KnownTask):
            self.clients.answer(command.submitted_id, Answer(command.task_id))
            self.intake.catch_up(command.task_id)
        elif isinstance(command, ResolveTask):
            self.clients.resolved(command.outcome)

    def submit(self, *tasks: Task, number: int = 1, again: bool = False, outside: bool = False) -> None:
        self.intake.submit("c", Submit(number, list(tasks), again), outside=outside)

    def said(self, kind: type) -> list[Any]:
        return [message for message in self.line.sent if isinstance(message, kind)]

    @property
    def answers(self) -> list[Answer]:
        return [answer for message in self.said(Answers) for answer in message.answers]

    async def when(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.001)


def _never(client: Client) -> None:
    raise AssertionError("the line has room")


def _none(task_ids: list[str]) -> list[Any]:
    raise AssertionError("the outbox has room")


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Desk]:
    desk = Desk(directory)
    pumping = asyncio.ensure_future(desk.pump.run())
    desk.pump.put(AgentsAdded(AgentSpec(name="a", tier="t")))
    yield desk
    desk.pump.stop()
    await pumping
    desk.store.close()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with running(tmp_path) as desk:
        yield desk


def task(name: str, **fields: Any) -> Task:
    return Task(id=TaskId(name), prompt="x", **fields)


async def test_a_submit_of_nothing_is_answered(desk):
    desk.submit(number=7)
    assert desk.said(Answers) == [Answers(7, [])]


async def test_tasks_are_accepted_and_their_outcomes_come(desk):
    desk.submit(task("t1"), task("t2"))
    await desk.when(lambda: len(desk.line.outcomes) == 2)
    assert desk.answers == [Answer("t1"), Answer("t2")]
    assert sorted(desk.line.outcomes) == ["t1", "t2"]


async def test_a_task_that_has_ended_is_answered_from_the_store(desk):
    desk.submit(task("t1", key="k", fingerprint="f"))
    await desk.when(lambda: desk.line.outcomes == ["t1"])
    desk.submit(task("t1", key="k", fingerprint="f"), again=True)
    assert desk.answers[-1] == Answer("t1")
    await desk.when(lambda: desk.line.outcomes == ["t1", "t1"])


async def test_keys_hold_also_when_the_core_has_forgotten_their_tasks(tmp_path):
    async with running(tmp_path) as desk:
        desk.submit(task("t1", key="k", fingerprint="f"))
        await desk.when(lambda: desk.line.outcomes == ["t1"])
    async with running(tmp_path) as desk:
        assert desk.pump.core.admission.by_key("k") is None, "forgotten"
        desk.submit(task("t2", key="k", fingerprint="other"))
        assert (desk.answers[-1].task_id, desk.answers[-1].reason) == ("t2", "conflict")
        desk.submit(task("t3", key="k", fingerprint="f"))
        assert desk.answers[-1] == Answer("t1"), "the same request again"
        await desk.when(lambda: desk.line.outcomes == ["t1"])


async def test_while_the_journal_is_behind_tasks_are_refused(desk, monkeypatch):
    monkeypatch.setattr(module, "BACKLOG_RATIO", -1.0)
    desk.submit(task("t1"))
    assert [(one.reason, one.retry_after_s) for one in desk.answers] == [("queue_full", 0.5)]


async def test_nothing_pickled_is_taken_from_outside(desk):
    pickled = task("t1", payload=Payload(codec="pickle", data=b"x", size_bytes=1))
    with pytest.raises(PayloadError):
        desk.submit(pickled, outside=True)
    desk.submit(pickled)
    await desk.when(lambda: desk.answers == [Answer("t1")])


async def test_who_wants_a_task_gets_its_outcome_or_hears_that_there_is_none(desk):
    desk.submit(task("t1"))
    await desk.when(lambda: desk.line.outcomes == ["t1"])
    other = Line()
    desk.clients.client("d", other)
    desk.intake.want("d", ["t1", "never"])
    await desk.when(lambda: other.sent)
    assert other.outcomes == ["t1"]
    assert [name for message in other.sent if isinstance(message, Outcomes) for name in message.unknown] == ["never"]

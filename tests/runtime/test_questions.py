"""What clients ask of a coordinator, over a real journal; what needs Ray is asked in `test_connecting`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from shells import Shell, submitted

from flowray.core.commands import AcceptTask, AnswerCancel, Command, MarkNode, ResolveTask
from flowray.core.events import AgentsAdded, AttemptFinished
from flowray.core.model import AgentId, AgentSpec, Asked, TaskId
from flowray.runtime.figures import Figures
from flowray.runtime.messages import Introduction, Question
from flowray.runtime.overview import Overview
from flowray.runtime.questions import Questions
from flowray.runtime.showing import ShowDesk

AGENT = AgentSpec(name="a", tier="t", target="team:Agent")


class NoProcesses:
    """Pools in which no agent has one."""

    def warm(self) -> int:
        return 3

    def current(self, agent_id: str) -> None:
        return None

    def process(self, agent_id: str, incarnation: int) -> None:
        return None

    def blocks(self) -> dict[str, str]:
        return {}

    async def vacate(self, node_id: str) -> list[str]:
        return [f"somebody on {node_id}"]


class Desk(Shell):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory, answer=False)
        pools: Any = NoProcesses()
        core = self.pump.core
        self.stops = 0
        self.questions = Questions(
            core,
            self.store,
            self.pump,
            pools,
            Figures(),
            Overview("team", 1, "node", directory, core, self.store, pools, None),
            ShowDesk(core, self.store),
            introduce=self.introduce,
            stop=self.stop,
            offer=self.offer,
        )

    async def introduce(self, client: str) -> Introduction:
        return Introduction(client.encode(), "node", "journal")

    async def offer(self, artifact: str, history: str) -> str:
        return f"{artifact}+{history}"

    async def stop(self) -> bool:
        self.stops += 1
        return True

    def perform(self, command: Command) -> None:
        super().perform(command)
        if isinstance(command, AnswerCancel):
            self.questions.cancelled(command.task_id, command.state.value if command.state is not None else "")

    async def ask(self, what: str, task_id: str = "", *, outside: bool = False, **more: Any) -> Any:
        """The view, or (error, detail)."""
        question = Question(what, task_id, number=5, **more)
        reply = await asyncio.wait_for(self.questions.reply("client-1", question, outside=outside), 20)
        assert reply.number == 5
        return (reply.error, reply.detail) if reply.error else msgspec.msgpack.decode(reply.body)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """One agent that never answers; its slot has t0001, and t0002 waits."""
    desk = Desk(tmp_path)
    pumping = asyncio.ensure_future(desk.pump.run())
    desk.pump.put(AgentsAdded(AGENT))
    desk.pump.put(submitted(1))
    desk.pump.put(submitted(2))
    await desk.until(AcceptTask, 2)
    yield desk
    desk.pump.stop()
    await pumping
    desk.store.close()


async def test_a_client_is_told_who_the_coordinator_is(desk):
    assert (await desk.ask("introduce", outside=True))[0] == b"client-1"


@pytest.mark.parametrize("what", ["stop", "purge", "add_agents", "process"])
async def test_who_comes_from_outside_may_ask_about_tasks_only(desk, what):
    error, detail = await desk.ask(what, outside=True)
    assert error == "ConfigError" and f"{what}: is not for clients outside the cluster" in detail
    assert desk.stops == 0


async def test_a_question_that_nobody_knows_is_refused(desk):
    error, detail = await desk.ask("weather")
    assert error == "FlowrayError" and "'weather'" in detail


@pytest.mark.parametrize("what", ["state", "story", "outcome", "cancel", "dead_letter"])
async def test_a_task_that_nobody_knows_is_said_to_be_unknown(desk, what):
    assert await desk.ask(what, "t9999") == ("UnknownTask", "no task has the id t9999")


async def test_a_task_that_waits_is_cancelled_and_then_known_from_the_store(desk):
    assert await desk.ask("state", "t0002") == "queued"
    both = await asyncio.gather(desk.ask("cancel", "t0002"), desk.ask("cancel", "t0002"))
    assert both == ["cancelled", "cancelled"]
    await desk.until(ResolveTask, 1)
    assert await desk.ask("state", "t0002") == "cancelled"
    assert (await desk.ask("story", "t0002"))["state"] == "cancelled"
    assert await desk.ask("cancel", "t0002") == "cancelled", "again: as it was"


async def test_only_the_number_of_known_agents_may_change(desk):
    assert await desk.ask("add_agents", spec=msgspec.structs.replace(AGENT, count=2, code=b"another pickle")) == "a"
    error, detail = await desk.ask("add_agents", spec=msgspec.structs.replace(AGENT, tier="u"))
    assert error == "ConfigError" and "there are other agents called 'a'" in detail


async def test_figures_and_processes(desk):
    counts = ("attempts", "copies", "failovers", "hedges", "mismatches", "promotions", "restarts", "retries")
    assert await desk.ask("figures") == {**dict.fromkeys(counts, 0), "warm": 3}
    assert await desk.ask("process", agent_id="a-0") == ["", 0]
    assert await desk.ask("purge", "t0001") is False, "it is no dead letter"
    assert await desk.ask("stop") is True and desk.stops == 1


async def answered(desk: Desk, task_id: str) -> None:
    """The agent's slot has t0001 first: its answer comes, then that of the next."""
    entry = desk.pump.core.book.open[TaskId(task_id)]
    desk.pump.put(AttemptFinished(TaskId(task_id), entry.attempt, entry.epoch, AgentId(entry.agent_id)))
    await desk.pump.synced()


async def test_a_grade_is_answered_when_it_is_on_disk_and_told_with_the_story(desk):
    await answered(desk, "t0001")
    assert await desk.ask("grade", "t0001", quality=0.25, by="me", outside=True) == 0.25
    assert desk.store.grade("t0001").quality == 0.25
    assert await desk.ask("grade", "t0001", quality=0.25, by="me") == 0.25, "again: the same"
    assert await desk.ask("grade", "t0001", quality=1.0) == 1.0
    told = (await desk.ask("story", "t0001"))["grade"]
    assert (told[1], told[3]) == (1.0, "")
    assert desk.store.outcome("t0001").quality is None, "an outcome does not change"


async def test_a_grade_of_an_outcome_on_its_way_to_the_disk_waits_for_it(desk):
    entry = desk.pump.core.book.open[TaskId("t0001")]
    desk.pump.put(AttemptFinished(TaskId("t0001"), entry.attempt, entry.epoch, AgentId(entry.agent_id)))
    while TaskId("t0001") in desk.pump.core.book.open:
        await asyncio.sleep(0)
    assert await desk.ask("grade", "t0001", quality=0.5) == 0.5
    assert desk.store.grade("t0001").quality == 0.5


@pytest.mark.parametrize("quality", [None, -0.1, 1.1, float("nan")])
async def test_what_is_no_grade_is_refused(desk, quality):
    await answered(desk, "t0001")
    error, detail = await desk.ask("grade", "t0001", quality=quality)
    assert error == "ConfigError" and "quality" in detail
    assert desk.store.grade("t0001") is None


async def test_what_has_no_answer_cannot_be_graded(desk):
    error, detail = await desk.ask("grade", "t0002", quality=0.5)
    assert error == "GradeRefused" and "it is queued" in detail
    await desk.ask("cancel", "t0002")
    error, detail = await desk.ask("grade", "t0002", quality=0.5)
    assert error == "GradeRefused" and "it ended cancelled, without an answer" in detail
    assert await desk.ask("grade", "t9999", quality=0.5) == ("UnknownTask", "no task has the id t9999")


async def test_the_text_that_is_kept_is_told(desk):
    await answered(desk, "t0001")
    assert await desk.ask("asked", "t0001") == "", "nobody routed it"
    assert (await desk.ask("asked", "t9999"))[0] == "UnknownTask"
    written = asyncio.Event()
    loop = asyncio.get_running_loop()
    outcome = msgspec.structs.replace(desk.store.outcome("t0001"), task_id=TaskId("routed"), key="")
    desk.store.append(
        [ResolveTask(outcome, None, Asked("what?"))], lambda error: loop.call_soon_threadsafe(written.set)
    )
    await written.wait()
    assert await desk.ask("asked", "routed", outside=True) == "what?"


async def test_a_node_is_drained_and_kept_and_both_are_on_disk(desk):
    assert await desk.ask("drain_node", node="n1") == ["somebody on n1"]
    assert list(desk.pump.core.book.drained) == ["n1"]
    assert await desk.ask("keep_node", node="n1") == []
    assert not desk.pump.core.book.drained
    assert [(c.node, c.drained) for c in desk.performed if isinstance(c, MarkNode)] == [("n1", True), ("n1", False)]


async def test_agents_are_drained_by_incarnation(desk):
    assert await desk.ask("drain_agents", agents=[("a-0", 7)]) is True
    assert desk.pump.core.registry.agent("a-0").incarnation == 1, "another one was meant"


@pytest.mark.parametrize("what", ["drain_node", "keep_node", "drain_agents"])
async def test_nobody_outside_drains(desk, what):
    assert (await desk.ask(what, outside=True))[0] == "ConfigError"

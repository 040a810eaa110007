"""The coordinator's engine over a real journal, without Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from shells import ANYWHERE, Shell, submitted

from flowray.core.commands import AcceptTask, ResolveTask
from flowray.core.events import AgentReady, AgentsAdded, TaskSubmitted
from flowray.core.model import AgentSpec, Task, TaskId
from flowray.core.states import TaskState
from flowray.runtime.pump import time_line
from flowray.store import SqliteStore


async def test_a_task_is_on_disk_before_its_acceptance_is_performed(tmp_path: Path) -> None:
    shell = Shell(tmp_path, answer=False)
    running = asyncio.create_task(shell.pump.run())
    shell.pump.put(AgentsAdded(AgentSpec(name="a", tier="t")))
    shell.pump.put(submitted(1))
    await shell.until(AcceptTask, 1)
    # Without closing the store: a second reader of the same files sees what is durable, and only that.
    other = SqliteStore.open(tmp_path, ANYWHERE)
    accepted = [c for c in other.begin_epoch("reader").commands if isinstance(c, AcceptTask)]
    assert [c.task.id for c in accepted] == ["t0001"]
    shell.pump.stop()
    await running
    other.close()
    shell.store.close()


async def test_more_than_one_turn_takes_needs_no_further_event(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    running = asyncio.create_task(shell.pump.run())
    await asyncio.sleep(0)  # it waits for something
    shell.pump.put(AgentsAdded(AgentSpec(name="a", tier="t", count=3)))
    for number in range(3000):
        shell.pump.put(submitted(number))
    await shell.until(ResolveTask, 3000)
    shell.pump.stop()
    await running
    shell.store.close()


async def test_outcomes_are_in_the_store_when_they_are_performed(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    running = asyncio.create_task(shell.pump.run())
    shell.pump.put(AgentsAdded(AgentSpec(name="a", tier="t", count=3)))
    for number in range(300):
        shell.pump.put(submitted(number))
    await shell.until(ResolveTask, 300)
    resolved = [c for c in shell.performed if isinstance(c, ResolveTask)]
    for command in resolved:
        stored = shell.store.outcome(command.outcome.task_id)
        assert stored == command.outcome
        assert stored.state is TaskState.SUCCEEDED
    shell.pump.stop()
    await running
    shell.store.close()


async def test_synced_resolves_after_everything_before_it_is_on_disk(tmp_path: Path) -> None:
    shell = Shell(tmp_path, answer=False)
    running = asyncio.create_task(shell.pump.run())
    shell.pump.put(AgentsAdded(AgentSpec(name="a", tier="t")))
    shell.pump.put(submitted(7))
    await asyncio.wait_for(shell.pump.synced(), 10)
    assert any(isinstance(c, AcceptTask) for c in shell.performed)
    await asyncio.wait_for(shell.pump.synced(), 10)  # with nothing to write it still resolves
    shell.pump.stop()
    await running
    shell.store.close()


async def test_a_fenced_journal_is_reported_and_nothing_that_waits_is_performed(tmp_path: Path) -> None:
    shell = Shell(tmp_path, answer=False)
    running = asyncio.create_task(shell.pump.run())
    shell.pump.put(AgentsAdded(AgentSpec(name="a", tier="t")))
    await asyncio.wait_for(shell.pump.synced(), 10)
    successor = SqliteStore.open(tmp_path, ANYWHERE)
    successor.begin_epoch("successor")
    shell.pump.put(submitted(1))
    async with asyncio.timeout(10):
        while not shell.failures:
            await asyncio.sleep(0.001)
    assert not any(isinstance(c, AcceptTask) for c in shell.performed)
    shell.pump.stop()
    await running
    successor.close()
    shell.store.close()


async def test_deadlines_come_true_without_any_event(tmp_path: Path) -> None:
    shell = Shell(tmp_path, answer=False)
    running = asyncio.create_task(shell.pump.run())
    shell.pump.put(AgentsAdded(AgentSpec(name="a", tier="t")))
    shell.pump.put(TaskSubmitted(Task(id=TaskId("t1"), deadline_s=0.05)))
    await shell.until(ResolveTask, 1)
    [resolved] = [c for c in shell.performed if isinstance(c, ResolveTask)]
    assert resolved.outcome.state is TaskState.EXPIRED
    shell.pump.stop()
    await running
    shell.store.close()


def test_the_time_line_never_goes_back_over_a_restart() -> None:
    future = 4_000_000_000.0
    clock = time_line(future)
    first = clock()
    assert first > future
    assert clock() >= first


@pytest.mark.slow
async def test_a_successor_goes_on_where_the_journal_ends(tmp_path: Path) -> None:
    shell = Shell(tmp_path, answer=False)
    running = asyncio.create_task(shell.pump.run())
    shell.pump.put(AgentsAdded(AgentSpec(name="a", tier="t", count=2)))
    for number in range(50):
        shell.pump.put(submitted(number))
    await shell.until(AcceptTask, 50)
    shell.pump.stop()
    await running
    live = shell.pump.core.snapshot()
    shell.store.close()
    heir = Shell(tmp_path)
    assert {t.task.id for t in heir.pump.core.snapshot().tasks} == {t.task.id for t in live.tasks}
    running = asyncio.create_task(heir.pump.run())
    for agent in heir.pump.core.registry.agents():  # the agents lost what they had
        heir.pump.put(AgentReady(agent.id, agent.incarnation))
    await heir.until(ResolveTask, 50)
    heir.pump.core.check()
    heir.pump.stop()
    await running
    heir.store.close()

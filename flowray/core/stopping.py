"""Attempts that were told to stop, and have not said yet that they are over.

Such an attempt is not wanted any more: nothing that it answers counts. But it holds its slot until its agent says that
it is over, because it may go on for as long as it likes.

    told to stop ▶ its agent says that it is over ▶ the slot is free
                 ▶ `cancel_grace_s` over           ▶ the agent is ended, and started again
                 ▶ its agent is lost

The next attempt of an exclusive task waits for it, and where its agent was given up without having been seen dead, for
as long as the attempt may go on (`fence_s`, see `flowray.core.fencing`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowray.core.commands import CancelAttempt, StopAgent
from flowray.core.model import AgentId, Held, Running, TaskId
from flowray.core.states import TaskState

if TYPE_CHECKING:
    from flowray.core.book import Entry
    from flowray.core.coordination import Coordination
    from flowray.core.registry import Agent


class Stopping:
    """A part of Coordination: what shall stop, and who waits until it has. Agents keep what they were told."""

    __slots__ = ("_core", "_timers")

    def __init__(self, core: Coordination) -> None:
        self._core = core
        self._timers = core.timers

    # ── told to stop ─────────────────────────────────────────────────────────────────────────────────────────────

    def stop_all(self, entry: Entry) -> None:
        """The task has ended: what still runs of it shall stop."""
        for held in entry.running():
            self._core.attempts.over(entry.task, held.attempt, held.agent_id)
            self.stop(entry.task.id, held)

    def stop(self, task_id: TaskId, held: Held) -> None:
        """Tell its agent to stop an attempt. It holds its slot until the agent says that it is over."""
        agent = self._core.registry.agent(AgentId(held.agent_id))
        if agent is None or agent.outstanding.get(task_id) != held.attempt:
            return
        del agent.outstanding[task_id]
        self.tell(agent, Running(task_id, held.attempt, held.epoch))
        agent.agent_class.update(agent)

    def tell(self, agent: Agent, one: Running) -> None:
        """The same where the book has no such attempt at this agent."""
        core = self._core
        agent.stopping[one.task_id, one.attempt, one.epoch] = core.now
        core.emit(CancelAttempt(one.task_id, one.attempt, agent.id, agent.incarnation, one.epoch))
        if ("grace", agent.id) not in self._timers:
            self._timers.set("grace", agent.id, core.now + core.policy.cancel_grace_s)

    # ── over, or lost ────────────────────────────────────────────────────────────────────────────────────────────

    def ended(self, agent: Agent, token: tuple[TaskId, int, int]) -> None:
        """The agent says of one that it is over."""
        del agent.stopping[token]
        self._is_over(token)
        if not agent.stopping:
            self._timers.clear("grace", agent.id)

    def lost(self, agent: Agent, *, certain: bool) -> None:
        """The agent's process is gone, or given up: `certain` where it was seen dead."""
        self._timers.clear("grace", agent.id)
        stopping, agent.stopping = agent.stopping, {}
        for token in stopping:
            if certain:
                self._is_over(token)
            else:
                self.may_go_on(token[0])

    def grace_over(self, key: str) -> None:
        """An attempt that was told to stop still holds its slot: end the process."""
        core, agent = self._core, self._core.registry.agent(AgentId(key))
        if agent is None or not agent.stopping:
            return
        due = min(agent.stopping.values()) + core.policy.cancel_grace_s
        if due > core.now:  # the one that set the timer did stop; another was told later
            self._timers.set("grace", agent.id, due)
            return
        core.emit(StopAgent(agent.id, agent.incarnation, "an attempt that was told to stop goes on"))
        core.lives.lose_quietly(agent, "ended by the coordinator: a stopped attempt went on")

    # ── exclusive tasks wait ─────────────────────────────────────────────────────────────────────────────────────

    def goes_on(self, task_id: TaskId) -> bool:
        """Was an attempt of it told to stop, and has not said yet that it did?"""
        return any(token[0] == task_id for agent in self._core.registry.agents() for token in agent.stopping)

    def may_go_on(self, task_id: TaskId) -> None:
        """An attempt of it may be running where nobody can stop it: an exclusive task waits until it is over."""
        core, entry = self._core, self._core.book.open.get(task_id)
        if entry is not None and entry.task.exclusive and entry.state is TaskState.BACKING_OFF:
            self._timers.set("backoff", task_id, max(entry.not_before, core.now + core.policy.fence_s))

    def _is_over(self, token: tuple[TaskId, int, int]) -> None:
        """An attempt that was told to stop has ended: an exclusive task need not wait for that any more."""
        entry = self._core.book.open.get(token[0])
        waits = entry is not None and entry.task.exclusive and entry.state is TaskState.BACKING_OFF
        if entry is not None and waits and token[1:] == (entry.attempt, entry.epoch):
            self._timers.set("backoff", token[0], max(entry.not_before, self._core.now))

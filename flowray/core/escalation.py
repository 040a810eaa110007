"""When agents are not started again any more: restart intensity, as Erlang's supervisors have it (J. Armstrong, 2003).

A lost agent is started again, ever more slowly (`RestartPolicy`). One whose processes end one after the other before
they have done anything is not mended by that: after `max_crashes` in a row, each within `window_s` of the one before,
it is given up, as one whose constructor raises is. When all agents of a class are given up, so is the class: what waits
for it goes to other classes or to the task's fallback, and what nobody else can do becomes a dead letter that says why.

Only deaths that nothing but the agent itself explains count: while it starts, or while it has nothing to do. A death
with an attempt, or an input, is that task's (the poison rule), and whatever is finished in between begins the count
anew. A process for which there was no room, or that the coordinator itself ended, is no crash.

Nothing of this is on disk: a new coordinator tries again, and so does whoever adds the class again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowray.core.events import AgentLost
from flowray.core.model import Failure
from flowray.core.states import AgentState

if TYPE_CHECKING:
    from flowray.core.coordination import Coordination
    from flowray.core.registry import Agent


class Escalation:
    """A part of Coordination: who dies again and again."""

    __slots__ = ("_core",)

    def __init__(self, core: Coordination) -> None:
        self._core = core

    def is_crash(self, agent: Agent, event: AgentLost) -> bool:
        """Is this death, of an agent that is still as it was before it, the agent's own?"""
        idle = agent.state is AgentState.READY and not agent.held and agent.agent_class.spec.stateful is None
        return event.created and (agent.state is AgentState.STARTING or idle)

    def crashed(self, agent: Agent, cause: str) -> None:
        """An agent has died of itself, and is to be started again: unless that was once too often."""
        core, policy = self._core, self._core.policy.restart
        if agent.state is not AgentState.WAITING:
            return  # it was leaving anyway
        count, last_at, finished = agent.crashes
        if core.now - last_at > policy.window_s or finished != agent.resolved:
            count = 0
        agent.crashes = (count + 1, core.now, agent.resolved)
        if count + 1 < policy.max_crashes:
            return
        agent.crashes = (0, core.now, agent.resolved)
        message = f"{count + 1} of its processes in a row ended before they had done anything; the last one: {cause}"
        agent.failure = Failure(kind="agent_lost", type="CrashLoop", message=message)
        core.registry.move(agent, "gave_up")
        core.timers.clear("restart", agent.id)
        core.placing.unbind(agent.agent_class)
        core.lives.give_up(agent.agent_class)

"""Drain: agents leave their processes without anything failing, so that a node, or a process, may go.

An agent that is drained takes nothing new, finishes what it has, and is started again as its next incarnation; what
waits goes to others meanwhile. From a *drained node* agents leave so, and none is started there until it is taken back.
Whatever still runs after `grace_s` is handed over: the process ends, and its attempts go elsewhere without blame
(exclusive ones when they must have stopped).

Of each class so few leave at a time that most go on (`at_once`), as a disruption budget has it (Kubernetes calls it
so); the next one leaves when one of them is ready again. An agent with a state leaves when the other process of its
instance is ready to take over, and after `grace_s` in any case: its inputs are on disk.

    asked for ▶ queue of its class ▶ draining ▶ empty, or grace_s over ▶ waiting ▶ started again elsewhere

Where agents are, the core knows from what they say when they are ready. Which nodes are drained is on disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from flowray.core.commands import MarkNode, StopAgent
from flowray.core.events import AgentsDrained, NodeDrained
from flowray.core.model import AgentId
from flowray.core.stateful import other_seat
from flowray.core.states import AgentState
from flowray.errors import ConfigError

if TYPE_CHECKING:
    from flowray.core.coordination import Coordination
    from flowray.core.registry import Agent, AgentClass

_LEFT = "it left, to be started again elsewhere"


class DrainPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast agents leave."""

    at_once: float = 0.2  # share of a class's agents that may be away at a time for this; one always may
    grace_s: float = 30.0  # for what an agent has begun; then it is handed over to others

    def __post_init__(self) -> None:
        if not 0.0 < self.at_once <= 1.0:
            raise ConfigError("drain.at_once", f"must be within (0, 1], got {self.at_once}")
        if self.grace_s <= 0:
            raise ConfigError("drain.grace_s", f"must be positive, got {self.grace_s}")


class Draining:
    """A part of Coordination: who is to leave, and who is leaving."""

    __slots__ = ("_core", "_leaving", "_wanted")

    def __init__(self, core: Coordination) -> None:
        self._core = core
        self._wanted: dict[AgentId, int] = {}  # to leave -> incarnation that is meant, oldest request first
        self._leaving: dict[AgentId, int] = {}  # left or leaving, and not ready again -> the incarnation that leaves

    def is_leaving(self, agent_id: AgentId) -> bool:
        """Will it be started again when it has finished? (Else it is drained because it is not wanted any more.)"""
        return agent_id in self._leaving

    def is_to_leave(self, agent_id: AgentId) -> bool:
        """Will it be asked to leave as soon as others are back?"""
        return agent_id in self._wanted

    # ── asked for ────────────────────────────────────────────────────────────────────────────────────────────────

    def on_agents(self, event: AgentsDrained) -> None:
        """Some agents shall leave their processes. Who is not there, or is leaving, or has left already, need not."""
        for agent_id, incarnation in event.agents:
            self._ask(agent_id, incarnation)
        self._look_at_all()

    def on_node(self, event: NodeDrained) -> None:
        """A node shall have no agents, or may have some again."""
        core = self._core
        if (event.node in core.book.drained) != event.drained:
            core.commit(MarkNode(event.node, event.drained, core.now))
        for agent in core.registry.agents():
            if agent.node == event.node and event.drained:
                self._ask(agent.id, agent.incarnation)
            elif agent.node == event.node:
                self._wanted.pop(agent.id, None)
        self._look_at_all()

    def _ask(self, agent_id: AgentId, incarnation: int) -> None:
        agent = self._core.registry.agent(agent_id)
        if agent is None or agent.incarnation != incarnation or agent.state is not AgentState.READY:
            return
        if agent_id not in self._wanted:
            self._wanted[agent_id] = incarnation
            self._core.timers.set("drain", agent_id, self._core.now + self._core.policy.drain.grace_s)

    # ── what becomes of them ─────────────────────────────────────────────────────────────────────────────────────

    def ready(self, agent: Agent) -> None:
        """An agent is up, or says again what it has: it may be back, or be where none should be."""
        if self._leaving.get(agent.id, agent.incarnation) != agent.incarnation:
            del self._leaving[agent.id]
        if agent.node and agent.node in self._core.book.drained:
            self._ask(agent.id, agent.incarnation)
        self._look_at_all()

    def emptied(self, agent: Agent) -> None:
        """An agent that is draining has finished what it had."""
        if self.is_leaving(agent.id):
            self._leave(agent)
        else:
            self._core.lives.stop(agent, "drained")

    def lost(self, agent: Agent) -> None:
        """An agent's process is gone: so it has left, whatever it was about."""
        self._wanted.pop(agent.id, None)
        self._core.timers.clear("drain", agent.id)

    def unwanted(self, agent: Agent) -> None:
        """The team does not want an agent any more: it is not to come back."""
        self.lost(agent)
        self._leaving.pop(agent.id, None)

    def overdue(self, key: str) -> None:
        """An agent has not left in time: what it has is handed over."""
        agent = self._core.registry.agent(AgentId(key))
        if agent is None or agent.incarnation != self._wanted.get(agent.id, self._leaving.get(agent.id)):
            return
        if agent.state is AgentState.READY and self._has_room(agent.agent_class):
            self._begin(agent)  # it waited for who takes its state over
        elif agent.state is AgentState.READY:  # it waits until others are back, however long that takes
            self._core.timers.set("drain", agent.id, self._core.now + self._core.policy.drain.grace_s)
        elif agent.state is AgentState.DRAINING:
            self._hand_over(agent)

    def _look_at_all(self) -> None:
        for agent_id in list(self._wanted):
            agent = self._core.registry.agent(agent_id)
            if agent is not None and self._may_leave(agent):
                self._begin(agent)

    def _may_leave(self, agent: Agent) -> bool:
        one = agent.agent_class
        if not self._has_room(one):
            return False
        stateful = one.spec.stateful
        if stateful is None or stateful.standby != "warm":
            return True
        other = self._core.registry.agent(AgentId(other_seat(agent.id, one.spec)))
        return other is not None and other.state is AgentState.READY

    def _has_room(self, one: AgentClass) -> bool:
        """May another agent of the class be away?"""
        away = sum(agent.id in self._leaving and agent.state is not AgentState.BROKEN for agent in one.agents)
        return away < max(1, int(self._core.policy.drain.at_once * len(one.agents)))

    def _begin(self, agent: Agent) -> None:
        self._leaving[agent.id] = self._wanted.pop(agent.id)
        self._core.timers.set("drain", agent.id, self._core.now + self._core.policy.drain.grace_s)
        if agent.agent_class.spec.stateful is not None:
            self._hand_over(agent)
        elif not agent.held:
            self._leave(agent)
        else:
            self._core.registry.move(agent, "drain")
            agent.agent_class.update(agent)
            self._core.placing.unbind(agent.agent_class)

    def _leave(self, agent: Agent) -> None:
        """It has nothing any more: end its process, start it again."""
        core = self._core
        core.timers.clear("drain", agent.id)
        core.registry.move(agent, "moved")
        agent.prefetch, agent.service_s = 0, -1.0
        agent.agent_class.update(agent)
        core.emit(StopAgent(agent.id, agent.incarnation, _LEFT))
        core.placing.unbind(agent.agent_class)
        core.lives.start(agent)

    def _hand_over(self, agent: Agent) -> None:
        """End its process although it has something: others get that, and nobody is to blame."""
        core = self._core
        core.emit(StopAgent(agent.id, agent.incarnation, _LEFT))
        core.lives.lose_quietly(agent, _LEFT)
        core.timers.set("restart", agent.id, core.now)  # it was no crash: nothing to be spaced out

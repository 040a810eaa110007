"""The lives of agents: how many are wanted, which are asked for, there, lost, stopped, and started again.

An agent is one name for as long as it is wanted; each life of it is a process with a number (`incarnation`), which goes
on over restarts of the coordinator. What is said of an earlier life changes nothing. Its states and their arrows stand
in `flowray.core.states`; these are the usual ones:

    waiting ▶ asked for ▶ ready ▶ lost, or not ready in time ▶ waiting, ever longer (`RestartPolicy`)
                                ▶ not wanted any more ▶ finishes what it has ▶ stopped
            ▶ its constructor raises again and again ▶ broken: until its class is added again

Beside this stand `flowray.core.escalation` (whose processes die one after the other) and `draining` (who leaves its
process to be started again elsewhere).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from flowray.core.commands import AddAgents, StartAgent, StopAgent
from flowray.core.events import AgentLost, AgentReady, AgentsAdded, AgentStartFailed
from flowray.core.model import AgentId, AgentSpec, Failure
from flowray.core.stateful import standby_of
from flowray.core.states import AgentState

if TYPE_CHECKING:
    from flowray.core.coordination import Coordination
    from flowray.core.registry import Agent, AgentClass


class Lives:
    """A part of Coordination: who shall live, and what follows from who does. The registry has the agents."""

    __slots__ = ("_core", "_registry", "_timers")

    def __init__(self, core: Coordination) -> None:
        self._core = core
        self._registry, self._timers = core.registry, core.timers

    # ── wanted ───────────────────────────────────────────────────────────────────────────────────────────────────

    def on_added(self, event: AgentsAdded) -> None:
        """So many agents of a class are wanted: more than so far, or fewer."""
        inboxes, spec = self._core.book.inboxes, event.spec
        if inboxes.count(spec.name):  # entities are spread over them
            spec = structs.replace(spec, count=inboxes.count(spec.name))
        self._add(spec)
        if (standbys := standby_of(spec)) is not None:
            self._add(standbys)

    def recover(self, until: float) -> None:
        """All agents that the book has. Those that were asked for once may live, and have until then to say so."""
        core, registry = self._core, self._registry
        for spec in core.book.specs.values():
            self._join(spec)
        for agent in registry.agents():
            if agent.incarnation:
                registry.move(agent, "requested")
                self._timers.set("start", agent.id, until)
            else:
                self._timers.set("restart", agent.id, core.now)
        for one in registry.classes():
            if one.hopeless:  # scaled to nothing, and the end of what waits for it was in a lost tail
                self._timers.set("hopeless", one.spec.name, core.now)

    def _add(self, spec: AgentSpec) -> None:
        core, registry = self._core, self._registry
        core.commit(AddAgents(spec, core.now))
        one, added, surplus = self._join(spec)
        for agent in registry.broken(spec.name):  # added again: its author may have mended it
            registry.move(agent, "retried")
            added.append(agent)
        for agent in added:
            self.start(agent)
        for agent in one.agents:
            if agent.state is AgentState.DRAINING and agent not in surplus and not core.draining.is_leaving(agent.id):
                registry.move(agent, "kept")
                one.update(agent)
                core.placing.fill(agent)
                core.draining.ready(agent)
        for agent in surplus:
            core.draining.unwanted(agent)
            if agent.state is AgentState.READY and agent.held:
                registry.move(agent, "drain")
                agent.agent_class.update(agent)
                core.placing.unbind(agent.agent_class)
            elif agent.state is not AgentState.DRAINING:
                self.stop(agent, "not wanted any more")

    def _join(self, spec: AgentSpec) -> tuple[AgentClass, list[Agent], list[Agent]]:
        core, registry = self._core, self._registry
        known = len(registry.classes())
        one, added, surplus = registry.add(spec)
        for agent in added:  # an agent that was stopped once may come back: its numbers go on
            agent.incarnation = core.book.incarnations.get(agent.id, 0)
        if len(registry.classes()) > known:
            core.queue.join(one)
        return one, added, surplus

    # ── started ──────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, agent: Agent) -> None:
        """Ask for its next process."""
        core = self._core
        self._registry.move(agent, "requested")
        agent.incarnation += 1
        core.commit(StartAgent(agent.id, agent.incarnation, agent.agent_class.spec.name, core.now))
        self._timers.set("start", agent.id, core.now + core.policy.start_timeout_s)

    def restart_due(self, key: str) -> None:
        """An agent has waited for its next life."""
        agent = self._registry.agent(AgentId(key))
        if agent is not None and agent.state is AgentState.WAITING:
            self.start(agent)

    def start_timed_out(self, key: str) -> None:
        """An agent was asked for, and should be there by now."""
        agent = self._registry.agent(AgentId(key))
        if agent is not None and agent.state is AgentState.STARTING:
            self._core.emit(StopAgent(agent.id, agent.incarnation, "it was not ready in time"))
            self.lose_quietly(agent, "it was not ready in time")

    def on_ready(self, event: AgentReady) -> None:
        """A process is up, or says again what it runs."""
        core, agent = self._core, self._registry.agent(event.agent_id)
        known = 0 if agent is None else agent.incarnation
        # Waiting with a number: this life of it was declared over, so a late report of it changes nothing.
        over = event.incarnation == known and agent is not None and agent.state is AgentState.WAITING
        if agent is None or event.incarnation < known or over or agent.state is AgentState.BROKEN:
            for one in event.running:
                core.stopping.may_go_on(one.task_id)
            core.emit(StopAgent(event.agent_id, event.incarnation, "not of this team any more"))
            return
        # Higher than ours only when the journal is an older copy: StartAgent waits for the disk.
        agent.incarnation = event.incarnation
        self._registry.move(agent, "ready")
        agent.start_failures, agent.failure = 0, None
        self._timers.clear("start", agent.id)
        self._timers.clear("restart", agent.id)
        core.adopting.reconcile(agent, event.running)
        agent.agent_class.update(agent)
        core.stateful.ready(agent, event)
        if agent.state is AgentState.DRAINING and not agent.held:
            core.draining.emptied(agent)
        else:
            core.placing.fill(agent)
        agent.node = event.node
        core.draining.ready(agent)

    def on_start_failed(self, event: AgentStartFailed) -> None:
        """The constructor of an agent raised."""
        agent = self._registry.agent(event.agent_id)
        if agent is None or agent.incarnation != event.incarnation or agent.state is not AgentState.STARTING:
            return
        if not self._registry.start_failed(agent, event.failure):
            self._lose(agent, f"it did not start: {event.failure.type}: {event.failure.message}", certain=False)
            return
        self._registry.move(agent, "gave_up")
        self._timers.clear("start", agent.id)
        self._core.placing.unbind(agent.agent_class)
        self._requeue_all(agent, "it did not start", blame=False, certain=False)
        self.give_up(agent.agent_class)

    # ── lost, or stopped ─────────────────────────────────────────────────────────────────────────────────────────

    def on_lost(self, event: AgentLost) -> None:
        """The process of an agent is gone, or out of reach."""
        escalation, agent = self._core.escalation, self._registry.agent(event.agent_id)
        if agent is None or agent.incarnation != event.incarnation:
            return
        if agent.state in (AgentState.STARTING, AgentState.READY, AgentState.DRAINING):
            crash, cause = escalation.is_crash(agent, event), event.cause or "its process ended"
            self._lose(agent, cause, certain=event.certain)
            if crash:
                escalation.crashed(agent, cause)

    def lose_quietly(self, agent: Agent, cause: str) -> None:
        """Lose an agent by our own decision: its other attempts are not to blame."""
        blamed, agent.slots = agent.slots, 0
        self._lose(agent, cause, certain=False)
        agent.slots = blamed

    def _lose(self, agent: Agent, cause: str, *, certain: bool) -> None:
        """This incarnation is over: its attempts go elsewhere, and it is started again unless it was leaving.

        Where it is not certain that its process has ended, exclusive tasks wait until it must have stopped them.
        """
        core, registry = self._core, self._registry
        leaving = core.draining.is_leaving(agent.id)
        draining = agent.state is AgentState.DRAINING and not leaving
        registry.move(agent, "moved" if leaving and agent.state is AgentState.DRAINING else "lost")
        core.draining.lost(agent)
        self._timers.clear("start", agent.id)
        core.stopping.lost(agent, certain=certain)
        agent.prefetch, agent.service_s = 0, -1.0
        agent.agent_class.update(agent)
        if draining:
            registry.forget(agent)
        else:
            self._timers.set("restart", agent.id, registry.lost(agent, core.now))
        core.placing.unbind(agent.agent_class)
        self._requeue_all(agent, cause, blame=True, certain=certain)
        core.stateful.gone(agent, certain=certain, cause=cause)
        if draining:
            self.give_up(agent.agent_class)

    def _requeue_all(self, agent: Agent, cause: str, *, blame: bool, certain: bool) -> None:
        core = self._core
        held = core.adopting.held_by(agent)
        agent.outstanding.clear()
        for position, task_id in enumerate(held):
            entry = core.book.open[task_id]
            # An agent takes its attempts in order: only as many as it has slots can have been running.
            counts = ("kills" if position < agent.slots else "losses") if blame else ""
            failure = Failure(kind="agent_lost", message=f"{agent.id} was lost: {cause}")
            over_in_s = 0.0 if certain else core.policy.fence_s
            core.attempts.lost(entry, entry.at(agent.id).attempt, failure, counts, over_in_s)

    def stop(self, agent: Agent, reason: str) -> None:
        """It is not wanted any more: end its process for good."""
        core = self._core
        self._registry.move(agent, "stopped")
        for kind in ("start", "restart", "grace"):
            self._timers.clear(kind, agent.id)
        agent.agent_class.update(agent)
        if agent.incarnation:
            core.emit(StopAgent(agent.id, agent.incarnation, reason))
        self._registry.forget(agent)
        core.placing.unbind(agent.agent_class)
        self.give_up(agent.agent_class)

    def give_up(self, one: AgentClass) -> None:
        """A class lost an agent for good: end what waits for nobody else."""
        self._core.stateful.hopeless(one)
        self._core.placing.hopeless(one)

    def hopeless_found(self, key: str) -> None:
        """A new coordinator found a class of this name without anybody who will come."""
        one = self._registry.named(key)
        if one is not None:
            self.give_up(one)

"""What befalls the coordinator's process, its disk and its clock. (What befalls agents is in `world`.)"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from flowray.core.events import AgentsDrained, NodeDrained
from flowray.testing.faults import (
    AgentCrashLoop,
    BitFlip,
    ClockJump,
    CoordinatorCrashLoop,
    CrashMidway,
    Drain,
    Duplicate,
    FullDisk,
    LateNews,
    SyncError,
    TornWrite,
)

if TYPE_CHECKING:
    from flowray.testing.agent import AgentProcess
    from flowray.testing.world import World


NODES = ("n0", "n1", "n2")  # of worlds in which nodes are drained; the first never is, so there is room


class Strikes:
    """Draws, from a source of its own: a fault that is not among a world's faults draws nothing."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = Random(f"{world.seed}/strikes")
        self._places = Random(f"{world.seed}/places")
        self.emptied: set[str] = set()  # nodes that were drained at some time
        self._full_until = 0.0
        self.midway, self._failing_sync = world.fault(CrashMidway), world.fault(SyncError)  # asked for all the time

    def heal(self) -> None:
        """No more faults."""
        self.midway = self._failing_sync = None

    def flips(self) -> Random | None:
        """A source of wrong bits, when there shall be one in what a coordinator reads."""
        fault = self._world.fault(BitFlip)
        return self._rng if fault is not None and self._rng.random() < fault.ratio else None

    def skew_s(self) -> float:
        """How wrong the clock of a new life of the coordinator is."""
        fault = self._world.fault(ClockJump)
        if fault is None:
            return 0.0
        wrong_s = self._rng.uniform(-fault.max_s, fault.max_s) * self._rng.random()
        self._world.note("clock ahead" if wrong_s > 0 else "clock behind")
        return wrong_s

    def torn(self) -> float:
        """Probability that a part of a group is on disk after a crash."""
        fault = self._world.fault(TornWrite)
        return fault.ratio if fault is not None else 0.0

    def sync_fails(self) -> bool:
        """Does the sync that is about to end fail?"""
        fault = self._failing_sync
        return fault is not None and self._rng.random() < fault.ratio

    def full(self, fault: FullDisk) -> None:
        """No sync ends for a while."""
        self._world.note("disk full")
        self._full_until = self._world.clock.now + self._rng.uniform(0.0, fault.lasts_s)

    def until_room_s(self) -> float:
        """How long until a sync can end."""
        return 0.0 if self._world.healed else max(0.0, self._full_until - self._world.clock.now)

    def down_midway_s(self) -> float | None:
        """For how long the coordinator is gone when it ends right now; None when it goes on."""
        fault = self.midway
        return fault.down_s if fault is not None and self._rng.random() < fault.ratio else None

    def coordinator_started(self) -> None:
        """It may end again at once."""
        fault, world = self._world.fault(CoordinatorCrashLoop), self._world
        if fault is not None and self._rng.random() < fault.ratio:
            world.note("coordinator crashed again")
            world.clock.after(self._rng.uniform(0.0, fault.within_s), lambda: world.crash_coordinator(0.2))

    def news_late_s(self) -> float:
        """How long an agent does not hear of the coordinator that was just started."""
        fault = self._world.fault(LateNews)
        if fault is None:
            return 0.0
        self._world.note("heard late of a new coordinator")
        return self._rng.uniform(0.0, fault.max_s)

    def agent_up(self, process: AgentProcess) -> None:
        """It may end again at once."""
        fault, world = self._world.fault(AgentCrashLoop), self._world
        if fault is not None and self._rng.random() < fault.ratio:
            world.note("agent crashed again")
            world.clock.after(self._rng.uniform(0.0, fault.within_s), lambda: world.crash(process))

    def place(self) -> str:
        """The node of a process that is asked for: none that is drained, as far as the coordinator knows."""
        leader = self._world.leader
        if self._world.fault(Drain) is None:
            return ""
        drained = leader.core.book.drained if leader is not None else {}
        return self._places.choice([node for node in NODES if node not in drained])

    def drain(self, process: AgentProcess) -> None:
        """Somebody wants it to leave its process, or its node without agents for a while."""
        world = self._world
        if process.node in ("", NODES[0]) or self._places.random() < 0.7:
            world.note("asked to leave")
            world.observer.may_leave.add((process.id, process.incarnation))
            world.tell_leader(0.0, AgentsDrained(((process.id, process.incarnation),)))
            return
        world.note("node drained")
        self.emptied.add(process.node)
        for other in world.processes.values():
            self.came_up(other)
        if world.leader is not None:  # it may not have heard of the death of some that were there
            there = [agent for agent in world.leader.core.registry.agents() if agent.node == process.node]
            world.observer.may_leave.update((agent.id, agent.incarnation) for agent in there)
        world.tell_leader(0.0, NodeDrained(process.node))
        world.tell_leader(self._places.uniform(0.0, 30.0), NodeDrained(process.node, drained=False))

    def came_up(self, process: AgentProcess) -> None:
        """Where its node is or was drained it may be told to leave."""
        if process.node in self.emptied:
            self._world.observer.may_leave.add((process.id, process.incarnation))

    def says_again(self) -> bool:
        """Is a notice of death given twice?"""
        fault = self._world.fault(Duplicate)
        return fault is not None and self._rng.random() < fault.ratio

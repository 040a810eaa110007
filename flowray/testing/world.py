"""The simulated cluster: processes, their births and deaths, and the faults that befall them.

Ray is here as it was measured to behave: a death is noticed late, or noticed although the process lives on beside its
successor; a process that hangs is never noticed; a start may fail or never end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import TypeVar

from flowray.core.events import AgentLost, AgentStartFailed, Event
from flowray.core.model import AgentId, AgentSpec, Failure
from flowray.core.policy import CorePolicy
from flowray.errors import StoreCorrupt
from flowray.testing.agent import AgentProcess, Behaviour, Stream
from flowray.testing.clock import VirtualClock
from flowray.testing.coordinator import CoordinatorProcess
from flowray.testing.faults import (
    AgentStartFailure,
    CoordinatorCrash,
    CoordinatorZombie,
    Crash,
    Drain,
    FalseDeath,
    Fault,
    FullDisk,
    Hang,
    LostTail,
    Partition,
    Slow,
    SlowDisk,
)
from flowray.testing.invariants import Observer
from flowray.testing.journal import Disk
from flowray.testing.network import Network
from flowray.testing.partitions import Partitions
from flowray.testing.router import SimulatedRouter
from flowray.testing.stateful import StatefulProcess
from flowray.testing.strikes import Strikes
from flowray.testing.trace import Trace

F = TypeVar("F", bound=Fault)
SNAPSHOT_EVERY = (15, 50, 150)  # groups; small, so that recovery from snapshot and journal is common
REPLACED_ENDS_S = 5.0  # after the faults stopped: whoever replaced a coordinator has its process ended
END_AGAIN_S = 0.25  # a process on a node that nobody reaches is asked to end again
STANDIN_S = 2.0  # a coordinator that cannot read its journal tries again


class World:
    """Everything that is simulated. It starts with an empty disk and one coordinator."""

    def __init__(
        self,
        *,
        seed: int,
        behaviour: Behaviour,
        faults: Sequence[Fault] = (),
        policy: CorePolicy | None = None,
        start_s: tuple[float, float] = (0.05, 0.5),
        trace: bool = False,
        thorough: bool = False,
    ) -> None:
        self.seed = seed
        self.behaviour = behaviour
        self.faults: tuple[Fault, ...] = tuple(faults)
        self._by_kind: dict[type[Fault], Fault] = {type(fault): fault for fault in reversed(self.faults)}
        self.policy = policy or CorePolicy()
        self.clock = VirtualClock()
        self.rng = Random(f"{seed}/world")
        self.trace = Trace(self.clock, keep=trace)
        self.sometimes: Counter[str] = Counter()
        self.observer = Observer(self, thorough=thorough)
        self.disk = Disk(self.observer.written)
        self.snapshot_every = Random(f"{seed}/snapshots").choice(SNAPSHOT_EVERY)
        self.network = Network(self.clock, Random(f"{seed}/network"), self.faults)
        self.router = SimulatedRouter(seed)
        self.processes: dict[tuple[str, int], AgentProcess] = {}  # alive, hung or not
        self.leader: CoordinatorProcess | None = None
        self.coordinators: list[CoordinatorProcess] = []  # alive, the leader last
        self.downtime: list[tuple[float, float]] = []  # (from, until) without a working coordinator
        self.healed = False
        self.crashes = self.slowed = self.slow_syncs = 0  # by a fault: processes ended, processes slow, syncs
        self._slow_disk = self.fault(SlowDisk)
        self.strikes = Strikes(self)
        self.partitions = Partitions(self)
        # The coordinator asks for these at each turn.
        self.flips, self.skew_s, self.sync_fails = self.strikes.flips, self.strikes.skew_s, self.strikes.sync_fails
        self._ahead_s: dict[int, float] = {}  # epoch -> its clock less the world's
        self._down_since: float | None = 0.0
        self._start_s = start_s
        self._streams = 0
        self.start_coordinator()
        for fault in self.faults:
            self._plan(fault)

    # ── small things ─────────────────────────────────────────────────────────────────────────────────────────────

    def note(self, point: str) -> None:
        """Something worth seeing now and then has happened."""
        self.sometimes[point] += 1

    def fault(self, kind: type[F]) -> F | None:
        """The fault of this kind, while there are faults."""
        return None if self.healed else self._by_kind.get(kind)  # type: ignore[return-value]

    @property
    def lost_tail(self) -> float:
        """Probability that nothing of the tail survives a crash."""
        fault = self.fault(LostTail)
        return fault.ratio if fault is not None else 0.3

    def sync_s(self) -> float:
        """How long the next sync takes."""
        slow = self._slow_disk
        self.slow_syncs += slow is not None
        return self.strikes.until_room_s() + self.rng.uniform(0.0005, slow.sync_s if slow is not None else 0.004)

    @property
    def torn_writes(self) -> float:
        """Probability that a part of a group is on disk after a crash."""
        return self.strikes.torn()

    def open_stream(self, agent: AgentProcess, coordinator: CoordinatorProcess) -> Stream:
        """A new connection."""
        self._streams += 1
        return Stream(self._streams, agent, coordinator)

    # ── the coordinator ──────────────────────────────────────────────────────────────────────────────────────────

    def start_coordinator(self) -> None:
        """A new life of the coordinator, in a new epoch; it finds the agents that are there."""
        if self.leader is not None and self.leader.alive and not self.leader.paused and not self.leader.writer.fenced:
            return
        if self.leader is not None and self.leader.alive:
            self.leader.writer.land(self.rng)
        self.trace.line("coordinator starts")
        try:
            self.leader = CoordinatorProcess(self)
        except StoreCorrupt:
            self.note("damaged journal refused")
            self._down()
            self.clock.after(STANDIN_S, self.start_coordinator)
            return
        self._ahead_s[self.leader.epoch] = self.leader.ahead_s
        self.coordinators = [c for c in self.coordinators if c.alive]
        self.coordinators.append(self.leader)
        if len(self.coordinators) > 2:
            self.note("three coordinators at once")
        self._up()
        self.observer.recovered(self.leader)
        for process in list(self.processes.values()):
            process.redial(late_s=self.strikes.news_late_s())
        self.strikes.coordinator_started()

    def crash_coordinator(self, down_s: float) -> None:
        """The coordinator ends; another starts later."""
        if self.leader is None or not self.leader.alive:
            return
        self.trace.line("coordinator crashes")
        self.note("coordinator crashed")
        self._down()
        self.leader.die()
        self.clock.after(down_s, self.start_coordinator)

    def lose_coordinator(self, coordinator: CoordinatorProcess, down_s: float) -> None:
        """This one ends, whether it is the one in charge or an older one."""
        if coordinator is self.leader:
            self.crash_coordinator(down_s)
        elif coordinator.alive:
            coordinator.die()

    def cuts_short(self, coordinator: CoordinatorProcess) -> bool:
        """Does this coordinator end between two effects of one event? Then it has."""
        if self.strikes.midway is None:  # asked for each command
            return not coordinator.alive
        down_s = self.strikes.down_midway_s()
        if down_s is None or not coordinator.alive:
            return not coordinator.alive
        self.note("crashed between two effects")
        self.lose_coordinator(coordinator, down_s)
        return True

    def pause_coordinator(self, pause_s: float, replaced_after_s: float) -> None:
        """The coordinator stops, is replaced, and goes on as if nothing had happened."""
        leader = self.leader
        if leader is None or not leader.alive or leader.paused:
            return
        self.trace.line("coordinator is paused")
        self.note("coordinator paused")
        self._down()
        leader.pause()
        self.clock.after(replaced_after_s, self.start_coordinator)
        self.clock.after(max(pause_s, replaced_after_s), partial(self._resume, leader))

    def _resume(self, coordinator: CoordinatorProcess) -> None:
        if coordinator.alive and coordinator.paused:
            self.trace.line(f"the coordinator of epoch {coordinator.epoch} goes on")
            if coordinator is self.leader and not coordinator.writer.fenced:
                self._up()
            else:
                self.note("zombie went on")
            coordinator.resume()

    def _down(self) -> None:
        if self._down_since is None:
            self._down_since = self.clock.now

    def _up(self) -> None:
        if self._down_since is not None:
            self.downtime.append((self._down_since, self.clock.now))
            self._down_since = None

    def up_since(self, at: float, epoch: int) -> float:
        """When the last outage before this time ended; both by the clock of a coordinator's life."""
        ahead_s = self._ahead_s[epoch]
        for _, until in reversed(self.downtime):
            if until + ahead_s <= at:
                return until + ahead_s
        return 0.0

    def reach(self) -> CoordinatorProcess | None:
        """The coordinator that a caller reaches: now and then an old one that is still there."""
        if len(self.coordinators) > 1 and self.rng.random() < 0.3:
            found = self.rng.choice(self.coordinators)
            if found.alive:  # else it is refused at once, and asks the other
                return found
        return self.leader

    # ── agents ───────────────────────────────────────────────────────────────────────────────────────────────────

    def start_agent(self, spec: AgentSpec, agent_id: AgentId, incarnation: int) -> None:
        """A process is asked for."""
        self.observer.agent_started(agent_id, incarnation)
        took_s = self.rng.uniform(*self._start_s)
        broken = self.fault(AgentStartFailure)
        if broken is not None and self.rng.random() < broken.ratio:
            self.note("agent start failed")
            failure = Failure(kind="application", type="RuntimeError", message="no model file", traceback="(simulated)")
            self.tell_leader(took_s, AgentStartFailed(agent_id, incarnation, failure))
        elif broken is None or self.rng.random() >= broken.hang_ratio:
            slow = self.fault(Slow)
            factor = slow.factor if slow is not None and self.rng.random() < slow.share else 1.0
            self.slowed += factor > 1.0
            kind = AgentProcess if spec.stateful is None else StatefulProcess
            process = kind(self, spec, agent_id, incarnation, factor)
            process.node = self.strikes.place()
            self.clock.after(took_s, partial(self._agent_up, process))
        else:
            self.note("agent start hung")

    def _agent_up(self, process: AgentProcess) -> None:
        failure = self.behaviour.construct(process)
        if failure is not None:
            process.alive = False
            self.tell_leader(0.001, AgentStartFailed(process.id, process.incarnation, failure))
            return
        self.processes[process.id, process.incarnation] = process
        self.strikes.came_up(process)
        process.dial()
        self.strikes.agent_up(process)

    def stop_agent(self, agent_id: AgentId, incarnation: int) -> None:
        """Ray is asked to end a process; that works for a hung one too, and for one that is cut off when it is not."""
        process = self.processes.get((agent_id, incarnation))
        if process is not None:
            self.clock.after(self.rng.uniform(0.001, 0.1), partial(self._end, process))

    def _end(self, process: AgentProcess) -> None:
        away = self.clock.now < process.away_until or self.partitions.is_away(process)
        if process.alive and away and not self.healed:
            if not process.ending:
                self.note("could not be ended yet")
            process.ending = True
            self.clock.at(max(process.away_until, self.clock.now + END_AGAIN_S), partial(self._end, process))
        else:
            self.crash(process)

    def crash(self, process: AgentProcess, notice_s: float = 0.05) -> None:
        """A process ends; the coordinator hears of it later."""
        if not process.alive:
            return
        self.trace.line(f"{process.id}#{process.incarnation} ends")
        process.alive = False
        del self.processes[process.id, process.incarnation]
        lost = AgentLost(process.id, process.incarnation, "exit code -9")
        self.tell_leader(self.rng.uniform(0.001, notice_s), lost)
        if self.strikes.says_again():
            self.note("death told twice")
            self.tell_leader(self.rng.uniform(0.001, 5.0 + notice_s), lost)

    def tell_leader(self, delay_s: float, event: Event) -> None:
        """Ray tells the coordinator of then, if there is one."""

        def tell() -> None:
            if self.leader is not None:
                self.leader.hear(event)

        self.clock.after(delay_s, tell)

    # ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _plan(self, fault: Fault) -> None:
        strike = self._strike(fault)
        at_s: float | None = getattr(fault, "at_s", None)
        rate_per_s: float | None = getattr(fault, "rate_per_s", None)
        if strike is None:
            return
        if at_s is not None:
            self.clock.at(at_s, lambda: None if self.healed else strike(True))
        elif rate_per_s:
            self._again(strike, rate_per_s)

    def _again(self, strike: Callable[[bool], None], rate_per_s: float) -> None:
        def fall_due() -> None:
            if not self.healed:
                strike(False)
                self._again(strike, rate_per_s)

        self.clock.after(self.rng.expovariate(rate_per_s), fall_due)

    def _strike(self, fault: Fault) -> Callable[[bool], None] | None:
        if isinstance(fault, Crash):
            return lambda once: self._befall(fault.share, once, partial(self._crash, notice_s=fault.notice_s))
        if isinstance(fault, Hang):
            return lambda once: self._befall(fault.share, once, partial(self._hang, lasts_s=fault.lasts_s))
        if isinstance(fault, Partition):
            return lambda once: self.partitions.strike(fault)
        if isinstance(fault, FullDisk):
            return lambda once: self.strikes.full(fault)
        if isinstance(fault, Drain):
            return lambda once: self._befall(0.0, False, self.strikes.drain)
        if isinstance(fault, FalseDeath):
            return lambda once: self._befall(0.0, False, partial(self._die_falsely, lives_on_s=fault.lives_on_s))
        if isinstance(fault, CoordinatorCrash):
            return lambda once: self.crash_coordinator(fault.down_s)
        if isinstance(fault, CoordinatorZombie):
            return lambda once: self.pause_coordinator(fault.pause_s, fault.replaced_after_s)
        return None

    def _befall(self, share: float, once: bool, strike: Callable[[AgentProcess], None]) -> None:
        alive = list(self.processes.values())
        count = round(share * len(alive)) if once else min(1, len(alive))
        for process in self.rng.sample(alive, count):
            strike(process)

    def _crash(self, process: AgentProcess, notice_s: float) -> None:
        self.crashes += 1
        self.crash(process, notice_s)

    def _hang(self, process: AgentProcess, lasts_s: float) -> None:
        self.trace.line(f"{process.id}#{process.incarnation} hangs")
        self.note("agent hung")
        process.hang()
        if lasts_s < float("inf"):
            self.clock.after(self.rng.uniform(0.0, lasts_s), process.wake)

    def _die_falsely(self, process: AgentProcess, lives_on_s: float) -> None:
        self.trace.line(f"{process.id}#{process.incarnation} is reported dead and lives on")
        self.note("reported dead and lives on")
        self.report_death(process, "node declared dead")
        self.clock.after(self.rng.uniform(0.0, lives_on_s), lambda: self.crash(process))

    def report_death(self, process: AgentProcess, cause: str) -> None:
        """Ray calls a process dead, whether it is or not."""
        self.tell_leader(0.0, AgentLost(process.id, process.incarnation, cause, certain=False))

    def heal(self) -> None:
        """Faults stop: what hangs wakes up or is ended, and a paused coordinator goes on."""
        self.trace.line("faults stop")
        self.healed = True
        self._slow_disk = None
        self.strikes.heal()
        self.network.heal()
        self.partitions.heal()
        for process in list(self.processes.values()):
            if process.hung and self.rng.random() < 0.5:
                process.wake()
            elif process.hung:
                self.crash(process)
        for coordinator in list(self.coordinators):
            self._resume(coordinator)
        if self.leader is None or not self.leader.alive:
            self.start_coordinator()
        self.clock.after(REPLACED_ENDS_S, self._end_replaced)

    def _end_replaced(self) -> None:
        """One that has nothing to write does not notice by itself that it was replaced."""
        for coordinator in self.coordinators:
            if coordinator is not self.leader:
                self.lose_coordinator(coordinator, 0.0)

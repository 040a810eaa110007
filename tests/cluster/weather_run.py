"""One run through bad weather: conditions that last, and faults that a machine has rather than a process.

The cluster, the clients and the checker are those of `chaos_run`. A slow, late or lossy cable, a busy machine and a
slow disk last for some seconds, in which work goes on; nobody may be taken for dead who is only slow. A disk that
fails, an agent for which there is no memory, a clock that is put forward or back before the coordinator starts again,
and two faults at once strike at a moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import chaos_run
from chaos_run import HEAD, HERE, KEEPER, Chaos, Fault, Plan, Report

from flowray.testing.cluster import ClusterFailed, NamespaceCluster

BUSY = 64  # processes that compute
SYNC_S = 0.05  # of a slow disk: twenty syncs a second
ROOM_MB = 6  # that an agent may still have, of those that a task takes (`chaos_work.SCRATCH_MB`)
MEMORY = Path("/sys/fs/cgroup/memory")
LOST_CALLS = 5  # of a hundred, see `run_with_lost_calls`
CLOCK = "clock-offset"  # a file of the head node, see `shifted_clock`


@dataclass(frozen=True)
class Weather:
    """How often, and for how long."""

    slow_cables_s: tuple[float, ...] = (4.0,)
    late_cables_s: tuple[float, ...] = (4.0,)
    busy_s: tuple[float, ...] = (4.0,)
    slow_disks_s: tuple[float, ...] = (4.0,)
    failing_disks: int = 1
    no_memory: int = 1
    clocks_s: tuple[float, ...] = (3600.0, -3600.0)  # by which the clock is put forward, one after the other
    pairs: int = 1


LONG = Weather(
    slow_cables_s=(8.0,),
    late_cables_s=(8.0, 8.0),
    busy_s=(8.0,),
    slow_disks_s=(8.0,),
    failing_disks=3,
    no_memory=3,
    clocks_s=(3600.0, -3600.0, 5.0, -5.0),
    pairs=5,
)


def weather_missing() -> str:
    """Why a machine cannot have such weather; "" when it can."""
    if shutil.which("strace") is None:
        return "the Debian package strace is not installed"
    if not (MEMORY / "cgroup.procs").exists():
        return "the memory controller of control groups, version 1, is not mounted at /sys/fs/cgroup/memory"
    return ""


class Storm(Chaos):
    """Chaos, and the weather."""

    # ── what lasts ───────────────────────────────────────────────────────────────────────────────────────────────

    def slow_cable(self, seconds: float) -> None:
        """A node hangs on a line of 1 Mbit/s."""
        node = self._any_far()
        self._lasting("slow cable", seconds, lambda: self.cluster.slow_cable(node, "1mbit"), node)

    def late_cable(self, seconds: float) -> None:
        """To and from a node it takes 50 to 500 ms each way, and one frame in twenty is lost."""
        node = self._any_far()
        self._lasting("late cable", seconds, lambda: self.cluster.bad_cable(node, late_s=(0.05, 0.5), loss=0.05), node)

    def crowd(self, seconds: float) -> None:
        """Processes that compute, many more than the machine has processors."""
        fault, before = self._begin("busy")
        spinning = [self.cluster.run(HEAD, "while True: pass", name=f"busy-{n}") for n in range(BUSY)]
        try:
            self._last(fault, seconds)
        finally:
            for program in spinning:
                program.kill()
        self._nobody_died(fault, before)

    def slow_disk(self, seconds: float) -> None:
        """Each sync of the journal takes as long as on a disk that does twenty a second."""
        fault, before = self._begin("slow disk")
        with self._traced(before["pid"], f"delay_enter={int(SYNC_S * 1e6)}"):
            self._last(fault, seconds)
        self._nobody_died(fault, before)

    def _lasting(self, kind: str, seconds: float, begin: Callable[[], None], node: int) -> None:
        fault, _ = self._begin(kind)
        begin()
        try:
            self._last(fault, seconds)
        finally:
            self.cluster.heal(node)
        self.bring_back(node)  # Ray may give a node up that it hears so seldom of
        self._well_again(fault)

    def _begin(self, kind: str) -> tuple[Fault, dict[str, object]]:
        status = self.calm()
        return self.note(kind, [], status), status

    def _last(self, fault: Fault, seconds: float) -> None:
        fault.away_s = seconds
        self.wait(seconds)

    def _well_again(self, fault: Fault) -> None:
        end = time.monotonic()
        self.until(lambda: self.busy() and self._status["at"] > end, f"all is well after {fault.kind}")
        fault.back_s = time.monotonic() - end
        lasted = f" for {fault.away_s:g} s" if fault.away_s else ""
        self.say(f"{fault.kind}{lasted} ({fault.open} open): all well {fault.back_s:.2f} s after it")

    def _nobody_died(self, fault: Fault, before: dict[str, object]) -> None:
        """Who is only slow must not be taken for dead: every process is the one that it was."""
        self._well_again(fault)
        now = self._status
        if now["epoch"] != before["epoch"]:
            fault.victims.append("coordinator")
        was = {agent[0]: agent[2] for agent in before["agents"]}  # type: ignore[attr-defined]
        fault.victims += [agent[0] for agent in now["agents"] if was.get(agent[0]) != agent[2]]

    # ── what strikes ─────────────────────────────────────────────────────────────────────────────────────────────

    def failing_disk(self) -> None:
        """A sync of the journal fails. What was written then may not be there, so this coordinator must end."""
        fault, before = self._begin("failing disk")
        with self._traced(before["pid"], "error=EIO"):
            self.back(fault, lambda s: s["epoch"] > before["epoch"])
        self.say(f"failing disk ({fault.open} open): another coordinator after {fault.back_s:.2f} s")

    def no_memory(self) -> None:
        """The kernel ends an agent that wants more memory than its group may have."""
        status = self.calm()
        here = [agent for agent in status["agents"] if self.cluster.node_of(agent[3]) == HEAD]
        agent_id, _, incarnation, _, pid, _ = self.rng.choice(here)
        group = MEMORY / f"{self.cluster.directory.name}-{len(self.faults)}"
        group.mkdir()

        def killed() -> bool:
            lines = (group / "memory.oom_control").read_text().splitlines()
            return int(dict(line.split() for line in lines)["oom_kill"]) > 0

        try:
            (group / "memory.limit_in_bytes").write_text(str(ROOM_MB << 20))
            (group / "cgroup.procs").write_text(str(self.cluster.host_pid(HEAD, pid)))
            self.until(killed, f"{agent_id} gets a task that wants more, and the kernel ends it")
            fault = self.note("no memory", [agent_id], status)
            self.back(fault, lambda s: any(a[0] == agent_id and a[2] > incarnation for a in s["agents"]))
        finally:
            _remove(group)
        self.say(f"no memory for {agent_id} ({fault.open} open): back after {fault.back_s:.2f} s")

    def clock(self, offset_s: float) -> None:
        """The head node's clock says another time when the next coordinator begins."""
        status = self.calm()
        (self.cluster.home(HEAD) / CLOCK).write_text(str(offset_s))
        fault = self.note("clock", [str(status["pid"])], status)
        os.kill(self.cluster.host_pid(HEAD, status["pid"]), signal.SIGKILL)
        self.back(fault, lambda s: s["epoch"] > status["epoch"])
        self.say(f"clock put by {offset_s:+g} s, coordinator killed: another one after {fault.back_s:.2f} s")

    def pair(self) -> None:
        """Two faults within half a second, which and of whom by lot."""
        fault, before = self._begin("two")
        pids = {agent[0]: self.cluster.host_pid(self.cluster.node_of(agent[3]), agent[4]) for agent in before["agents"]}
        node = self._any_far()
        agents = self.rng.sample(sorted(pids), 2)
        faults: dict[str, Callable[[], None]] = {
            f"kill {agents[0]}": lambda: _send(pids[agents[0]], signal.SIGKILL),
            f"stop {agents[1]}": lambda: _send(pids[agents[1]], signal.SIGSTOP),
            "kill coordinator": lambda: _send(self.cluster.host_pid(HEAD, before["pid"]), signal.SIGKILL),
            "kill control store": lambda: _send(self.cluster.store_process(), signal.SIGKILL),
            f"kill keeper of {node}": lambda: [_send(p, signal.SIGKILL) for p in self.cluster.processes(node, KEEPER)],
            f"cut node {node}": lambda: self.cluster.partition(node),
            f"late cable of {node}": lambda: self.cluster.bad_cable(node, late_s=(0.05, 0.5), loss=0.05),
            f"kill node {node}": lambda: self.cluster.kill_node(node),
        }
        first, second = names = self.rng.sample(sorted(faults), 2)
        faults[first]()
        self.wait(self.rng.uniform(0.0, 0.5))
        with contextlib.suppress(ProcessLookupError):  # the first one took it
            faults[second]()
        if any("cut" in name or "late" in name for name in names):
            self.wait(self.rng.uniform(2.0, 6.0))
        self.cluster.heal(node)
        self.wait(1.0)
        self.until(lambda: self._there(node), "the node is there, or gone")
        self._well_again(fault)
        self.say(f"two at once: {' and '.join(names)}")

    def _there(self, node: int) -> bool:
        """Start a node that has left, or was killed; true when all are ready."""
        self.bring_back(node)
        return self.ready() and self._status["at"] > time.monotonic() - 1.0

    # ── how ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _any_far(self) -> int:
        return self.rng.randrange(1, self.plan.machines)

    @contextlib.contextmanager
    def _traced(self, pid: object, fault: str) -> Iterator[None]:
        """strace gives every sync of a process of the head node a fault."""
        assert isinstance(pid, int)
        log = self.cluster.directory / f"strace-{len(self.faults)}"
        victim = self.cluster.host_pid(HEAD, pid)
        command = ["strace", "-f", "-qq", "-o", str(log), "-e", "trace=fdatasync,fsync"]
        command += ["-e", f"inject=fdatasync,fsync:{fault}", "-p", str(victim)]
        tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            yield
        finally:
            tracer.send_signal(signal.SIGINT)  # it lets go of whom it traces
            tracer.wait(30.0)
        if "INJECTED" not in log.read_text() and "DELAYED" not in log.read_text():
            raise ClusterFailed(f"strace hit no sync of {victim}: {log.read_text()[-500:]}")


def _send(pid: int, number: int) -> None:
    if pid:
        os.kill(pid, number)


def _remove(group: Path) -> None:
    """A control group, with whoever is still in it moved out."""
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):  # it has gone meanwhile
            (MEMORY / "cgroup.procs").write_text(pid)
    group.rmdir()


def run(plan: Plan, weather: Weather, say: Callable[[str], None]) -> Report:
    """The whole of it."""
    say(f"weather: seed {plan.seed}, {weather}")
    began = time.monotonic()
    environment = {"FLOWRAY_TEMPLATE_PRELOAD": "shifted_clock", "PYTHONPATH": str(HERE)}
    with NamespaceCluster(nodes=plan.machines, cpus=2, store=plan.store, environment=environment) as cluster:
        storm = Storm(cluster, plan, say)
        storm.start_clients()
        say(f"clients at work after {time.monotonic() - began:.1f} s")
        faults: list[Callable[[], None]] = []
        for strike, lengths in (
            (storm.slow_cable, weather.slow_cables_s),
            (storm.late_cable, weather.late_cables_s),
            (storm.crowd, weather.busy_s),
            (storm.slow_disk, weather.slow_disks_s),
        ):
            faults += [lambda strike=strike, seconds=seconds: strike(seconds) for seconds in lengths]  # type: ignore[misc]
        faults += [storm.failing_disk] * weather.failing_disks + [storm.no_memory] * weather.no_memory
        faults += [storm.pair] * weather.pairs
        storm.rng.shuffle(faults)
        for fault in faults:
            fault()
        for offset_s in weather.clocks_s:  # last: what the histories say of other faults goes by this clock
            storm.clock(offset_s)
        return storm.report(began)


def run_with_lost_calls(plan: Plan, say: Callable[[str], None]) -> Report:
    """Processes and nodes are killed while Ray itself loses one call in twenty, one answer in twenty, and one in
    twenty on its way, of every kind and on every node, from its start on."""
    lost = {f"{what}_failure_prob": LOST_CALLS for what in ("req", "resp", "in_flight")}
    failure = json.dumps({"*": {"num_failures": -1, **lost}})
    report = chaos_run.run(plan, say, {"RAY_testing_rpc_failure": failure})
    for fault in report.faults:
        fault.kind = "lost calls"
    return report

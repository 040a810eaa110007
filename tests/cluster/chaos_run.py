"""One chaos run: a cluster of nodes, clients, faults one after the other, the checker's verdict, recovery times.

The head node has the control store, the coordinator with its journal and some agents; the other nodes have agents only.
Three clients: one writes, by the socket of the head node but outside of it, so that it outlives the node; one reads,
in the head node and through Ray, and begins anew with it; and one has no Ray, beside another node, behind its cable.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from checker import Record, Verdict, check, read_history

from flowray.testing.cluster import ClusterFailed, NamespaceCluster, Process, tail, wait_until

HERE = Path(__file__).parent
HEAD, FAR = 0, 1  # FAR: the first of the nodes that have agents only
LISTEN_PORT = 7443  # for the client without Ray; in a network of its own
KEEPER = r"^ray::Keeper"  # how Ray calls their processes
CAUGHT_UP_S = 0.5  # open-loop load: all is well when no more is open than comes in so long
BACK_S = 90.0  # longest wait for something killed to be back, before the run fails


@dataclass(frozen=True)
class Plan:
    """How many of each fault, and the load."""

    agents: int = 4
    hung: int = 1  # agents that are stopped and do not go on
    coordinators: int = 3
    stopped: int = 1  # coordinators that are stopped and do not go on
    nodes: int = 1
    both: int = 1  # a coordinator and an agent at nearly the same time: nobody is there to see the agent die
    cuts_s: tuple[float, ...] = (5.0,)  # for how long another node is cut off, each time
    one_way_s: tuple[float, ...] = ()  # the same, but it still hears the others
    stores_s: tuple[float, ...] = (0.0, 2.0)  # control stores killed, and how long nobody starts each again
    heads: int = 1  # times that all of the head node is killed; its disk stays
    keepers: int = 0  # keepers (`runtime.keeper`) killed
    machines: int = 2
    store: str = "embedded"  # where the control store has its tables; "" for Ray's own head, that nobody keeps
    head_agents: int = 2
    far_agents: int = 2
    open: int = 1000  # tasks kept open by the client in the head node
    visitor_open: int = 20  # and by the one without Ray
    rate_per_s: float = 0.0  # if not 0, instead: tasks that the one hands in whatever becomes of those before
    visitor_rate_per_s: float = 0.0  # and the other
    wait_s: tuple[float, float] = (0.002, 0.05)  # how long a task takes
    calm_s: float = 0.7  # longest wait between two faults
    seed: int = 0


FULL = Plan(
    agents=20,
    hung=5,
    coordinators=10,
    stopped=3,
    nodes=4,
    both=3,
    cuts_s=(5.0, 30.0),
    one_way_s=(8.0,),
    stores_s=(0.0, 0.0, 0.0, 1.0, 5.0, 20.0),
    heads=3,
    keepers=3,
    machines=3,
    head_agents=3,
    far_agents=4,
    calm_s=1.0,
    rate_per_s=70.0,  # with those of the other client: six tenths of the agents are at work in the mean (measured)
    visitor_rate_per_s=4.0,
    wait_s=(0.01, 0.09),
)
SATURATED = replace(FULL, rate_per_s=0.0, visitor_rate_per_s=0.0, wait_s=Plan().wait_s)  # all have work at each fault


def chosen_seed() -> int:
    """Of a run: FLOWRAY_CHAOS_SEED, or 1."""
    return int(os.environ.get("FLOWRAY_CHAOS_SEED", "1"))


def full(seed: int) -> Plan:
    """In full counts; every second seed keeps tasks open instead of handing them in by the clock."""
    return replace(FULL if seed % 2 else SATURATED, seed=seed)


KINDS = {  # of faults -> what the summary calls them
    "agent": "process_kill",
    "hung": "hung",
    "coordinator": "coordinator_kill",
    "stopped": "coordinator_stop",
    "node": "node_kill",
    "both": "coordinator_and_process_kill",
    "cut": "partition",
    "one way": "partition_one_way",
    "store": "gcs_kill",
    "head": "head_kill",
    "keeper": "keeper_kill",
    "serve": "serve_kill",  # a run of its own: test_serve_kills
    "stateful": "stateful_kill",  # a run of its own: test_accounts
    "stateful node": "stateful_node_kill",
    "lost calls": "rpc_loss",  # test_lost_calls; these: test_weather
    "slow cable": "bandwidth",
    "late cable": "latency_and_loss",
    "busy": "busy_machine",
    "slow disk": "slow_disk",
    "failing disk": "disk_error",
    "no memory": "oom_kill",
    "clock": "clock_jump",
    "two": "two_at_once",
}
OF_COORDINATOR = ("coordinator", "stopped")
# Judged by the longest time in which nothing ended.
OF_ALL = ("store", "slow cable", "late cable", "busy", "slow disk", "failing disk", "clock", "two")


@dataclass
class Fault:
    """One kill, and what the clients saw of it."""

    kind: str  # one of KINDS
    victims: list[str]  # agent ids; for a coordinator its epoch
    at: float  # monotonic
    at_utc: float
    open: int = 0  # tasks open at that moment
    held: int = 0  # attempts with the victims
    away_s: float = 0.0  # store, head: for how long nobody started it again; what follows begins with its return. Of
    # weather: how long it lasted
    failed: int = 0  # calls of clients that found nobody, from then to the next fault
    back_s: float | None = None  # until it was there again
    first_s: float | None = None  # until the first outcome of a task that was running on the victim; of OF_ALL: the
    # longest time in which the writer heard of no outcome, its absence included
    last_s: float | None = None  # and the last one of them
    again_s: float | None = None  # until an agent had begun again with one of those tasks
    slowest_s: float | None = None  # the longest that a task took that was due between half a second before it and the
    # next fault, from when it was due
    rerun: int = 0  # attempts that were lost with it and made again
    resident_mb: dict[str, tuple[int, int]] = field(
        default_factory=dict
    )  # cut: of processes, before and the most since

    @property
    def useful_s(self) -> float | None:
        """Until there was useful work again: interrupted tasks are under way elsewhere, or there are outcomes."""
        return self.first_s if self.again_s is None else self.again_s


@dataclass
class Report:
    """What a run found."""

    seed: int
    duration_s: float
    verdict: Verdict
    faults: list[Fault] = field(default_factory=list)
    executed_again: int = 0
    asked: dict[str, int] = field(default_factory=dict)  # what became of the questions to the other node
    visitor: str = ""  # tasks of the client without Ray, and how many of them it never heard of again
    offered_per_s: float | None = None  # tasks of the writer by the times at which they were due; None without any
    latencies_s: dict[str, float | None] = field(default_factory=dict)  # from there to the outcome, over all its tasks

    def table(self) -> str:
        """For people: one row for each kind of fault, times in seconds."""
        head = f"{'fault':<13} {'n':>3} {'lost':>5} {'twice':>6} {'failed':>6}   "
        head += f"{'begun again p50':>15} {'p99':>6} {'max':>6}   {'first outcome p50':>17} {'p99':>6} {'max':>6}"
        head += f"   {'back p50':>8} {'p99':>6} {'max':>6} {'rerun':>6}   {'slowest task':>12}"
        rows = [head]
        for kind in KINDS:
            faults = [f for f in self.faults if f.kind == kind]
            if not faults:
                continue
            again = [f.again_s for f in faults if f.again_s is not None]
            first = [f.first_s for f in faults if f.first_s is not None]
            back = [f.back_s for f in faults if f.back_s is not None]
            row = f"{kind:<13} {len(faults):>3} {len(self.verdict.lost):>5} {len(self.verdict.twice):>6} "
            row += f"{sum(f.failed for f in faults):>6}   "
            row += f"{quantile(again, 0.5):>15} {quantile(again, 0.99):>6} {quantile(again, 1.0):>6}   "
            row += f"{quantile(first, 0.5):>17} {quantile(first, 0.99):>6} {quantile(first, 1.0):>6}   "
            row += f"{quantile(back, 0.5):>8} {quantile(back, 0.99):>6} {quantile(back, 1.0):>6} "
            slowest = [f.slowest_s for f in faults if f.slowest_s is not None]
            rows.append(row + f"{sum(f.rerun for f in faults):>6}   {quantile(slowest, 1.0):>12}")
        rows.append(f"(lost and twice: of the whole run and its {self.verdict.accepted} tasks)")
        if self.offered_per_s is not None:
            rows.append(
                f"{self.offered_per_s:.1f} tasks a second were due; from then to the outcome: {self.latencies_s} s"
            )
        rows.append(
            f"questions to the other node: {self.asked}; the client without Ray, tasks and missing: {self.visitor}"
        )
        rows.extend(
            f"resident MB around a cut, before and at most: {f.resident_mb}" for f in self.faults if f.resident_mb
        )
        return "\n".join(rows)

    def summary(self) -> dict[str, Any]:
        """Of each kind how many, what was lost and done twice in the whole run, and the time from each to useful work
        elsewhere, in seconds."""
        rows = []
        for kind, name in KINDS.items():
            faults = [f for f in self.faults if f.kind == kind]
            times = [f.useful_s for f in faults if f.useful_s is not None]
            row: dict[str, Any] = {"fault": name, "n": len(faults)}
            row |= {"lost": len(self.verdict.lost), "twice": len(self.verdict.twice)}
            row |= {"failed": sum(f.failed for f in faults)}
            row |= {f"{label}_s": nearest(times, q) for label, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}
            rows.append(row)
        return {"faults": rows}

    def write(self, path: Path) -> None:
        """As JSON."""
        verdict = {**asdict(self.verdict), "good": self.verdict.good}
        body = {"seed": self.seed, "duration_s": self.duration_s, "verdict": verdict}
        body |= {"offered_per_s": self.offered_per_s, "latencies_s": self.latencies_s}
        named = [{**asdict(fault), "useful_s": fault.useful_s, "fault": KINDS[fault.kind]} for fault in self.faults]
        path.write_text(json.dumps({**body, "faults": named}, indent=1))


def nearest(values: list[float], q: float) -> float | None:
    """The quantile by the nearest rank; None of nothing."""
    return round(sorted(values)[max(0, math.ceil(q * len(values)) - 1)], 3) if values else None


def quantile(values: list[float], q: float) -> str:
    """The same as text; "-" of nothing."""
    found = nearest(values, q)
    return "-" if found is None else f"{found:.2f}"


class Chaos:
    """A run under way."""

    def __init__(self, cluster: NamespaceCluster, plan: Plan, say: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.plan = plan
        self.say = say
        self.rng = random.Random(plan.seed)
        self.faults: list[Fault] = []
        self.directory = cluster.directory / "histories"
        self.directory.mkdir()
        self._programs: dict[str, Process] = {}
        self._readers = 0  # begun so far
        self._status_at = 0  # bytes of the status file that have been read
        self._status: dict[str, Any] = {}

    # ── clients ──────────────────────────────────────────────────────────────────────────────────────────────────

    def start_clients(self) -> None:
        far = ",".join(str(node) for node in range(FAR, self.plan.machines))
        settings: dict[str, Any] = {
            "directory": str(self.directory),
            "journal": str(self.cluster.inner_home / "journal"),
            "home": str(self.cluster.home(HEAD)),
            "inner_home": str(self.cluster.inner_home),
            "address": self.cluster.address,
            "listen": f"{self.cluster.ip(HEAD)}:{LISTEN_PORT}",
            "far": f"in({far})",
            "visitor_open": self.plan.visitor_open,
            "rate_per_s": self.plan.rate_per_s,
            "visitor_rate_per_s": self.plan.visitor_rate_per_s,
            "head_agents": self.plan.head_agents,
            "far_agents": self.plan.far_agents,
            "open": self.plan.open,
            "wait_s": self.plan.wait_s,
            "seed": self.plan.seed,
            "drain_s": 120.0,
        }
        self._settings = settings
        self._start("start", HEAD).check(120.0)
        self._programs["write"] = self._start("write", HEAD, beside=True)
        self.until(self.busy, "the clients are at work", 120.0)
        self._programs["visit"] = self._start("visit", FAR, beside=True)
        self.start_reader()

    def start_reader(self) -> None:
        """The one that lives in the head node, and dies with it."""
        self._readers += 1
        self._programs["read"] = self._start("read", HEAD, reader=f"reader{self._readers}")
        file = self.directory / f"reader{self._readers}.jsonl"
        self.until(lambda: file.exists() and file.stat().st_size, "the reader is at work")

    def _start(self, role: str, node: int, *, beside: bool = False, **more: str) -> Process:
        program = [sys.executable, str(HERE / "chaos_client.py"), role, json.dumps({**self._settings, **more})]
        return self.cluster.run(node, program, name=more.get("reader", f"client-{role}"), beside=beside)

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = BACK_S) -> Any:
        """Wait for something; at once an error when a client has ended."""

        def now() -> Any:
            for program in self._programs.values():
                if program.returncode is not None and not (self.directory / "phase").exists():
                    raise ClusterFailed(f"{program.output_path.stem} ended early:\n{tail(program.output)}")
            return condition()

        try:
            return wait_until(now, timeout_s, what, poll_s=0.01)
        except ClusterFailed as error:
            raise ClusterFailed(f"{error}\nlast status: {json.dumps(self._status)}\n{self._said()}") from None

    def wait(self, seconds: float) -> None:
        """At once an error when a client has ended meanwhile."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end, "the clients are there")

    def _said(self) -> str:
        """What the coordinators printed, the newest last: for a run that fails."""
        files = sorted(self.cluster.logs(HEAD, "worker-*.err"), key=lambda file: file.stat().st_mtime)
        texts = [(file.name, file.read_text(errors="replace")) for file in files]
        return "\n".join(f"{name}:\n{tail(text)}" for name, text in texts if text.strip())

    def finish(self) -> Verdict:
        """Let the clients finish what is open and read everything once more; then judge."""
        writer, reader, visitor = (self._programs[role] for role in ("write", "read", "visit"))
        (self.directory / "phase").write_text("drain")
        wait_until((self.directory / "drained").exists, 150.0, "all open tasks end")
        visitor.check(150.0)
        self.say(f"drained (tasks, missing, figures): {(self.directory / 'drained').read_text()}")
        reader.check(150.0)
        (self.directory / "phase").write_text("end")
        writer.check(60.0)
        self.history = read_history(
            *(self.directory / f"{name}.jsonl" for name in ("writer", "visitor")),
            *sorted(self.directory.glob("reader*.jsonl")),
        )
        return check(self.history)

    def report(self, began: float) -> Report:
        """Finish, and tell what was found; `began` is when the run did."""
        verdict = self.finish()
        again = measure(self.faults, self.history)
        asked, visitor = questions(self.history), (self.directory / "visited").read_text()
        report = Report(self.plan.seed, time.monotonic() - began, verdict, self.faults, again, asked, visitor)
        report.offered_per_s, report.latencies_s = latencies(self.faults, self.history)
        self.say(f"\n{verdict}\n\n{report.table()}\n\n{json.dumps(report.summary())}\n")
        return report

    # ── what the runtime says ────────────────────────────────────────────────────────────────────────────────────

    def status(self) -> dict[str, Any]:
        """The newest line of the status file; {} before the first."""
        for line in self._new_status_lines():
            self._status = line
        return self._status

    def _new_status_lines(self) -> list[dict[str, Any]]:
        file = self.directory / "status.jsonl"
        if not file.exists():
            return []
        with file.open("rb") as body:
            body.seek(self._status_at)
            text = body.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._status_at += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def ready(self) -> bool:
        """Is every agent ready?"""
        agents = self.status().get("agents", [])
        wanted = self.plan.head_agents + self.plan.far_agents
        return len(agents) == wanted and all(state == "ready" for _, state, *_ in agents)

    def busy(self) -> bool:
        """Is every agent ready, and nearly as much open as there should be, or all that came meanwhile done?"""
        if not self.ready():
            return False
        if self.plan.rate_per_s:
            return bool(self.status()["open"] <= CAUGHT_UP_S * self.plan.rate_per_s)
        return bool(self.status()["open"] >= 0.9 * self.plan.open)

    # ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────

    def calm(self) -> dict[str, Any]:
        """Wait until all is well and then for a random while; the status at that moment."""
        self.until(self.busy, "all agents ready and the queue full")
        self.wait(self.rng.uniform(0.0, self.plan.calm_s))
        return self.status()

    def note(self, kind: str, victims: list[str], status: dict[str, Any]) -> Fault:
        held = sum(agent[5] for agent in status["agents"] if agent[0] in victims)
        fault = Fault(kind, victims, time.monotonic(), time.time(), status["open"], held)
        self.faults.append(fault)
        return fault

    def back(self, fault: Fault, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until a status taken after the fault fulfils a condition; when it was taken is when it was back."""

        def now() -> bool:
            for line in self._new_status_lines():
                self._status = line
                if line["at"] > fault.at and condition(line):
                    fault.back_s = line["at"] - fault.at - fault.away_s
                    return True
            return False

        self.until(now, f"{fault.kind} {', '.join(fault.victims)} is back")

    def kill_agent(self, kind: str = "agent") -> None:
        """Kill one that has work, or (`hung`) stop it: then it is for others to notice."""
        send = signal.SIGSTOP if kind == "hung" else signal.SIGKILL
        while True:
            status = self.calm()
            at_work = [agent for agent in status["agents"] if agent[5]]
            agent_id, _, incarnation, node, pid, _ = self.rng.choice(at_work or status["agents"])
            fault = self.note(kind, [agent_id], status)
            try:
                os.kill(self.cluster.host_pid(self.cluster.node_of(node), pid), send)
                break
            except ProcessLookupError:  # it had gone by itself since that status
                self.faults.pop()
        self.back(fault, lambda s: _ready_again(s, {agent_id: incarnation}))
        self.say(f"{kind} {agent_id} (held {fault.held}, {fault.open} open): back after {fault.back_s:.2f} s")

    def kill_coordinator(self, *, twice: bool = False) -> None:
        """At a random moment; with `twice` once more at a random moment of its start and recovery."""
        status = self.calm()
        victim = self.cluster.host_pid(HEAD, status["pid"])
        fault = self.note("coordinator", [str(victim)], status)
        os.kill(victim, signal.SIGKILL)
        if twice:
            victim = self.until(lambda: self._coordinator_but(victim), "a coordinator's process")
            self.wait(self.rng.uniform(0.0, 1.0))
            fault = self.note("coordinator", [str(victim)], status)
            os.kill(victim, signal.SIGKILL)
        self.back(fault, lambda s: s["epoch"] > status["epoch"] and s["at"] > fault.at)
        also = ", killed again while it recovered" if twice else ""
        self.say(f"coordinator ({fault.open} open{also}): back after {fault.back_s:.2f} s")

    def stop_coordinator(self) -> None:
        """It keeps its connections and its journal, and does nothing any more."""
        status = self.calm()
        victim = self.cluster.host_pid(HEAD, status["pid"])
        fault = self.note("stopped", [str(victim)], status)
        os.kill(victim, signal.SIGSTOP)
        self.back(fault, lambda s: s["epoch"] > status["epoch"])
        self.say(f"stopped coordinator ({fault.open} open): another one after {fault.back_s:.2f} s")

    def kill_both(self) -> None:
        """A coordinator and an agent, in either order, at most half a second apart."""
        status = self.calm()
        agent_id, _, incarnation, node, pid, _ = self.rng.choice(status["agents"])
        victims = [
            self.cluster.host_pid(HEAD, status["pid"]),
            self.cluster.host_pid(self.cluster.node_of(node), pid),
        ]
        self.rng.shuffle(victims)
        fault = self.note("both", [agent_id], status)
        os.kill(victims[0], signal.SIGKILL)
        self.wait(self.rng.uniform(0.0, 0.5))
        os.kill(victims[1], signal.SIGKILL)
        self.back(fault, lambda s: s["epoch"] > status["epoch"] and _ready_again(s, {agent_id: incarnation}))
        self.say(f"coordinator and {agent_id} ({fault.open} open): both back after {fault.back_s:.2f} s")

    def _coordinator_but(self, victim: int) -> int:
        """Host pid of a coordinator's process other than the one killed; 0 while there is none."""
        found = self.cluster.processes(HEAD, r"^ray::\w*Coordinator")
        return next((pid for pid in found if pid != victim), 0)

    def kill_node(self) -> None:
        status = self.calm()
        node, there = self._other_node(status)
        fault = self.note("node", sorted(there), status)
        self.cluster.kill_node(node)
        self.wait(self.rng.uniform(1.0, 3.0))  # how long the machine is away
        self.cluster.start_node(node)
        returned_s = time.monotonic() - fault.at
        self.back(fault, lambda s: _ready_again(s, there))
        self.say(
            f"node ({fault.open} open): in the cluster after {returned_s:.2f} s, agents after {fault.back_s:.2f} s"
        )

    def _other_node(self, status: dict[str, Any]) -> tuple[int, dict[str, int]]:
        """One that has agents (they do not come back to a node that was lost), and their incarnations."""
        nodes = {a[0]: self.cluster.node_of(a[3]) for a in status["agents"]}
        node = self.rng.choice(sorted(set(nodes.values()) - {HEAD}))
        return node, {a[0]: a[2] for a in status["agents"] if nodes[a[0]] == node}

    def kill_head(self) -> None:
        """All processes of the head node at once: control store, raylet, coordinator, agents, and a client."""
        status = self.calm()
        there = [a[0] for a in status["agents"] if self.cluster.node_of(a[3]) == HEAD]
        fault = self.note("head", there, status)
        del self._programs["read"]
        self.cluster.kill_node(HEAD)
        self.wait(self.rng.uniform(0.5, 3.0))
        fault.away_s = time.monotonic() - fault.at
        self.cluster.start_node(HEAD)
        started_s = time.monotonic() - fault.at - fault.away_s
        self.back(fault, lambda s: s["epoch"] > status["epoch"])
        self.start_reader()
        self.say(
            f"head ({fault.open} open, away for {fault.away_s:.2f} s): in the cluster {started_s:.2f} s after its "
            f"return, the coordinator after {fault.back_s:.2f} s"
        )

    def kill_store(self, away_s: float) -> None:
        """The control store alone; with `away_s` its supervisor is held up for so long."""
        status = self.calm()
        victim, supervisor = self.cluster.store_process(), self.cluster.supervisor()
        fault = self.note("store", [str(victim)], status)
        if away_s:
            os.kill(supervisor, signal.SIGSTOP)
        os.kill(victim, signal.SIGKILL)
        try:
            self.until(lambda: time.monotonic() >= fault.at + away_s, "the clients are there")
        finally:
            os.kill(supervisor, signal.SIGCONT)
        fault.away_s = away_s
        self.until(lambda: self.cluster.store_process() not in (0, victim), "another control store is there")
        fault.back_s = time.monotonic() - fault.at - away_s
        self.wait(3.0)  # whatever follows from it has its time
        self.say(f"control store ({fault.open} open, away for {away_s:g} s): started again in {fault.back_s:.3f} s")

    def kill_keeper(self) -> None:
        status = self.calm()
        there = {pid: node for node in range(self.plan.machines) for pid in self.cluster.processes(node, KEEPER)}
        victim = self.rng.choice(sorted(there))
        fault = self.note("keeper", [str(victim)], status)
        os.kill(victim, signal.SIGKILL)
        node, others = there[victim], set(there)
        self.until(lambda: set(self.cluster.processes(node, KEEPER)) - others, "another keeper is there")
        fault.back_s = time.monotonic() - fault.at
        self.say(f"keeper of node {node} ({fault.open} open): another one after {fault.back_s:.2f} s")

    def cut(self, away_s: float, *, one_way: bool = False) -> None:
        """Another node is cut off: what is on it goes on, and nothing of it reaches anybody."""
        status = self.calm()
        node, there = self._other_node(status)
        fault = self.note("one way" if one_way else "cut", sorted(there), status)
        watched = self._processes_to_measure(status)
        before = {name: _resident_mb(process) for name, process in watched.items()}
        most = dict(before)
        (self.cluster.partition_one_way if one_way else self.cluster.partition)(node)
        try:
            while time.monotonic() < fault.at + away_s:
                self.until(lambda: True, "the clients are there")
                most = {name: max(mb, _resident_mb(watched[name])) for name, mb in most.items()}
                time.sleep(0.05)
        finally:
            self.cluster.heal(node)
        # Ray gives up a node that was away for some seconds, and the node leaves as soon as it hears of that.
        self.until(lambda: not self.cluster.lives(node) or self._settled(there), "the node is back, or gone for good")
        left = self.bring_back(node)
        self.until(self.ready, "all agents are ready")
        fault.back_s = time.monotonic() - fault.at
        most = {name: max(mb, _resident_mb(watched[name])) for name, mb in most.items()}
        fault.resident_mb = {name: (before[name], most[name]) for name in before}
        went = "Ray gave the node up" if left else "the node stayed"
        self.say(
            f"{fault.kind} for {away_s:g} s ({fault.open} open, {went}): all agents ready after {fault.back_s:.2f} s"
        )

    def bring_back(self, node: int) -> bool:
        """Start a node that has left, because Ray gave it up, or was killed. False where it is there."""
        if self.cluster.lives(node):
            return False
        self.cluster.kill_node(node)
        self.cluster.start_node(node)
        return True

    def _settled(self, there: dict[str, int]) -> bool:
        """Has the cut been noticed by nobody, or been dealt with?"""
        return self.ready() and self._status["at"] > self.faults[-1].at + 8.0

    def _processes_to_measure(self, status: dict[str, Any]) -> dict[str, psutil.Process]:
        """Those that live through a cut: the coordinator, the clients and the agents of the head node."""
        found = {"coordinator": psutil.Process(self.cluster.host_pid(HEAD, status["pid"]))}
        for agent_id, _, _, node, pid, _ in status["agents"]:
            if self.cluster.node_of(node) == HEAD:
                found[agent_id] = psutil.Process(self.cluster.host_pid(HEAD, pid))
        return found | {role: psutil.Process(program.pid) for role, program in self._programs.items()}


def _resident_mb(process: psutil.Process) -> int:
    """With its children: a client hangs below the program that has put it into its node."""
    return sum(int(one.memory_info().rss) for one in (process, *process.children(recursive=True))) >> 20


def _ready_again(status: dict[str, Any], before: dict[str, int]) -> bool:
    """Is each of these agents ready with a later incarnation?"""
    now = {agent[0]: (agent[1], agent[2]) for agent in status["agents"]}
    return all(a in now and now[a][0] == "ready" and now[a][1] > number for a, number in before.items())


def measure(faults: list[Fault], history: list[Record]) -> int:
    """Fill in what the histories say of each fault; how many attempts were made again in all."""
    failures = [r for r in history if r["f"] == "submit" and r["type"] in ("info", "fail")]
    outcomes = [
        (float(r["at"]), r["outcome"])
        for r in history
        if r["f"] == "read" and r["type"] == "ok" and r["client"] == "writer"
    ]
    for number, fault in enumerate(faults):
        later = [f.at_utc for f in faults[number + 1 :]]
        end_utc = later[0] if later else math.inf
        times, begun = [], []
        end = faults[number + 1].at if number + 1 < len(faults) else math.inf
        fault.failed = sum(fault.at < float(r["at"]) < end for r in failures)
        if fault.kind in OF_ALL:
            until = fault.at + fault.away_s + 3.0
            heard = [fault.at, *(at for at, _ in outcomes if fault.at < at < until), until]
            fault.first_s = max(later - earlier for earlier, later in pairwise(heard))
            continue
        for at, outcome in outcomes:
            if fault.kind == "head":
                lost = [line for line in outcome["story"] if _lost(line) and fault.at_utc < line[0] < end_utc]
                fault.rerun += len(lost)
                if fault.at + fault.away_s < at:
                    times.append(at - fault.at - fault.away_s)
            elif fault.kind in OF_COORDINATOR:
                lost = [line for line in outcome["story"] if _lost(line) and fault.at_utc < line[0] < end_utc]
                fault.rerun += len(lost)
                if fault.at_utc < outcome["resolved_at"] < end_utc and at > fault.at:
                    times.append(at - fault.at)
            else:
                lost = [
                    line
                    for line in outcome["story"]
                    if _lost(line) and line[3] in fault.victims and fault.at_utc < line[0] < end_utc
                ]
                fault.rerun += len(lost)
                if lost:
                    times.append(at - fault.at)
                    begun.append((outcome["value"] or {}).get("began", at) - fault.at)
        fault.again_s = min(begun, default=None)
        if times:
            fault.first_s = min(times)
            fault.last_s = max(times) if fault.kind not in (*OF_COORDINATOR, "head") else None
    return sum(max(0, outcome["attempts"] - 1) for _, outcome in outcomes)


def latencies(faults: list[Fault], history: list[Record]) -> tuple[float | None, dict[str, float | None]]:
    """How many of the writer's tasks were due in a second, and the latencies of all; of each fault its slowest task."""
    due, key_of, ended = {}, {}, {}
    for record in history:
        if record["client"] != "writer":
            continue
        if "due" in record:
            due[record["key"]] = float(record["due"])  # of a repeated call the same
        elif record["f"] == "submit" and record["type"] == "ok":
            key_of.setdefault(record["task"], record["key"])
        elif record["f"] == "read" and record["type"] == "ok":
            ended[key_of[record["task"]]] = float(record["at"])
    if not due:
        return None, {}
    times = {key: ended[key] - at for key, at in due.items() if key in ended}
    for fault, later in zip(faults, [*(fault.at for fault in faults[1:]), math.inf], strict=True):
        met = [took for key, took in times.items() if fault.at - CAUGHT_UP_S <= due[key] < later]
        fault.slowest_s = max(met, default=None)
    names = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    found = {name: nearest(list(times.values()), q) for name, q in names}
    return len(due) / (max(due.values()) - min(due.values())), found


def questions(history: list[Record]) -> dict[str, int]:
    """What became of the questions that agents asked one another, by the answers that were recorded."""
    said = {
        r["task"]: (r["outcome"]["value"] or {}).get("asked") for r in history if r["type"] == "ok" and r["f"] == "read"
    }
    return dict(Counter(word for word in said.values() if word))


def _lost(line: list[Any]) -> bool:
    """Does this line of a story say that an attempt was lost (and not only handed back unstarted)?"""
    return line[1] == "requeued" and bool(line[4])


def run(plan: Plan, say: Callable[[str], None], environment: Mapping[str, str] | None = None) -> Report:
    """The whole of it; the environment is for every process of Ray's."""
    say(f"chaos: seed {plan.seed}, {plan}")
    began = time.monotonic()
    with NamespaceCluster(nodes=plan.machines, cpus=2, store=plan.store, environment=environment) as cluster:
        say(f"cluster {cluster.directory.name} up after {time.monotonic() - began:.1f} s")
        chaos = Chaos(cluster, plan, say)
        chaos.start_clients()
        say(f"clients at work after {time.monotonic() - began:.1f} s")
        twice = plan.coordinators // 3  # so many of them are killed again before they have recovered
        faults = [chaos.kill_agent] * plan.agents + [chaos.kill_node] * plan.nodes
        faults += [chaos.kill_coordinator] * (plan.coordinators - 2 * twice)
        faults += [chaos.kill_both] * plan.both + [chaos.stop_coordinator] * plan.stopped
        faults += [partial(chaos.kill_agent, "hung")] * plan.hung
        faults += [partial(chaos.kill_coordinator, twice=True)] * twice
        faults += [partial(chaos.cut, away_s) for away_s in plan.cuts_s]
        faults += [partial(chaos.cut, away_s, one_way=True) for away_s in plan.one_way_s]
        faults += [partial(chaos.kill_store, away_s) for away_s in plan.stores_s]
        faults += [chaos.kill_head] * plan.heads + [chaos.kill_keeper] * plan.keepers
        chaos.rng.shuffle(faults)
        for fault in faults:
            fault()
        return chaos.report(began)

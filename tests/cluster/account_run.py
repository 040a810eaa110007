"""One run of stateful agents under load: their processes and nodes are killed and cut off, and each time is measured
how long the entities of whoever was active there had no answer.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from chaos_run import HEAD, HERE, Fault, Report
from checker import read_history
from entities import check_entities

from flowray.testing.cluster import ClusterFailed, NamespaceCluster, Process, tail, wait_until

AGAIN_S = 60.0  # for answers to come again
LATE_S = 0.5  # since the newest answer of an entity whose process is at work


@dataclass(frozen=True)
class Plan:
    """How many of each fault, and the load."""

    kills: int = 3  # of the process that answers some entities
    nodes: int = 1  # that have such processes, killed with all there is
    machines: int = 3
    instances: int = 3  # each with a standby on another node
    entities: int = 12
    per_s: float = 12.0  # inputs of each entity
    calm_s: float = 0.5  # longest wait between two faults
    seed: int = 1


FULL = Plan(kills=20, nodes=3)


class Answer(NamedTuple):
    at: float  # monotonic
    entity: str
    ip: str  # of the process that gave it
    pid: int  # there


class Run:
    """The program at work, and what it wrote."""

    def __init__(self, cluster: NamespaceCluster, plan: Plan) -> None:
        self.cluster = cluster
        self.plan = plan
        self.faults: list[Fault] = []
        self.rng = random.Random(plan.seed)
        self.directory = cluster.directory / "accounts"
        self.directory.mkdir()
        self._read = 0  # bytes of the answers
        self._answers: list[Answer] = []
        self._gone: set[tuple[str, int]] = set()  # killed: what is said of them is late
        settings: dict[str, Any] = {"directory": str(self.directory), "journal": str(cluster.inner_home / "journal")}
        settings |= {"instances": plan.instances, "entities": plan.entities, "per_s": plan.per_s}
        program = [sys.executable, str(HERE / "account_client.py"), json.dumps(settings)]
        self.program: Process = cluster.run(HEAD, program, name="accounts")

    def answers(self) -> list[Answer]:
        """All so far, in the order in which they came."""
        file = self.directory / "answers.jsonl"
        if file.exists():
            with file.open("rb") as body:
                body.seek(self._read)
                text = body.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read += len(whole)
            self._answers += [Answer(*json.loads(line)) for line in whole.splitlines()]
        return self._answers

    def last(self) -> dict[str, Answer]:
        """Of each entity the newest."""
        return {answer.entity: answer for answer in self.answers()[-50 * self.plan.entities :]}

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = AGAIN_S) -> Any:
        def now() -> Any:
            assert self.program.returncode is None, tail(self.program.output)
            return condition()

        try:
            return wait_until(now, timeout_s, what, poll_s=0.01)
        except ClusterFailed as error:
            agents = (self.directory / "agents.json").read_text()
            raise ClusterFailed(f"{error}; gone: {sorted(self._gone)}, agents: {agents}, last: {self.last()}") from None

    def whole(self) -> list[list[str]]:
        """The instances that have two processes, by the entities that one of these has just answered."""
        file = self.directory / "agents.json"
        agents = json.loads(file.read_text()) if file.exists() else {}
        found = []
        for number in range(self.plan.instances):
            seats = [agents.get(f"account{kind}-{number}", ["", "", 0]) for kind in ("", ".standby")]
            places = [(ip, pid) for state, ip, pid in seats if state == "ready" and (ip, pid) not in self._gone]
            late = [one for one in self.last().values() if one.at > time.monotonic() - LATE_S]
            mine = sorted(one.entity for one in late if (one.ip, one.pid) in places)
            if len(places) == 2 and mine:
                found.append(mine)
        return found

    def settled(self, instances: int) -> list[list[str]]:
        """Wait until so many instances are whole, and then for a random while; their entities."""
        self.until(lambda: len(self.whole()) >= instances, "an active process and a standby", 120.0)
        end = time.monotonic() + self.rng.uniform(0.0, self.plan.calm_s)
        self.until(lambda: time.monotonic() >= end, "a random moment")
        return self.until(lambda: self.whole(), "an active process and a standby", 120.0)

    def next_answers(self, fault: Fault, entities: list[str], gone: set[tuple[str, int]]) -> None:
        """Wait until somebody else answers each of these entities; that took as long as the slowest of them."""
        self._gone |= gone

        def came() -> bool:
            new = [one for one in self.answers() if one.at > fault.at and (one.ip, one.pid) not in gone]
            first = {one.entity: one.at for one in reversed(new)}
            if not set(entities) <= first.keys():
                return False
            fault.first_s = max(first[entity] for entity in entities) - fault.at
            return True

        self.until(came, f"{', '.join(entities)} are answered again")

    def kill_process(self) -> None:
        victim = self.last()[self.rng.choice(self.rng.choice(self.settled(1)))]
        there = sorted(e for e, one in self.last().items() if (one.ip, one.pid) == (victim.ip, victim.pid))
        fault = self._note("stateful", there)
        os.kill(self.cluster.host_pid(self.cluster.node_of(victim.ip), victim.pid), signal.SIGKILL)
        self.next_answers(fault, there, {(victim.ip, victim.pid)})

    def kill_node(self) -> None:
        self.settled(self.plan.instances)
        head = self.cluster.ip(HEAD)
        while not (far := sorted({one.ip for one in self.last().values()} - {head})):
            self.kill_process()  # the active ones are all beside the coordinator: chase them away
            self.settled(self.plan.instances)
        ip = self.rng.choice(far)
        gone = {(one.ip, one.pid) for one in self.last().values() if one.ip == ip}
        there = sorted(entity for entity, one in self.last().items() if one.ip == ip)
        node = self.cluster.node_of(ip)
        fault = self._note("stateful node", there)
        self.cluster.kill_node(node)
        self.next_answers(fault, there, gone)
        self.cluster.start_node(node)
        self._gone = {one for one in self._gone if one[0] != ip}  # its pids begin anew, so others have them now

    def _note(self, kind: str, entities: list[str]) -> Fault:
        self.faults.append(Fault(kind, entities, time.monotonic(), time.time()))
        return self.faults[-1]


def run(plan: Plan, say: Callable[[str], None]) -> Report:
    """The whole of it."""
    began = time.monotonic()
    with NamespaceCluster(nodes=plan.machines, cpus=2, store="embedded") as cluster:
        one = Run(cluster, plan)
        faults = [one.kill_process] * plan.kills + [one.kill_node] * plan.nodes
        one.rng.shuffle(faults)
        for fault in faults:
            fault()
            say(f"{one.faults[-1].kind} ({', '.join(one.faults[-1].victims)}): {one.faults[-1].first_s:.3f} s")
        one.settled(plan.instances)
        (one.directory / "end").touch()
        one.program.check(180.0)
        verdict = check_entities(read_history(one.directory / "history.jsonl"))
        report = Report(plan.seed, time.monotonic() - began, verdict, one.faults)
        say(f"\n{report.duration_s:.0f} s\n{verdict}\n\n{report.table()}\n")
    return report

"""A stateful agent and its standby on two nodes, killed and cut off: every input is applied once."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowray.testing.cluster import NamespaceCluster, Process, tail, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
HERE = Path(__file__).parent
HEAD, FAR = 0, 1
KILLS = 1  # more of them, under load: test_accounts
CUT_S = 20.0


class Run:
    """The program at work, and what it wrote."""

    def __init__(self, cluster: NamespaceCluster) -> None:
        self.cluster = cluster
        self.directory = cluster.directory / "ledger"
        self.directory.mkdir()
        settings = {"directory": str(self.directory), "journal": str(cluster.inner_home / "journal")}
        command = [sys.executable, str(HERE / "ledger_client.py"), json.dumps(settings)]
        self.program: Process = cluster.run(HEAD, command, name="ledger")

    def outcomes(self) -> list[tuple[float, int, str, int]]:
        """(when, total, node, process) of each, in order."""
        file = self.directory / "outcomes.jsonl"
        text = file.read_text() if file.exists() else ""
        return [tuple(json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines()]

    def agents(self) -> dict[str, list[Any]]:
        file = self.directory / "agents.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = 120.0) -> Any:
        def now() -> Any:
            assert self.program.returncode is None, tail(self.program.output)
            return condition()

        return wait_until(now, timeout_s, what, poll_s=0.02)

    def settled(self) -> tuple[str, int]:
        """Both processes are there; where the active one is, and its number."""
        pair = ("ledger-0", "ledger.standby-0")

        def both() -> bool:
            found = self.agents()
            return all(found.get(one, [""])[0] == "ready" for one in pair)

        self.until(both, "an active process and a standby")
        count = len(self.outcomes())
        self.until(lambda: len(self.outcomes()) > count + 30, "inputs are applied")
        _, _, ip, pid = self.outcomes()[-1]
        return ip, pid

    def next_after(self, at: float, gone: tuple[str, int]) -> float:
        """Seconds until the first outcome by another process."""

        def came() -> float:
            return next((when - at for when, _, *where in self.outcomes() if tuple(where) != gone and when > at), 0.0)

        found: float = self.until(came, "another process answers")
        return found

    def end(self) -> list[int]:
        (self.directory / "end").touch()
        self.program.check(180)
        return [total for _, total, *_ in self.outcomes()]


@pytest.fixture
def broken(missing: str) -> Iterator[NamespaceCluster]:
    if missing:
        pytest.skip(missing)
    with NamespaceCluster(nodes=2, cpus=2) as cluster:
        yield cluster


def test_whatever_ends_every_input_is_applied_once(broken: NamespaceCluster) -> None:
    run = Run(broken)
    gaps: dict[str, list[float]] = {"kill -9": [], "cut off": [], "node killed": []}

    def kill() -> None:
        gone = run.settled()
        at = time.monotonic()
        os.kill(broken.host_pid(broken.node_of(gone[0]), gone[1]), signal.SIGKILL)
        gaps["kill -9"].append(run.next_after(at, gone))

    def on_the_other_node() -> tuple[str, int]:
        while broken.node_of(run.settled()[0]) != FAR:
            kill()
        return run.settled()

    run.settled()
    nodes = {one[1] for one in run.agents().values()}
    assert len(nodes) == 2, f"the two processes are on {nodes}"
    for _ in range(KILLS):
        kill()

    gone = on_the_other_node()
    at = time.monotonic()
    broken.partition(FAR)
    try:
        gaps["cut off"].append(run.next_after(at, gone))
        wait_until(lambda: time.monotonic() > at + CUT_S, CUT_S + 5.0, "the cut lasts")
    finally:
        broken.heal(FAR)
    again(run, broken)

    gone = on_the_other_node()
    at = time.monotonic()
    broken.kill_node(FAR)
    gaps["node killed"].append(run.next_after(at, gone))
    run.until(lambda: nodes_of(run) == {broken.ip(HEAD)}, "where there is one node only, that has both")
    run.settled()
    broken.start_node(FAR)
    kill()
    run.until(lambda: len(nodes_of(run)) == 2, "where there are two again, each has one")

    totals = run.end()
    sys.stdout.write(f"\n{len(totals)} inputs; fault to the next output, s: {gaps}\n")
    assert totals == list(range(1, len(totals) + 1))


def again(run: Run, cluster: NamespaceCluster) -> None:
    """A node that was away for too long leaves by itself: it is started again."""
    wait_until(lambda: not cluster.lives(FAR) or len(nodes_of(run)) == 2, 60.0, "the node left, or stayed")
    if not cluster.lives(FAR):
        cluster.kill_node(FAR)
        cluster.start_node(FAR)


def nodes_of(run: Run) -> set[str]:
    """Where its processes are, once both are there."""
    found = [one[1] for one in run.agents().values() if one[0] == "ready"]
    return set(found) if len(found) == 2 else set()

"""A coordinator whose journal is in PostgreSQL: its node dies, and it goes on in the other one with everything open."""

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
from checker import check, read_history

from flowray.testing import postgres
from flowray.testing.cluster import NamespaceCluster, Process, tail, wait_until
from flowray.testing.programs import inner_pid

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
HERE = Path(__file__).parent
HEAD = 0  # with Ray's own control store, and the clients
OTHERS = (1, 2)


@pytest.fixture
def server() -> Iterator[postgres.PostgresServer]:
    """All nodes reach it by its socket, as /tmp is the same for all."""
    if reason := postgres.missing():
        pytest.skip(reason)
    with postgres.started() as running:
        yield running


def host_pid_of(cluster: NamespaceCluster, pid: int) -> tuple[int, int]:
    """The node of the coordinator that calls itself `pid`, and what the host calls it."""
    for node in filter(cluster.lives, OTHERS):
        for candidate in cluster.processes(node, r"^ray::\w*Coordinator"):
            if inner_pid(candidate) == pid:
                return node, candidate
    raise ProcessLookupError(f"no node has a coordinator that calls itself {pid}")


@pytest.mark.timeout(290)
def test_a_coordinator_moves_to_another_node_with_all_that_is_open(
    server: postgres.PostgresServer, missing: str, say: Callable[[str], None]
) -> None:
    if missing:
        pytest.skip(missing)
    labels = [{}, {"may": "coordinate"}, {"may": "coordinate"}]
    with NamespaceCluster(nodes=3, cpus=1, labels=labels) as cluster:
        directory = cluster.directory / "histories"
        directory.mkdir()
        settings: dict[str, Any] = {
            "directory": str(directory),
            "address": cluster.address,
            "url": server.url,
            "seed": 5,
        }
        settings |= {"reader": "reader", "agents": 3, "open": 200, "wait_s": (0.005, 0.05), "drain_s": 60.0}

        def program(node: int, role: str) -> Process:
            command = [sys.executable, str(HERE / "moving_client.py"), role, json.dumps(settings)]
            return cluster.run(node, command, name=f"client-{role}")

        started = json.loads(program(OTHERS[0], "start").check(120.0).strip().splitlines()[-1])
        assert started["epoch"] == 1 and "schema flowray_chaos" in started["journal"]
        writer, reader = program(HEAD, "write"), None
        lines: list[dict[str, Any]] = []

        def until(condition: Any, what: str, timeout_s: float = 90.0) -> dict[str, Any]:
            """The first new status that fulfils it."""
            seen = len(lines)

            def now() -> Any:
                assert writer.returncode is None, tail(writer.output)
                file = directory / "status.jsonl"
                whole = file.read_text().split("\n")[:-1] if file.exists() else []
                lines[:] = [json.loads(line) for line in whole]
                return next((line for line in lines[seen:] if condition(line)), None)

            return dict(wait_until(now, timeout_s, what))

        def is_busy(line: dict[str, Any]) -> bool:
            return line["open"] > 150 and all(state == "ready" for _, state, *_ in line["agents"])

        # Its process alone: it comes back, with its doors where they were or not.
        first = until(is_busy, "the clients are at work")
        reader = program(HEAD, "read")
        history = directory / "reader.jsonl"
        until(lambda _: history.exists() and history.stat().st_size, "another client reads")
        at = time.monotonic()
        os.kill(host_pid_of(cluster, first["pid"])[1], signal.SIGKILL)
        second = until(lambda line: line["epoch"] > 1, "another process of the coordinator")
        process_s = second["at"] - at
        # The server, as by a power failure: its coordinator ends itself, and the next one waits for it.
        until(is_busy, "the clients are at work again")
        epoch = lines[-1]["epoch"]
        at = time.monotonic()
        server.kill()
        server.start()
        until(lambda line: line["epoch"] > epoch and is_busy(line), "a coordinator with the server that is back")
        server_s = lines[-1]["at"] - at
        # Its whole node, agents included.
        epoch = lines[-1]["epoch"]
        at = time.monotonic()
        node, _ = host_pid_of(cluster, lines[-1]["pid"])
        cluster.kill_node(node)
        third = until(lambda line: line["epoch"] > epoch, "a coordinator on the other node")
        node_s = third["at"] - at
        other, _ = host_pid_of(cluster, third["pid"])
        assert other in OTHERS and other != node
        until(is_busy, "the clients are at work once more")
        (directory / "phase").write_text("drain")
        wait_until((directory / "drained").exists, 90.0, "all open tasks end")
        writer.check(60.0)
        reader.check(90.0)
        verdict = check(read_history(*sorted(directory.glob("*r.jsonl"))))
        times = f"its process died {process_s:.2f} s, the server died {server_s:.2f} s, its node died {node_s:.2f} s"
        say(f"\nback after {times}\n{verdict}")
        assert verdict.good, verdict
        assert verdict.accepted > settings["open"] and verdict.states.keys() == {"succeeded"}
        assert (directory / "drained").read_text().split()[1] == "0"

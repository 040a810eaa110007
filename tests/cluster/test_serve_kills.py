"""Replicas and the controller of Ray Serve are killed, and stopped, while every task asks the router behind it: no task
fails, and none waits for Serve for long.

Only with --chaos-full: `tests/runtime/test_paths_on_ray.py` kills and stops one of each in every run of the tests.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chaos_run import HERE, Fault, Report, chosen_seed
from checker import check, read_history

from flowray.testing.cluster import NamespaceCluster, Process, tail, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.chaos]

REPLICA, CONTROLLER = r"^ray::ServeReplica", r"^ray::ServeController"  # as Ray calls their processes
KILLS, STOPS, CONTROLLERS = 8, 5, 2
STOPPED_S = (0.5, 5.0)  # for how long
RATE_PER_S = 20.0  # seven tenths of what one agent can do: for a while all tasks are of one trade
WATCHED_S = 3.0  # what was handed in so long after a fault is measured for it
SEED = chosen_seed()


class Run:
    """Serve, a client, and what the client says."""

    def __init__(self, cluster: NamespaceCluster) -> None:
        self._cluster = cluster
        self.directory = cluster.directory / "histories"
        self.directory.mkdir()
        self.faults: list[Fault] = []
        self.rng = random.Random(SEED)
        settings = {"directory": str(self.directory), "seed": SEED, "rate_per_s": RATE_PER_S, "wait_s": (0.02, 0.05)}
        settings["drain_s"] = 60.0
        program = [sys.executable, str(HERE / "serve_client.py"), json.dumps(settings)]
        self.client: Process = cluster.run(0, program, name="serve-client")

    def paths(self) -> list[dict[str, Any]]:
        """How each task was decided so far."""
        file = self.directory / "paths.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def until_served(self) -> None:
        """Until both replicas are there and Serve decides again, for half a second without a break."""

        def now() -> bool:
            assert self.client.returncode is None, tail(self.client.output)
            late = [one["path"] for one in self.paths() if one["at"] > time.monotonic() - 0.5]
            return len(late) > 3 and set(late) == {"serve"} and len(self._cluster.processes(0, REPLICA)) == 2

        wait_until(now, 120.0, "Serve decides", poll_s=0.1)

    def fault(self, pattern: str, stopped_s: float = 0.0) -> None:
        self.until_served()
        victim = self.rng.choice(sorted(self._cluster.processes(0, pattern)))
        fault = Fault("serve", [str(victim)], time.monotonic(), time.time())
        self.faults.append(fault)
        os.kill(victim, signal.SIGSTOP if stopped_s else signal.SIGKILL)
        time.sleep(stopped_s)
        if stopped_s:
            os.kill(victim, signal.SIGCONT)
        time.sleep(WATCHED_S)
        late = [one for one in self.paths() if fault.at <= one["at"] <= fault.at + stopped_s + WATCHED_S]
        fault.first_s = max(one["took_s"] for one in late)
        fault.failed = sum(one["path"] == "nobody" for one in late)


@pytest.mark.timeout(1200)
def test_no_task_fails_while_serve_is_killed(tmp_path: Path, say: Callable[[str], None]) -> None:
    began_at = time.monotonic()
    with NamespaceCluster(nodes=1, cpus=4, object_store_mb=256) as cluster:
        run = Run(cluster)
        kinds = [(REPLICA, 0.0)] * KILLS + [(CONTROLLER, 0.0)] * CONTROLLERS
        kinds += [(REPLICA, run.rng.uniform(*STOPPED_S)) for _ in range(STOPS)]
        run.rng.shuffle(kinds)
        for pattern, stopped_s in kinds:
            run.fault(pattern, stopped_s)
        run.until_served()
        (run.directory / "phase").write_text("drain")
        run.client.check(120.0)
        verdict = check(read_history(run.directory / "writer.jsonl"))
        report = Report(SEED, time.monotonic() - began_at, verdict, run.faults)
        report.write(Path(os.environ.get("FLOWRAY_SERVE_JSON") or tmp_path / "serve.json"))
        say(f"\n{verdict}\n\n{report.table()}\n")

    assert verdict.good, verdict
    assert set(verdict.states) == {"succeeded"}, verdict.states
    assert len(run.faults) == KILLS + STOPS + CONTROLLERS

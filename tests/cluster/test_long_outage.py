"""The control store is away for longer than Ray waits by itself, and then the head dies: a driver in Ray, on another
node, lives on, and its tasks go on.

Ray would end the driver's process after 60 s, without an exception. Only with --chaos-full.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable

import pytest
from chaos_run import HERE

from flowray.testing.cluster import NamespaceCluster, tail, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.chaos]

HEAD, FAR = 0, 1
AWAY_S = 75.0


@pytest.mark.timeout(600)
def test_a_driver_in_ray_outlives_a_control_store_that_is_away_for_more_than_a_minute_and_the_head(
    say: Callable[[str], None],
) -> None:
    with NamespaceCluster(nodes=2, cpus=2, store="embedded") as cluster:
        directory = cluster.directory / "outage"
        directory.mkdir()
        settings = json.dumps({"directory": str(directory), "journal": str(cluster.inner_home / "journal")})
        program = [sys.executable, str(HERE / "outage_work.py")]
        cluster.run(HEAD, [*program, "start", settings]).check(120.0)
        driver = cluster.run(FAR, [*program, "drive", settings])

        def driven() -> list[list[float]]:
            assert driver.returncode is None, tail(driver.output)
            file = directory / "driven"
            text = file.read_text() if file.exists() else ""
            return [[float(word) for word in line.split()] for line in text[: text.rfind("\n") + 1].splitlines()]

        wait_until(driven, 60.0, "the driver is at work", poll_s=0.1)
        gone, supervisor = cluster.store_process(), cluster.supervisor()
        os.kill(supervisor, signal.SIGSTOP)
        os.kill(gone, signal.SIGKILL)
        gone_at = time.monotonic()
        try:
            while time.monotonic() < gone_at + AWAY_S:
                driven()
                time.sleep(0.5)
        finally:
            os.kill(supervisor, signal.SIGCONT)
        wait_until(lambda: cluster.store_process() not in (0, gone), 30.0, "another control store is there")
        time.sleep(5.0)
        took = [took_s for at, took_s in driven() if at > gone_at]
        cluster.kill_node(HEAD)
        cluster.start_node(HEAD)
        started_at = time.monotonic()
        wait_until(lambda: driven()[-1][0] > started_at, 60.0, "its tasks go on")
        again_s = next(at for at, _ in driven() if at > started_at) - started_at
        (directory / "end").touch()
        driver.check(30.0)
    say(f"\n{len(took)} tasks of a driver in Ray meanwhile, the slowest took {max(took):.3f} s")
    say(f"after the head's death the first came {again_s:.2f} s after the node was back in the cluster")
    assert len(took) > AWAY_S  # more than one in a second

"""A runtime goes with the driver that started it, also when that driver is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from flowray.runtime.lifetime import has_ended

DRIVER = """
import sys, time
import flowray as fr
tiers = {f"tiers.{name}.cpu_share": 0.02 for name in ("orchestrator", "primary", "secondary", "specialist")}
rt = fr.Runtime.start(overrides={"name": "orphan", "ray.address": sys.argv[1], **tiers})
rt.agents.add("flowray.skills.text:TextStatistics", count=1)
rt.wait_ready()
print("up", flush=True)
time.sleep(600)
"""


def test_a_job_has_ended_when_the_table_says_so() -> None:
    table = [{"JobID": "01", "IsDead": False, "EndTime": 0}, {"JobID": "02", "IsDead": True, "EndTime": 5}]
    assert has_ended("02", table)
    assert not has_ended("01", table)
    assert not has_ended("03", table)


@pytest.mark.ray
@pytest.mark.slow
def test_agents_of_a_killed_driver_do_not_stay(ray_address: str, eventually: Callable[..., Any]) -> None:
    import ray

    driver = subprocess.Popen([sys.executable, "-c", DRIVER, ray_address], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline().strip() == "up"

        def ours() -> list[str]:
            named = ray.util.list_named_actors(all_namespaces=True)
            return [n["name"] for n in named if n["name"].startswith("orphan/")]

        names = ours()
        assert "orphan/coordinator" in names
        # Its agent's process, and perhaps the one kept warm and the node's keeper.
        assert sum(name.startswith("orphan/agent/textstatistics-") for name in names) in (1, 2)
    finally:
        driver.kill()
        driver.wait()
    eventually(lambda: not ours(), "the killed driver's runtime is gone")
    groups = ray.util.placement_group_table().values()
    assert not [g for g in groups if g["name"].startswith("flowray/orphan/") and g["state"] != "REMOVED"]

"""A runtime and the Ray around it: placement, several runtimes, other processes, places and settings refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_agents import Tool

import flowray as fr
from flowray.config import Config
from flowray.errors import ConfigError, NotConnected, StoreUnsupported
from flowray.runtime.cluster import ensure_token, join_or_start

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 60.0
CPUS = 4


@pytest.fixture(scope="module")
def node_id(ray_address: str) -> str:
    import ray

    return str(ray.nodes()[0]["NodeID"])


@pytest.fixture(scope="module")
def rt(start_runtime: Callable[..., fr.Runtime], node_id: str) -> Iterator[fr.Runtime]:
    labels = {"ray.io/node-id": node_id}
    with start_runtime(
        "edges",
        tiers__primary__agents=2,
        tiers__primary__agents_per_block=2,
        tiers__secondary__labels=labels,
        tiers__secondary__agents=4,
        tiers__specialist__labels={"ray.io/node-id": f"!{node_id}"},
        tiers__primary__warm=0,
        tiers__secondary__warm=0,
    ) as runtime:
        runtime.agents.add(Tool, name="first", tier="primary", count=2, capabilities={"first"})
        runtime.agents.add(Tool, name="second", tier="secondary", capabilities={"second"})
        runtime.wait_ready()
        yield runtime


def groups(name: str) -> dict[str, dict[str, Any]]:
    """Placement groups of one runtime, by tier, class and block."""
    import ray

    prefix = f"flowray/{name}/"
    tables = ray.util.placement_group_table().values()
    return {t["name"].removeprefix(prefix): t for t in tables if t["name"].startswith(prefix)}


def test_agents_run_in_the_placement_groups_of_their_tier(rt: fr.Runtime) -> None:
    found = groups("edges")
    assert {name: table["state"] for name, table in found.items()} == {
        "primary/first/0": "CREATED",
        "secondary/second/0": "CREATED",
    }
    assert len(found["primary/first/0"]["bundles"]) == 2, "a block of two agents"
    share = 0.1 * CPUS
    for name, agents in (("primary/first/0", 2), ("secondary/second/0", 4)):
        for bundle in found[name]["bundles"].values():
            assert bundle["CPU"] == pytest.approx(share / agents)
            assert bundle["memory"] > 0
    for capability, group in (("first", "primary/first/0"), ("second", "secondary/second/0")):
        said = rt.submit({"do": "who"}, needs={capability}).result(WAIT_S)
        assert said["group"] == found[group]["placement_group_id"]
        assert said["tier"] == group.partition("/")[0]


def test_labels_keep_agents_off_nodes_that_do_not_have_them(rt: fr.Runtime, eventually: Callable[..., Any]) -> None:
    """The second tier asks for this node and is on it; the specialists ask for any other, and there is none."""
    rt.agents.add(Tool, name="elsewhere", tier="specialist")
    eventually(lambda: "specialist/elsewhere/0" in rt.status().blocks, "the block waits for a node")
    with pytest.raises(fr.WaitTimeout, match=r"elsewhere-0 within .*; no room for the blocks specialist/elsewhere/0"):
        rt.wait_ready(timeout_s=0.2)
    assert rt.submit("here", needs={"second"}).result(WAIT_S) == "HERE"


def test_two_runtimes_in_one_cluster_do_not_disturb_each_other(
    rt: fr.Runtime, start_runtime: Callable[..., fr.Runtime]
) -> None:
    with start_runtime("neighbour") as other:
        other.agents.add(Tool, name="first", tier="primary", capabilities={"first", "more"})
        other.wait_ready()
        mine, theirs = rt.submit({"do": "who"}, needs={"first"}), other.submit({"do": "who"}, needs={"first"})
        assert mine.result(WAIT_S)["pid"] != theirs.result(WAIT_S)["pid"]
        with pytest.raises(fr.UnknownCapability):
            rt.submit("x", needs={"more"})
        assert len(other.agents) == 1
    assert not [name for name, table in groups("neighbour").items() if table["state"] != "REMOVED"]
    assert rt.submit("still here", needs={"first"}).result(WAIT_S) == "STILL HERE"


def test_another_process_can_join_and_leave(rt: fr.Runtime, ray_address: str) -> None:
    handle = rt.submit("from the first", needs={"first"}, key="shared")
    handle.result(WAIT_S)
    script = f"""
import flowray as fr
with fr.Runtime.connect("edges", address={ray_address!r}) as rt:
    print(rt.submit("from the second", needs={{"first"}}).result(60))
    print(rt.submit("from the first", needs={{"first"}}, key="shared").task_id)
    print(rt.handle({handle.task_id!r}).result(60))
    try:
        fr.Runtime.connect("nobody", address={ray_address!r})
    except fr.errors.NotConnected as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[:3] == ["FROM THE SECOND", handle.task_id, "FROM THE FIRST"]
    assert said[3].startswith("no runtime 'nobody' runs on this cluster")
    assert rt.submit("and on", needs={"first"}).result(WAIT_S) == "AND ON"


def test_a_journal_where_durability_cannot_be_had_is_refused(start_runtime: Callable[..., fr.Runtime]) -> None:
    with pytest.raises(StoreUnsupported, match="tmpfs"):
        start_runtime("refused", journal=f"/dev/shm/flowray-{os.getpid()}")
    assert not Path(f"/dev/shm/flowray-{os.getpid()}/journal.db").exists()


def test_a_cluster_without_authentication_is_refused(ray_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE: is 'disabled'"):
        join_or_start(Config())


def test_a_cluster_that_is_not_there_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for minutes."""
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    with pytest.raises(NotConnected, match=r"no Ray cluster at 127\.0\.0\.1:1: .*refused"):
        fr.Runtime.start(overrides={"ray.address": "127.0.0.1:1"})
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:99999")
    with pytest.raises(NotConnected, match=r"no Ray cluster at 127\.0\.0\.1:99999"):
        fr.Runtime.start()


def test_the_token_is_readable_by_its_owner_alone(
    rt: fr.Runtime, ray_token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ray_token.stat().st_mode & 0o777 == 0o600
    loose = tmp_path / "token"
    loose.write_text("x" * 64)
    loose.chmod(0o644)  # as Ray itself writes it
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(loose))
    assert ensure_token() == loose and loose.stat().st_mode & 0o777 == 0o600
    assert loose.read_text() == "x" * 64


def test_a_stopped_runtime_says_so(start_runtime: Callable[..., fr.Runtime]) -> None:
    with start_runtime("short") as runtime:
        pass
    with pytest.raises(NotConnected):
        runtime.submit("too late")
    assert not groups("short")


def test_an_embedded_cluster_whose_raylet_dies_while_it_starts_is_started_again() -> None:
    code = """
import os, signal
import psutil, ray
from ray._private import services
from flowray.config import load
from flowray.runtime import cluster
from flowray.runtime.template.quick import RayletGone

start, deaths = services.start_raylet, [2]

def dying(*arguments, **options):
    started = start(*arguments, **options)
    if deaths[0]:
        deaths[0] -= 1
        os.kill(started.process.pid, signal.SIGKILL)
    return started

services.start_raylet = dying
config = load(None, {}, {"ray.agent_output": False, "ray.num_cpus": 1})
try:
    cluster.join_or_start(config)
except RayletGone as error:
    print("twice:", error, ray.is_initialized())
print([child.name() for child in psutil.Process().children() if child.name() in ("gcs_server", "raylet")])
deaths[0] = 1
print(cluster.join_or_start(config), ray.cluster_resources()["CPU"], deaths[0])
print([child.name() for child in psutil.Process().children() if child.name() in ("gcs_server", "raylet")])
cluster.leave()
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "twice: Ray's raylet ended while it started (status -9) False",
        "[]",
        "True 1.0 0",
        "['gcs_server', 'raylet']",
    ]
    assert done.stderr.count("another node is started") == 2

"""An agent, a class and a whole node are drained under load: nothing fails or is done twice, and the node is empty."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from chaos_run import HERE
from checker import check, read_history

from flowray.testing.cluster import NamespaceCluster, tail, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

HEAD = 0
AGENTS = 6


@pytest.mark.timeout(280)
def test_drain_fails_nothing(say: Callable[[str], None]) -> None:
    with NamespaceCluster(nodes=3, cpus=2) as cluster:
        directory = cluster.directory / "drained"
        directory.mkdir()
        settings: dict[str, Any] = {"directory": str(directory), "journal": str(cluster.inner_home / "journal")}
        settings |= {"agents": AGENTS, "open": 30, "wait_s": (0.02, 0.2), "seed": 1, "drain_s": 60.0}
        client = cluster.run(HEAD, [sys.executable, str(HERE / "drain_client.py"), json.dumps(settings)], name="drain")

        def wait_for(name: str) -> None:
            def there() -> bool:
                assert client.returncode is None, tail(client.output)
                return (directory / name).exists()

            wait_until(there, 200.0, name)

        wait_for("empty")
        left = {number: cluster.processes(number, r"^ray::(Agent|Keeper|\w*Coordinator)") for number in (1, 2)}
        (directory / "looked").touch()
        wait_for("drained")
        said = json.loads((directory / "said.json").read_text())
        verdict = check(read_history(directory / "writer.jsonl"))
        (directory / "end").touch()
        client.check(60.0)
        node = cluster.node_of(said["node"])
    say(f"\ndrained: {said['took_s']}, {said['figures']}, {len(said['totals'])} inputs\n{verdict}")

    assert verdict.good, verdict
    assert verdict.states == {"succeeded": said["tasks"]} and not said["missing"]
    assert said["totals"] == list(range(1, len(said["totals"]) + 1))
    assert said["had"], "there were agents to leave"
    assert not said["left"] and not left[node], f"{said['left']}, {left[node]}"
    assert said["shown"] == [said["node"]] and not said["kept"]
    assert "coordinator's own node" in said["refused"]
    assert not said["figures"]["failovers"], "nothing was done a second time"

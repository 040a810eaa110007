"""How long an attempt goes on behind a cut cable, seen from outside: by a file that each attempt writes to.

An exclusive one has stopped before the next begins. An ordinary one goes on until it ends, or its node does, or, with
`core.fence_all`, as long as an exclusive one may; what it comes to is not counted. Only with --chaos-full.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos_run import HERE
from zombie_work import KINDS

from flowray.testing.cluster import NamespaceCluster, tail, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.chaos]

HEAD, FAR = 0, (1, 2, 3)  # the far ones are cut off at the same moment, each by a cable of its own
CUT_S = 20.0
STOPPED_WITHIN_S = 11.0  # `core.fence_s`


def times(file: Path) -> list[float]:
    """What an attempt wrote; its last line may be cut off."""
    text = file.read_text()
    return [float(line) for line in text[: text.rfind("\n") + 1].split()]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fence_all", [False, True])
def test_an_exclusive_attempt_behind_a_cut_cable_stops_before_the_next_begins(
    tmp_path: Path, say: Callable[[str], None], fence_all: bool
) -> None:
    found: dict[str, list[dict[str, float]]] = {}
    nodes = 1 + len(FAR)
    with NamespaceCluster(nodes=nodes, cpus=2, store="embedded") as cluster:
        directory = cluster.directory / "witness"
        directory.mkdir()
        settings: dict[str, object] = {"directory": str(directory), "journal": str(cluster.inner_home / "journal")}
        settings |= {"fence_all": fence_all, "nodes": nodes}
        program = [sys.executable, str(HERE / "zombie_work.py"), json.dumps(settings)]
        client = cluster.run(HEAD, program, name="zombies")

        def at_work() -> bool:
            assert client.returncode is None, tail(client.output)
            return len(list(directory.glob("*-1-*"))) == nodes * len(KINDS)

        wait_until(at_work, 120.0, "all attempts have begun")
        here = [file.name.split("-")[0] for file in directory.glob(f"*-1-{HEAD}")]
        behind = {file.name.split("-")[0]: file for node in FAR for file in directory.glob(f"*-1-{node}")}
        assert len(behind) == len(FAR) * len(KINDS), f"one of each kind is on each node: {sorted(behind.values())}"
        for name in here:
            (directory / f"{name}.gate").touch()  # its agent is free for the next attempts
        wait_until(lambda: all(time.monotonic() - times(directory / f"{n}-1-{HEAD}")[-1] > 1 for n in here), 30, "so")
        cut_at = time.monotonic()
        for node in FAR:
            cluster.partition(node)
        time.sleep(CUT_S)
        for name, file in sorted(behind.items()):
            following = [times(one) for one in directory.glob(f"{name}-2-*")]
            assert len(following) == 1, f"{name} went on {len(following)} times elsewhere within {CUT_S:g} s"
            seen = {"zombie_s": round(times(file)[-1] - cut_at, 3), "next_s": round(following[0][0] - cut_at, 3)}
            found.setdefault(name[:-1], []).append(seen)
        for node in FAR:
            cluster.heal(node)
        for name in behind:
            (directory / f"{name}.gate").touch()
        client.check(120.0)
        said = json.loads((directory / "said.json").read_text())
        again = [file.name for name in behind for file in directory.glob(f"{name}-[!12]-*")]
    if fence_all:
        found["ordinary, fence_all"] = found.pop("ordinary")
    path = Path(os.environ.get("FLOWRAY_ZOMBIES_JSON") or tmp_path / "zombies.json")
    path = path.with_stem(f"{path.stem}-all") if fence_all else path
    path.write_text(json.dumps({"watched_s": CUT_S, "zombies": found}, indent=1))
    say(f"\nattempts behind cut cables, watched for {CUT_S:g} s: {json.dumps(found)}")

    assert all(said[name] == 2 for name in behind), "what the zombie came to does not count"
    assert not again, "no third attempt of anything"
    assert all(one["zombie_s"] <= STOPPED_WITHIN_S for one in found["exclusive"])
    assert all(one["zombie_s"] < one["next_s"] for one in found["exclusive"])
    if fence_all:
        assert all(one["zombie_s"] <= STOPPED_WITHIN_S for one in found["ordinary, fence_all"])

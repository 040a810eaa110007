"""How long an attempt goes on behind a cut cable, seen from outside: by a file that each attempt writes to.

An exclusive one has stopped before the next begins. An ordinary one goes on until it ends, or its node does, or, with
`core.fence_all`, as long as an exclusive one may; what it comes to is not counted. Only with --chaos-full.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from chaos_run import HERE
from zombie_work import KINDS

from flowray.testing.cluster import NamespaceCluster, tail, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.chaos]

HEAD, FAR = 0, 1
CUT_S = 30.0
STOPPED_WITHIN_S = 11.0  # `core.fence_s`


def times(file: Path) -> list[float]:
    """What an attempt wrote; its last line may be cut off."""
    text = file.read_text()
    return [float(line) for line in text[: text.rfind("\n") + 1].split()]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fence_all", [False, True])
def test_an_exclusive_attempt_behind_a_cut_cable_stops_before_the_next_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fence_all: bool
) -> None:
    found: dict[str, dict[str, float]] = {}
    with NamespaceCluster(nodes=2, cpus=2, store="embedded") as cluster:
        directory = cluster.directory / "witness"
        directory.mkdir()
        settings: dict[str, object] = {"directory": str(directory), "journal": str(cluster.inner_home / "journal")}
        settings["fence_all"] = fence_all
        program = [sys.executable, str(HERE / "zombie_work.py"), json.dumps(settings)]
        client = cluster.run(HEAD, program, name="zombies")

        def at_work() -> bool:
            assert client.returncode is None, tail(client.output)
            return len(list(directory.glob("*-1-*"))) == 2 * len(KINDS)

        wait_until(at_work, 120.0, "all attempts have begun")
        here = [file.name.split("-")[0] for file in directory.glob(f"*-1-{HEAD}")]
        behind = [file.name.split("-")[0] for file in directory.glob(f"*-1-{FAR}")]
        assert {name[:-1] for name in behind} == set(KINDS), "one of each kind is on the other node"
        for name in here:
            (directory / f"{name}.gate").touch()  # its agent is free for the next attempt
        wait_until(lambda: all(time.monotonic() - times(directory / f"{n}-1-{HEAD}")[-1] > 1 for n in here), 30, "so")
        cut_at = time.monotonic()
        cluster.partition(FAR)
        time.sleep(CUT_S)
        for name in behind:
            last = times(directory / f"{name}-1-{FAR}")[-1]
            following = [times(file)[0] for file in directory.glob(f"{name}-2-*")]
            assert following, f"{name} did not go on elsewhere within {CUT_S:g} s"
            found[name[:-1]] = {"zombie_s": round(last - cut_at, 3), "next_s": round(following[0] - cut_at, 3)}
        cluster.heal(FAR)
        for name in behind:
            (directory / f"{name}.gate").touch()
        client.check(120.0)
        said = json.loads((directory / "said.json").read_text())
    if fence_all:
        found["ordinary, fence_all"] = found.pop("ordinary")
    path = Path(os.environ.get("FLOWRAY_ZOMBIES_JSON") or tmp_path / "zombies.json")
    path = path.with_stem(f"{path.stem}-all") if fence_all else path
    path.write_text(json.dumps({"watched_s": CUT_S, "zombies": found}, indent=1))
    with capsys.disabled():
        sys.stdout.write(f"\nattempts behind a cut cable, watched for {CUT_S:g} s: {json.dumps(found)}\n")

    assert all(said[name] == 2 for name in behind), "what the zombie came to does not count"
    assert found["exclusive"]["zombie_s"] <= STOPPED_WITHIN_S
    assert found["exclusive"]["zombie_s"] < found["exclusive"]["next_s"]
    if fence_all:
        assert found["ordinary, fence_all"]["zombie_s"] <= STOPPED_WITHIN_S

"""The journal's disk is full: clients hear that, nothing acknowledged is lost, and with room again the work goes on.

On a small ext4 file system of its own, mounted from a file (needs root and e2fsprogs).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checker import Verdict, check, read_history

from flowray.testing.cluster import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
HERE = Path(__file__).parent
DISK_MB = 48


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("the Debian package e2fsprogs is not installed")
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_MB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-F", str(image)], check=True)
    mounted = subprocess.run(
        ["mount", "-o", "loop", str(image), str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room at all."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


@pytest.mark.timeout(240)
def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path, disk: Path, say: Callable[[str], None]) -> None:
    home = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "PYTHONPATH": f"{HERE.parents[1]}:{HERE}"}
    (tmp_path / "home").mkdir()
    settings = {"directory": str(tmp_path), "journal": str(disk / "journal"), "name": f"disk-{tmp_path.name[-8:]}"}
    output = tmp_path / "output"

    def start(role: str) -> subprocess.Popen[bytes]:
        with output.open("ab") as log:
            command = [sys.executable, str(HERE / "disk_client.py"), role, json.dumps(settings)]
            return subprocess.Popen(command, stdout=log, stderr=log, env=home)

    client = start("work")

    def said(name: str, what: str, timeout_s: float = 90.0) -> str:
        def now() -> str:
            assert client.poll() is None or (tmp_path / name).exists(), output.read_text()
            return (tmp_path / name).read_text() if (tmp_path / name).exists() else ""

        return str(wait_until(now, timeout_s, what))

    try:
        said("running", "tasks run")
        ballast = fill(disk)
        refused = said("refused", "a submit fails")
        connecting = said("connecting", "a client that comes now fails")
        ballast.unlink()
        said("resumed", "tasks run again, with the same coordinator or another")
        (tmp_path / "end").touch()
        assert client.wait(90) == 0, output.read_text()
        # And so after everything was ended: who asks again sees the same outcomes.
        (tmp_path / "end").unlink()
        client = start("again")
        assert client.wait(120) == 0, output.read_text()
    finally:
        client.kill()
        client.wait()
    verdict: Verdict = check(read_history(tmp_path / "work.jsonl", tmp_path / "again.jsonl"))
    say(f"\nfull disk: a submit: {refused}\nconnecting: {connecting}\n{verdict}")
    assert refused.startswith("CoordinatorUnavailable") and "full" in refused
    assert "full" in connecting
    assert verdict.good, verdict
    assert verdict.readers == 2 and verdict.states.keys() == {"succeeded"}

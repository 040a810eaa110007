"""The main job: the findings of the team on Ray are those of a plain sequential run, byte for byte, kills or not."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("asyncio", "http", "json", "logging")

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Part of the standard library: real code, with cycles, async code and some non-ASCII text."""
    directory = tmp_path_factory.mktemp("code") / "library"
    library = Path(sysconfig.get_path("stdlib"))
    for package in PACKAGES:
        for file in sorted((library / package).rglob("*.py")):
            to = directory / file.relative_to(library)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(file.read_bytes())
    (directory / "odd.py").write_bytes(b"name = 'caf\xe9'\n")  # not UTF-8: a finding, no failure
    return directory


def audit(code: Path, out: Path, *options: str) -> tuple[dict[str, str], dict[str, object]]:
    """Run the audit; digests of its data files, and what it printed."""
    command = [sys.executable, "-m", "flowray.cli", "run", str(ROOT / "clusters/audit.yaml"), str(code)]
    command += ["-o", str(out), "--json", "--quiet", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    files = {name: (out / name).read_bytes() for name in ("findings.parquet", "summary.json")}
    assert (out / "report.html").stat().st_size > 10_000
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}, json.loads(done.stdout)


def test_the_team_finds_what_one_process_finds_with_and_without_kills(code: Path, tmp_path: Path) -> None:
    plain, printed = audit(code, tmp_path / "sequential", "--sequential")
    assert printed["failed"] == 0
    team, printed = audit(code, tmp_path / "team")
    assert printed["failed"] == 0
    assert team == plain
    killed, printed = audit(code, tmp_path / "killed", "--kill-one")
    assert printed["failed"] == 0
    assert killed == plain
    assert printed["figures_of_runtime"]["restarts"] >= 1, printed  # type: ignore[index]

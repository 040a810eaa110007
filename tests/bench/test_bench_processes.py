"""Sides in processes of their own."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

import psutil
import pytest

from bench import processes
from bench.measure import SideAbsent
from bench.processes import LOCK_VARIABLE, WorkerFailed, clean_environment, run_worker
from flowray.testing.postgres import missing

CORE = {"agents": 8, "waiting": 10, "warm": 5, "measured": 50, "tasks": 100}


def test_a_worker_gives_its_figures() -> None:
    assert run_worker("core_alone", CORE, timeout_s=60)["us_per_task"] > 0


@pytest.mark.slow
def test_the_journals_worker_measures_store_and_disk() -> None:
    if reason := missing():
        pytest.skip(reason)
    ours = run_worker(
        "journal_alone", {"side": "flowray", "groups": 20, "lone": 5, "rate": 100, "paced_s": 0.2}, timeout_s=60
    )
    served = run_worker(
        "journal_alone", {"side": "postgresql", "groups": 20, "lone": 5, "rate": 100, "paced_s": 0.2}, timeout_s=60
    )
    theirs = run_worker("journal_alone", {"side": "write_fdatasync", "lone": 5}, timeout_s=60)
    paced = {"adds_p50_ms", "adds_p99_ms", "adds_to_task_p50_ms", "adds_to_task_p99_ms", "late_p99_ms"}
    assert set(ours) == {"tasks_per_s", "us_per_task", "lone_p50_ms", "lone_p99_ms"} | paced
    assert set(served) == set(ours)
    assert set(theirs) == {"lone_p50_ms", "lone_p99_ms"}


def test_a_worker_that_fails_is_reported_with_the_end_of_its_errors() -> None:
    with pytest.raises(WorkerFailed, match="KeyError: 'agents'"):
        run_worker("core_alone", {}, timeout_s=60)


def test_a_worker_that_takes_too_long_is_ended() -> None:
    with pytest.raises(WorkerFailed, match=r"took more than 0\.3 s"):
        run_worker("core_alone", {**CORE, "tasks": 100_000_000}, timeout_s=0.3)


def test_a_worker_joins_no_cluster_and_takes_no_settings_of_ours() -> None:
    given = {
        "RAY_ADDRESS": "auto",
        "FLOWRAY_SEED": "1",
        "RAY_JOB_ID": "x",
        "PATH": "/bin",
        "RAY_AUTH_TOKEN": "t",
        "GRPC_EXPERIMENTS": "x",
    }
    assert clean_environment(given) == {"PATH": "/bin", "RAY_AUTH_TOKEN": "t"}


def test_the_lock_is_held_while_a_worker_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    monkeypatch.setenv(LOCK_VARIABLE, str(path))
    with processes._locked(str(path)), path.open("a") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_worker_that_cannot_take_part_says_why_and_needs_no_project(tmp_path: Path) -> None:
    """A stand-in for another environment's interpreter: it prints what a worker there would."""
    python = tmp_path / "python"
    python.write_text("""#!/bin/sh\necho '{"absent": "no messages here"}'\n""")
    python.chmod(0o755)
    with pytest.raises(SideAbsent, match=r"^no messages here$"):
        run_worker("core_alone", {}, timeout_s=60, python=python)


@pytest.mark.slow
def test_what_a_worker_leaves_behind_is_ended(tmp_path: Path) -> None:
    python, pid = tmp_path / "python", tmp_path / "pid"
    python.write_text(f"""#!/bin/sh\nsleep 600 >/dev/null 2>&1 &\necho $! >{pid}\necho '{{"m": 1.0}}'\n""")
    python.chmod(0o755)
    assert run_worker("core_alone", {}, timeout_s=60, python=python) == {"m": 1.0}
    left = int(pid.read_text())
    deadline = time.monotonic() + 10
    while _runs(left) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(left)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

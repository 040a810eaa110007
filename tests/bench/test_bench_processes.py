"""Sides in processes of their own."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from bench import processes
from bench.processes import LOCK_VARIABLE, WorkerFailed, clean_environment, run_worker

CORE = {"agents": 8, "waiting": 10, "warm": 5, "measured": 50, "tasks": 100}


def test_a_worker_gives_its_figures() -> None:
    assert run_worker("core_alone", CORE, timeout_s=60)["us_per_task"] > 0


@pytest.mark.slow
def test_the_journals_worker_measures_store_and_disk() -> None:
    ours = run_worker("journal_alone", {"side": "flowray", "groups": 20, "lone": 5}, timeout_s=60)
    theirs = run_worker("journal_alone", {"side": "write_fdatasync", "lone": 5}, timeout_s=60)
    assert set(ours) == {"tasks_per_s", "us_per_task", "lone_p50_ms", "lone_p99_ms"}
    assert set(theirs) == {"lone_p50_ms", "lone_p99_ms"}


def test_a_worker_that_fails_is_reported_with_the_end_of_its_errors() -> None:
    with pytest.raises(WorkerFailed, match="KeyError: 'agents'"):
        run_worker("core_alone", {}, timeout_s=60)


def test_a_worker_that_takes_too_long_is_ended() -> None:
    with pytest.raises(WorkerFailed, match=r"took more than 0\.3 s"):
        run_worker("core_alone", {**CORE, "tasks": 100_000_000}, timeout_s=0.3)


def test_a_worker_joins_no_cluster_and_takes_no_settings_of_ours() -> None:
    given = {"RAY_ADDRESS": "auto", "FLOWRAY_SEED": "1", "RAY_JOB_ID": "x", "PATH": "/bin", "RAY_AUTH_TOKEN": "t"}
    assert clean_environment(given) == {"PATH": "/bin", "RAY_AUTH_TOKEN": "t"}


def test_the_lock_is_held_while_a_worker_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    monkeypatch.setenv(LOCK_VARIABLE, str(path))
    with processes._locked(str(path)), path.open("a") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

"""A successor finds the process before it stopped, with the write lock in its hands."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flowray.errors import StoreError
from flowray.store import SqliteStore, takeover

from .builders import accept, config, opened, write

ROOT = Path(__file__).parents[2]
PATIENT = 0.05


@contextmanager
def stopped(directory: Path, holding: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has begun an epoch in this store, and was stopped."""
    process = subprocess.Popen(
        [sys.executable, "-m", "store.stopped", str(directory), holding],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
def test_a_stopped_process_that_holds_the_write_lock_is_ended(tmp_path: Path) -> None:
    with stopped(tmp_path, "write") as zombie:
        assert list(takeover.holders(tmp_path / "flowray.db")) == [zombie.pid]
        store = SqliteStore.open(tmp_path, config(takeover_wait_s=PATIENT))
        recovery = store.begin_epoch("successor")
        assert zombie.wait(10) == -signal.SIGKILL
        assert recovery.epoch == 2
        assert recovery.commands == [accept(1)]  # what it acknowledged, and not what it was about to write
        assert write(store, [accept(3)]) is None
        store.close()


@pytest.mark.slow
def test_a_stopped_process_that_holds_no_lock_is_fenced_and_not_ended(tmp_path: Path) -> None:
    with stopped(tmp_path, "nothing") as zombie:
        store = SqliteStore.open(tmp_path, config(takeover_wait_s=PATIENT))
        store.begin_epoch("successor")
        assert write(store, [accept(3)]) is None
        assert zombie.poll() is None
        zombie.send_signal(signal.SIGCONT)
        assert zombie.stdout is not None
        assert zombie.stdout.readline() == "StoreFenced\n"
        store.close()


@pytest.mark.slow
def test_a_process_stopped_while_it_copies_the_log_is_ended(tmp_path: Path) -> None:
    """Otherwise nobody could copy the log any more, and it would grow for ever."""
    with stopped(tmp_path, "checkpoint") as zombie:
        store = SqliteStore.open(tmp_path, config(busy_timeout_s=PATIENT))
        store.begin_epoch("successor")
        assert write(store, [accept(3)]) is None  # behind the copying
        assert zombie.wait(10) == -signal.SIGKILL
        store.close()


def test_this_process_is_never_ended(tmp_path: Path) -> None:
    first = opened(tmp_path)
    second = SqliteStore.open(tmp_path, config(takeover_wait_s=PATIENT, busy_timeout_s=PATIENT))
    with first._journal._transaction("hold the lock"):
        assert list(takeover.holders(tmp_path / "flowray.db")) == []
        with pytest.raises(StoreError, match="locked"):
            second.begin_epoch("second")
    assert second.begin_epoch("second").epoch == 2
    first.close()
    second.close()


def test_locks_of_other_files_and_of_who_waits_are_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "flowray.db"
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (x)")
    found = Path(f"{database}-shm").stat()
    ours = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    another = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino + 1}"
    locks = tmp_path / "locks"
    locks.write_text(
        f"1: POSIX  ADVISORY  WRITE 11 {ours} 120 120\n"
        f"1: -> POSIX  ADVISORY  WRITE 12 {ours} 120 120\n"
        f"2: POSIX  ADVISORY  READ 13 {ours} 123 127\n"
        f"3: POSIX  ADVISORY  WRITE 14 {another} 120 120\n"
        f"4: FLOCK  ADVISORY  WRITE 15 {ours} 0 EOF\n"
        f"5: POSIX  ADVISORY  WRITE 16 {ours} 0 EOF\n"
        f"6: POSIX  ADVISORY  WRITE 0 {ours} 120 120\n"
        f"7: POSIX  ADVISORY  WRITE 17 {ours} 128 128\n"
    )
    monkeypatch.setattr(takeover, "LOCKS", locks)
    assert list(takeover.holders(database)) == [11, 16]
    monkeypatch.setattr(takeover, "LOCKS", tmp_path / "nothing")
    assert list(takeover.holders(database)) == []
    connection.close()

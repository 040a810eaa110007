from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from flowray.errors import StoreCorrupt, StoreError
from flowray.store import SqliteStore, verify

from .builders import Answers, accept, config, life, opened, write


def test_close_writes_what_is_queued_and_leaves_one_database(tmp_path: Path) -> None:
    store = opened(tmp_path)
    answers = Answers()
    for number in range(100):
        store.append([accept(number)], answers)
    store.close()
    assert answers.errors == [None] * 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flowray.db", "witness"]


def test_the_files_are_private(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "store"
    store = opened(directory)
    assert write(store, life(1)) is None
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"flowray.db", "flowray.db-wal", "flowray.db-shm"} <= modes.keys()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    store.close()


def test_a_stopped_process_that_holds_the_lock_is_named(tmp_path: Path) -> None:
    """A zombie under SIGSTOP holds SQLite's write lock for ever: the successor must learn whom to end."""
    opened(tmp_path, "zombie").close()
    zombie = sqlite3.connect(tmp_path / "flowray.db", isolation_level=None)
    zombie.execute("BEGIN IMMEDIATE")
    store = SqliteStore.open(tmp_path, config(busy_timeout_s=0.01))
    assert store.owner() == (1, "zombie")
    with pytest.raises(StoreError, match="locked"):
        store.begin_epoch("second")
    zombie.close()
    assert store.begin_epoch("second").epoch == 2
    store.close()


def test_a_damaged_journal_row_stops_recovery_and_is_kept(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for number in range(3):
        assert write(store, [accept(number)]) is None
    store.close()
    connection = sqlite3.connect(tmp_path / "flowray.db")
    connection.execute("UPDATE journal SET body = x'c0' WHERE seq = 2")
    connection.commit()
    connection.close()
    again = SqliteStore.open(tmp_path, config())
    with pytest.raises(StoreCorrupt, match="journal row 2"):
        again.begin_epoch("second")
    assert (tmp_path / "quarantine" / "journal-2.bin").read_bytes() == b"\xc0"
    assert again.owner() == (1, "test")
    again.close()
    assert "journal row 2" in verify(tmp_path).problems[0]


def test_a_lost_log_is_noticed_by_the_witness(tmp_path: Path) -> None:
    """Without it, SQLite would open the database as if the last commits had never been."""
    store = opened(tmp_path)
    assert write(store, [accept(1)]) is None
    image = tmp_path / "image"
    image.mkdir()
    for name in ("flowray.db", "witness"):
        (image / name).write_bytes((tmp_path / name).read_bytes())
    store.close()
    with pytest.raises(StoreError):
        opened(image)


def test_a_store_that_was_succeeded_leaves_the_files_to_its_successor(tmp_path: Path) -> None:
    first = opened(tmp_path, "first")
    assert write(first, [accept(1)]) is None
    second = opened(tmp_path, "second")
    assert write(second, [accept(2)]) is None
    first.close()
    assert (tmp_path / "flowray.db-wal").stat().st_size > 0
    assert write(second, [accept(3)]) is None
    second.close()
    assert verify(tmp_path).commands == 3


def test_a_directory_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "witness").mkdir()
    with pytest.raises(StoreError, match="witness"):
        SqliteStore.open(tmp_path, config())


def test_a_file_that_is_not_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "flowray.db").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(StoreCorrupt):
        SqliteStore.open(tmp_path, config())
    (tmp_path / "flowray.db").write_bytes(b"")
    with pytest.raises(StoreCorrupt, match="not a store"):
        SqliteStore.open(tmp_path, config())

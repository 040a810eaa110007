from __future__ import annotations

import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from flowray.core.commands import ResolveTask
from flowray.core.states import TaskState
from flowray.errors import StoreCorrupt, StoreError, StoreFenced, StoreUnsupported, UnknownTask
from flowray.store import SqliteStore, verify

from .builders import Answers, accept, config, dead, life, opened, outcome, resolve, save, snapshot, start, task, write


def test_what_was_acknowledged_is_recovered_in_order(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commands = [command for number in range(20) for command in life(number)]
    for at in range(0, len(commands), 7):
        assert write(store, commands[at : at + 7]) is None
    store.close()

    again = SqliteStore.open(tmp_path, config())
    recovery = again.begin_epoch("second")
    assert recovery.epoch == 2
    assert recovery.snapshot is None
    assert recovery.commands == commands
    assert recovery.last_at == 19.5
    assert again.commands_since_snapshot == len(commands)
    again.close()


def test_an_unclosed_store_is_recovered_from_its_log(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert write(store, life(1)) is None

    again = SqliteStore.open(tmp_path, config())
    assert again.begin_epoch("second").commands == life(1)
    again.close()
    store.close()


def test_a_snapshot_replaces_what_was_appended_before_it(tmp_path: Path) -> None:
    store = opened(tmp_path)
    answers = Answers()
    store.append([accept(1), accept(2)], answers)
    store.save_snapshot(snapshot(1, 2, at=50.0), answers)
    store.append([start(1)], answers)
    assert store.commands_since_snapshot == 1
    assert answers.wait(3) == [None, None, None]
    store.close()

    again = SqliteStore.open(tmp_path, config())
    recovery = again.begin_epoch("second")
    assert recovery.snapshot == snapshot(1, 2, at=50.0)
    assert recovery.commands == [start(1)]
    assert recovery.last_at == 50.0
    again.close()
    with sqlite3.connect(tmp_path / "flowray.db") as connection:
        assert connection.execute("SELECT count(*) FROM journal").fetchone() == (1,)


def test_a_large_snapshot_and_an_empty_one_come_back_whole(tmp_path: Path) -> None:
    store = opened(tmp_path)
    large = snapshot(*range(1000))
    assert save(store, large) is None
    store.close()
    again = SqliteStore.open(tmp_path, config())
    # Nothing was appended before it: it covers no row, and yet it is the state to begin from.
    assert again.begin_epoch("second").snapshot == large
    assert save(again, snapshot()) is None
    again.close()
    last = SqliteStore.open(tmp_path, config())
    assert last.begin_epoch("third").snapshot == snapshot()
    last.close()


def test_outcomes_are_found_by_id_and_by_key(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert write(store, [resolve(number) for number in range(1200)]) is None
    ids = [f"t-{number:06d}" for number in range(1190, 1210)]
    assert store.outcome("t-000007") == outcome(7)
    assert store.outcome("nobody") is None
    assert store.outcomes(ids) == {f"t-{number:06d}": outcome(number) for number in range(1190, 1200)}
    assert store.outcomes([f"t-{number:06d}" for number in range(1200)]).keys() >= {"t-000000", "t-001199"}
    assert store.by_key(["k-000003", "", "k-x"]) == {"k-000003": outcome(3)}
    assert store.outcomes([]) == {}
    assert [found.task_id for found in store.recent_outcomes(2)] == ["t-001199", "t-001198"]
    assert store.counts() == {TaskState.SUCCEEDED: 1200}
    store.close()


def test_outcomes_without_a_key_do_not_conflict(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert write(store, [ResolveTask(outcome(number, key="")) for number in range(3)]) is None
    assert store.by_key([""]) == {}
    store.close()


def test_a_second_outcome_of_a_task_is_an_error_and_the_first_stands(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert write(store, [resolve(1)]) is None
    error = write(store, [accept(2), dead(1)])
    assert type(error) is StoreError
    assert "t-000001" in str(error)
    assert store.outcome("t-000001") == outcome(1)
    assert store.dead_letters() == []
    with pytest.raises(StoreError, match="the first one stands"):
        store.append([accept(3)], Answers())
    store.close()
    assert verify(tmp_path).commands == 1


def test_dead_letters_come_newest_first_in_pages(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert write(store, [dead(number) for number in range(7)]) is None
    assert [letter.id for letter, _ in store.dead_letters(limit=3)] == ["t-000006", "t-000005", "t-000004"]
    answers = Answers()
    store.purge_dead_letter("t-000004", answers)
    assert answers.wait() == [None]
    # Its place is still known, so a page that ended there goes on.
    page = store.dead_letters(limit=3, after="t-000004")
    assert page == [(task(number), outcome(number, state=TaskState.DEAD)) for number in (3, 2, 1)]
    assert store.dead_letter("t-000004") is None
    assert store.outcome("t-000004") is not None
    assert store.dead_letter("t-000005") == (task(5), outcome(5, state=TaskState.DEAD))
    with pytest.raises(UnknownTask):
        store.dead_letters(after="nobody")
    store.close()


def test_trim_deletes_old_outcomes_and_keeps_dead_letters_for_their_own_time(tmp_path: Path) -> None:
    store = opened(tmp_path, trim_rows=3)
    assert write(store, [command for number in range(20) for command in life(number)[2:]]) is None
    answers = Answers()
    store.trim(10.0, answers)
    assert answers.wait() == [None]
    assert store.counts() == {TaskState.DEAD: 4, TaskState.SUCCEEDED: 8}
    assert store.outcome("t-000003") is None
    assert store.dead_letter("t-000004") is not None
    store.trim(10.0, answers, dead_letters_older_than_at=9.0)
    assert answers.wait(2) == [None, None]
    assert store.dead_letter("t-000004") is None
    assert store.outcome("t-000004") is None
    assert store.dead_letter("t-000009") is not None
    store.close()
    report = verify(tmp_path)
    assert report.ok
    assert (report.outcomes, report.dead_letters) == (11, 3)


def test_a_later_epoch_fences_the_earlier_store(tmp_path: Path) -> None:
    first = opened(tmp_path, "first")
    assert write(first, [accept(1)]) is None
    second = SqliteStore.open(tmp_path, config())
    assert second.owner() == (1, "first")
    assert second.begin_epoch("second").commands == [accept(1)]

    error = write(first, [accept(2), resolve(2)])
    assert isinstance(error, StoreFenced)
    assert "second" in str(error)
    with pytest.raises(StoreFenced):
        first.append([accept(3)], Answers())
    assert second.outcome("t-000002") is None
    assert write(second, [accept(4)]) is None
    first.close()
    second.close()
    third = SqliteStore.open(tmp_path, config())
    assert third.begin_epoch("third").commands == [accept(1), accept(4)]
    third.close()


@pytest.mark.parametrize("work", ["snapshot", "trim", "purge", "confirm"])
def test_a_fenced_store_changes_nothing_by_other_means_either(tmp_path: Path, work: str) -> None:
    first = opened(tmp_path, "first")
    assert write(first, [dead(1)]) is None
    second = opened(tmp_path, "second")
    answers = Answers()
    if work == "snapshot":
        first.save_snapshot(snapshot(1), answers)
    elif work == "trim":
        first.trim(100.0, answers, dead_letters_older_than_at=100.0)
    elif work == "confirm":
        second.confirm_epoch(answers)
        assert answers.wait() == [None]
        answers = Answers()
        first.confirm_epoch(answers)
    else:
        first.purge_dead_letter("t-000001", answers)
    assert isinstance(answers.wait()[0], StoreFenced)
    assert second.dead_letter("t-000001") is not None
    first.close()
    second.close()
    assert verify(tmp_path).commands == 1


def test_nothing_is_written_before_an_epoch_or_after_close(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, config())
    with pytest.raises(StoreError, match="begin_epoch"):
        store.append([accept(1)], Answers())
    store.begin_epoch("test")
    with pytest.raises(StoreError, match="already"):
        store.begin_epoch("test")
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.append([accept(1)], Answers())


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


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "flowray.db")
    connection.execute("UPDATE meta SET v = 99 WHERE k = 'schema'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreUnsupported, match="version 99"):
        SqliteStore.open(tmp_path, config())
    assert "version 99" in verify(tmp_path).problems[0]


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


def test_a_damaged_outcome_is_not_returned(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert write(store, [resolve(1), dead(2)]) is None
    connection = sqlite3.connect(tmp_path / "flowray.db")
    connection.execute("UPDATE outcomes SET body = CAST(replace(body, 'y', 'z') AS BLOB) WHERE task_id = 't-000001'")
    connection.execute("UPDATE dead_letters SET body = x'80'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreCorrupt, match="t-000001"):
        store.outcome("t-000001")
    with pytest.raises(StoreCorrupt, match="t-000002"):
        store.dead_letters()
    assert len(verify(tmp_path).problems) == 2
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


@pytest.mark.parametrize("statement", ["DELETE FROM journal WHERE seq = 3", "DELETE FROM journal WHERE seq = 2"])
def test_a_missing_journal_row_stops_recovery(tmp_path: Path, statement: str) -> None:
    store = opened(tmp_path)
    for number in range(3):
        assert write(store, [accept(number)]) is None
    store.close()
    connection = sqlite3.connect(tmp_path / "flowray.db")
    connection.execute(statement)
    connection.commit()
    connection.close()
    again = SqliteStore.open(tmp_path, config())
    with pytest.raises(StoreCorrupt, match=r"row [23]"):
        again.begin_epoch("second")
    again.close()


def test_a_row_of_another_history_is_noticed(tmp_path: Path) -> None:
    """Intact in itself, in the right place, and yet not what this journal wrote: only the chain can tell."""
    for name, first in (("ours", 0), ("theirs", 10)):
        store = opened(tmp_path / name)
        for number in range(first, first + 3):
            assert write(store, [accept(number)]) is None
        store.close()
    connection = sqlite3.connect(tmp_path / "ours" / "flowray.db")
    connection.execute("ATTACH ? AS theirs", (str(tmp_path / "theirs" / "flowray.db"),))
    connection.execute("REPLACE INTO journal SELECT * FROM theirs.journal WHERE seq = 2")
    connection.commit()
    connection.close()
    with pytest.raises(StoreCorrupt, match="journal row 2"):
        opened(tmp_path / "ours")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE meta SET v = 1 WHERE k = 'epoch'",
        "UPDATE meta SET v = 'nobody' WHERE k = 'owner'",
        "UPDATE head SET last_at = 0",
        "UPDATE head SET snapshot_seq = 1",
        "DELETE FROM head",
        "DELETE FROM meta WHERE k = 'epoch'",
    ],
)
def test_a_changed_head_is_noticed(tmp_path: Path, statement: str) -> None:
    """An epoch that went back would be handed out twice, and fence nobody."""
    opened(tmp_path).close()
    store = opened(tmp_path)
    assert write(store, [accept(1)]) is None
    store.close()
    (tmp_path / "witness").unlink()
    connection = sqlite3.connect(tmp_path / "flowray.db")
    connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(StoreCorrupt, match="head of the journal"):
        opened(tmp_path)


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


def test_reads_go_on_while_another_thread_writes(tmp_path: Path) -> None:
    store = opened(tmp_path)
    answers = Answers()
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(len(store.outcomes([f"t-{number:06d}" for number in range(50)])))

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(50):
        store.append(life(number), answers)
    answers.wait(50)
    stop.set()
    thread.join()
    assert answers.errors == [None] * 50
    assert seen == sorted(seen)
    assert len(store.outcomes([f"t-{number:06d}" for number in range(50)])) == 50
    store.close()


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

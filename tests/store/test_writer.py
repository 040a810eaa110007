from __future__ import annotations

import sqlite3
import threading
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from flowray.errors import StoreError
from flowray.store import sqlite_journal, verify
from flowray.store.sqlite_journal import SqliteJournal

from .builders import Answers, accept, config, life, opened, save, snapshot, write
from .places import Place


class Gate:
    """A `done` that holds the writer's thread until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, _: StoreError | None) -> None:
        self.reached.set()
        assert self.opened.wait(20)


def test_answers_come_in_the_order_of_the_appends(place: Place) -> None:
    store = place.opened(group_commands=7)
    answered: list[int] = []
    for number in range(200):
        store.append(life(number), lambda _, number=number: answered.append(number))
    store.close()
    assert answered == list(range(200))


def test_what_arrives_during_a_commit_becomes_one_group(place: Place) -> None:
    store = place.opened()
    gate, answers = Gate(), Answers()
    store.append([accept(0)], gate)
    assert gate.reached.wait(20)
    for number in range(1, 50):
        store.append([accept(number)], answers)
    gate.opened.set()
    answers.wait(49)
    store.close()
    assert place.verify().journal_rows == 2


def test_a_group_is_bounded(place: Place) -> None:
    store = place.opened(group_commands=10)
    gate, answers = Gate(), Answers()
    store.append([accept(0)], gate)
    assert gate.reached.wait(20)
    for number in range(1, 41):
        store.append([accept(number)], answers)
    store.append([accept(number) for number in range(100, 130)], answers)
    gate.opened.set()
    answers.wait(41)
    store.close()
    assert place.verify().journal_rows == 6


def test_an_empty_append_is_answered_after_all_before_it(place: Place) -> None:
    store = place.opened()
    answered: list[str] = []
    store.append([accept(1)], lambda _: answered.append("command"))
    store.append([], lambda _: answered.append("empty"))
    store.close()
    assert answered == ["command", "empty"]


def test_the_backlog_is_visible_and_the_hard_bound_blocks_the_caller(place: Place) -> None:
    store = place.opened(queue_commands=4, group_commands=4)
    gate, answers = Gate(), Answers()
    store.append([], gate)
    assert gate.reached.wait(20)
    assert store.backlog_ratio == 0
    store.append([accept(1), accept(2)], answers)
    assert store.backlog_ratio == 0.5
    store.append([accept(3), accept(4)], answers)
    blocked = threading.Thread(target=store.append, args=([accept(5)], answers))
    blocked.start()
    blocked.join(0.05)
    assert blocked.is_alive()
    assert answers.errors == []
    gate.opened.set()
    assert answers.wait(3) == [None, None, None]
    blocked.join(20)
    assert store.backlog_ratio == 0
    store.close()


def test_one_append_larger_than_the_bound_still_goes(place: Place) -> None:
    store = place.opened(queue_commands=4, group_commands=4)
    assert write(store, [accept(number) for number in range(20)]) is None
    store.close()


def test_a_callback_may_append_even_when_the_queue_is_full(place: Place) -> None:
    store = place.opened(queue_commands=1, group_commands=1)
    answers = Answers()

    def go_on(_: StoreError | None) -> None:
        store.append([accept(2)], answers)
        store.append([accept(3)], answers)

    store.append([accept(1)], go_on)
    assert answers.wait(2) == [None, None]
    store.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_raises_leaves_nobody_waiting(place: Place) -> None:
    store = place.opened()
    gate, answers = Gate(), Answers()

    def fail(_: StoreError | None) -> None:
        raise ZeroDivisionError

    store.append([], gate)
    assert gate.reached.wait(20)
    store.append([accept(1)], fail)
    store.append([accept(2)], answers)
    store.save_snapshot(snapshot(1), answers)
    gate.opened.set()
    errors = answers.wait(2)
    assert all("ZeroDivisionError" in str(error) for error in errors)
    with pytest.raises(StoreError, match="ZeroDivisionError"):
        store.append([accept(3)], answers)
    store.close()


def test_the_log_is_copied_into_the_database_now_and_then(tmp_path: Path) -> None:
    store = opened(tmp_path, checkpoint_bytes=100_000)
    for number in range(200):
        assert write(store, life(number)) is None
    assert (tmp_path / "flowray.db-wal").stat().st_size < 1_000_000
    store.close()


def test_a_little_of_the_log_is_copied_when_nothing_waits_and_all_of_it_when_it_is_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = SqliteJournal(tmp_path, config(checkpoint_bytes=800_000))
    journal.begin_epoch("test")
    now, took_s = 100.0, 0.5
    monkeypatch.setattr(sqlite_journal, "time", SimpleNamespace(monotonic=lambda: now))
    copied = []

    def copy(_: SqliteJournal) -> None:
        nonlocal now
        now += took_s
        copied.append(number)

    monkeypatch.setattr(SqliteJournal, "_checkpoint", copy)
    for number in range(60):  # about 25,000 bytes each, by the journal's estimate
        journal.write_group(life(number))
        journal.checkpoint_if_due(idle=number < 30)
        now += 1.0
    journal.close()
    # A tenth of a megabyte is enough while nothing waits, but not within twenty times as long as the last one took.
    idle, busy = [n for n in copied if n < 30], [n for n in copied if n >= 30]
    assert 2 <= idle[0] <= 6
    assert all(10 <= later - earlier <= 12 for earlier, later in pairwise(idle)) and len(idle) >= 2
    assert len(busy) == 1, "while something waits, not before all of it has come together"


def test_a_snapshot_removes_the_rows_it_covers_from_the_file(tmp_path: Path) -> None:
    """What is deleted is overwritten, so that prompts do not linger in free pages."""
    store = opened(tmp_path)
    assert write(store, [accept(number) for number in range(50)]) is None
    assert save(store, snapshot()) is None
    store.close()
    assert b"Summarise the report" not in (tmp_path / "flowray.db").read_bytes()


def test_a_failed_write_is_reported_to_all_and_nothing_more_is_written(tmp_path: Path) -> None:
    store = opened(tmp_path, busy_timeout_s=0.01)
    assert write(store, [accept(1)]) is None
    other = sqlite3.connect(tmp_path / "flowray.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert "locked" in str(write(store, [accept(2)]))
    other.close()
    assert "locked" in str(store.failure)
    with pytest.raises(StoreError, match="locked"):
        store.append([accept(3)], Answers())
    store.close()
    assert verify(tmp_path).commands == 1

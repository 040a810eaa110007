"""A coordinator is killed with many tasks open: its successor's core, on a real journal, without Ray."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from bench.workers.recovery import recovered, write
from flowray.core.book import Book
from flowray.core.model import Snapshot
from flowray.core.policy import CorePolicy
from flowray.errors import StoreError
from flowray.runtime.recovering import recover
from flowray.store import SqliteStore, StoreConfig
from flowray.store.filesystem import require_room

ANYWHERE = StoreConfig(allow_filesystems=("overlay", "tmpfs", "unknown"), allow_volatile=True)
CASES = {
    "all in the snapshot": {"in_snapshot": 1_500, "ended": 0},
    "all in the journal": {"in_snapshot": 0, "ended": 0},
    "half of each, and others that ended": {"in_snapshot": 750, "ended": 1_500},
}


@pytest.fixture(autouse=True)
def settings_of_this_process() -> Iterator[None]:
    """A coordinator has a process of its own, and sets it up for itself."""
    interval_s, threshold = sys.getswitchinterval(), gc.get_threshold()
    yield
    sys.setswitchinterval(interval_s)
    gc.set_threshold(*threshold)
    gc.unfreeze()


@pytest.mark.parametrize("case", CASES)
def test_what_was_open_is_recovered_and_what_runs_is_not_run_again(tmp_path: Path, case: str) -> None:
    """Agents that report their attempts keep them; the first free slot gets the oldest waiting task."""
    settings = {"open": 1_500, "running": 120, **CASES[case]}
    write(tmp_path, settings, ANYWHERE)
    live = folded(tmp_path)
    figures = recovered(tmp_path, settings, ANYWHERE)  # raises when an attempt is run again, or nothing is sent out
    assert set(figures) == {"ready_s", "ready_cpu_s", "dispatch_s"}
    after = folded(tmp_path)
    assert [task.task.id for task in after.tasks] == [task.task.id for task in live.tasks]
    assert after == live


def folded(directory: Path) -> Snapshot:
    """The open tasks by the journal alone: the commands folded one by one, as when they were decided."""
    store = SqliteStore.open(directory, ANYWHERE)
    recovery = store.begin_epoch("bench")
    store.close()
    book = Book()
    if recovery.snapshot is not None:
        book.restore(recovery.snapshot)
    for command in recovery.commands:
        book.apply(command)
    return book.snapshot(0.0)


def test_a_new_run_on_an_old_journal_does_not_bring_its_agents_back_after_a_crash(tmp_path: Path) -> None:
    """That they are not wanted is no command: it must be on disk before anybody is let in."""
    write(tmp_path, {"open": 40, "running": 8, "in_snapshot": 0, "ended": 0}, ANYWHERE)
    for _ in range(2):  # the second one takes over from the first, which did not close
        store = SqliteStore.open(tmp_path, ANYWHERE)
        core, _ = recover(store, life="another", policy=CorePolicy(), seed=1)
        assert core.book.specs == {}
        assert len(core.book.open) == 40
    store.close()


def test_a_successor_in_the_same_life_waits_for_no_snapshot(tmp_path: Path) -> None:
    """Writing 100,000 tasks out again would take longer than reading them; the pump does it later."""
    write(tmp_path, {"open": 40, "running": 8, "in_snapshot": 0, "ended": 0}, ANYWHERE)
    store = SqliteStore.open(tmp_path, ANYWHERE)
    core, clock = recover(store, life="bench", policy=CorePolicy(), seed=1)
    assert store.commands_since_snapshot > 40
    assert core.epoch == 2
    assert clock() >= core.now
    store.close()


def test_a_recovered_book_says_the_same_as_its_snapshot(tmp_path: Path) -> None:
    write(tmp_path, {"open": 200, "running": 60, "in_snapshot": 100, "ended": 40}, ANYWHERE)
    state = folded(tmp_path)
    book = Book()
    book.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=Snapshot))
    assert book.snapshot(0.0) == state


def test_without_room_on_the_disk_nothing_begins(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is full"):
        require_room(tmp_path, 1 << 60)
    require_room(tmp_path, 1 << 20)
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - also what begins with a dot

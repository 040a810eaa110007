"""The simulated store keeps the contract that the real one promises."""

from __future__ import annotations

from random import Random

import pytest

from flowray.core.book import Book
from flowray.core.commands import AcceptTask
from flowray.core.model import Task
from flowray.errors import StoreCorrupt
from flowray.testing.clock import VirtualClock
from flowray.testing.journal import Disk, Writer


class Store:
    def __init__(self):
        self.clock, self.written, self.synced, self.fenced = VirtualClock(), [], [], []
        self.disk = Disk(lambda epoch, group: self.written.append((epoch, [c.task.id for c in group])))

    def writer(self):
        epoch = self.disk.begin()
        return Writer(
            self.clock, self.disk, epoch, sync_s=lambda: 1.0,
            on_synced=lambda: self.synced.append(self.clock.now), on_fenced=lambda: self.fenced.append(epoch),
        )  # fmt: skip


def accept(name):
    return AcceptTask(Task(id=name), 0.0, 0)


def test_what_is_appended_during_a_sync_goes_with_the_next():
    store = Store()
    writer = store.writer()
    writer.append([accept("a")])
    store.clock.run(0.5)
    writer.append([accept("b")])
    writer.append([accept("c")])
    store.clock.run(1.0)
    assert (store.written, writer.synced, len(writer.tail)) == ([(1, ["a"])], 1, 2)
    store.clock.run(5.0)
    assert (store.synced, writer.synced) == ([1.0, 2.0], 3)


def test_a_crash_keeps_a_prefix():
    for seed in range(30):
        store = Store()
        writer = store.writer()
        for name in "abc":
            writer.append([accept(name)])
        lost = writer.die(Random(seed), lost=0.2)
        names = [name for _, group in store.written for name in group]
        assert names == list("abc")[: 3 - lost]
        store.clock.run(10.0)
        assert len(store.written) == 3 - lost


def test_an_older_epoch_writes_nothing_any_more():
    store = Store()
    old = store.writer()
    old.append([accept("a")])
    new = store.writer()
    store.clock.run(5.0)
    assert (store.written, store.fenced, old.fenced, new.fenced) == ([], [1], True, False)
    assert old.die(Random(0), lost=0.0) == 1


def test_a_snapshot_counts_only_when_everything_before_it_is_on_disk():
    store, book = Store(), Book()
    writer = store.writer()
    for name in "ab":
        book.apply(accept(name))
        writer.append([accept(name)])
    writer.offer(book.snapshot(0.0))
    assert store.disk.recall() == (None, [])
    store.clock.run(3.0)
    writer.append([accept("c")])
    store.clock.run(5.0)
    snapshot, commands = store.disk.recall()
    assert [one.task.id for one in snapshot.tasks] == ["a", "b"]
    assert [command.task.id for command in commands] == ["c"]


def test_what_was_read_before_is_not_what_is_written_afterwards():
    store = Store()
    writer = store.writer()
    for name in "ab":
        writer.append([accept(name)])
        store.clock.run(store.clock.now + 2.0)
        commands = store.disk.recall()[1]
        commands.clear()  # it is the reader's own
    assert [command.task.id for command in store.disk.recall()[1]] == ["a", "b"]
    with pytest.raises(StoreCorrupt, match="checksum"):
        store.disk.recall(Random(1))
    assert [command.task.id for command in store.disk.recall()[1]] == ["a", "b"]


def test_groups_are_counted_from_the_snapshot_on_over_all_lives():
    store = Store()
    for name in "ab":
        store.writer().append([accept(name)])
        store.clock.run(store.clock.now + 2.0)
    writer = store.writer()
    assert store.disk.groups == 2
    writer.offer(Book().snapshot(0.0))
    writer.append([accept("c")])
    writer.offer(Book().snapshot(0.0))
    store.clock.run(store.clock.now + 2.0)
    assert (store.disk.groups, store.disk.recall()) == (0, (Book().snapshot(0.0), []))

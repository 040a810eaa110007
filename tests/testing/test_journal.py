"""The simulated store keeps the contract that the real one promises."""

from __future__ import annotations

from random import Random

from flowray.core.book import Book
from flowray.core.commands import AcceptTask
from flowray.core.model import Task
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

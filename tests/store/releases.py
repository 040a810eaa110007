"""Journals as releases wrote them, and what a coordinator that recovers from them must hold: kept for ever.

`python tests/store/releases.py` adds those of the present version to tests/fixtures/journals; run it before a release,
never again after it. A journal is made of a simulated world: its coordinators' lives are its epochs, and what they had
on disk when the faults were about to stop is written with the real store.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
import threading
from pathlib import Path
from typing import Any

import msgspec

import flowray
from flowray.core.book import Book
from flowray.core.commands import DurableCommand
from flowray.core.coordination import Coordination
from flowray.core.states import TERMINAL, TaskState
from flowray.store import SqliteStore, StoreConfig
from flowray.store.recovery import Recovery
from flowray.testing.special import draw_options
from flowray.testing.swarm import RandomWork, safety
from flowray.testing.world import World

FIXTURES = Path(__file__).parents[1] / "fixtures" / "journals"
SEEDS = (5, 6, 14, 27)  # with and without routing, with many lives of the coordinator and with few
GROUPS_PER_SNAPSHOT = 40


class Fixed:
    """Recovery draws nothing that matters here."""

    def random(self) -> float:
        return 0.5


def open_store(directory: Path) -> SqliteStore:
    """Wherever the machine has its temporary files."""
    anywhere = ("overlay", "tmpfs", "9p", "virtiofs", "fuse.fuse-overlayfs", "unknown")
    return SqliteStore.open(directory, StoreConfig(allow_filesystems=anywhere))


def recover(recovery: Recovery) -> Coordination:
    """The core of a coordinator that starts on this journal."""
    return Coordination.recover(
        epoch=recovery.epoch,
        rng=Fixed(),
        now=recovery.last_at,
        snapshot=recovery.snapshot,
        commands=recovery.commands,
    )


def state_of(store: SqliteStore, core: Coordination) -> dict[str, Any]:
    """What was decided and not yet done, and what has ended, as plain data."""
    outcomes = sorted(store.recent_outcomes(10_000), key=lambda outcome: outcome.task_id)
    state = {
        "book": core.snapshot(),
        "outcomes": {outcome.task_id: outcome for outcome in outcomes},
        "dead_letters": {task.id: task for task, _ in store.dead_letters(10_000)},
    }
    told: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(state))
    return told


def unpack(archive: Path, directory: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")


# ── making them ──────────────────────────────────────────────────────────────────────────────────────────────────────


def groups_of(seed: int) -> list[tuple[int, tuple[DurableCommand, ...]]]:
    """(epoch, group) in the order in which a simulated world wrote them."""
    options = draw_options(seed)
    world = World(seed=seed, behaviour=RandomWork(seed, options.median_s), faults=options.faults, policy=options.policy)
    groups = []
    observed = world.observer.written

    def written(epoch: int, group: tuple[DurableCommand, ...]) -> None:
        groups.append((epoch, group))
        observed(epoch, group)

    world.disk.on_synced = written
    safety(world, options)
    return groups[: _richest(groups)]


def _richest(groups: list[tuple[int, tuple[DurableCommand, ...]]]) -> int:
    """So many groups that, for the last time, open tasks are in every state there is; all where that never is."""
    book, rich = Book(), len(groups)
    for position, (_, group) in enumerate(groups):
        for command in group:
            book.apply(command)
        if len({entry.state for entry in book.open.values()}) == len(TaskState) - len(TERMINAL):
            rich = position + 1
    return rich


def write(directory: Path, groups: list[tuple[int, tuple[DurableCommand, ...]]]) -> None:
    """The same with the real store, one life of it for each epoch."""
    written = 0
    highest = max(epoch for epoch, _ in groups)
    for epoch in range(1, highest + 1):
        store = open_store(directory)
        book = recover(store.begin_epoch(f"life {epoch}")).book
        for _, group in [each for each in groups if each[0] == epoch]:
            done = threading.Event()
            store.append(group, lambda error, done=done: done.set())
            assert done.wait(30.0)
            for command in group:
                book.apply(command)
            written += 1
            if written % GROUPS_PER_SNAPSHOT == 0:
                done = threading.Event()
                at = max(_at(command) for command in group)
                store.save_snapshot(book.snapshot(at), lambda error, done=done: done.set())
                assert done.wait(30.0)
        assert store.failure is None
        store.close()


def _at(command: DurableCommand) -> float:
    return command.outcome.resolved_at if hasattr(command, "outcome") else command.at


def make(version: str = flowray.__version__) -> None:
    directory = FIXTURES / version
    directory.mkdir(parents=True)
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as made:
            write(Path(made), groups_of(seed))
            archive = directory / f"seed-{seed}.tar.gz"
            with tarfile.open(archive, "w:gz", compresslevel=9) as tar:
                for path in sorted(Path(made).iterdir()):
                    info = tarfile.TarInfo(path.name)
                    info.size = path.stat().st_size
                    tar.addfile(info, io.BytesIO(path.read_bytes()))
            store = open_store(Path(made))
            core = recover(store.begin_epoch("the next release"))
            state = state_of(store, core)
            store.close()
        (directory / f"seed-{seed}.json").write_bytes(msgspec.json.encode(state))


if __name__ == "__main__":
    make()

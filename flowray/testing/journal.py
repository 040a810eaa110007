"""A simulated store: groups of commands, a disk that takes its time, an epoch that fences old writers.

It keeps the contract of `flowray.store`: a group is on disk after the sync that covers it; what was not synced when
its writer died may be lost, and what survives is a prefix; a write from an epoch that is not the current one is
refused and changes nothing. A part of a group does not count, and a journal of which one bit is wrong is refused. A
sync that fails is not tried again: what it covered may be gone.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Sequence
from random import Random

import msgspec

from flowray.chunks import decode_chunks
from flowray.core.commands import DurableCommand, GradeTask, RecordChunks, ResolveTask
from flowray.core.model import Outcome, Snapshot, TaskId
from flowray.errors import StoreCorrupt
from flowray.testing.clock import VirtualClock

_commands = msgspec.msgpack.Decoder(list[DurableCommand])
_snapshot = msgspec.msgpack.Decoder(Snapshot)
Group = tuple[DurableCommand, ...]


class Disk:
    """What survives: the synced journal, its snapshot, and what can be found by id and key."""

    def __init__(self, on_synced: Callable[[int, Group], None]) -> None:
        self.epoch = 0
        self.commands: list[DurableCommand] = []  # after the snapshot
        self.groups = 0  # written since then, by whomever
        self.outcomes: dict[TaskId, Outcome] = {}
        self.keys: dict[str, TaskId] = {}  # of outcomes
        self.grades: dict[TaskId, GradeTask] = {}  # the newest of each outcome
        self.chunks: dict[TaskId, list[tuple[int, tuple[str, bytes]]]] = {}  # (restarts before it, chunk), by number
        self.last_at = 0.0  # the highest time in it
        self.torn: Group = ()  # a part of a group, at its end
        self.on_synced = on_synced
        self._snapshot: Snapshot | bytes | None = None  # bytes until somebody reads it
        self._read: list[DurableCommand] = []  # of the commands, what their bytes say; as many as were read so far

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest one, through the same encoding as the real store's."""
        if isinstance(self._snapshot, bytes):
            self._snapshot = _snapshot.decode(self._snapshot)
        return self._snapshot

    def begin(self) -> int:
        """A new coordinator takes over; from now on no other may write."""
        self.epoch += 1
        return self.epoch

    def write(self, epoch: int, group: Group) -> None:
        """One group is on disk now. The caller has checked the fence."""
        self.groups += 1
        self.commands.extend(group)
        for command in group:
            at = command.outcome.resolved_at if type(command) is ResolveTask else command.at  # type: ignore[union-attr]
            self.last_at = max(self.last_at, at)
            if type(command) is ResolveTask:
                outcome = command.outcome
                self.outcomes[outcome.task_id] = outcome
                if outcome.key:
                    self.keys[outcome.key] = outcome.task_id
            elif type(command) is GradeTask:
                self.grades[command.task_id] = command
            elif type(command) is RecordChunks:
                chunks = self.chunks.setdefault(command.task_id, [])
                added = decode_chunks(command.body)[command.skip :] if command.body else []
                chunks[command.first :] = [(command.restarts, piece) for piece in added]
        self.on_synced(epoch, group)

    def keep(self, snapshot: Snapshot) -> None:
        """Everything so far is in the snapshot."""
        self._snapshot = msgspec.msgpack.encode(snapshot)
        self.last_at = max(self.last_at, snapshot.at)
        self.commands.clear()
        self._read.clear()
        self.groups = 0

    def recall(self, flips: Random | None = None) -> tuple[Snapshot | None, list[DurableCommand]]:
        """What a new coordinator reads, through the same encoding as the real store's; with `flips`, one bit wrong.

        What was read before is the same now, so only what is new is decoded: commands cannot be changed.

        Raises StoreCorrupt when the bytes are not what was written.
        """
        self.torn = ()  # its checksum says that it is not whole, so it was never promised to anyone
        if flips is not None:
            body = msgspec.msgpack.encode(self.commands)
            checksum, bit = zlib.crc32(body), int(8 * len(body) * flips.random())
            body = body[: bit // 8] + bytes((body[bit // 8] ^ 1 << bit % 8,)) + body[bit // 8 + 1 :]
            if zlib.crc32(body) != checksum:
                raise StoreCorrupt("the journal does not match its checksum")
            return self.snapshot, _commands.decode(body)
        self._read += _commands.decode(msgspec.msgpack.encode(self.commands[len(self._read) :]))
        return self.snapshot, self._read.copy()


class Writer:
    """One coordinator's way to the disk. One sync at a time; what is appended meanwhile goes with the next."""

    def __init__(
        self,
        clock: VirtualClock,
        disk: Disk,
        epoch: int,
        *,
        sync_s: Callable[[], float],
        on_synced: Callable[[], None],
        on_fenced: Callable[[], None],
        fails: Callable[[], bool] = lambda: False,
        on_failed: Callable[[], None] = lambda: None,
    ) -> None:
        self.appended = 0  # groups handed in
        self.synced = 0  # of those, on disk
        self._clock = clock
        self._disk = disk
        self._epoch = epoch
        self._sync_s = sync_s
        self._on_synced = on_synced
        self._on_fenced = on_fenced
        self._fails = fails
        self._on_failed = on_failed
        self._waiting: deque[Group] = deque()
        self._syncing = 0  # groups covered by the sync under way
        self._sync_number = 0  # of the sync under way: one that was paused ends without effect
        self._snapshot: tuple[int, Snapshot] | None = None  # valid once so many groups are on disk
        self._stopped = False
        self._paused = False

    @property
    def fenced(self) -> bool:
        """Does the journal belong to a later coordinator?"""
        return self._disk.epoch != self._epoch

    @property
    def tail(self) -> list[DurableCommand]:
        """Appended and not yet on disk."""
        return [command for group in self._waiting for command in group]

    def append(self, commands: Sequence[DurableCommand]) -> None:
        """Hand in one group."""
        self._waiting.append(tuple(commands))
        self.appended += 1
        self._sync()

    def offer(self, snapshot: Snapshot) -> None:
        """A snapshot that covers everything appended so far; kept when that is on disk."""
        self._snapshot = (self.appended, snapshot)

    def pause(self) -> None:
        """The process is stopped; a sync under way ends without it."""
        self._paused = True

    def resume(self) -> None:
        """The process goes on."""
        self._paused = False
        self._syncing = 0
        self._sync_number += 1
        self._sync()

    def die(self, rng: Random, lost: float, torn: float = 0.0) -> int:
        """The process ends: a prefix of the tail survives, or with probability `lost` nothing. Groups lost.

        Of the first group lost a part may be there, with probability `torn`.
        """
        self._stopped = True
        survivors = 0
        if self._waiting and not self.fenced and rng.random() >= lost:
            survivors = rng.randrange(len(self._waiting) + 1)
        for _ in range(survivors):
            self._disk.write(self._epoch, self._waiting.popleft())
            self.synced += 1
        if self._waiting and torn and not self.fenced and rng.random() < torn:
            group = self._waiting[0]
            self._disk.torn = group[: rng.randrange(len(group) + 1)]
        return len(self._waiting)

    def land(self, rng: Random) -> None:
        """The process is paused and about to be replaced: what the disk already had of it may still land."""
        if self._syncing and not self.fenced and rng.random() < 0.5:
            for _ in range(self._syncing):
                self._disk.write(self._epoch, self._waiting.popleft())
                self.synced += 1
            self._syncing = 0

    def _sync(self) -> None:
        if self._syncing or not self._waiting or self._stopped or self._paused:
            return
        self._syncing = len(self._waiting)
        self._sync_number += 1
        number = self._sync_number
        self._clock.after(self._sync_s(), lambda: self._synced(number))

    def _synced(self, number: int) -> None:
        if self._stopped or self._paused or number != self._sync_number:
            return
        if self.fenced:
            self._stopped = True
            self._on_fenced()
            return
        if self._fails():
            self._stopped = True
            self._on_failed()
            return
        for _ in range(self._syncing):
            self._disk.write(self._epoch, self._waiting.popleft())
            self.synced += 1
            if self._snapshot is not None and self._snapshot[0] == self.synced:
                self._disk.keep(self._snapshot[1])
                self._snapshot = None
        self._syncing = 0
        self._on_synced()
        self._sync()

"""The bytes of a row and their checksums: the one place that knows how a command becomes a blob and back.

A journal row holds one group of commands, without the texts and the chunks that lie in tables of their own. Its
checksum covers its predecessor's, so rows can neither change, vanish nor swap places unseen. An outcome's row is
covered by the checksum of its body, and its columns repeat the body.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from flowray.core.commands import (
    AcceptTask,
    AddAgents,
    DurableCommand,
    GradeTask,
    RecordChunks,
    RecordStep,
    ResolveTask,
    StartAttempt,
)
from flowray.core.model import Asked, Grade, OpenTask, Outcome, Snapshot, Task
from flowray.core.steps import step_bytes
from flowray.errors import StoreCorrupt, StoreError

# Of an outcome; all but the checksum repeat what its body says.
OUTCOME_COLUMNS = ("task_id", "state", "resolved_at", '"key"', "fingerprint", "body", "sha")
CHUNK_COLUMNS = ("task_id", "first", "count", "skip", "restarts", "body", "sha")
GENESIS = bytes(32)  # stands for the checksum before the first row
TASKS_PER_PART = 256  # of a snapshot: encoding one part holds the interpreter for about a millisecond

_encoder = msgspec.msgpack.Encoder()
_commands = msgspec.msgpack.Decoder(list[DurableCommand])
_outcome = msgspec.msgpack.Decoder(Outcome)
_task = msgspec.msgpack.Decoder(Task)
_asked = msgspec.msgpack.Decoder(Asked)
_grade = msgspec.msgpack.Decoder(Grade)
_snapshot = msgspec.msgpack.Decoder(Snapshot)
_open_tasks = msgspec.msgpack.Decoder(list[OpenTask])
_counts = msgspec.msgpack.Decoder(dict[str, int])


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRow:
    """Chunks of one task as they were recorded together."""

    first: int  # number of the first one
    count: int  # those that stand
    skip: int  # before them in the body
    restarts: int  # of the task's stream, up to these
    body: bytes  # see `flowray.chunks`


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where the journal stands. One row, rewritten and checksummed in every transaction."""

    epoch: int = 0
    owner: str = ""  # who began the epoch
    seq: int = 0  # of the last journal row ever written
    sha: bytes = GENESIS  # of that row
    snapshot_seq: int = -1  # the last row the snapshot covers, 0 when it covers none; -1 without a snapshot
    changes: int = 0  # transactions so far
    last_at: float = 0.0  # highest time of any command or snapshot
    counts: bytes = b"\x80"  # msgpack: terminal state -> outcomes kept

    def check(self) -> bytes:
        fields = (
            self.epoch,
            self.owner,
            self.seq,
            self.sha,
            self.snapshot_seq,
            self.changes,
            self.last_at,
            self.counts,
        )
        return hashlib.sha256(_encoder.encode(fields)).digest()


def row_sha(previous: bytes, seq: int, epoch: int, body: bytes) -> bytes:
    """The checksum of a journal row, chained to the row before it."""
    digest = hashlib.sha256(previous + seq.to_bytes(8, "big") + epoch.to_bytes(8, "big"))
    digest.update(body)
    return digest.digest()


def body_sha(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def asked_sha(task_id: str, body: bytes) -> bytes:
    """Covers whose text it is, as the row names its task by a number alone."""
    return hashlib.sha256(task_id.encode() + b"\0" + body).digest()


def chunk_sha(task_id: str, first: int, count: int, skip: int, restarts: int, body: bytes) -> bytes:
    """Of a row of chunks, its columns included: they are nowhere else."""
    digest = hashlib.sha256(_encoder.encode((task_id, first, count, skip, restarts)))
    digest.update(body)
    return digest.digest()


def decode_chunks(task_id: str, first: int, count: int, skip: int, restarts: int, body: object, sha: bytes) -> ChunkRow:
    """Raises StoreCorrupt when the row (CHUNK_COLUMNS) is not what was written."""
    if not isinstance(body, bytes) or chunk_sha(task_id, first, count, skip, restarts, body) != sha:
        raise StoreCorrupt(f"the chunks of task {task_id} from {first} on do not match their checksum")
    return ChunkRow(first=first, count=count, skip=skip, restarts=restarts, body=body)


class _Resolved(msgspec.Struct, tag="resolve", omit_defaults=True):
    """A ResolveTask whose outcome is encoded already, for its own row: as bytes they are the same."""

    outcome: msgspec.Raw
    task: Task | None = None


class Group:
    """Commands of one journal row: its body, and what of them goes to tables of their own. Looked at once."""

    __slots__ = ("asked", "at", "body", "chunks", "grades", "outcomes", "resolved")

    def __init__(self, commands: Sequence[DurableCommand]) -> None:
        """What a router read, and chunks, are left out of the body: they have rows, written with it."""
        self.resolved: list[ResolveTask] = []
        self.outcomes: list[bytes] = []  # theirs, in the same order
        self.asked = False  # did a router read one of those tasks?
        self.grades: list[GradeTask] = []
        self.chunks: list[RecordChunks] = []
        self.at = -math.inf  # the latest time of a command
        bare: list[Any] = []
        for command in commands:
            if isinstance(command, ResolveTask):
                at, body = command.outcome.resolved_at, _encoder.encode(command.outcome)
                self.resolved.append(command)
                self.outcomes.append(body)
                self.asked = self.asked or command.asked is not None
                bare.append(_Resolved(msgspec.Raw(body), command.task))
            else:
                at = command.at
                bare.append(command)
                if isinstance(command, RecordChunks):
                    self.chunks.append(command)
                    bare[-1] = msgspec.structs.replace(command, body=b"")
                elif isinstance(command, GradeTask):
                    self.grades.append(command)
            if at > self.at:
                self.at = at
        self.body = _encoder.encode(bare)


def encode(value: object) -> bytes:
    return _encoder.encode(value)


def decode_commands(seq: int, body: bytes) -> list[DurableCommand]:
    """Raises StoreError for a row that is intact and yet means nothing to this version."""
    try:
        return _commands.decode(body)
    except msgspec.MsgspecError as error:
        raise _from_another_version(f"journal row {seq}", error) from error


def decode_outcome(
    task_id: str, state: str, resolved_at: float, key: str, fingerprint: str, body: object, sha: bytes
) -> Outcome:
    """Raises StoreCorrupt when the row (OUTCOME_COLUMNS) is not what was written."""
    if not isinstance(body, bytes) or body_sha(body) != sha:  # one bit makes a blob a text
        raise StoreCorrupt(f"the outcome of task {task_id} does not match its checksum")
    try:
        outcome = _outcome.decode(body)
    except msgspec.MsgspecError as error:
        raise _from_another_version(f"the outcome of task {task_id}", error) from error
    columns = (outcome.task_id, outcome.state.value, outcome.resolved_at, outcome.key, outcome.fingerprint)
    if columns != (task_id, state, resolved_at, key, fingerprint):
        raise StoreCorrupt(f"the outcome of task {task_id} does not match its row")
    return outcome


def is_sound(row: tuple[Any, ...]) -> bool:
    """Can `decode_outcome` read this row?"""
    try:
        decode_outcome(*row)
    except StoreError:
        return False
    return True


def decode_task(task_id: str, body: object, sha: bytes) -> Task:
    """Raises StoreCorrupt when the dead letter is not what was written."""
    if not isinstance(body, bytes) or body_sha(body) != sha:  # one bit makes a blob a text
        raise StoreCorrupt(f"the dead letter {task_id} does not match its checksum")
    try:
        task = _task.decode(body)
    except msgspec.MsgspecError as error:
        raise _from_another_version(f"the dead letter {task_id}", error) from error
    if task.id != task_id:
        raise StoreCorrupt(f"the dead letter {task_id} does not match its row")
    return task


def decode_asked(task_id: str, body: object, sha: bytes) -> Asked:
    """Raises StoreCorrupt when the text is not what was written, or another task's."""
    if not isinstance(body, bytes) or asked_sha(task_id, body) != sha:
        raise StoreCorrupt(f"the text of task {task_id} does not match its checksum")
    try:
        return _asked.decode(body)
    except msgspec.MsgspecError as error:
        raise _from_another_version(f"the text of task {task_id}", error) from error


def decode_grade(task_id: str, body: object, sha: bytes) -> Grade:
    """Raises StoreCorrupt when the grade is not what was written."""
    if not isinstance(body, bytes) or body_sha(body) != sha:
        raise StoreCorrupt(f"the grade of task {task_id} does not match its checksum")
    try:
        grade = _grade.decode(body)
    except msgspec.MsgspecError as error:
        raise _from_another_version(f"the grade of task {task_id}", error) from error
    if grade.task_id != task_id:
        raise StoreCorrupt(f"the grade of task {task_id} does not match its row")
    return grade


def decode_counts(body: bytes) -> dict[str, int]:
    return _counts.decode(body)


def snapshot_parts(snapshot: Snapshot) -> Iterator[bytes]:
    """The snapshot without its tasks, then its tasks by the slice."""
    yield _encoder.encode(msgspec.structs.replace(snapshot, tasks=()))
    for start in range(0, len(snapshot.tasks), TASKS_PER_PART):
        yield _encoder.encode(snapshot.tasks[start : start + TASKS_PER_PART])


def join_snapshot(seq: int, parts: Sequence[bytes]) -> Snapshot:
    """The inverse of `snapshot_parts`."""
    try:
        tasks = tuple(task for part in parts[1:] for task in _open_tasks.decode(part))
        return msgspec.structs.replace(_snapshot.decode(parts[0]), tasks=tasks)
    except msgspec.MsgspecError as error:
        raise _from_another_version(f"the snapshot at {seq}", error) from error


def held_bytes(command: DurableCommand) -> int:
    """Memory that a queued command holds, roughly: what can be large is counted, the rest is a fixed overhead."""
    if isinstance(command, StartAttempt):  # before those that are rarer
        return 512
    if isinstance(command, AcceptTask):
        return command.task.size_bytes
    if isinstance(command, ResolveTask):
        value = command.outcome.value
        inline = len(value.data) if value is not None and value.data is not None else 0
        if command.task is None and command.asked is None:
            return 1024 + inline
        dead, asked = command.task.size_bytes if command.task is not None else 0, command.asked
        texts = len(asked.text) + len(asked.choices) + len(asked.tools) if asked is not None else 0
        return 1024 + inline + dead + texts
    if isinstance(command, RecordStep):
        return 512 + step_bytes(command.name, command.value)
    if isinstance(command, RecordChunks):
        return 512 + len(command.body) + len(command.digests)
    return 512 + (len(command.spec.code) if isinstance(command, AddAgents) else 0)


def _from_another_version(what: str, error: Exception) -> StoreError:
    return StoreError(f"{what} is intact but cannot be read ({error}): was it written by another version of flowray?")

"""The script that a store plays at every crash point: 200 tasks, and what must be there after each of its steps."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from flowray.chunks import chunk_digest, decode_chunks, encode_chunks
from flowray.core.book import Book, Entry
from flowray.core.commands import (
    AcceptTask,
    AddAgents,
    DurableCommand,
    RecordChunks,
    RequeueTask,
    ResolveTask,
    StartAgent,
    StartAttempt,
    WakeTask,
)
from flowray.core.model import AgentId, AgentSpec, Choice, Failure, Outcome, Payload, Snapshot, StoryLine, Task, TaskId
from flowray.core.states import TaskState
from flowray.errors import StoreError
from flowray.store import PayloadStore, SqliteStore, StoreConfig

from .builders import ANYWHERE

TASKS = 200
CONFIG = StoreConfig(allow_filesystems=ANYWHERE, allow_volatile=True, trim_rows=24, busy_timeout_s=2.0)
EAGER = replace(CONFIG, checkpoint_bytes=1)  # copies the log into the database after every step
AGENT = AgentId("writer-0")
FAILED = 71  # exit status after an error of the store, as the coordinator's
PAYLOADS = tuple(bytes([number]) * size for number, size in enumerate((0, 1, 5_000, 70_000, 3_000_000, 4_096)))
_ENDS = (TaskState.SUCCEEDED, TaskState.SUCCEEDED, TaskState.SUCCEEDED, TaskState.DEAD, TaskState.CANCELLED)


@dataclass(frozen=True)
class Step:
    """What is asked of the store at once, and answered once."""

    kind: Literal["append", "snapshot", "trim", "purge"]
    commands: tuple[DurableCommand, ...] = ()
    snapshot: Snapshot | None = None
    older_than_at: float = 0.0
    task_id: str = ""

    def ask(self, store: SqliteStore, done: Callable[[StoreError | None], None]) -> None:
        if self.kind == "append":
            store.append(self.commands, done)
        elif self.kind == "snapshot":
            assert self.snapshot is not None
            store.save_snapshot(self.snapshot, done)
        elif self.kind == "trim":
            store.trim(self.older_than_at, done, dead_letters_older_than_at=self.older_than_at / 2)
        else:
            store.purge_dead_letter(self.task_id, done)


@dataclass(frozen=True)
class State:
    """What whoever opens a store can learn from it."""

    book: bytes  # encoded
    outcomes: dict[str, Outcome] = field(repr=False)  # in the order of commit
    dead: dict[str, Task] = field(repr=False)
    chunks: dict[str, tuple[bytes, ...]] = field(repr=False)  # that tasks gave out, open ones and ended ones


class Script:
    """Made of a seed, so that every process has the same one."""

    def __init__(self, tasks: int = TASKS, seed: int = 1) -> None:
        self._rng = random.Random(seed)
        self._book = Book()
        self._talk = random.Random(seed + 1)  # for chunks: so that the rest is the same as without them
        self._chunks: dict[str, tuple[bytes, ...]] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._dead: dict[str, Task] = {}
        self._at = 0.0
        self._left = iter(range(tasks))
        self._more = True
        self.steps: list[Step] = []
        self.states = [self._state()]  # before the first step, after the first ...
        spec = AgentSpec(name="writer", tier="secondary", capabilities=("write",), code=b"code")
        self._append([AddAgents(spec, self._now()), StartAgent(AGENT, 1, "writer", self._now())])
        while self._more or self._book.open:
            self._append([])
            if len(self.steps) % 9 == 5:
                self._take(Step("snapshot", snapshot=self._book.snapshot(self._at)))
            if len(self.steps) % 12 == 10:
                self._take(Step("trim", older_than_at=self._at * 0.4))
            if len(self.steps) % 7 == 3 and self._dead:
                self._take(Step("purge", task_id=next(iter(self._dead))))

    def _append(self, commands: list[DurableCommand]) -> None:
        """An append of these and of what happens to some tasks."""
        for command in commands:
            self._book.apply(command)
        for _ in range(self._rng.randrange(1, 48)):
            for command in self._happens():
                self._book.apply(command)
                commands.append(command)
                if isinstance(command, ResolveTask):
                    self._outcomes[command.outcome.task_id] = command.outcome
                    if command.task is not None:
                        self._dead[command.task.id] = command.task
        if commands:
            self._take(Step("append", tuple(commands)))

    def _take(self, step: Step) -> None:
        if step.kind == "trim":
            bound, letters = step.older_than_at, step.older_than_at / 2
            for task_id, outcome in list(self._outcomes.items()):
                if outcome.resolved_at < bound and (task_id not in self._dead or outcome.resolved_at < letters):
                    del self._outcomes[task_id]
                    self._dead.pop(task_id, None)
                    self._chunks.pop(task_id, None)
        elif step.kind == "purge":
            del self._dead[step.task_id]
            self._chunks.pop(step.task_id, None)
        self.steps.append(step)
        self.states.append(self._state())

    def _state(self) -> State:
        return State(
            msgspec.msgpack.encode(self._book.snapshot(0.0)), dict(self._outcomes), dict(self._dead), dict(self._chunks)
        )

    def _now(self) -> float:
        self._at += 1.0
        return self._at

    def _happens(self) -> list[DurableCommand]:
        """Something that can happen now: to a new task, or to one that is open."""
        rng, book = self._rng, self._book
        if self._more and (not book.open or rng.random() < 0.3):
            number = next(self._left, None)
            if number is not None:
                data = rng.randbytes(rng.choice((0, 40, 90, 700, 5_000)))
                task = Task(
                    id=TaskId(f"t-{number:06d}"),
                    prompt="Summarise the report " * rng.randrange(3),
                    payload=Payload(data=data, size_bytes=len(data)),
                    key=f"k-{number:06d}" if number % 3 else "",
                    fingerprint=f"{number:032x}",
                    labels={"batch": str(number // 10)} if number % 4 == 0 else {},
                )
                return [AcceptTask(task, self._now(), number)]
            self._more = False
        if not book.open:
            return []
        entry = book.open[rng.choice(list(book.open))]
        task_id = entry.task.id
        if entry.state is TaskState.BACKING_OFF:
            return [WakeTask(task_id, self._now())]
        if entry.state is TaskState.QUEUED:
            choice = Choice("power_of_two", 2, (("writer-0", 0.0), ("writer-1", 1.0)))
            return [StartAttempt(task_id, entry.attempt + 1, 1, AGENT, 1, self._now(), "first", choice)]
        if self._talk.random() < 0.4:
            return [self._gives(entry)]
        if rng.random() < 0.2:
            failure = Failure(kind="application", type="ValueError", message="no", traceback="line\n" * 30)
            return [
                RequeueTask(task_id, entry.attempt, self._now(), "failed", failure, "failures", self._at + 5),
            ]
        state, at = rng.choice(_ENDS), self._now()
        good = state is TaskState.SUCCEEDED
        value = rng.randbytes(rng.choice((1, 60, 120, 5_000)))
        outcome = Outcome(
            task_id=task_id,
            state=state,
            value=Payload(data=value, size_bytes=len(value)) if good else None,
            failure=None if good else Failure(kind="application", message="for good"),
            agent_id=AGENT,
            attempts=entry.attempt,
            accepted_at=entry.accepted_at,
            resolved_at=at,
            key=entry.task.key,
            fingerprint=entry.task.fingerprint,
            story=(*entry.story, StoryLine(at, state.value, entry.attempt, AGENT)),
            choices=tuple(entry.choices),
            chunks=entry.stream.count if entry.stream is not None else 0,
            restarts=tuple(entry.stream.restarts) if entry.stream is not None else (),
        )
        return [ResolveTask(outcome, entry.task if state is TaskState.DEAD else None)]

    def _gives(self, entry: Entry) -> RecordChunks:
        """Chunks of a running attempt; now and then others than those that stand."""
        talk, task_id, known = self._talk, entry.task.id, self._chunks.get(entry.task.id, ())
        first = len(known) if talk.random() < 0.8 else talk.randrange(len(known) + 1)
        pieces = [talk.randbytes(talk.choice((1, 30, 2_000))) for _ in range(talk.randrange(4))]
        if first == len(known) and not pieces:
            pieces = [b"x"]
        skip = talk.randrange(2)
        body = encode_chunks(("msgpack", piece) for piece in [b"not new"] * skip + pieces) if pieces else b""
        digests = b"".join(chunk_digest("msgpack", piece) for piece in pieces)
        restarts = 0 if entry.stream is None else len(entry.stream.restarts) + (first < len(known))
        self._chunks[task_id] = (*known[:first], *pieces)
        if not self._chunks[task_id]:
            del self._chunks[task_id]
        return RecordChunks(task_id, entry.attempt, 1, first, self._now(), restarts, digests, len(body), skip, body)


@cache
def script(tasks: int = TASKS, seed: int = 1) -> Script:
    return Script(tasks, seed)


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[tuple[State, SqliteStore]]:
    """What a new coordinator recovers and its callers find, and its store.

    Raises StoreError; AssertionError where what is found is no state.
    """
    store = SqliteStore.open(directory, CONFIG)
    try:
        recovery = store.begin_epoch("check")
        book = Book()
        if recovery.snapshot is not None:
            book.restore(recovery.snapshot)
        for command in recovery.commands:
            book.apply(command)
        outcomes = store.recent_outcomes(10**6)[::-1]
        by_id = {outcome.task_id: outcome for outcome in outcomes}
        assert len(by_id) == len(outcomes), "a task has two outcomes"
        assert not by_id.keys() & book.open.keys(), "a task is open and has an outcome"
        assert store.outcomes(list(by_id)) == by_id, "a lookup by id misses something"
        by_key = {outcome.key: outcome for outcome in outcomes if outcome.key}
        assert store.by_key(list(by_key)) == by_key, "a lookup by key misses something"
        counted = Counter(outcome.state for outcome in outcomes)
        assert store.counts() == counted, "the counts are not those of the outcomes"
        dead = {task.id: task for task, _ in store.dead_letters(10**6)}
        found = {task_id: _read_chunks(store, task_id) for task_id in (*book.open, *by_id)}
        chunks = {task_id: told for task_id, told in found.items() if told}
        yield State(msgspec.msgpack.encode(book.snapshot(0.0)), by_id, dead, chunks), store
    finally:
        store.close()


def _read_chunks(store: SqliteStore, task_id: str) -> tuple[bytes, ...]:
    told: list[bytes] = []
    while rows := store.chunks(task_id, len(told), restarts=1_000):
        for row in rows:
            told += [data for _, data in decode_chunks(row.body)[row.skip :][: row.count]]
    return tuple(told)


def is_between(found: State, before: State, after: State) -> bool:
    """Is this one of the two, or on the way of a trim, which takes several transactions?"""
    if found in (before, after) and list(found.outcomes) in (list(before.outcomes), list(after.outcomes)):
        return True
    if found.book != before.book or before.book != after.book:
        return False
    return all(
        some.items() <= more.items()
        for some, more in (
            (after.outcomes, found.outcomes),
            (found.outcomes, before.outcomes),
            (after.dead, found.dead),
            (found.dead, before.dead),
            (after.chunks, found.chunks),
            (found.chunks, before.chunks),
        )
    )


# ── the process that is killed ───────────────────────────────────────────────────────────────────────────────────────


class Voice:
    """Says to a file what was learned, one line at once: by writev, which no fault is injected into."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __call__(self, text: str) -> None:
        os.writev(self._descriptor, [f"{text}\n".encode()])


class _Answer:
    """The answer to one step."""

    def __init__(self) -> None:
        self._arrived = threading.Event()
        self._error: StoreError | None = None

    def __call__(self, error: StoreError | None) -> None:
        self._error = error
        self._arrived.set()

    def wait(self) -> None:
        if not self._arrived.wait(60):
            raise AssertionError("the store did not answer")
        if self._error is not None:
            raise self._error


def play(part: str, directory: Path, said: Path, gate: Callable[[], None]) -> None:
    """One part of the life of a store; `gate` returns when the faults may begin. Ends this process.

    first: makes the store. 17: that step of the script, and the one after it, on what a crash before it left.
    17 only: without the one after it. again: opens what a crash left, and closes it. payloads: large payloads are put
    on disk.
    """
    voice = Voice(said)
    status = 0
    try:
        if part == "payloads":
            _put_payloads(directory, voice, gate)
        elif part[0].isdigit():
            number, _, only = part.partition(" ")
            _take_steps(int(number), 1 if only else 2, directory, voice, gate)
        else:
            _open_and_close(directory, voice, gate)
    except StoreError as error:
        voice(f"failed {type(error).__name__} {error}")
        status = FAILED
    voice("end")
    os._exit(status)


def _open_and_close(directory: Path, voice: Voice, gate: Callable[[], None]) -> None:
    gate()
    store = SqliteStore.open(directory, CONFIG)
    try:
        store.begin_epoch("script")
        voice("began")
    except StoreError:
        with contextlib.suppress(StoreError):  # the first is the one to tell
            store.close()
        raise
    store.close()


def _take_steps(first: int, count: int, directory: Path, voice: Voice, gate: Callable[[], None]) -> None:
    store = SqliteStore.open(directory, EAGER if first % 4 == 3 else CONFIG)
    store.begin_epoch("script")
    _wait_for(lambda answer: store.append([], answer))  # what the log had is copied
    gate()
    try:
        for number, step in list(enumerate(script().steps))[first : first + count]:
            _wait_for(lambda answer, step=step: step.ask(store, answer))  # type: ignore[misc]
            voice(f"ack {number}")
            _wait_for(lambda answer: store.append([], answer))  # it has also copied the log, if that was due
            voice(f"rest {number}")
    except StoreError as error:
        voice(f"failed {type(error).__name__} {error}")
        # The coordinator would end here. To close is harder: it must not write, nor sync what could not be synced.
        with contextlib.suppress(StoreError):
            store.close()
        voice("end")
        os._exit(FAILED)
    # Without closing: as a crash would leave it.


def _wait_for(ask: Callable[[_Answer], None]) -> None:
    answer = _Answer()
    ask(answer)
    answer.wait()


def _put_payloads(directory: Path, voice: Voice, gate: Callable[[], None]) -> None:
    payloads = PayloadStore(directory)
    gate()
    for number, data in enumerate(PAYLOADS):
        ref = payloads.put(data)
        voice(f"ack {number} {ref}")
    payloads.put(PAYLOADS[2])  # again

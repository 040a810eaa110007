"""Commands, outcomes and stores with defaults, for the tests of the store."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from flowray.core.commands import AcceptTask, DurableCommand, ResolveTask, StartAttempt
from flowray.core.model import AgentId, Choice, Failure, OpenTask, Outcome, Payload, Snapshot, StoryLine, Task, TaskId
from flowray.core.states import TaskState
from flowray.errors import StoreError
from flowray.store import SqliteStore, Store, StoreConfig

# The tests' own directory may lie on whatever the machine offers: what is refused is tested apart.
ANYWHERE = ("overlay", "tmpfs", "9p", "virtiofs", "fuse.fuse-overlayfs", "unknown")


def config(**fields: object) -> StoreConfig:
    return StoreConfig(**{"allow_filesystems": ANYWHERE, **fields})


def task(number: int, *, key: str | None = None, data: bytes = b"x" * 60) -> Task:
    return Task(
        id=TaskId(f"t-{number:06d}"),
        prompt="Summarise the report",
        payload=Payload(data=data, size_bytes=len(data)),
        key=f"k-{number:06d}" if key is None else key,
        fingerprint="f" * 32,
    )


def outcome(number: int, *, state: TaskState = TaskState.SUCCEEDED, key: str | None = None, at: float = 0) -> Outcome:
    good = state is TaskState.SUCCEEDED
    return Outcome(
        task_id=TaskId(f"t-{number:06d}"),
        state=state,
        value=Payload(data=b"y" * 60, size_bytes=60) if good else None,
        failure=None if good else Failure(kind="application", type="ValueError", message="no"),
        agent_id="writer-0",
        attempts=1,
        accepted_at=float(number),
        resolved_at=at or number + 0.5,
        key=f"k-{number:06d}" if key is None else key,
        story=(StoryLine(float(number), "accepted"), StoryLine(number + 0.5, "resolved", 1, "writer-0")),
    )


def accept(number: int) -> AcceptTask:
    return AcceptTask(task(number), float(number), number)


def start(number: int) -> StartAttempt:
    choice = Choice("only_one", 1)
    return StartAttempt(TaskId(f"t-{number:06d}"), 1, 1, AgentId("writer-0"), 1, number + 0.1, "first", choice)


def resolve(number: int) -> ResolveTask:
    return ResolveTask(outcome(number))


def dead(number: int) -> ResolveTask:
    return ResolveTask(outcome(number, state=TaskState.DEAD), task(number))


def life(number: int) -> list[DurableCommand]:
    """One task from acceptance to its outcome; every fifth becomes a dead letter."""
    return [accept(number), start(number), dead(number) if number % 5 == 4 else resolve(number)]


def snapshot(*numbers: int, at: float = 1.0) -> Snapshot:
    tasks = tuple(OpenTask(task=task(n), state=TaskState.QUEUED, seq=n, accepted_at=float(n)) for n in numbers)
    return Snapshot(at=at, next_seq=len(numbers), tasks=tasks, incarnations={"writer-0": 1})


class Answers:
    """A `done` that remembers what it was told and can be waited for."""

    def __init__(self) -> None:
        self.errors: list[StoreError | None] = []
        self._arrived = threading.Condition()

    def __call__(self, error: StoreError | None) -> None:
        with self._arrived:
            self.errors.append(error)
            self._arrived.notify_all()

    def wait(self, count: int = 1) -> list[StoreError | None]:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.errors) >= count, timeout=20), "no answer from the store"
            return list(self.errors)


def write(store: Store, commands: Sequence[DurableCommand]) -> StoreError | None:
    answers = Answers()
    store.append(commands, answers)
    return answers.wait()[0]


def save(store: Store, state: Snapshot) -> StoreError | None:
    answers = Answers()
    store.save_snapshot(state, answers)
    return answers.wait()[0]


def opened(directory: Path, owner: str = "test", **fields: object) -> SqliteStore:
    """A store that has begun its epoch."""
    store = SqliteStore.open(directory, config(**fields))
    store.begin_epoch(owner)
    return store

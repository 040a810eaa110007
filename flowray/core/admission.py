"""Whether a task may come in: bounds on what is open, and repeats recognised by id and by key."""

from __future__ import annotations

from collections import OrderedDict

from msgspec import Struct

from flowray.core.model import Task, TaskId
from flowray.errors import ConfigError


class AdmissionPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on the tasks that are open (accepted and not terminal) at once."""

    max_open_tasks: int = 100_000  # further ones are refused, with a time to try again
    max_open_bytes: int = 1 << 30  # inline payloads, prompts and an overhead of 512 bytes for each task
    max_recent: int = 20_000  # terminal tasks remembered by id and key, besides those that are not on disk yet

    def __post_init__(self) -> None:
        for name in ("max_open_tasks", "max_open_bytes", "max_recent"):
            if getattr(self, name) < 1:
                raise ConfigError(f"admission.{name}", f"must be at least 1, got {getattr(self, name)}")


class Admission:
    """Counts what is open and knows ids and keys, open and recent.

    Whether a task has ended is asked here first and of the store second, so nothing is forgotten before the store has
    it: whoever drives the core says `on_disk`.
    """

    __slots__ = ("_forgotten", "_keys", "_policy", "_recent", "open_bytes", "open_tasks")

    def __init__(self, policy: AdmissionPolicy) -> None:
        self._policy = policy
        self._keys: dict[str, tuple[TaskId, str]] = {}  # key -> (task, fingerprint), open and recent
        self._recent: OrderedDict[TaskId, str] = OrderedDict()  # terminal task -> its key
        self._forgotten = 0  # tasks that were terminal and are not in it any more
        self.open_tasks = 0
        self.open_bytes = 0

    def full(self, task: Task) -> str:
        """Why there is no room for the task; "" when there is."""
        policy = self._policy
        if self.open_tasks >= policy.max_open_tasks:
            return f"{self.open_tasks} tasks are open (admission.max_open_tasks)"
        if self.open_bytes + task.size_bytes > policy.max_open_bytes:
            return f"{self.open_bytes} bytes are held by open tasks (admission.max_open_bytes)"
        return ""

    def recent(self, task_id: TaskId) -> bool:
        """Did this task end recently?"""
        return task_id in self._recent

    def by_key(self, key: str) -> tuple[TaskId, str] | None:
        """The (task, fingerprint) that owns a key, open or recent."""
        return self._keys.get(key) if key else None

    def opened(self, task: Task) -> None:
        """The task was accepted."""
        self.open_tasks += 1
        self.open_bytes += task.size_bytes
        if task.key:
            self._keys[task.key] = (task.id, task.fingerprint)

    def grew(self, size_bytes: int) -> None:
        """An open task holds so many bytes more. It is never refused for that: what is open is bounded by its steps'
        own bounds, and new tasks make room."""
        self.open_bytes += size_bytes

    def closed(self, task: Task, more_bytes: int = 0) -> None:
        """The task is terminal. `more_bytes` is by how much it grew."""
        self.open_tasks -= 1
        self.open_bytes -= task.size_bytes + more_bytes
        self._recent[task.id] = task.key

    @property
    def ended(self) -> int:
        """Tasks that were terminal so far."""
        return self._forgotten + len(self._recent)

    def on_disk(self, ended: int) -> None:
        """So many ended tasks, the oldest, are on disk: those beyond `max_recent` need not be remembered."""
        while self._forgotten < ended and len(self._recent) > self._policy.max_recent:
            _, key = self._recent.popitem(last=False)
            self._forgotten += 1
            if key:
                del self._keys[key]

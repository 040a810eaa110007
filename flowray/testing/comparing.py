"""Whether two books are one, what an event touched, and the answer that tells one attempt from all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

from flowray.core.book import Book, Entry
from flowray.core.commands import AcceptTask, Command, ResolveTask
from flowray.core.events import Event
from flowray.core.inboxes import Inbox
from flowray.core.model import AgentId, TaskId
from flowray.core.streaming import Stream


def same_books(one: Book, other: Book) -> bool:
    """Do two books have the same in them, in the same order?"""
    return (
        list(one.open) == list(other.open)
        and one.next_seq == other.next_seq
        and one.specs == other.specs
        and one.incarnations == other.incarnations
        and one.routers == other.routers
        and all(_same_entries(entry, other.open[task_id]) for task_id, entry in one.open.items())
        and [_of_inbox(inbox) for inbox in one.inboxes.all()] == [_of_inbox(inbox) for inbox in other.inboxes.all()]
    )


def _same_entries(one: Entry, other: Entry) -> bool:
    if one.stream is None or other.stream is None:
        same = one.stream is other.stream
    else:
        same = _of_stream(one.stream) == _of_stream(other.stream)
    return same and _of_entry(one) == _of_entry(other)


def _everything(owner: type, *, apart: str = "") -> Callable[[object], tuple[object, ...]]:
    """All that such an object has, whatever that is, but for what is compared apart: not what it can do."""
    names = [name for name in dir(owner) if name[0] != "_" and not callable(getattr(owner, name)) and name != apart]
    return attrgetter(*names)


_of_entry, _of_stream, _of_inbox = _everything(Entry, apart="stream"), _everything(Stream), _everything(Inbox)


def touched(event: Event, commands: Sequence[Command]) -> tuple[dict[TaskId, None], dict[AgentId, None]]:
    """The tasks and agents that an event and what came of it name."""
    task_ids: dict[TaskId, None] = {}
    agent_ids: dict[AgentId, None] = {}
    for one in (event, *commands):
        kind = type(one)
        if kind is ResolveTask:
            task_ids[one.outcome.task_id] = None  # type: ignore[union-attr]
        elif kind is AcceptTask:
            task_ids[one.task.id] = None  # type: ignore[union-attr]
        else:
            task_id, agent_id = getattr(one, "task_id", None), getattr(one, "agent_id", None)
            if task_id is not None:
                task_ids[task_id] = None
            if agent_id:
                agent_ids[agent_id] = None
    return task_ids, agent_ids


def value_of(task_id: str, attempt: int, epoch: int, agent_id: str, incarnation: int) -> bytes:
    """The answer that only this very attempt gives."""
    return f"answer|{task_id}|{attempt}|{epoch}|{agent_id}|{incarnation}".encode()

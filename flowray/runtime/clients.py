"""Who waits for what: answers to submitted tasks, and outcomes for the clients that want them.

Nothing here is durable. A client that meets a coordinator which has forgotten it says again what it waits for, and
what ended meanwhile comes from the store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from flowray.core.model import Outcome
from flowray.runtime import messages
from flowray.runtime.messages import Answer, Answers, Outcomes

_MAX_OUTBOX = 50_000  # outcomes held for one client that reads too slowly
_BATCH_OUTCOMES = 2048
_BATCH_BYTES = 2 << 20


class Line(Protocol):
    """The way to one client."""

    def send(self, message: bytes) -> bool:
        """Queue a message; False when there is no room for it now."""
        ...

    def send_anyway(self, message: bytes) -> None: ...


class Submission:
    """One submit call under way."""

    __slots__ = ("_done", "answers", "client_id", "missing")

    def __init__(self, client_id: str, count: int, done: Callable[[list[Answer]], None]) -> None:
        self.client_id = client_id
        self.answers: list[Answer | None] = [None] * count
        self.missing = count
        self._done = done

    def put(self, position: int, answer: Answer) -> None:
        if self.answers[position] is None:
            self.answers[position] = answer
            self.missing -= 1
            if not self.missing:
                self._done(self.answers)  # type: ignore[arg-type]


class Client:
    """One driver."""

    __slots__ = ("line", "name", "outbox", "parked", "stalled", "unknown", "wanted")

    def __init__(self, name: str, line: Line) -> None:
        self.name = name
        self.line = line
        self.outbox: deque[Outcome] = deque()
        self.parked: deque[str] = deque()  # tasks whose outcomes did not fit in there: the store has them
        self.unknown: list[str] = []
        self.wanted: set[str] = set()  # tasks it waits for
        self.stalled = False  # somebody waits for room on its line


class Clients:
    """All drivers. Use only from the coordinator's event loop."""

    def __init__(
        self,
        soon: Callable[[Callable[[], None]], object],
        on_stalled: Callable[[Client], None],
        load: Callable[[list[str]], list[Outcome]],
    ) -> None:
        """`soon` calls once the turn is over; `on_stalled` is to call `flush` when the client's line has room;
        `load` reads outcomes from the store."""
        self._soon = soon
        self._load = load
        self._on_stalled = on_stalled
        self._clients: dict[str, Client] = {}
        self._submissions: dict[str, list[tuple[Submission, int]]] = {}  # task -> calls that wait for its answer
        self._interest: dict[str, list[str]] = {}  # task -> clients that want its outcome
        self._full: list[Client] = []  # whose outbox has something to send this turn

    def client(self, name: str, line: Line) -> Client:
        """This client, known or new."""
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = Client(name, line)
        return client

    def names(self) -> list[str]:
        """All of them."""
        return list(self._clients)

    def tell_all(self, message: bytes) -> None:
        """Something that every client should know."""
        for client in self._clients.values():
            client.line.send_anyway(message)

    # ── submits ──────────────────────────────────────────────────────────────────────────────────────────────────

    def expect(self, submission: Submission, position: int, task_id: str) -> None:
        """The answer for this task shall go there."""
        waiting = self._submissions.get(task_id)
        if waiting is None:
            self._submissions[task_id] = [(submission, position)]
        else:
            waiting.append((submission, position))

    def answer(self, submitted_id: str, answer: Answer) -> None:
        """A submitted task was accepted, known or refused."""
        for submission, position in self._submissions.pop(submitted_id, ()):
            if not answer.reason:
                self.want(submission.client_id, answer.task_id)
            submission.put(position, answer)

    def answered(self, client_id: str, number: int, answers: list[Answer]) -> None:
        """Every task of a submit has its answer."""
        client = self._clients.get(client_id)
        if client is not None:
            client.line.send_anyway(messages.encode(Answers(number, answers)))

    # ── outcomes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def want(self, client_id: str, task_id: str) -> None:
        """This client waits for this open task."""
        client = self._clients.get(client_id)
        if client is None:
            return
        client.wanted.add(task_id)
        wanting = self._interest.get(task_id)
        if wanting is None:
            self._interest[task_id] = [client_id]
        elif client_id not in wanting:
            wanting.append(client_id)

    def resolved(self, outcome: Outcome) -> None:
        """An outcome is on disk: give it to whoever waits."""
        for client_id in self._interest.pop(outcome.task_id, ()):
            self.give(client_id, outcome)

    def give(self, client_id: str, outcome: Outcome) -> None:
        """Put an outcome into a client's outbox."""
        client = self._clients.get(client_id)
        if client is None:
            return
        client.wanted.discard(outcome.task_id)
        if len(client.outbox) >= _MAX_OUTBOX or client.parked:
            client.parked.append(outcome.task_id)
        else:
            client.outbox.append(outcome)
        self._soon_flush(client)

    def unknown(self, client_id: str, task_ids: list[str]) -> None:
        """Nobody has heard of these tasks."""
        client = self._clients.get(client_id)
        if client is not None and task_ids:
            client.unknown.extend(task_ids)
            self._soon_flush(client)

    def _soon_flush(self, client: Client) -> None:
        if not self._full:
            self._soon(self._flush_all)
        self._full.append(client)

    def _flush_all(self) -> None:
        full, self._full = self._full, []
        for client in dict.fromkeys(full):
            if not client.stalled:
                self.flush(client)

    def flush(self, client: Client) -> None:
        """Send what is in a client's outbox, as far as its line has room."""
        client.stalled = False
        while client.outbox or client.unknown:
            batch: list[Outcome] = []
            size = 0
            for outcome in client.outbox:
                if len(batch) == _BATCH_OUTCOMES or size >= _BATCH_BYTES:
                    break
                size += 512 + (outcome.value.size_bytes if outcome.value is not None and outcome.value.data else 0)
                batch.append(outcome)
            if not client.line.send(messages.encode(Outcomes(batch, client.unknown))):
                client.stalled = True
                self._on_stalled(client)
                return
            client.unknown = []
            for _ in batch:
                client.outbox.popleft()
            if not client.outbox and client.parked:
                count = min(_BATCH_OUTCOMES, len(client.parked))
                client.outbox.extend(self._load([client.parked.popleft() for _ in range(count)]))

    # ── leaving ──────────────────────────────────────────────────────────────────────────────────────────────────

    def forget(self, name: str) -> None:
        """A client is gone, or has forgotten what it knew."""
        client = self._clients.pop(name, None)
        if client is None:
            return
        for task_id in client.wanted:
            wanting = self._interest.get(task_id, [])
            if name in wanting:
                wanting.remove(name)
                if not wanting:
                    del self._interest[task_id]

"""Who waits for what: answers to submitted tasks, and outcomes for the clients that want them.

Nothing here is durable. A client that meets a coordinator which has forgotten it (the `desk` in its answers
has changed) says again what it waits for, and what ended meanwhile comes from the store.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque

from flowray.core.model import Outcome
from flowray.runtime.messages import Answer, Collected

_FORGET_S = 120.0  # a client not heard of for this long is forgotten; its outcomes are in the store
_MAX_OUTBOX = 50_000  # outcomes held for one client
_BATCH_OUTCOMES = 2048
_BATCH_BYTES = 4 << 20


class Submission:
    """One submit call under way."""

    __slots__ = ("answers", "client_id", "done", "missing")

    def __init__(self, client_id: str, count: int) -> None:
        self.client_id = client_id
        self.answers: list[Answer | None] = [None] * count
        self.missing = count
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def put(self, position: int, answer: Answer) -> None:
        if self.answers[position] is None:
            self.answers[position] = answer
            self.missing -= 1
            if not self.missing and not self.done.done():
                self.done.set_result(None)


class Client:
    """One driver."""

    __slots__ = ("arrived", "desk", "heard_at", "number", "outbox", "unseen")

    def __init__(self) -> None:
        self.desk = secrets.token_hex(4)  # a client that reads another one here was forgotten in between
        self.outbox: deque[Outcome] = deque()
        self.unseen: list[Outcome] = []  # the last batch sent, until the client says it has it
        self.number = 0  # of that batch
        self.arrived = asyncio.Event()
        self.heard_at = time.monotonic()


class Clients:
    """All drivers. Use only from the coordinator's event loop."""

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}
        self._submissions: dict[str, list[tuple[Submission, int]]] = {}  # task -> calls that wait for its answer
        self._interest: dict[str, list[str]] = {}  # task -> clients that want its outcome

    # ── submits ──────────────────────────────────────────────────────────────────────────────────────────────────

    def expect(self, submission: Submission, position: int, task_id: str) -> None:
        """The answer for this task shall go there."""
        self._submissions.setdefault(task_id, []).append((submission, position))

    def answer(self, submitted_id: str, answer: Answer) -> None:
        """A submitted task was accepted, known or refused."""
        for submission, position in self._submissions.pop(submitted_id, ()):
            if not answer.reason:
                self.want(submission.client_id, answer.task_id)
            submission.put(position, answer)

    # ── outcomes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def want(self, client_id: str, task_id: str) -> None:
        """This client waits for this open task."""
        wanting = self._interest.setdefault(task_id, [])
        if client_id not in wanting:
            wanting.append(client_id)

    def resolved(self, outcome: Outcome) -> None:
        """An outcome is on disk: give it to whoever waits."""
        for client_id in self._interest.pop(outcome.task_id, ()):
            self.give(client_id, outcome)

    def give(self, client_id: str, outcome: Outcome) -> None:
        """Put an outcome into a client's outbox."""
        client = self._client(client_id)
        if len(client.outbox) >= _MAX_OUTBOX:
            self._forget(client_id)  # it does not keep up; it will ask again, and the store has everything
            return
        client.outbox.append(outcome)
        client.arrived.set()

    async def collect(self, client_id: str, seen: int, wait_s: float, unknown: list[str]) -> Collected:
        """The next batch for a client; waits up to `wait_s` for one."""
        self._forget_silent()
        client = self._client(client_id)
        client.heard_at = time.monotonic()
        if client.unseen and seen < client.number:  # the last answer was lost on its way
            return Collected(client.number, client.desk, client.unseen, unknown)
        client.unseen = []
        if not client.outbox and not unknown:
            client.arrived.clear()
            try:
                await asyncio.wait_for(client.arrived.wait(), wait_s)
            except TimeoutError:
                return Collected(0, client.desk)
            finally:
                client.heard_at = time.monotonic()
        size = 0
        while client.outbox and len(client.unseen) < _BATCH_OUTCOMES and size < _BATCH_BYTES:
            outcome = client.outbox.popleft()
            size += 512 + (outcome.value.size_bytes if outcome.value is not None else 0)
            client.unseen.append(outcome)
        client.number += 1
        return Collected(client.number, client.desk, client.unseen, unknown)

    def _client(self, client_id: str) -> Client:
        client = self._clients.get(client_id)
        if client is None:
            client = self._clients[client_id] = Client()
        return client

    def _forget_silent(self) -> None:
        now = time.monotonic()
        silent = [name for name, client in self._clients.items() if now - client.heard_at > _FORGET_S]
        for name in silent:
            self._forget(name)

    def _forget(self, name: str) -> None:
        del self._clients[name]
        for task_id in [t for t, wanting in self._interest.items() if name in wanting]:
            self._interest[task_id].remove(name)
            if not self._interest[task_id]:
                del self._interest[task_id]

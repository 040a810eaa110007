"""An agent's chunks on their way: kept here until a coordinator says that they are on disk.

Each attempt has an outlet with one batch under way. What is given out meanwhile waits, and is the next batch: so an
idle coordinator shows each chunk at once, and a slow disk makes batches larger. An outlet that is full makes its
attempt wait. As with steps, coordinators may come and go in between; a batch that comes twice does no harm.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from flowray.chunks import chunk_digest, encode_chunks
from flowray.core.commands import AnswerChunks
from flowray.core.events import ChunksMade
from flowray.core.model import AgentId, Payload, TaskId
from flowray.core.streaming import MAX_CHUNK_BYTES
from flowray.errors import FlowrayError, StaleAttempt, StreamLimit
from flowray.runtime.messages import Emit, Emitted, Read, Start

AGAIN_S = 0.1  # until a coordinator that has not found this process yet is asked again
EVERY_S = 0.005  # between two batches of one attempt at least: nobody sees the difference, and the journal does
_BATCH_CHUNKS = 2048
_BATCH_BYTES = 256 * 1024
_FULL_CHUNKS = 4096  # given out and not on disk: then the attempt waits
_FULL_BYTES = 1 << 20


class Packer(Protocol):
    """Makes payloads (`PayloadDesk`)."""

    def pack_inline(self, value: Any, field: str, most_bytes: int) -> Payload: ...


def event_of(message: Emit) -> ChunksMade:
    """What the core is told."""
    token = (TaskId(message.task_id), message.attempt, message.epoch)
    who = (AgentId(message.agent_id), message.incarnation)
    return ChunksMade(*token, *who, message.first, message.digests, message.body, message.number)


def answer_of(command: AnswerChunks, read: int) -> Emitted:
    """What the agent is told, once it is on disk; `read` is how many chunks the foremost reader has."""
    return Emitted(command.agent_id, command.number, command.verdict, command.detail, read)


class EmitDesk:
    """The outlets of one agent."""

    def __init__(
        self,
        agent_id: str,
        incarnation: int,
        packer: Packer,
        *,
        send: Callable[[Emit], bool],
        soon: Callable[[Callable[[], None]], None],
        later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`send` and `later` are called on the process's loop; `soon` calls there, from any thread.

        `send` is False while there is nobody to send to.
        """
        self.agent = (agent_id, incarnation)
        self.packer = packer
        self.send, self.soon, self.later, self.clock = send, soon, later, clock
        self.ahead = 0  # chunks that an attempt may be ahead of the foremost reader; 0: of none
        self.lock = threading.Lock()  # guards what follows, and every outlet
        self._outlets: dict[Outlet, None] = {}
        self._numbers = 0
        self._under_way: dict[int, Outlet] = {}  # number of a batch -> whose it is
        self._retired = False

    def open(self, start: Start, first: int) -> Outlet:
        """For an attempt whose first chunk will have the number `first`."""
        outlet = Outlet(self, start, first)
        with self.lock:
            retired = self._retired
            if not retired:
                self._outlets[outlet] = None
        if retired:
            outlet.close()
        return outlet

    def closed(self, outlet: Outlet, number: int) -> None:
        """Nothing more comes from there; `number` is that of its batch under way, or 0. With the lock held."""
        self._outlets.pop(outlet, None)
        self._under_way.pop(number, None)

    def numbered(self, outlet: Outlet) -> int:
        """A number for its next batch. With the lock held."""
        self._numbers += 1
        self._under_way[self._numbers] = outlet
        return self._numbers

    # ── on the process's loop ────────────────────────────────────────────────────────────────────────────────────

    def flush(self) -> None:
        """Send what has not been sent."""
        with self.lock:
            outlets = list(self._outlets)
        for outlet in outlets:
            outlet.flush()

    def send_again(self) -> None:
        """There is another coordinator: it has none of what was not answered."""
        with self.lock:
            outlets = list(self._outlets)
        for outlet in outlets:
            outlet.announce()

    def answered(self, message: Emitted) -> None:
        """What became of a batch."""
        with self.lock:
            outlet = self._under_way.get(message.number)
            if outlet is not None and message.verdict != "later":
                del self._under_way[message.number]
        if outlet is None:
            return
        if message.verdict == "later":
            outlet.sent = False
            self.later(AGAIN_S, outlet.flush)
        else:
            outlet.answered(message)

    def read(self, message: Read) -> None:
        """A reader has come further."""
        with self.lock:
            outlets = [outlet for outlet in self._outlets if outlet.task_id == message.task_id]
        for outlet in outlets:
            outlet.read(message.seq)

    def retire(self) -> None:
        """The agent is not wanted any more: nothing that it gives out is recorded."""
        with self.lock:
            self._retired = True
            outlets = list(self._outlets)
        for outlet in outlets:
            outlet.close()


class Outlet:
    """The chunks of one attempt (`flowray.agents.Emitter`). Any thread may use it."""

    def __init__(self, desk: EmitDesk, start: Start, first: int) -> None:
        """For `EmitDesk.open` only."""
        self._desk = desk
        self._start = start
        self.task_id = start.task.id
        self.next = first  # number of the next chunk
        self._read = first  # those before it somebody has read, or need not be waited for
        self._acknowledged = first  # those before it are on disk
        self._waiting: deque[tuple[bytes, str, bytes]] = deque()  # digest, codec and bytes; not in a batch yet
        self._held_bytes = 0  # of these and of the batch under way
        self._batch: tuple[Emit, int, int] | None = None  # under way, how many chunks that are and bytes
        self.sent = False  # has it been sent?
        self._asked = False  # the loop has been asked to send
        self._sent_at = 0.0
        self._error: FlowrayError | None = None
        self._waiters: list[Future[None]] = []  # for room, or for the end

    def emit(self, value: Any) -> None:
        """Give out a chunk. Waits while the outlet is full.

        Raises:
            StaleAttempt: this attempt is not a current one any more. StreamLimit: the task has as many as it may.
            PayloadError: the value cannot be encoded, or is too large for a chunk.
        """
        piece = self._encoded(value)
        while (room := self._put(piece)) is not None:
            room.result()

    async def emit_beside(self, value: Any) -> None:
        """The same on an event loop, which goes on meanwhile."""
        piece = self._encoded(value)
        while (room := self._put(piece)) is not None:
            await asyncio.wrap_future(room)

    def finish(self) -> None:
        """Wait until everything is on disk. Raises as `emit` does."""
        while (over := self._drained()) is not None:
            over.result()

    async def finish_beside(self) -> None:
        """The same on an event loop, which goes on meanwhile."""
        while (over := self._drained()) is not None:
            await asyncio.wrap_future(over)

    def close(self) -> None:
        """The attempt is over, or not wanted any more: whoever waits is told, and nothing more is sent."""
        self._fail(StaleAttempt(self._start.task.id, self._start.attempt, str(self.next), "chunk"))

    def _encoded(self, value: Any) -> tuple[bytes, str, bytes]:
        payload = self._desk.packer.pack_inline(value, "chunk", MAX_CHUNK_BYTES)
        assert payload.data is not None
        return chunk_digest(payload.codec, payload.data), payload.codec, payload.data

    def _put(self, piece: tuple[bytes, str, bytes]) -> Future[None] | None:
        """Take a chunk in, or say what to wait for."""
        with self._desk.lock:
            if self._error is not None:
                raise self._error
            held = self.next - self._acknowledged
            if held and (held >= _FULL_CHUNKS or self._held_bytes + len(piece[2]) > _FULL_BYTES):
                return self._wait()
            if self._desk.ahead and self.next - self._read >= self._desk.ahead:
                return self._wait()
            self._waiting.append(piece)
            self._held_bytes += len(piece[2])
            self.next += 1
            ask = self._batch is None and not self._asked
            self._asked = self._asked or ask
        if ask:
            self._desk.soon(self.flush)
        return None

    def _drained(self) -> Future[None] | None:
        with self._desk.lock:
            if self._error is not None:
                raise self._error
            if self._batch is None and not self._waiting:
                self._desk.closed(self, 0)
                return None
            return self._wait()

    def _wait(self) -> Future[None]:
        waiter: Future[None] = Future()
        waiter.set_running_or_notify_cancel()  # who gives up waiting must not cancel it
        self._waiters.append(waiter)
        return waiter

    # ── on the process's loop ────────────────────────────────────────────────────────────────────────────────────

    def announce(self) -> None:
        """There is another coordinator: what is under way is to be sent again, and that one waits for readers, too."""
        with self._desk.lock:
            self.sent = False
            if self._batch is None and self._desk.ahead and self._error is None:
                self._batch = self._gathered()

    def read(self, seq: int) -> None:
        """The foremost reader has so many chunks."""
        with self._desk.lock:
            self._read = max(self._read, seq)
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.set_result(None)

    def flush(self) -> None:
        """Send the batch under way if it was not sent, or make one of what waits."""
        desk = self._desk
        with desk.lock:
            self._asked = False
            if self._error is not None or (self._batch is not None and self.sent):
                return
            if self._batch is None:
                if not self._waiting:
                    return
                early_s = self._sent_at + EVERY_S - desk.clock()
                if early_s > 0:
                    self._asked = True
                    desk.later(early_s, self.flush)
                    return
                self._batch = self._gathered()
            message = self._batch[0]
            self._sent_at = desk.clock()
        if desk.send(message):
            self.sent = True

    def _gathered(self) -> tuple[Emit, int, int]:
        pieces: list[tuple[bytes, str, bytes]] = []
        size_bytes = 0
        while self._waiting and len(pieces) < _BATCH_CHUNKS:
            more_bytes = len(self._waiting[0][2])
            if pieces and size_bytes + more_bytes > _BATCH_BYTES:
                break
            size_bytes += more_bytes
            pieces.append(self._waiting.popleft())
        start, self.sent = self._start, False
        body = encode_chunks((codec, data) for _, codec, data in pieces)
        digests = b"".join(digest for digest, _, _ in pieces)
        agent_id, incarnation = self._desk.agent
        message = Emit(
            agent_id,
            incarnation,
            self._desk.numbered(self),
            start.task.id,
            start.attempt,
            start.epoch,
            self._acknowledged,
            digests,
            body,
            self._desk.ahead > 0,
        )
        return message, len(pieces), size_bytes

    def answered(self, message: Emitted) -> None:
        """The batch under way is on disk, or will never be."""
        start = self._start
        if message.verdict == "stale":
            self._fail(StaleAttempt(start.task.id, start.attempt, str(self._acknowledged), "chunk"))
        elif message.verdict != "recorded":
            self._fail(StreamLimit(start.task.id, message.detail))
        else:
            with self._desk.lock:
                if self._batch is None or self._batch[0].number != message.number:
                    return
                self._acknowledged += self._batch[1]
                self._held_bytes -= self._batch[2]
                self._batch = None
                self._read = max(self._read, message.read)
                waiters, self._waiters = self._waiters, []
            self.flush()
            for waiter in waiters:
                waiter.set_result(None)

    def _fail(self, error: FlowrayError) -> None:
        with self._desk.lock:
            if self._error is None:
                self._error = error
            self._desk.closed(self, self._batch[0].number if self._batch is not None else 0)
            self._waiting.clear()
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.set_result(None)  # it looks again, and finds the error


def drain(yielding: Any, outlet: Outlet, stopped: Callable[[], bool]) -> Any:
    """Give out what a generator yields; what it returns. It is closed when nobody wants more of it."""
    try:
        while True:
            try:
                value = next(yielding)
            except StopIteration as end:
                return end.value
            if stopped():
                outlet.close()
            outlet.emit(value)
    finally:
        yielding.close()


async def drain_beside(yielding: Any, outlet: Outlet) -> Any:
    """The same of an async generator, which returns nothing: its answer is what it yielded last, or None."""
    last: Any = None
    try:
        async for value in yielding:
            await outlet.emit_beside(value)
            last = value
    finally:
        await yielding.aclose()
    return last

"""A reader of a task's chunks: where it is, and what to make of each page. Without Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from flowray.chunks import Chunk, Restarted, decode_chunks
from flowray.core.model import Payload
from flowray.core.states import TaskState
from flowray.errors import InvalidTask, StoreCorrupt
from flowray.runtime.messages import Page, Question

if TYPE_CHECKING:
    from flowray.runtime.handle import Handle
    from flowray.runtime.runtime import Runtime


class Position:
    """What a reader has: the chunks before `seq`, as they stood after so many restarts."""

    def __init__(self, task_id: str, seq: int = 0, restarts: int | None = None) -> None:
        """`restarts` None: it has read none of them, and begins with what stands. Raises InvalidTask."""
        for name, value in (("start", seq), ("restarts", 0 if restarts is None else restarts)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InvalidTask(name, f"wants a number of chunks or restarts, 0 or more, got {value!r}")
        self.task_id = task_id
        self.seq = seq
        self.restarts = restarts

    def question(self) -> Question:
        """What to ask for next."""
        return Question("chunks", self.task_id, first=self.seq, restarts=self.restarts)

    def take(self, page: Page) -> Iterator[Restarted | tuple[int, Payload]]:
        """What the answer brings, in order. Each chunk counts as read once it is taken."""
        if page.withdrawn:
            self.seq = page.seq
        if page.seq != self.seq:
            raise StoreCorrupt(f"chunk {self.seq} of task {self.task_id} was asked for, and {page.seq} came")
        self.restarts = page.restarts
        if page.withdrawn:
            yield Restarted(page.seq, page.restarts)
        for skip, count, body in page.rows:
            pieces = decode_chunks(body)[skip : skip + count]
            if len(pieces) != count:
                raise StoreCorrupt(f"{count} chunks of task {self.task_id} should be there, and {len(pieces)} are")
            for codec, data in pieces:
                self.seq += 1
                yield self.seq - 1, Payload(codec=codec, data=data, size_bytes=len(data))


class ChunkStream:
    """The chunks of one task as they come: `for item in stream`, or `async for`. Made by `Handle.stream`."""

    def __init__(self, runtime: Runtime, handle: Handle, start: int, restarts: int | None) -> None:
        """Raises InvalidTask."""
        self._runtime = runtime
        self._handle = handle
        self._position = Position(handle.task_id, start, restarts)

    def __iter__(self) -> Iterator[Chunk | Restarted]:
        while True:
            page = self._runtime._ask(self._position.question(), Page)
            for item in self._position.take(page):
                yield self._shown(item)
            if page.state:
                if page.state != TaskState.SUCCEEDED.value:
                    self._handle.result()  # says why there is none
                return

    async def __aiter__(self) -> AsyncIterator[Chunk | Restarted]:
        while True:
            page = await self._runtime._ask_beside(self._position.question(), Page)
            for item in self._position.take(page):
                yield self._shown(item)
            if page.state:
                if page.state != TaskState.SUCCEEDED.value:
                    await self._handle
                return

    def _shown(self, item: Restarted | tuple[int, Payload]) -> Chunk | Restarted:
        if isinstance(item, Restarted):
            return item
        seq, payload = item
        value: Any = self._runtime._unpack(payload)
        return Chunk(seq, value, self._position.restarts or 0)

    def __repr__(self) -> str:
        return f"<ChunkStream of {self._handle.task_id} at {self._position.seq}>"

"""Chunks for readers, over a real journal: early, late, waiting, across a restart, a crash and the end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from shells import Shell, submitted

from flowray.chunks import Chunk, Restarted, chunk_digest, encode_chunks
from flowray.core.commands import AnswerChunks, Command, RecordChunks, ResolveTask
from flowray.core.events import AgentLost, AgentsAdded, AttemptFinished, ChunksMade
from flowray.core.model import AgentId, AgentSpec, Failure, Payload, TaskId
from flowray.core.states import TaskState
from flowray.errors import ConfigError, InvalidTask, StoreCorrupt, UnknownTask
from flowray.runtime.following import ChunkStream, Position
from flowray.runtime.messages import Page, Question
from flowray.runtime.showing import ShowDesk
from flowray.values import decode_value

AGENT = AgentSpec(name="a", tier="t", target="team:Agent")
T = TaskId("t0000")


class Desk(Shell):
    """One agent, whose chunks are given out by hand."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, answer=False)
        self.showing = ShowDesk(self.pump.core, self.store, wait_s=0.2)
        self.running = asyncio.create_task(self.pump.run())
        self.attempt = 1

    def perform(self, command: Command) -> None:
        super().perform(command)
        if isinstance(command, RecordChunks):
            self.showing.recorded(command)
        elif isinstance(command, ResolveTask):
            self.showing.resolved(command.outcome)

    async def begin(self) -> None:
        self.pump.put(AgentsAdded(AGENT))
        self.pump.put(submitted(0))
        await self.pump.synced()
        await self.pump.synced()

    async def emit(self, first: int, text: str) -> None:
        pieces = [("msgpack", msgspec.msgpack.encode(letter)) for letter in text]
        digests = b"".join(chunk_digest(*piece) for piece in pieces)
        epoch, agent = self.pump.core.epoch, AgentId("a-0")
        one = self.pump.core.registry.agent(agent)
        assert one is not None
        count = sum(isinstance(c, AnswerChunks) for c in self.performed)
        event = ChunksMade(T, self.attempt, epoch, agent, one.incarnation, first, digests, encode_chunks(pieces), 1)
        self.pump.put(event)
        await self.until(AnswerChunks, count + 1)

    async def lose(self) -> None:
        agent = self.pump.core.registry.agent(AgentId("a-0"))
        assert agent is not None
        self.pump.put(AgentLost(agent.id, agent.incarnation))
        await self.pump.synced()
        while self.pump.core.book.open[T].attempts == self.attempt:
            await asyncio.sleep(0.01)
        self.attempt += 1

    async def end(self, count: int, failure: Failure | None = None) -> None:
        token = (T, self.attempt, self.pump.core.epoch, AgentId("a-0"))
        self.pump.put(AttemptFinished(*token, None, failure, chunks=count))
        await self.pump.synced()

    async def close(self) -> None:
        self.pump.stop()
        await self.running
        self.store.close()


class Reader:
    """A client: what it has, read page by page."""

    def __init__(self, desk: Desk, start: int = 0, restarts: int | None = None) -> None:
        self.desk = desk
        self.position = Position(T, start, restarts)
        self.state = ""
        self.told: list[str] = []

    async def read(self) -> str:
        """One page. What it brings: letters, and "<2" for a restart that leaves two."""
        question = self.position.question()
        assert question.what == "chunks"
        page = await self.desk.showing.page(question.task_id, question.first, question.restarts)
        assert page is not None
        page = msgspec.msgpack.decode(msgspec.msgpack.encode(page), type=Page)
        told = ""
        for item in self.position.take(page):
            told += f"<{item.seq}" if isinstance(item, Restarted) else decode_value("msgpack", item[1].data)
        self.state = page.state
        return told


@pytest.fixture
async def desk(tmp_path: Path) -> Any:
    made = Desk(tmp_path)
    await made.begin()
    yield made
    await made.close()


async def test_readers_are_shown_chunks_early_late_and_from_anywhere(desk: Desk) -> None:
    early = Reader(desk)
    waiting = asyncio.create_task(early.read())
    await asyncio.sleep(0.01)
    await desk.emit(0, "ab")
    assert await waiting == "ab" and early.state == ""
    await desk.emit(2, "cde")
    assert await early.read() == "cde"
    late, further, ahead = Reader(desk), Reader(desk, 3), Reader(desk, 6)
    assert [await late.read(), await further.read(), await ahead.read()] == ["abcde", "de", ""]
    waiting = asyncio.create_task(ahead.read())
    await asyncio.sleep(0.01)
    await desk.emit(5, "fgh")
    assert await waiting == "gh"
    await desk.end(8)
    assert [await r.read() for r in (early, late, further, ahead)] == ["fgh", "fgh", "fgh", ""]
    assert {r.state for r in (early, late, further, ahead)} == {"succeeded"}
    after = Reader(desk, 7)
    assert await after.read() == "h" and after.state == "succeeded"


async def test_nothing_is_shown_before_it_is_on_disk(desk: Desk) -> None:
    """The writer's thread is held up: the core has the chunk, and nobody else."""
    await desk.emit(0, "a")
    reader = Reader(desk)
    assert await reader.read() == "a"
    written = desk.store._journal.write_group
    hold = asyncio.Event()
    loop = asyncio.get_running_loop()

    def held_up(commands: Any) -> None:
        asyncio.run_coroutine_threadsafe(hold.wait(), loop).result()
        written(commands)

    desk.store._journal.write_group = held_up  # type: ignore[method-assign]
    emitting = asyncio.create_task(desk.emit(1, "b"))
    assert await reader.read() == "" and not emitting.done()
    stream = desk.pump.core.book.open[T].stream
    assert stream is not None and stream.count == 2
    hold.set()
    await emitting
    assert await reader.read() == "b"


async def test_a_restart_is_told_to_whoever_has_what_is_withdrawn_and_to_nobody_else(desk: Desk) -> None:
    await desk.emit(0, "abcd")
    behind, ahead = Reader(desk), Reader(desk)
    assert await ahead.read() == "abcd"
    behind.position = Position(T, 1, 0)  # it has read one, and then no more for a while
    await desk.lose()
    await desk.emit(0, "abxy")
    assert await behind.read() == "bxy"
    assert await ahead.read() == "<2xy"
    elsewhere = Reader(desk, 3, restarts=0)  # who goes on where another process was
    assert await elsewhere.read() == "<2xy"
    assert await Reader(desk).read() == "abxy"
    waiting = asyncio.create_task(ahead.read())
    await desk.end(3)
    assert await waiting == "<3"
    if not ahead.state:
        assert await ahead.read() == ""
    assert ahead.state == "succeeded"
    assert await elsewhere.read() == "<3" and elsewhere.state == "succeeded"


async def test_a_reader_goes_on_with_the_next_coordinator(desk: Desk, tmp_path: Path) -> None:
    await desk.emit(0, "ab")
    reader = Reader(desk)
    assert await reader.read() == "ab"
    await desk.lose()
    await desk.emit(0, "ax")
    desk.pump.stop()
    await desk.running
    desk.store.close()
    desk.__init__(tmp_path)  # type: ignore[misc]
    reader.desk = desk
    assert await reader.read() == "<1x"


async def test_a_task_that_ends_without_chunks_ends_its_stream(desk: Desk) -> None:
    reader = Reader(desk)
    waiting = asyncio.create_task(reader.read())
    await asyncio.sleep(0.01)
    await desk.end(0, Failure(kind="application"))
    assert await waiting == "" and reader.state == "dead"
    assert await desk.showing.page("nobody", 0, None) is None


async def test_chunks_of_a_purged_dead_letter_are_gone(desk: Desk) -> None:
    await desk.emit(0, "ab")
    await desk.end(0, Failure(kind="application"))
    purged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()
    desk.store.purge_dead_letter(T, lambda error: loop.call_soon_threadsafe(purged.set_result, error))
    assert await purged is None
    with pytest.raises(UnknownTask, match="not kept any more"):
        await desk.showing.page(T, 0, None)


async def test_an_agent_that_waits_for_readers_hears_of_the_foremost(desk: Desk) -> None:
    told: list[tuple[str, int]] = []
    desk.showing = ShowDesk(
        desk.pump.core, desk.store, on_read=lambda task_id, seq: told.append((task_id, seq)), wait_s=0.05
    )
    await desk.emit(0, "abc")
    reader, other = Reader(desk), Reader(desk)
    assert await reader.read() == "abc"
    assert await reader.read() == "" and told == [], "nobody wants to know"
    assert desk.showing.read(T) == 3
    desk.showing.paced(T)
    await desk.emit(3, "d")
    assert await reader.read() == "d" and await other.read() == "abcd"
    assert await reader.read() == "" and await other.read() == ""
    assert told == [(T, 4)]
    await desk.end(4)
    assert desk.showing.read(T) == 0 and not desk.showing._paced


async def test_negative_numbers_are_refused(desk: Desk) -> None:
    for first, restarts in ((-1, None), (0, -1)):
        with pytest.raises(ConfigError, match="negative"):
            await desk.showing.page(T, first, restarts)


async def test_readers_that_leave_leave_nothing(desk: Desk) -> None:
    for _ in range(3):
        assert await Reader(desk).read() == ""
    waiting = asyncio.create_task(Reader(desk).read())
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not desk.showing._waiting and desk.showing._readers == 0


async def test_a_page_is_bounded(desk: Desk) -> None:
    for at in range(12):
        pieces = [("bytes", b"x" * 100_000)]
        digests = b"".join(chunk_digest(*piece) for piece in pieces)
        event = ChunksMade(T, 1, 1, AgentId("a-0"), 1, at, digests, encode_chunks(pieces), 1)
        desk.pump.put(event)
    await desk.until(AnswerChunks, 12)
    page = await desk.showing.page(T, 0, None)
    assert page is not None and [count for _, count, _ in page.rows] == [1] * 6


# ── the caller's side ────────────────────────────────────────────────────────────────────────────────────────────


class Pages:
    """A runtime that answers with these pages, one after the other."""

    def __init__(self, *pages: Page) -> None:
        self.pages = list(pages)
        self.asked: list[tuple[int, int | None]] = []
        self.task_id = "t"

    def _ask(self, question: Question, kind: Any) -> Page:
        assert question.task_id == "t"
        self.asked.append((question.first, question.restarts))
        return self.pages.pop(0)

    async def _ask_beside(self, question: Question, kind: Any) -> Page:
        return self._ask(question, kind)

    def _unpack(self, payload: Payload) -> Any:
        return decode_value(payload.codec, payload.data)

    def result(self) -> None:
        raise RuntimeError("it failed")

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        self.result()


def page(seq: int, text: str, restarts: int = 0, *, withdrawn: bool = False, skip: int = 0, state: str = "") -> Page:
    body = encode_chunks(("msgpack", msgspec.msgpack.encode(letter)) for letter in text)
    return Page(seq, restarts, withdrawn, [(skip, len(text) - skip, body)] if text else [], state)


SUCCEEDED = TaskState.SUCCEEDED.value


async def listed(stream: ChunkStream, how: str) -> list[Chunk | Restarted]:
    return list(stream) if how == "for" else [item async for item in stream]


@pytest.mark.parametrize("how", ["for", "async for"])
async def test_a_stream_is_iterated_to_its_end(how: str) -> None:
    runtime: Any = Pages(
        page(0, "ab"),
        page(2, ""),
        page(1, "xxc", 1, withdrawn=True, skip=2),
        page(2, "", 1, state=SUCCEEDED),
    )
    stream = ChunkStream(runtime, runtime, 0, None)
    assert await listed(stream, how) == [Chunk(0, "a", 0), Chunk(1, "b", 0), Restarted(1, 1), Chunk(1, "c", 1)]
    assert runtime.asked == [(0, None), (2, 0), (2, 0), (2, 1)]


@pytest.mark.parametrize("how", ["for", "async for"])
async def test_a_stream_of_a_task_that_failed_raises_after_its_last_chunk(how: str) -> None:
    runtime: Any = Pages(page(0, "ab", state="dead"))
    with pytest.raises(RuntimeError, match="it failed"):
        await listed(ChunkStream(runtime, runtime, 0, None), how)
    runtime = Pages(page(5, "ab", state=SUCCEEDED))
    assert [chunk.seq for chunk in ChunkStream(runtime, runtime, 5, 0) if isinstance(chunk, Chunk)] == [5, 6]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(StoreCorrupt, match="chunk 0 of task t was asked for, and 1 came"):
        list(Position("t").take(page(1, "a")))
    short = Page(0, 0, rows=[(0, 3, page(0, "ab").rows[0][2])])
    with pytest.raises(StoreCorrupt, match="3 chunks"):
        list(Position("t").take(short))
    for wrong in (-1, 1.5, True, "0"):
        with pytest.raises(InvalidTask, match="start"):
            Position("t", wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidTask, match="restarts"):
        Position("t", 0, -1)

"""An agent's chunks on their way to coordinators that come, go, are slow, and have not found it yet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from flowray.chunks import chunk_digest, decode_chunks
from flowray.core.model import Payload, Task, TaskId
from flowray.errors import PayloadError, StaleAttempt, StreamLimit
from flowray.runtime import emitting
from flowray.runtime.emitting import EmitDesk, Outlet, drain, drain_beside
from flowray.runtime.messages import Emit, Emitted, Read, Start

START = Start("a-0", Task(id=TaskId("t")), 2, 5)


class Texts:
    """A desk that encodes texts as they are."""

    def pack_inline(self, value: Any, field: str, most_bytes: int) -> Payload:
        if len(value) > most_bytes:
            raise PayloadError(field, f"{len(value)} bytes; {most_bytes} is the most")
        return Payload(data=value.encode(), size_bytes=len(value))


class Loop:
    """A loop, a clock and a coordinator, by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reached = True
        self.sent: list[Emit] = []
        self.due: list[tuple[float, Callable[[], Any]]] = []
        self.desk = EmitDesk(
            "a-0",
            3,
            Texts(),
            send=self.send,
            soon=lambda call: call(),
            later=lambda delay_s, call: self.due.append((self.now + delay_s, call)),
            clock=lambda: self.now,
        )

    def send(self, message: Emit) -> bool:
        if self.reached:
            self.sent.append(message)
        return self.reached

    def outlet(self, first: int = 0) -> Outlet:
        return self.desk.open(START, first)

    def answer(self, verdict: str = "recorded", detail: str = "") -> None:
        self.desk.answered(Emitted("a-0", self.sent[-1].number, verdict, detail))

    def pass_s(self, seconds: float) -> None:
        self.now += seconds
        due, self.due = [one for one in self.due if one[0] <= self.now], [one for one in self.due if one[0] > self.now]
        for _, call in due:
            call()

    @property
    def texts(self) -> list[str]:
        return ["".join(data.decode() for _, data in decode_chunks(message.body)) for message in self.sent]


@pytest.fixture
def loop() -> Loop:
    return Loop()


def test_an_idle_coordinator_is_sent_a_chunk_at_once_and_a_busy_one_many_together(loop: Loop) -> None:
    outlet = loop.outlet()
    for letter in "abcd":
        outlet.emit(letter)
    assert loop.texts == ["a"]
    loop.answer()
    assert loop.texts == ["a"], "not sooner than 5 ms after the last"
    loop.pass_s(0.005)
    assert loop.texts == ["a", "bcd"]
    one, many = loop.sent
    assert (one.agent_id, one.incarnation, one.task_id, one.attempt, one.epoch, one.first) == ("a-0", 3, "t", 2, 5, 0)
    assert (many.first, many.digests) == (1, b"".join(chunk_digest("msgpack", c.encode()) for c in "bcd"))


def test_a_resumed_attempt_counts_on(loop: Loop) -> None:
    outlet = loop.outlet(17)
    outlet.emit("a")
    assert loop.sent[0].first == 17 and outlet.next == 18


def test_what_was_not_answered_goes_to_the_next_coordinator(loop: Loop) -> None:
    outlet = loop.outlet()
    outlet.emit("a")
    outlet.emit("b")
    loop.desk.send_again()
    loop.reached = False
    loop.desk.flush()
    assert loop.texts == ["a"]
    loop.reached = True
    loop.desk.flush()
    loop.desk.flush()
    assert loop.texts == ["a", "a"] and loop.sent[0] == loop.sent[1]
    loop.answer()
    loop.pass_s(1.0)
    assert loop.texts == ["a", "a", "b"]
    loop.desk.answered(Emitted("a-0", loop.sent[0].number, "recorded"))
    loop.desk.answered(Emitted("a-0", 999, "recorded"))
    outlet.emit("c")
    assert loop.texts == ["a", "a", "b"], "an answer that comes twice acknowledges nothing more"


def test_a_coordinator_that_has_not_found_the_process_is_asked_again(loop: Loop) -> None:
    loop.outlet().emit("a")
    loop.answer("later")
    assert loop.texts == ["a"]
    loop.pass_s(emitting.AGAIN_S)
    assert loop.texts == ["a", "a"]


def test_a_full_outlet_makes_its_attempt_wait_until_there_is_room(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emitting, "_FULL_CHUNKS", 3)
    outlet = loop.outlet()
    for letter in "abc":
        outlet.emit(letter)
    through = threading.Event()

    def more() -> None:
        outlet.emit("d")
        through.set()

    thread = threading.Thread(target=more)
    thread.start()
    assert not through.wait(0.05) and outlet.next == 3
    loop.answer()
    assert through.wait(10)
    thread.join()
    assert outlet.next == 4


def test_a_batch_is_bounded(loop: Loop) -> None:
    outlet = loop.outlet()
    outlet.emit("first")
    for _ in range(3):
        outlet.emit("x" * 100_000)
    loop.answer()
    loop.pass_s(1.0)
    assert [len(text) for text in loop.texts] == [5, 200_000]


@pytest.mark.parametrize(("verdict", "error"), [("stale", StaleAttempt), ("refused", StreamLimit)])
def test_what_is_not_recorded_is_an_error_for_all_that_follows(
    loop: Loop, verdict: str, error: type[Exception]
) -> None:
    outlet = loop.outlet()
    outlet.emit("a")
    outlet.emit("b")
    loop.answer(verdict, "too many")
    for again in (lambda: outlet.emit("c"), outlet.finish):
        with pytest.raises(error):
            again()
    loop.pass_s(1.0)
    assert loop.texts == ["a"]


def test_the_end_waits_until_everything_is_on_disk(loop: Loop) -> None:
    outlet = loop.outlet()
    outlet.finish()
    outlet = loop.outlet()
    outlet.emit("a")
    outlet.emit("b")
    over = threading.Event()
    thread = threading.Thread(target=lambda: (outlet.finish(), over.set()))
    thread.start()
    loop.answer()
    assert not over.wait(0.05)
    loop.pass_s(1.0)
    loop.answer()
    assert over.wait(10)
    thread.join()


def test_who_waits_is_told_that_nobody_wants_it(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emitting, "_FULL_CHUNKS", 1)
    outlet = loop.outlet()
    outlet.emit("a")
    told: list[BaseException] = []

    def more() -> None:
        try:
            outlet.emit("b")
        except StaleAttempt as error:
            told.append(error)

    thread = threading.Thread(target=more)
    thread.start()
    loop.desk.retire()
    thread.join(10)
    assert len(told) == 1 and "chunk '1' was not recorded: attempt 2" in str(told[0])
    with pytest.raises(StaleAttempt):
        loop.outlet().emit("c")


def test_a_chunk_that_is_too_large_is_refused_alone(loop: Loop) -> None:
    outlet = loop.outlet()
    with pytest.raises(PayloadError, match="chunk: 300000 bytes"):
        outlet.emit("x" * 300_000)
    outlet.emit("a")
    assert loop.texts == ["a"]


async def test_async_code_waits_beside(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emitting, "_FULL_CHUNKS", 1)
    outlet = loop.outlet()

    async def yielding() -> Any:
        for letter in "ab":
            yield letter

    running = asyncio.create_task(drain_beside(yielding(), outlet))
    await asyncio.sleep(0.01)
    assert not running.done() and loop.texts == ["a"]
    loop.answer()
    assert await running == "b"
    finishing = asyncio.create_task(outlet.finish_beside())
    await asyncio.sleep(0.01)
    assert not finishing.done()
    loop.pass_s(1.0)
    loop.answer()
    await finishing
    assert loop.texts == ["a", "b"]


def test_a_generator_is_closed_when_nobody_wants_more_of_it(loop: Loop) -> None:
    closed: list[str] = []

    def yielding() -> Any:
        try:
            yield "a"
            yield "b"
        finally:
            closed.append("closed")

    def returning() -> Any:
        yield "c"
        return "answer"

    assert drain(returning(), loop.outlet(), lambda: False) == "answer"
    stop = iter([False, True])
    with pytest.raises(StaleAttempt):
        drain(yielding(), loop.outlet(), lambda: next(stop))
    assert closed == ["closed"] and loop.texts == ["c", "a"]


def test_an_attempt_that_is_too_far_ahead_of_its_readers_waits(loop: Loop) -> None:
    loop.desk.ahead = 2
    outlet = loop.outlet()
    outlet.emit("a")
    outlet.emit("b")
    assert loop.sent[0].paced
    through = [threading.Event(), threading.Event()]

    def more() -> None:
        for event in through:
            outlet.emit("c")
            event.set()

    thread = threading.Thread(target=more)
    thread.start()
    loop.answer()
    loop.pass_s(1.0)
    loop.answer()
    assert not through[0].wait(0.05), "everything is on disk, and nobody has read it"
    loop.desk.read(Read("a-0", "another", 9))
    assert not through[0].wait(0.05)
    loop.desk.read(Read("a-0", "t", 1))
    assert through[0].wait(10) and not through[1].wait(0.05)
    loop.pass_s(1.0)
    loop.desk.answered(Emitted("a-0", loop.sent[-1].number, "recorded", "", 3))
    assert through[1].wait(10)
    thread.join()


def test_a_new_coordinator_is_told_who_waits_for_readers(loop: Loop) -> None:
    loop.desk.ahead = 1
    outlet = loop.outlet()
    outlet.emit("a")
    loop.answer()
    loop.desk.send_again()
    loop.pass_s(1.0)
    loop.desk.flush()
    again = loop.sent[-1]
    assert (again.first, again.digests, again.paced) == (1, b"", True)
    loop.desk.answered(Emitted("a-0", again.number, "recorded", "", 1))
    outlet.emit("b")
    loop.pass_s(1.0)
    assert loop.texts == ["a", "", "b"]

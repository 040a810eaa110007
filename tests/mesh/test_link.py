"""A link by itself: credit, what a dishonest peer gets, and greetings that come late."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from link_world import LIMITS, World
from msgspec.structs import replace

from flowray.errors import InvariantBroken
from flowray.mesh import frames
from flowray.mesh.frames import BadFrame, Frame, Hello, Limits
from flowray.mesh.link import Link, Verdict


def greet(link: Link, name: str = "a", to: str = "b") -> Hello:
    return link.greeting(runtime="r", name=name, to=to, version=frames.VERSION)


def opened(limits: Limits = LIMITS) -> tuple[Link, Link]:
    """Two links with a stream between them, dialled by the first."""
    a, b = Link(limits, "a-1"), Link(limits, "b-1")
    connect(a, b)
    return a, b


def connect(dialler: Link, acceptor: Link) -> None:
    hello = greet(dialler)
    assert acceptor.judge(hello) is Verdict.GOES_ON
    acceptor.open(hello)
    answer = greet(acceptor)
    assert dialler.judge(answer) is Verdict.GOES_ON and answer.knows == dialler.end
    dialler.open(answer)


def carry(sender: Link, receiver: Link) -> list[bytes]:
    """All that the sender may write now."""
    came: list[bytes] = []
    while (frame := sender.next_frame()) is not None:
        came += receiver.receive(frame)
    return came


def test_messages_share_a_frame_up_to_its_size():
    a, b = opened()
    for message in (b"1" * 8, b"2" * 8, b"3" * 8, b"4" * 30, b"5"):
        a.send(message)
    sizes = []
    while (frame := a.next_frame()) is not None:
        sizes.append([len(message) for message in b.receive(frame)])
    assert sizes == [[8, 8], [8], [30], [1]]


@pytest.mark.parametrize("size", [1, 30])
def test_a_sender_stops_at_its_credit_and_goes_on_when_it_is_given_more(size):
    a, b = opened()
    while a.has_room():
        a.send(b"x" * size)
    came = carry(a, b)
    assert len(came) == min(LIMITS.window_items, LIMITS.window_bytes // size)
    assert a.next_frame() is None
    b.consumed(len(came), len(came) * size)
    carry(b, a)
    assert carry(a, b)


def test_the_largest_message_is_never_left_waiting():
    """A window of the same size as a message: one byte of it taken in and dealt with must be told at once."""
    a, b = opened(Limits(window_items=8, window_bytes=40, frame_bytes=16, message_bytes=40))
    a.send(b"x")
    a.send(b"y" * 40)
    assert carry(a, b) == [b"x"]
    assert b.consumed(1, 1)
    carry(b, a)
    assert carry(a, b) == [b"y" * 40]


def test_an_idle_receiver_tells_when_it_is_asked_to():
    a, b = opened()
    a.send(b"x")
    carry(a, b)
    assert a.held == 1 and b.next_frame() is None
    assert b.tell()
    carry(b, a)
    assert a.held == 0 and a.held_bytes == 0
    assert not b.tell()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"received": 1}, "confirms message 1; 0 were sent"),
        ({"first": 3}, "some are missing"),
        ({"messages": [b"x"] * 9}, "credit"),
        ({"messages": [b"x" * 40, b"x" * 25]}, "credit"),
    ],
)
def test_a_dishonest_frame_is_refused_and_nothing_of_it_counts(change, says):
    a, b = opened()
    a.send(b"first")
    b.send(b"back")
    frame = a.next_frame()
    assert frame is not None
    with pytest.raises(BadFrame, match=says):
        b.receive(replace(frame, **change))
    assert b.backlog == (0, 0) and b.held == 1
    assert b.receive(frame) == [b"first"]
    assert carry(b, a) == [b"back"]


def test_a_frame_before_the_greeting_is_refused():
    with pytest.raises(BadFrame, match="before the greeting"):
        Link(LIMITS, "a-1").receive(Frame(0, 0, 0, 1, []))


def test_nobody_consumes_more_than_came():
    a, b = opened()
    a.send(b"xy")
    carry(a, b)
    with pytest.raises(InvariantBroken, match="2 messages consumed; 1 were there"):
        b.consumed(2, 2)
    with pytest.raises(InvariantBroken, match="3 bytes"):
        b.consumed(1, 3)
    b.consumed(1, 2)


def test_what_was_not_consumed_takes_up_the_next_link_too():
    """A peer that is restarted again and again cannot pile up a window of messages each time."""
    a, b = opened()
    for _ in range(8):
        a.send(b"x" * 2)
    assert len(carry(a, b)) == 8
    a2, b2 = Link(LIMITS, "a2-1"), Link(LIMITS, "b-2", b.backlog)
    connect(a2, b2)
    a2.send(b"y")
    assert a2.next_frame() is None
    assert b2.consumed(2, 4)
    carry(b2, a2)
    assert carry(a2, b2) == [b"y"]


# ── greetings ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_greeting_that_was_long_on_its_way_does_not_end_the_link():
    """The dial ran out of time in a stalled network, the next one was answered, and now the first one arrives."""
    a, b = opened()
    a.broken(), b.broken()
    late = greet(a)
    connect(a, b)
    b.send(b"x")
    carry(b, a)
    a.tell()
    carry(a, b)
    assert b.judge(late) is Verdict.OUT_OF_DATE
    b.send(b"y")
    assert carry(b, a) == [b"y"]


def test_an_answer_that_is_lost_is_given_again():
    a, b = Link(LIMITS, "a-1"), Link(LIMITS, "b-1")
    a.send(b"x")
    b.send(b"y")
    b.open(greet(a))
    greet(b, "b", "a")  # lost, and so is the first frame
    assert b.next_frame() is not None
    b.broken()
    connect(a, b)
    assert carry(a, b) == [b"x"] and carry(b, a) == [b"y"]


def test_another_process_ends_the_link():
    a, b = opened()
    a.broken(), b.broken()
    assert b.judge(greet(Link(LIMITS, "a2-1"))) is Verdict.OVER


def test_who_is_forgotten_learns_it():
    a, _ = opened()
    a.broken()
    fresh = Link(LIMITS, "b2-1")
    assert fresh.judge(greet(a)) is Verdict.FORGOTTEN
    assert a.judge(greet(fresh)) is Verdict.OVER


@pytest.mark.parametrize("change", [{"received": 7}, {"received": 0}, {"knows": ""}])
def test_a_greeting_that_contradicts_the_link_is_refused(change):
    a, b = opened()
    b.send(b"x")
    carry(b, a)
    a.tell()
    carry(a, b)
    a.broken(), b.broken()
    hello = greet(a)
    with pytest.raises(BadFrame, match="its greeting says"):
        b.judge(replace(hello, **change))
    assert b.judge(hello) is Verdict.GOES_ON


# ── anything at all ──────────────────────────────────────────────────────────────────────────────────────────────────

NUMBERS = st.one_of(st.integers(0, 20), st.integers(0, 1 << 62))
ANY_FRAMES = st.builds(
    Frame, NUMBERS, NUMBERS, NUMBERS, st.one_of(st.integers(1, 20), st.integers(1, 1 << 62)),
    st.lists(st.binary(max_size=50), max_size=20),
)  # fmt: skip
ENDS = st.sampled_from(["", "1-1", "2-1", "other-1"])
ANY_HELLOS = st.builds(
    Hello, st.just(1), st.just("r"), st.just("a"), st.just("b"), ENDS, ENDS, st.integers(1, 9), *[NUMBERS] * 3
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_strangers_frames_are_refused_or_harmless(data):
    """Frames as they come, frames again, frames in another order, and any frames at all, on a link that is in use.

    Whatever is said, nothing is delivered twice or in another order, no bound is passed, and the other direction
    keeps what is its own.
    """
    world = World()
    world.dial("a")
    world.settle()
    a, b = world.now["a"].link, world.now["b"].link
    seen: list[Frame] = []
    unconsumed: list[bytes] = []
    delivered: list[bytes] = []
    sent: list[bytes] = []
    held = [b"back %d" % number for number in range(5)]
    for message in held:
        b.send(message)
    honest = True
    for step in range(data.draw(st.integers(1, 25))):
        match data.draw(st.sampled_from(["send", "again", "any", "greeting", "consume", "write"])):
            case "send":
                a.send(b"%d" % step)
                sent.append(b"%d" % step)
                frame = a.next_frame()
            case "again" if seen:
                frame = data.draw(st.sampled_from(seen))
            case "any":
                frame = data.draw(ANY_FRAMES)
                honest = False
            case "greeting":
                frame = None
                with contextlib.suppress(BadFrame):
                    b.judge(data.draw(ANY_HELLOS))
            case "consume":
                frame = None
                if unconsumed:
                    b.consumed(1, len(unconsumed.pop(0)))
            case _:
                frame = None
                b.next_frame()
        if frame is not None:
            seen.append(frame)
            before = b.backlog, b.held
            try:
                messages = b.receive(frame)
            except BadFrame:
                assert (b.backlog, b.held) == before
            else:
                unconsumed += messages
                delivered += messages
        assert b.backlog == (len(unconsumed), sum(map(len, unconsumed)))
        assert b.backlog[0] <= LIMITS.window_items and b.backlog[1] <= LIMITS.window_bytes
        assert b.held_bytes == sum(map(len, held[len(held) - b.held :]))
    if honest:
        assert delivered == sent[: len(delivered)]

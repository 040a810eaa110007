"""Frames on a bad cable, by two sockets instead of links."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from flowray.testing.cables import Way


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket, socket.socket, socket.socket]]:
    """Who sends, where the way takes in, where it gives out, and who hears."""
    sends, come = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    go, hears = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for one in (come, hears):
        one.setblocking(False)
    yield sends, come, go, hears
    for one in (sends, come, go, hears):
        one.close()


def heard(hears: socket.socket) -> list[int]:
    found = []
    while True:
        try:
            found.append(int(hears.recv(16)))
        except BlockingIOError:
            return found


def test_frames_are_late_by_a_time_within_bounds_and_keep_their_order(ends) -> None:
    sends, come, go, hears = ends
    way = Way(come, go, (0.2, 0.5), 0.0, random.Random(1))
    came, gone, now = {}, {}, 0.0
    for step in range(1000):  # ten seconds, in which the delay is drawn ten times
        now = step / 100
        if step % 5 == 0:
            sends.send(b"%d" % step)
            came[step] = now
            way.take(now)
        way.give(now)
        gone |= dict.fromkeys(heard(hears), now)
    late = [gone[number] - came[number] for number in gone]
    assert list(gone) == sorted(gone) and len(gone) > 180
    assert min(late) >= 0.2 - 1e-9
    assert max(late) <= 0.5 + 0.01 + 1e-9
    assert len({round(one, 2) for one in late}) > 3, "not always the same"


def test_a_frame_that_is_under_way_says_when_it_is_due(ends) -> None:
    sends, come, go, hears = ends
    way = Way(come, go, (0.3, 0.3), 0.0, random.Random(1))
    assert way.give(1.0) is None
    sends.send(b"7")
    way.take(1.0)
    assert way.give(1.0) == pytest.approx(1.3)
    assert heard(hears) == []
    assert way.give(1.3) is None
    assert heard(hears) == [7]


@pytest.mark.parametrize("loss", [0.0, 0.2, 1.0])
def test_a_share_of_the_frames_is_lost(ends, loss: float) -> None:
    sends, come, go, hears = ends
    way = Way(come, go, (0.0, 0.0), loss, random.Random(1))
    there = 0
    for number in range(2000):
        sends.send(b"%d" % number)
        way.take(number / 1000)
        way.give(number / 1000)
        there += len(heard(hears))
    assert there == pytest.approx(2000 * (1 - loss), abs=60)


def test_a_link_that_is_down_loses_frames_and_ends_nothing(ends) -> None:
    sends, come, go, hears = ends
    way = Way(come, go, (0.0, 0.0), 0.0, random.Random(1))
    hears.close()
    sends.send(b"1")
    way.take(0.0)
    assert way.give(0.0) is None

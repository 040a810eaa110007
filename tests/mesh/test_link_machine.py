"""Two links and the worst streams that one can have: nothing lost, nothing twice, nothing out of order, all bounded."""

from __future__ import annotations

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from link_world import LIMITS, World

from flowray.mesh.frames import Limits

SIDES = st.sampled_from("ab")
_numbers = itertools.count(1)


def message(size: int) -> bytes:
    """All different as far as the size allows."""
    return str(next(_numbers)).encode().rjust(size, b".")[-size:] if size else b""


class LinksMachine(RuleBasedStateMachine):
    """Any order of sending, writing, reading, breaking, dying and forgetting."""

    @initialize(
        limits=st.sampled_from(
            [
                LIMITS,
                Limits(window_items=1, window_bytes=40, frame_bytes=1, message_bytes=40),
                Limits(window_items=3, window_bytes=50, frame_bytes=45, message_bytes=40),
            ]
        )
    )
    def begin(self, limits: Limits) -> None:
        self.world = World(limits)

    @rule(name=SIDES, sizes=st.lists(st.one_of(st.integers(6, 12), st.just(0), st.just(40)), min_size=1, max_size=10))
    def send(self, name, sizes):
        for size in sizes:
            self.world.now[name].send(message(size))

    @rule(name=SIDES, items=st.integers(1, 8))
    def consume(self, name, items):
        self.world.now[name].consume(items)

    @rule(name=SIDES)
    def idle_for_a_second(self, name):
        self.world.now[name].link.tell()

    @rule(name=SIDES)
    def dial(self, name):
        self.world.dial(name)

    @rule(name=SIDES)
    def dial_runs_out_of_time(self, name):
        self.world.give_up(name)

    @rule(name=SIDES, times=st.integers(1, 4))
    def write(self, name, times):
        for _ in range(times):
            self.world.write(name)

    @precondition(lambda self: self.world.streams)
    @rule(data=st.data(), name=SIDES, times=st.integers(1, 4))
    def read(self, data, name, times):
        stream = data.draw(st.sampled_from(self.world.streams))
        for _ in range(times):
            self.world.read(stream, name)

    @precondition(lambda self: self.world.streams)
    @rule(data=st.data(), name=SIDES, kept=st.integers(0, 3))
    def break_stream(self, data, name, kept):
        """One side sees the end; of what is on its way to the other side, only the first few arrive."""
        stream = data.draw(st.sampled_from(self.world.streams))
        way = stream.to["a" if name == "b" else "b"]
        while len(way) > kept:
            way.pop()
        self.world.end(stream, name)

    @rule(name=SIDES)
    def replace(self, name):
        self.world.replace(name)

    @rule(name=SIDES)
    def forget(self, name):
        """This side has not heard of the other for too long, or has been told that it is gone."""
        self.world.give_up(name)
        self.world.now[name].forget()

    @rule()
    def calm(self):
        """Streams that stay up: all that was queued on the links that are left arrives."""
        self.world.settle()
        self.world.check_delivery()
        a, b = self.world.now["a"], self.world.now["b"]
        assert (a.link.other_end, b.link.other_end) == (b.link.end, a.link.end)
        for sender, receiver in ((a, b), (b, a)):
            assert receiver.got.get((receiver.link.end, sender.link.end), []) == sender.written.get(sender.link.end, [])

    @invariant()
    def delivered(self):
        if hasattr(self, "world"):
            self.world.check_delivery()

    def teardown(self):
        if hasattr(self, "world"):
            self.calm()


LinksMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
TestLinks = LinksMachine.TestCase

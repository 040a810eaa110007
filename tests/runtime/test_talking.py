"""Agents of several processes that talk through a mesh in memory: async ones on its loop, sync ones beside it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import threading
import warnings
from collections import deque
from typing import Any

import pytest

from flowray.agents import Context, Message
from flowray.errors import (
    AgentUnreachable,
    AskDeadlock,
    AskError,
    AskFailed,
    AskTimeout,
    ConfigError,
    MeshError,
    NoRoom,
    NotConnected,
    PayloadError,
    WaitTimeout,
)
from flowray.mesh.envelopes import PICKLE, Tell, encode_parcel
from flowray.mesh.frames import BadFrame
from flowray.mesh.lanes import TalkLimits
from flowray.mesh.topics import Directory
from flowray.runtime.talking import Talking

TIGHT = TalkLimits(first_window_bytes=600, window_bytes=600, send_timeout_s=30.0)


class Wire:
    """One process's way into a mesh of memory; holds at most so many messages for each other process."""

    def __init__(self, mesh: Mesh, name: str) -> None:
        self.mesh, self.name = mesh, name
        self.queues: dict[str, deque[bytes]] = {}
        self.waiters: list[asyncio.Future[None]] = []

    def send(self, peer: str, message: bytes) -> bool:
        assert threading.get_ident() == self.mesh.thread, "only the loop may touch the mesh"
        if peer not in self.mesh.talkings:
            raise MeshError(f"{peer} is gone")
        queue = self.queues.setdefault(peer, deque())
        if len(queue) >= self.mesh.capacity:
            return False
        queue.append(message)
        if len(queue) == 1 and not self.mesh.stopped:
            asyncio.get_running_loop().call_soon(self.carry, peer)
        return True

    def carry(self, peer: str) -> None:
        messages = list(self.queues[peer])
        self.queues[peer].clear()
        if peer in self.mesh.talkings:
            self.mesh.talkings[peer].receive(self.name, messages)
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()

    async def room(self, peer: str) -> None:
        if peer not in self.mesh.talkings:
            raise MeshError(f"{peer} is gone")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        await waiter


class Mesh:
    def __init__(self, limits: TalkLimits | None = None, capacity: int = 1_000) -> None:
        self.thread = threading.get_ident()
        self.limits, self.capacity, self.stopped = limits, capacity, False
        self.talkings: dict[str, Talking] = {}
        self.wires: dict[str, Wire] = {}
        self.directory = Directory(1)
        self.numbers = itertools.count(1, 1000)
        self.reported: list[tuple[str, BaseException]] = []
        self.outsiders: set[str] = set()

    def process(self, name: str) -> Talking:
        if name not in self.talkings:
            self.wires[name] = Wire(self, name)
            self.talkings[name] = Talking(
                name,
                self.wires[name],
                first_number=next(self.numbers),
                trusts=lambda peer: peer not in self.outsiders,
                limits=self.limits,
                report=lambda agent, error: self.reported.append((agent, error)),
            )
        return self.talkings[name]

    def add(self, agent: str, on_message: Any = None, *, on: str = "", topics: Any = (), reentrant: bool = False):
        """An agent in a process (of its own if none is named); its context for what it says outside of turns."""
        talking = self.process(on or f"of-{agent}")
        if on_message is not None:
            talking.host(agent, on_message, lambda voice, s: context(agent, voice, s), reentrant=reentrant)
        self.list(agent, on or f"of-{agent}", topics)
        return context(agent, talking.speaker(agent), None)

    def list(self, agent: str, process: str, topics: Any = ()) -> None:
        self.directory.put(agent, process, topics)
        self.tell_all()

    def tell_all(self) -> None:
        for talking in self.talkings.values():
            changes = self.directory.changes_since(*talking.known)
            assert changes is None or talking.learn(changes)

    def kill(self, process: str) -> None:
        self.talkings.pop(process).close()
        for talking in self.talkings.values():
            talking.peer_gone(process, "killed")


def context(agent: str, voice: Any, remaining_s: float | None) -> Context:
    return Context(agent_id=agent, voice=voice, remaining_s=remaining_s)


@contextlib.contextmanager
def running(limits: TalkLimits | None = None, capacity: int = 1_000):
    mesh = Mesh(limits, capacity)
    try:
        yield mesh
    finally:
        for talking in mesh.talkings.values():
            talking.close()


async def echo(message: Message) -> Any:
    return message.body


def echo_sync(message: Message) -> Any:
    return message.body


BODIES = [None, b"\x00bytes", "text", 7, [1, {"a": [2.5, None]}], (1, 2), {3}]


@pytest.mark.parametrize("handler", [echo, echo_sync], ids=["async", "sync"])
async def test_an_ask_brings_back_what_on_message_returns(handler):
    with running() as mesh:
        mesh.add("echo-1", handler)
        me = mesh.add("me-1")
        for body in BODIES:
            answer = await me.ask("echo-1", body, timeout_s=30)
            assert answer == body and type(answer) is type(body)


async def test_what_a_message_says_of_itself():
    heard = []

    async def hear(message, ctx):
        heard.append((message, ctx.agent_id, ctx.remaining_s is not None and 0 < ctx.remaining_s <= 20))

    with running() as mesh:
        mesh.add("ear-1", hear, topics={"news"})
        me = mesh.add("me-1")
        await me.send("ear-1", 1)
        assert await me.publish("news", 2) == 1
        assert await me.ask("ear-1", 3, timeout_s=20) is None
    assert heard == [
        (Message(1, "me-1"), "ear-1", False),
        (Message(2, "me-1", "news"), "ear-1", False),
        (Message(3, "me-1", "", True), "ear-1", True),
    ]


async def test_threads_use_the_same_names():
    """A sync `run` in a thread: `.result()` instead of `await`, and `send` without anything."""
    heard = []
    with running() as mesh:
        mesh.add("echo-1", echo_sync)
        mesh.add("ear-1", lambda message: heard.append(message.body), topics={"news"})
        me = mesh.add("me-1")

        def run() -> list[Any]:
            for n in range(100):
                me.send("ear-1", n)
            assert me.publish("news", 100).result() == 1
            asked = [me.ask("echo-1", n) for n in range(20)]
            me.ask("ear-1", 101).result(timeout_s=30)
            return [reply.result(timeout_s=30) for reply in asked]

        assert await asyncio.to_thread(run) == list(range(20))
    assert heard == list(range(102))


async def test_a_run_that_asks_who_asks_back_works():
    """`run` is beside the lane, so it is not in its own way."""
    with running() as mesh:
        me = mesh.add("a-1", echo)

        async def ask_back(message, ctx):
            return await ctx.ask(message.sender, message.body + 1)

        mesh.add("b-1", ask_back)
        assert await me.ask("b-1", 1, timeout_s=30) == 2


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_a_circle_of_asks_is_named(sync):
    async def pass_on(message, ctx):
        try:
            return await ctx.ask(message.body[0], message.body[1:])
        except AskDeadlock as error:
            return list(error.cycle)

    def pass_on_sync(message, ctx):
        try:
            return ctx.ask(message.body[0], message.body[1:]).result()
        except AskDeadlock as error:
            return list(error.cycle)

    with running() as mesh:
        for name in ("a-1", "b-1", "c-1"):
            mesh.add(name, pass_on_sync if sync else pass_on)
        me = mesh.add("me-1")
        cycle = await me.ask("a-1", ["b-1", "c-1", "a-1"], timeout_s=30)
        assert cycle == ["c-1", "a-1", "b-1"]
        assert await me.ask("a-1", ["a-1"], timeout_s=30) == ["a-1"]


async def test_crossing_asks_of_two_that_nobody_called_are_found():
    """Each was only told to ask the other: no common chain of calls."""
    errors = []
    both = asyncio.Event()
    started = []

    async def on_message(message, ctx):
        if message.wants_reply:
            return "free"
        started.append(ctx.agent_id)
        if len(started) == 2:
            both.set()
        await both.wait()
        try:
            return await ctx.ask(message.body)
        except AskDeadlock as error:
            errors.append((ctx.agent_id, error))

    with running() as mesh:
        mesh.add("a-1", on_message)
        mesh.add("b-1", on_message)
        me = mesh.add("me-1")
        await me.send("a-1", "b-1")
        await me.send("b-1", "a-1")
        assert await me.ask("a-1", timeout_s=30) == "free"
        assert await me.ask("b-1", timeout_s=30) == "free"
    ((victim, error),) = errors
    assert victim == "b-1" and str(error) == "asking 'a-1': deadlock, each waits for the next: b-1 -> a-1 -> b-1"


async def test_reentrant_agents_answer_while_they_wait():
    async def pass_on(message, ctx):
        return await ctx.ask(message.body[0], message.body[1:]) if message.body else "end"

    with running() as mesh:
        mesh.add("a-1", pass_on, reentrant=True)
        mesh.add("b-1", pass_on, reentrant=True)
        me = mesh.add("me-1")
        assert await me.ask("a-1", ["b-1", "a-1", "b-1", "a-1"], timeout_s=30) == "end"


async def test_one_message_at_a_time_and_in_order():
    under_way, most, heard = 0, 0, []

    async def hear(message):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        heard.append(message.body)
        under_way -= 1

    with running() as mesh:
        mesh.add("ear-1", hear)
        me = mesh.add("me-1")
        for n in range(500):
            await me.send("ear-1", n)
        await me.ask("ear-1", 500)
    assert most == 1 and heard == list(range(501))


async def test_what_on_message_may_use():
    """It runs in a real task: timeouts, task groups and context variables are at home."""

    async def hear(message):
        assert asyncio.current_task() is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.sleep(60)
        async with asyncio.TaskGroup() as group:
            parts = [group.create_task(asyncio.sleep(0, n)) for n in range(3)]
        return [part.result() for part in parts]

    with running() as mesh:
        mesh.add("ear-1", hear)
        assert await mesh.add("me-1").ask("ear-1", timeout_s=30) == [0, 1, 2]


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_what_the_other_side_raises(sync):
    async def fail(message):
        raise KeyError("odd")

    def fail_sync(message):
        raise KeyError("odd")

    with running() as mesh:
        mesh.add("bad-1", fail_sync if sync else fail)
        me = mesh.add("me-1")
        with pytest.raises(AskFailed, match="it raised KeyError: 'odd'") as caught:
            await me.ask("bad-1", timeout_s=30)
        assert (caught.value.agent_id, caught.value.error_type) == ("bad-1", "KeyError")
        await me.send("bad-1", b"")
        with pytest.raises(AskFailed):  # the lane goes on
            await me.ask("bad-1", timeout_s=30)
        ((agent, error),) = mesh.reported
        assert agent == "bad-1" and isinstance(error, KeyError)


async def test_an_exception_that_cannot_be_printed_does_not_stop_the_lane():
    class Odd(Exception):
        def __str__(self) -> str:
            raise ValueError("no")

    async def fail(message):
        raise Odd

    with running() as mesh:
        mesh.add("bad-1", fail)
        me = mesh.add("me-1")
        for _ in range(2):
            with pytest.raises(AskFailed, match=r"it raised Odd: \(its text cannot be had: ValueError\)"):
                await me.ask("bad-1", timeout_s=30)


async def test_an_answer_that_cannot_be_sent_is_a_failure():
    async def hear(message):
        return b"x" * 2_000

    with running(TalkLimits(message_bytes=1_000)) as mesh:
        mesh.add("big-1", hear)
        me = mesh.add("me-1")
        with pytest.raises(AskFailed, match="PayloadError: message: 2000 bytes"):
            await me.ask("big-1", timeout_s=30)
        with pytest.raises(PayloadError, match=r"mesh\.talk\.message_bytes"):
            me.send("big-1", b"x" * 2_000)
        with pytest.raises(PayloadError, match="message: a lock that cannot be pickled"):
            me.send("big-1", threading.Lock())


async def test_an_ask_ends_in_time_and_its_late_answer_is_ignored():
    gate = asyncio.Event()

    async def hear(message):
        await gate.wait()
        return message.body

    with running() as mesh:
        mesh.add("slow-1", hear)
        me = mesh.add("me-1")
        with pytest.raises(AskTimeout):
            await me.ask("slow-1", 1, timeout_s=0.02)
        gate.set()
        assert await me.ask("slow-1", 2, timeout_s=30) == 2


async def test_waiting_can_run_out_before_the_ask_does():
    gate = threading.Event()

    def hear(message):
        gate.wait(60)
        return message.body

    with running() as mesh:
        mesh.add("slow-1", hear)
        me = mesh.add("me-1")

        def run():
            reply = me.ask("slow-1", 1)
            with pytest.raises(WaitTimeout, match=r"no answer of slow-1 within 0\.01 s; the ask goes on"):
                reply.result(timeout_s=0.01)
            gate.set()
            return reply.result(timeout_s=30)

        assert await asyncio.to_thread(run) == 1


async def test_a_cancelled_wait_gives_the_ask_up():
    heard = []
    gate = asyncio.Event()

    async def hear(message):
        heard.append(message.body)
        await gate.wait()

    with running() as mesh:
        mesh.add("slow-1", hear)
        me = mesh.add("me-1")
        await me.send("slow-1", "first")
        reply = me.ask("slow-1", "never")

        async def wait() -> None:
            await reply

        task = asyncio.create_task(wait())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(AskError, match="given up"):
            await reply
        gate.set()
        await me.ask("slow-1", "last", timeout_s=30)
    assert heard == ["first", "last"]


async def test_nobody_there():
    with running() as mesh:
        mesh.add("echo-1", echo)
        me = mesh.add("me-1")
        with pytest.raises(AgentUnreachable, match="did you mean 'echo-1'"):
            me.send("echo-2", b"")
        with pytest.raises(AgentUnreachable):
            await me.ask("echo-2")
        mesh.list("ghost-1", "of-echo-1")  # listed, and not there
        with pytest.raises(AgentUnreachable, match="it is not in of-echo-1"):
            await me.ask("ghost-1", timeout_s=30)


async def test_the_death_of_a_process_is_told_to_those_who_wait():
    gate = asyncio.Event()

    async def hear(message):
        await gate.wait()

    with running(TIGHT) as mesh:
        mesh.add("slow-1", hear)
        me = mesh.add("me-1")
        reply = me.ask("slow-1")
        me.send("slow-1", b"x" * 1000)
        waiting = asyncio.ensure_future(_awaited(me.send("slow-1", b"")))
        await asyncio.sleep(0.01)
        assert not reply.done and not waiting.done()
        mesh.kill("of-slow-1")
        for lost in (reply, waiting):
            with pytest.raises(AgentUnreachable, match="killed"):
                await lost


async def _awaited(thing: Any) -> Any:
    return await thing


async def test_a_sender_without_room_waits_on_the_loop():
    gate = asyncio.Event()
    heard = []

    async def hear(message):
        await gate.wait()
        heard.append(message.body)

    with running(TIGHT) as mesh:
        mesh.add("slow-1", hear)
        me = mesh.add("me-1")
        sent = 0

        async def run() -> None:
            nonlocal sent
            for n in range(50):
                await me.send("slow-1", n)
                sent += 1

        task = asyncio.create_task(run())
        await asyncio.sleep(0.05)
        assert 0 < sent < 10  # it stands
        gate.set()
        await task
        await me.ask("slow-1", "end", timeout_s=30)
    assert heard == [*range(50), "end"]


async def test_a_sender_without_room_waits_in_its_thread():
    gate = threading.Event()
    heard = []

    def hear(message):
        gate.wait(60)
        heard.append(message.body)

    with running(TIGHT) as mesh:
        mesh.add("slow-1", hear)
        me = mesh.add("me-1")
        sent = []

        def run() -> None:
            for n in range(50):
                me.send("slow-1", n)
                sent.append(n)
            me.ask("slow-1", "end").result(timeout_s=30)

        running_thread = asyncio.create_task(asyncio.to_thread(run))
        await asyncio.sleep(0.05)
        assert len(sent) < 10
        gate.set()
        await running_thread
    assert heard == [*range(50), "end"]


async def test_a_send_that_needs_awaiting_and_is_not_says_so():
    gate = asyncio.Event()

    async def hear(message):
        await gate.wait()

    with running(TIGHT) as mesh:
        mesh.add("slow-1", hear, topics={"news"})
        me = mesh.add("me-1")
        while (pending := me.send("slow-1", b"x" * 1000)).done:
            pass
        published = me.publish("news", b"")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            del pending, published
            gc.collect()
        texts = [str(warning.message) for warning in said if warning.category is RuntimeWarning]
        assert texts == [
            "a message to 'slow-1' was not sent: there was no room, and `send` was not awaited",
            "nothing was published to 'news': a subscriber had no room, and it was not awaited",
        ]
        with pytest.raises(RuntimeError, match="await it"):
            me.ask("slow-1").result()


async def test_no_room_for_too_long_is_an_error():
    gate = asyncio.Event()

    async def hear(message):
        await gate.wait()

    with running(TalkLimits(first_window_bytes=600, window_bytes=600, send_timeout_s=0.05)) as mesh:
        mesh.add("slow-1", hear)
        me = mesh.add("me-1")
        with pytest.raises(NoRoom, match=r"nothing was sent to 'slow-1': its queue was full for 0\.05 s"):
            for _ in range(10):
                await me.send("slow-1", b"x" * 1000)

        def run() -> None:
            me.send("slow-1", b"")

        with pytest.raises(NoRoom):
            await asyncio.to_thread(run)
        gate.set()
        await me.ask("slow-1", timeout_s=30)
        await me.send("slow-1", b"")


async def test_published_waits_for_the_slowest_subscriber():
    gate = asyncio.Event()
    heard: dict[str, list[int]] = {"fast-1": [], "slow-1": []}

    async def fast(message):
        heard["fast-1"].append(message.body)

    async def slow(message):
        await gate.wait()
        heard["slow-1"].append(message.body)

    with running(TIGHT) as mesh:
        mesh.add("fast-1", fast, topics={"news"})
        mesh.add("slow-1", slow, topics={"news"})
        me = mesh.add("me-1")

        async def run() -> list[int]:
            return [await me.publish("news", n) for n in range(30)]

        task = asyncio.create_task(run())
        await asyncio.sleep(0.05)
        assert not task.done() and len(heard["fast-1"]) < 10
        gate.set()
        assert await task == [2] * 30
        for name in heard:
            await me.ask(name, 30, timeout_s=30)
    assert heard == {"fast-1": list(range(31)), "slow-1": list(range(31))}


async def test_topics_follow_the_directory():
    with running() as mesh:
        mesh.add("a-1", echo, topics={"news"})
        me = mesh.add("me-1", echo, topics={"news", "me"})
        assert [await me.publish(topic, 1) for topic in ("news", "me", "none")] == [2, 1, 0]
        mesh.list("a-1", "of-a-1", ())
        assert await me.publish("news", 1) == 1


async def test_a_driver_subscribes_by_iterating():
    with running() as mesh:
        subscription = mesh.process("client-1").subscribe("client-1/1")
        mesh.list("client-1/1", "client-1", {"news"})
        me = mesh.add("me-1")
        for n in range(3):
            assert await me.publish("news", n) == 1
        assert [(await anext(subscription)).body for _ in range(3)] == [0, 1, 2]
        waiting = asyncio.create_task(anext(subscription))
        await asyncio.sleep(0.01)
        await me.publish("news", 3)
        assert await waiting == Message(3, "me-1", "news")

        def run() -> list[Any]:
            me.publish("news", 4)
            assert subscription.get(timeout_s=30).body == 4
            with pytest.raises(WaitTimeout):
                subscription.get(timeout_s=0.01)
            looked.set()
            bodies = []
            for message in subscription:
                bodies.append(message.body)
                heard.set()
            return bodies

        looked, heard = threading.Event(), threading.Event()
        thread = asyncio.create_task(asyncio.to_thread(run))
        await asyncio.to_thread(looked.wait, 30)
        with pytest.raises(AskFailed, match="answers none"):
            await me.ask("client-1/1", timeout_s=30)
        await me.publish("news", 5)
        await asyncio.to_thread(heard.wait, 30)
        subscription.close()
        assert await thread == [5]
        with pytest.raises(NotConnected):
            subscription.get()
        assert [message async for message in subscription] == []


async def test_a_mesh_without_room_delays_and_loses_nothing():
    heard = []

    async def hear(message):
        heard.append(message.body)

    with running(capacity=1) as mesh:
        mesh.add("ear-1", hear)
        me = mesh.add("me-1")
        for n in range(2_000):
            await me.send("ear-1", b"%d" % n + b"x" * 500)
            if n % 100 == 0:
                await asyncio.sleep(0)
        assert await me.ask("ear-1", b"end", timeout_s=30) is None
    assert [int(body.rstrip(b"x")) for body in heard[:-1]] == list(range(2_000))


async def test_strangers_may_not_send_pickles():
    with running() as mesh:
        mesh.add("echo-1", echo)
        stranger = mesh.process("client-x")
        mesh.outsiders.add("client-x")
        mesh.tell_all()
        assert await stranger.speaker("client-x").ask("echo-1", {"plain": [1, 2]}) == {"plain": [1, 2]}
        home = mesh.talkings["of-echo-1"]
        for bad in (
            encode_parcel([Tell("echo-1", "client-x", PICKLE, b"cos\nsystem\n.")]),
            encode_parcel([Tell("echo-1", "me-1", 0, b"")]),
            b"\x00garbage",
        ):
            with pytest.raises(BadFrame):
                home.receive("client-x", [bad])


async def test_an_agent_that_leaves_tells_those_who_wait():
    gate = asyncio.Event()

    async def hear(message):
        await gate.wait()

    with running() as mesh:
        mesh.add("slow-1", hear)
        me = mesh.add("me-1")
        replies = [me.ask("slow-1") for _ in range(3)]
        await asyncio.sleep(0.01)
        mesh.talkings["of-slow-1"].leave("slow-1")
        for reply in replies:
            with pytest.raises(AgentUnreachable, match="it has left"):
                await reply


async def test_closing_lets_nobody_wait_for_ever():
    gate = asyncio.Event()

    async def hear(message):
        await gate.wait()

    with running(TIGHT) as mesh:
        mesh.add("slow-1", hear)
        me = mesh.add("me-1")

        def ask() -> None:
            me.ask("slow-1").result()

        def send() -> None:
            while True:
                me.send("slow-1", b"x" * 1000)

        threads = [asyncio.create_task(asyncio.to_thread(run)) for run in (ask, send)]
        await asyncio.sleep(0.05)
        mesh.talkings["of-me-1"].close()
        for thread in threads:
            with pytest.raises(NotConnected, match="stopped talking"):
                await thread
        with pytest.raises(NotConnected):
            me.send("slow-1", b"")


async def test_a_context_without_a_mesh_says_so():
    with pytest.raises(NotConnected, match="has nobody to talk to"):
        Context(agent_id="a-1").ask("b-1")


async def test_senseless_timeouts_are_refused():
    with running() as mesh:
        me = mesh.add("me-1", echo)
        for wrong in (0, -1.0, float("nan")):
            with pytest.raises(ConfigError, match="timeout_s"):
                me.ask("me-1", timeout_s=wrong)

"""Lets a process's agents talk: `mesh.conversations` with a lock, a clock, an event loop and the mesh below it.

The state is behind one lock, because sync agents speak and hear in threads of their own. Only the loop touches the
mesh: what others want to send is queued, and the loop is woken once for all of it. So is what the loop's own code
sends in one go: it leaves as one parcel when the code next waits for something.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from flowray.errors import AgentUnreachable, ConfigError, FlowrayError, MeshError, NoRoom, PayloadError
from flowray.mesh.conversations import Conversations
from flowray.mesh.envelopes import BYTES, MSGPACK, PICKLE
from flowray.mesh.lanes import Lane, TalkLimits, Turn
from flowray.mesh.routes import Outbox
from flowray.mesh.topics import Changes
from flowray.runtime.awaiting import SENT, SENT_PAUSED, Done, Pending, PendingPublish, Reply, Settling, on_a_loop
from flowray.runtime.listening import AsyncHearing, Listener, MakeContext, Subscription, hearing_for
from flowray.values import decode_value, encode_value

Encode = Callable[[Any, str], tuple[str, bytes]]  # (value, its name in errors) -> (codec, bytes)
_PAUSE_SENDS = 128  # of a loop's code, before others have their turn
_CODECS = {"msgpack": MSGPACK, "pickle": PICKLE}
_NAMES = {number: name for name, number in _CODECS.items()}


class Post(Protocol):
    """The mesh as this module needs it. Called on the loop only."""

    def send(self, peer: str, message: bytes) -> bool:
        """Queue a message for a process; False when there is no room. Raises MeshError when the process is gone."""
        ...

    def room(self, peer: str) -> Awaitable[None]:
        """Wait until `send` may be tried again. Raises MeshError when the process is gone."""
        ...


def print_failure(agent: str, error: BaseException) -> None:
    """What becomes of an exception in `on_message` that no asker hears of, unless the host says otherwise."""
    text = "".join(traceback.format_exception(error))
    sys.stderr.write(f"{agent} failed to handle a message:\n{text}")


class Talking:
    """See the module. Made on the loop of the mesh's endpoint;
    its methods may be called from any thread, unless they say."""

    def __init__(
        self,
        process: str,
        post: Post,
        *,
        first_number: int,
        trusts: Callable[[str], bool],
        limits: TalkLimits | None = None,
        encode: Encode = encode_value,
        report: Callable[[str, BaseException], None] = print_failure,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`first_number`: of asks; no two lives of a process of this name may use the same, so a random one will do.

        `trusts`: does this process belong to the cluster, so that its pickles may be loaded?
        """
        self.limits = limits or TalkLimits()
        self.loop = asyncio.get_running_loop()
        self.lock = threading.Lock()
        self.clock = clock
        self._post = post
        self._trusts = trusts
        self._encode = encode
        self._report = report
        self._conversations = Conversations(process, self.limits, first_number=first_number)
        self._listeners: dict[str, Listener] = {}
        self._thread = threading.get_ident()
        self._flush_due = False
        self._unflushed = 0  # messages sent since then
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._pushing: dict[str, asyncio.Task[None]] = {}  # process without room -> who waits to send to it

    # ── agents of this process ───────────────────────────────────────────────────────────────────────────────────

    def host(
        self, agent: str, on_message: Callable[..., Any], context: MakeContext, *, reentrant: bool = False
    ) -> None:
        """Let an agent hear messages: async code on this loop, sync code in a thread. Call on the loop.

        Host an agent before the directory lists it.
        """
        hearing = hearing_for(on_message)
        if reentrant and hearing is not AsyncHearing:
            raise ConfigError("reentrant", "needs an async on_message: sync code handles one message at a time")
        with self.lock:
            lane = self._conversations.host(agent, reentrant=reentrant)
            self._listeners[agent] = hearing(self, lane, on_message, context)

    def subscribe(self, agent: str) -> Subscription:
        """An iterator over what is sent to this id, and to the topics that the directory lists it for."""
        with self.lock:
            listener = Subscription(self, self._conversations.host(agent))
            self._listeners[agent] = listener
        return listener

    def leave(self, agent: str) -> None:
        """An agent is gone: its turns are cancelled (a thread's cannot be), and those who asked it are told."""
        with self.lock:
            listener = self._listeners.pop(agent, None)
            self._conversations.leave(agent)
            wake = self._moved_on()
        for call in wake:
            call()
        if listener is None:
            return
        if isinstance(listener, AsyncHearing) and threading.get_ident() != self._thread:
            self.loop.call_soon_threadsafe(listener.leave)
        else:
            listener.leave()

    def speaker(self, agent: str, turn: Turn | None = None) -> Speaker:
        """How an agent speaks: in a turn, or outside of any (in `run`, or as a driver)."""
        return Speaker(self, agent, turn)

    def close(self) -> None:
        """All agents leave, whoever waits is told, and nothing more is said. Call on the loop."""
        for agent in list(self._listeners):
            self.leave(agent)
        self._change(self._conversations.close)
        self._flush()
        for task in self._pushing.values():
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()

    # ── what the mesh and the coordinator say; on the loop ───────────────────────────────────────────────────────

    def receive(self, peer: str, parcels: list[bytes]) -> None:
        """Messages of a process came.

        Raises:
            BadFrame: it sent what nobody may send. All parcels before that one were taken in.
        """
        now, outsider = self.clock(), not self._trusts(peer)
        try:
            with self.lock:
                try:
                    for parcel in parcels:
                        self._conversations.receive(peer, parcel, now, outsider=outsider)
                finally:
                    wake = self._moved_on()
        finally:
            for call in wake:
                call()

    def peer_gone(self, peer: str, reason: str) -> None:
        """A process died, or has forgotten this one."""
        pushing = self._pushing.pop(peer, None)
        if pushing is not None:
            pushing.cancel()
        self._change(lambda: self._conversations.peer_gone(peer, reason))

    def learn(self, changes: Changes) -> bool:
        """The directory changed. False: something is missing, ask for the changes since `known`."""
        return bool(self._change(lambda: self._conversations.learn(changes)))

    @property
    def known(self) -> tuple[int, int]:
        """(epoch, version) of the directory that this process knows."""
        return self._conversations.places.epoch, self._conversations.places.version

    def place_of(self, agent: str) -> str:
        """The process that an agent is in; "" if that is not known."""
        with self.lock:
            return self._conversations.places.process_of(agent)

    def subscribers(self, topic: str) -> tuple[str, ...]:
        """Whom a message to this topic would go to."""
        with self.lock:
            return self._conversations.places.subscribers(topic)

    def _change(self, change: Callable[[], Any]) -> Any:
        with self.lock:
            result = change()
            wake = self._moved_on()
        for call in wake:
            call()
        return result

    # ── saying ───────────────────────────────────────────────────────────────────────────────────────────────────

    def encode(self, body: Any) -> tuple[int, bytes]:
        """(codec, bytes). Raises PayloadError: it cannot be pickled, or is larger than a message may be."""
        if type(body) is bytes:
            codec, data = BYTES, body
        else:
            name, data = self._encode(body, "message")
            codec = _CODECS[name]
        if len(data) > self.limits.message_bytes:
            limit = self.limits.message_bytes
            way_out = "give large data as a task's payload or result, and send where it is"
            raise PayloadError(
                "message", f"{len(data)} bytes; the limit (mesh.talk.message_bytes) is {limit}: {way_out}"
            )
        return codec, data

    def decode(self, codec: int, data: bytes) -> Any:
        """The inverse. Pickles of strangers do not get here."""
        return data if codec == BYTES else decode_value(_NAMES[codec], data)

    def send(self, sender: str, receiver: str, codec: int, data: bytes, topic: str = "") -> Done | Pending:
        """Send one way: done at once if there is room. Otherwise a thread waits here, and a loop gets a Pending."""
        with self.lock:
            if self._conversations.tell(sender, receiver, codec, data, topic):
                if not self._flush_due:
                    self._flush_soon()
                    self._unflushed = 0
                self._unflushed += 1
                return SENT if self._unflushed % _PAUSE_SENDS else SENT_PAUSED
        pending = Pending(self, receiver, lambda it: self._wait_for_room(it, sender, codec, data, topic))
        if not on_a_loop():
            pending.result()
        return pending

    def _wait_for_room(
        self, pending: Pending, sender: str, codec: int, data: bytes, topic: str, message_id: str = ""
    ) -> None:
        def wait() -> None:
            pending.waiter = self._conversations.wait_for_room(
                sender, pending.receiver, codec, data, topic, message_id, token=pending
            )

        self._change(wait)

    def give_up_waiting(self, pending: Pending) -> bool:
        """Do not send it after all. False if it has been sent, or has failed."""
        with self.lock:
            return pending.waiter is not None and self._conversations.give_up_waiting(pending.waiter)

    def publish(self, sender: str, topic: str, codec: int, data: bytes, message_id: str = "") -> Done | PendingPublish:
        """Send to all subscribers: done at once if all have room."""
        with self.lock:
            sent = self._conversations.publish(sender, topic, codec, data, message_id)
            if sent is not None:
                if sent and not self._flush_due:
                    self._flush_soon()
                return Done(sent)
        pending = PendingPublish(topic, lambda: self._publish_waiting(sender, topic, codec, data, message_id))
        return pending if on_a_loop() else Done(pending.result())

    def _publish_waiting(self, sender: str, topic: str, codec: int, data: bytes, message_id: str) -> list[Pending]:
        """Send to all subscribers, to each as soon as it has room."""
        sends: list[Pending] = []
        for receiver in self.subscribers(topic):
            pending = Pending(
                self, receiver, lambda it: self._wait_for_room(it, sender, codec, data, topic, message_id)
            )
            with contextlib.suppress(AgentUnreachable):  # it went away a moment ago: no subscriber any more
                pending.start()
                sends.append(pending)
        return sends

    def ask(
        self, sender: str, receiver: str, codec: int, data: bytes, timeout_s: float | None, turn: Turn | None
    ) -> Reply:
        """Send a message that wants an answer. What can be said at once is said through the Reply as well."""
        timeout_s = self.limits.ask_timeout_s if timeout_s is None else timeout_s
        reply = Reply(self, receiver)
        now = self.clock()
        with self.lock:
            try:
                asked = self._conversations.ask(
                    sender, receiver, codec, data, now=now, timeout_s=timeout_s, token=reply, turn=turn
                )
            except (AgentUnreachable, NoRoom) as error:
                reply.settle(error)
                return reply
            reply.asked = asked
            if not self._flush_due:
                self._flush_soon()
            if asked.expires_at < self._timer_at:
                self._expire_at(asked.expires_at)
        return reply

    def withdraw(self, reply: Reply, error: FlowrayError) -> None:
        """One that waited for this answer does so no more. If nobody else does, the ask is given up."""
        with self.lock:
            if reply.shared or reply.asked is None or not self._conversations.withdraw(reply.asked):
                return
            wake = reply.settle(error) + self._moved_on()
        for call in wake:
            call()

    # ── hearing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, lane: Lane, now: float) -> Turn | None:
        """Begin a turn; None when there is none: its listener will be woken."""
        with self.lock:
            turn = self._conversations.take(lane, now)
            if self._conversations.flushable and not self._flush_due:
                self._flush_soon()
        return turn

    def turn_ended(self, turn: Turn, value: Any) -> None:
        """`on_message` returned."""
        if not turn.wants_reply:
            with self.lock:
                self._conversations.end(turn)
                wake = self._moved_on() if self._conversations.woken else ()
            for call in wake:
                call()
            return
        try:
            codec, data = self.encode(value)
        except PayloadError as error:
            self.turn_failed(turn, error)
            return
        self._change(lambda: self._conversations.answer(turn, codec, data))

    def turn_failed(self, turn: Turn, error: BaseException) -> None:
        """`on_message` raised: its asker is told; without one the host is."""
        if turn.wants_reply:
            try:
                text = str(error)
            except Exception as odd:  # noqa: BLE001 - a user's exception that cannot be printed must not stop the lane
                text = f"(its text cannot be had: {type(odd).__name__})"
            self.turn_refused(turn, type(error).__name__, text)
        else:
            self._change(lambda: self._conversations.end(turn))
            self._report(turn.lane.agent, error)

    def turn_refused(self, turn: Turn, error_type: str, detail: str) -> None:
        """There will be no answer."""
        self._change(lambda: self._conversations.fail(turn, error_type, detail))

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _moved_on(self) -> list[Callable[[], None]]:
        """Something changed (the lock is held): what to call once the lock is released."""
        conversations = self._conversations
        wake: list[Callable[[], None]] = []
        while conversations.settled:
            token, outcome = conversations.settled.popleft()
            assert isinstance(token, Settling)
            wake += token.settle(outcome)
        while conversations.woken:
            listener = self._listeners.get(conversations.woken.popleft().agent)
            if listener is not None:
                wake.append(listener.wake)
        if conversations.flushable and not self._flush_due:
            self._flush_soon()
        return wake

    def _flush_soon(self) -> None:
        self._flush_due = True
        if threading.get_ident() == self._thread:
            self.loop.call_soon(self._flush)
        else:
            self.loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        """Give the mesh what waits for it, and this process what it says to itself."""
        conversations = self._conversations
        while True:
            with self.lock:
                if not conversations.flushable:
                    self._flush_due = False
                    return
                outbox = conversations.flushable.popleft()
                parcel = conversations.take_parcel(outbox)
            while parcel is not None:
                if outbox.peer == conversations.process:
                    self.receive(outbox.peer, [parcel])
                elif not self._sent(outbox.peer, parcel):
                    self._pushing[outbox.peer] = self.loop.create_task(self._push(outbox, parcel))
                    break
                with self.lock:
                    parcel = conversations.take_parcel(outbox)

    def _sent(self, peer: str, parcel: bytes) -> bool:
        try:
            return self._post.send(peer, parcel)
        except MeshError as error:
            self.peer_gone(peer, str(error))
            return True

    async def _push(self, outbox: Outbox, parcel: bytes | None) -> None:
        """A process has no room: send what waits for it, as fast as it takes it."""
        while parcel is not None:
            try:
                while not self._post.send(outbox.peer, parcel):
                    await self._post.room(outbox.peer)
            except MeshError as error:
                self._pushing.pop(outbox.peer, None)
                self.peer_gone(outbox.peer, str(error))
                return
            with self.lock:
                parcel = self._conversations.take_parcel(outbox)
        self._pushing.pop(outbox.peer, None)

    def _expire_at(self, at: float) -> None:
        """Look for asks whose time is over at this time (the lock is held)."""
        self._timer_at = at
        if threading.get_ident() == self._thread:
            self._set_timer()
        else:
            self.loop.call_soon_threadsafe(self._set_timer)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(max(0.0, self._timer_at - self.clock()), self._expire)

    def _expire(self) -> None:
        def expire() -> None:
            self._conversations.expire(self.clock())
            due = self._conversations.next_expiry()
            self._timer_at = float("inf")
            if due is not None:
                self._expire_at(due)

        self._timer = None
        self._change(expire)


class Speaker:
    """How one agent speaks, in one turn or outside of any. What it does is written at `flowray.agents.Context`."""

    __slots__ = ("_agent", "_talking", "_turn")

    def __init__(self, talking: Talking, agent: str, turn: Turn | None) -> None:
        self._talking = talking
        self._agent = agent
        self._turn = turn

    def ask(self, receiver: str, body: Any, timeout_s: float | None = None) -> Reply:
        """See Context.ask."""
        if timeout_s is not None and not timeout_s > 0:
            raise ConfigError("timeout_s", f"must be positive seconds, got {timeout_s!r}", "None for the default")
        codec, data = self._talking.encode(body)
        return self._talking.ask(self._agent, receiver, codec, data, timeout_s, self._turn)

    def send(self, receiver: str, body: Any) -> Done | Pending:
        """See Context.send."""
        codec, data = self._talking.encode(body)
        return self._talking.send(self._agent, receiver, codec, data)

    def publish(self, topic: str, body: Any, message_id: str = "") -> Done | PendingPublish:
        """See Context.publish."""
        codec, data = self._talking.encode(body)
        return self._talking.publish(self._agent, topic, codec, data, message_id)

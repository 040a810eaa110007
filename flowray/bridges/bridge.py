"""The life of a bridge, whatever the server: its routes run side by side, reconnect, and stop cleanly."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Self

from msgspec import structs

from flowray.bridges import trail
from flowray.bridges.address import Address
from flowray.bridges.backoff import Backoff
from flowray.bridges.config import MESSAGE_ID_BYTES, BridgeConfig, InboundConfig, OutboundConfig
from flowray.bridges.figures import Figures
from flowray.bridges.outbox import Outbox, Sending
from flowray.bridges.topics import Subscription, TopicMessage, Topics
from flowray.errors import NotConnected

log = logging.getLogger(__name__)
SETTLE_S = 2.0  # after giving up what is in hand: to acknowledge what was taken over
LOOK_S = 0.25  # how often a route that waits for messages looks whether it should stop


class Lane:
    """One route: a connection of its own, so that a topic that takes nothing holds up its own messages only."""

    def __init__(self, name: str, backoff: Backoff) -> None:
        self.name = name
        self.backoff = backoff
        self.connected = False
        self.was_connected = False  # ever
        self.in_hand = 0  # messages read and not acknowledged

    def up(self) -> None:
        """The connection is ready for messages."""
        self.connected = self.was_connected = True

    def worked(self) -> None:
        """A batch is settled: only that shows that all is well, for a connection may break again and again."""
        self.in_hand = 0
        self.backoff.reset()


class Poison(Exception):
    """A message that can never be passed on, and why."""


class Bridge(ABC):
    """Use `async with open_bridge(config, topics) as bridge`, or `start` and `stop`."""

    def __init__(self, config: BridgeConfig, topics: Topics) -> None:
        self.config, self.limits = config, config.limits
        self._topics = topics
        self._address = Address(config.url, config.kind)
        self._figures = Figures(lanes=len(config.inbound) + len(config.outbound))
        self._lanes: list[Lane] = []
        self._outboxes: list[Outbox] = []
        self._subscriptions: list[Subscription] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()  # read nothing more
        self._gave_up = asyncio.Event()  # and let go of what is in hand
        self._ended = asyncio.Event()
        self._failure: BaseException | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config.name!r})"

    # ── what a kind of server adds ───────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    async def _read(self, route: InboundConfig, lane: Lane) -> None:
        """Connect, and bring messages in until `_stopping`; raises when the connection breaks."""

    @abstractmethod
    async def _write(self, route: OutboundConfig, outbox: Outbox, lane: Lane) -> None:
        """Connect, and send what the outbox holds, for ever; raises when the connection breaks."""

    @abstractmethod
    def _judge(self, error: Exception, lane: Lane) -> Exception | None:
        """What ends the bridge for this error; None where connecting again may help."""

    async def _open(self) -> None:  # noqa: B027 - most have nothing to do
        """Before anything else; may raise."""

    async def _close(self) -> None:  # noqa: B027
        """After everything else."""

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Begin to connect and to carry; returns without waiting for the server. Once for each object.

        Raises:
            ConfigError: the URL is not where the configuration says, or is none for this server.
            StoreError: the file of ids cannot be used.
        """
        if self._lanes or self._ended.is_set():
            raise NotConnected(f"bridge {self.config.name}: was started before; make a new one")
        self._address.read()
        await self._open()
        for inbound in self.config.inbound:
            lane = self._lane(f"{inbound.source} -> {inbound.topic}")
            self._spawn(lane, partial(self._read, inbound), self._stopping)
        try:
            for outbound in self.config.outbound:
                lane = self._lane(f"{outbound.topic} -> {outbound.target or outbound.routing_key}")
                outbox = Outbox(self.limits.buffer_messages, self.limits.buffer_bytes)
                self._outboxes.append(outbox)
                self._spawn(lane, partial(self._write, outbound, outbox), self._gave_up)
                self._subscriptions.append(await self._topics.subscribe(outbound.topic, self._sender(outbox)))
        except BaseException:
            self._stopping.set()
            self._gave_up.set()
            await self._end()
            raise

    async def stop(self) -> None:
        """Read nothing more, finish what is in hand for up to `limits.drain_s`, acknowledge it, and disconnect.

        What is not finished then stays with its source: messages of the server unacknowledged, and subscribers'
        calls raise NotConnected. Again: nothing.
        """
        if self._stopping.is_set():
            await self._ended.wait()
            return
        self._stopping.set()
        loop = asyncio.get_running_loop()
        until = loop.time() + self.limits.drain_s
        try:
            for subscription in self._subscriptions:
                await subscription.close()
            while self._failure is None and loop.time() < until:
                if not any(len(outbox) for outbox in self._outboxes) and all(task.done() for task in self._readers()):
                    break
                await asyncio.sleep(0.01)
            self._gave_up.set()
            if self._readers():
                await asyncio.wait(self._readers(), timeout=SETTLE_S)
        finally:
            await self._end()

    async def wait(self) -> None:
        """Return when the bridge has been stopped; raise what ended it, if something did."""
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure

    def figures(self) -> Figures:
        """What happened so far, and how it stands."""
        pending = sum(lane.in_hand for lane in self._lanes) + sum(len(outbox) for outbox in self._outboxes)
        return structs.replace(
            self._figures,
            pending=pending,
            pending_bytes=sum(outbox.held_bytes for outbox in self._outboxes),
            connected=sum(lane.connected for lane in self._lanes),
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _readers(self) -> list[asyncio.Task[None]]:
        return self._tasks[: len(self.config.inbound)]

    def _reading(self) -> bool:
        return go_on() and not self._stopping.is_set()

    def _lane(self, name: str) -> Lane:
        lane = Lane(name, Backoff(self.limits.reconnect_min_s, self.limits.reconnect_max_s))
        self._lanes.append(lane)
        return lane

    def _spawn(self, lane: Lane, session: Callable[[Lane], Awaitable[None]], until: asyncio.Event) -> None:
        task = asyncio.ensure_future(self._keep(lane, session, until))
        task.set_name(f"bridge {self.config.name}: {lane.name}")
        self._tasks.append(task)

    async def _keep(self, lane: Lane, session: Callable[[Lane], Awaitable[None]], until: asyncio.Event) -> None:
        """Run sessions of one lane, one after another, until it is time to stop."""
        loop = asyncio.get_running_loop()
        while go_on() and not until.is_set():
            began_s = loop.time()
            try:
                await _unless_ours(session(lane))
                return
            except Exception as error:  # noqa: BLE001 - judged by the kind of server; what it does not know ends us
                end = self._judge(error, lane)
                if end is not None:
                    self._fail(end, lane)
                    return
                self._figures.reconnects += 1
                self._figures.last_error = f"{lane.name}: {type(error).__name__}: {self._address.hide(str(error))}"
                if lane.connected:
                    log.warning("bridge %s: lost its server: %s", self.config.name, self._figures.last_error)
            finally:
                lane.connected = False
                lane.in_hand = 0
            if loop.time() - began_s > self.limits.reconnect_max_s:
                lane.backoff.reset()  # it had nothing to do for long, and held
            await lane.backoff.wait(until)

    def _fail(self, error: Exception, lane: Lane) -> None:
        """End everything, from within a lane."""
        if self._failure is None:
            self._failure = error
            self._figures.last_error = f"{lane.name}: {type(error).__name__}: {self._address.hide(str(error))}"
            log.error("bridge %s ends: %s", self.config.name, self._figures.last_error)
        if not self._stopping.is_set():
            self._stopping.set()
            self._gave_up.set()
            # Not awaited here: it waits for the lanes, and we are one. Kept, or it could be collected half-way.
            self._last_task = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        """Cut off what still runs, answer whoever waits, and let go of the server."""
        why = NotConnected(f"bridge {self.config.name} is stopped; this message was not confirmed")
        for outbox in self._outboxes:
            outbox.close(why)
        await end(*self._tasks)
        try:
            for subscription in self._subscriptions:
                await subscription.close()
            await self._close()
        finally:
            self._ended.set()

    def _sender(self, outbox: Outbox) -> Callable[[TopicMessage], Awaitable[None]]:
        async def send(message: TopicMessage) -> None:
            if trail.passed(self.config.name, message.message_id):
                self._figures.own += 1
                return
            await outbox.deliver(Sending(message, self._why_not(message)))

        return send

    def _why_not(self, message: TopicMessage) -> str:
        """Why this message cannot be sent; "" when it can."""
        if len(message.body) > self.limits.message_bytes:
            return f"the body has {len(message.body)} bytes, more than message_bytes ({self.limits.message_bytes})"
        if len(message.message_id.encode()) > MESSAGE_ID_BYTES:
            return f"the message id has more than {MESSAGE_ID_BYTES} bytes"
        return ""

    def _accept(self, message_id: str, body: bytes) -> str:
        """The id inside flowray of a message from outside. Raises Poison when it cannot be brought in."""
        if len(body) > self.limits.message_bytes:
            raise Poison(f"the body has {len(body)} bytes, more than message_bytes ({self.limits.message_bytes})")
        if not message_id:
            raise Poison("the message id is empty")
        arrived = trail.arrived(self.config.name, message_id)
        if len(arrived.encode()) > MESSAGE_ID_BYTES:
            raise Poison(f"the message id and this bridge's name have more than {MESSAGE_ID_BYTES} bytes together")
        return arrived

    def _is_own(self, origin: str, message_id: str) -> bool:
        return origin == self.config.name or trail.passed(self.config.name, message_id)


def go_on() -> bool:
    """True; raises CancelledError in a task that was cancelled and whose cancellation a library has swallowed.

    `asyncio.wait_for` of Python 3.11, which redis-py sends with, does so when what it waits for is done already.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    return True


async def end(*tasks: asyncio.Task[None]) -> None:
    """Cancel these and wait until they are done; again and again, for the reason above."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.1)


async def _unless_ours(session: Awaitable[None]) -> None:
    """Await it. Libraries cancel what waits on a connection that breaks; nobody has cancelled us then: say it so."""
    try:
        await session
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise ConnectionError("the connection was closed") from None

"""A bridge to RabbitMQ, both ways at least once, and once only within the window of remembered ids.

RabbitMQ remembers no ids, so the bridge keeps them in a SQLite file (`window_file`, local disk, synced). Inbound, a
message is published into flowray, its id written to the file, then the delivery is acknowledged. What holds after which
crash, for messages that carry the AMQP property `message_id`:

- The bridge dies before flowray has taken a message over: RabbitMQ delivers it again. Nothing is lost.
- It dies between the file and the acknowledgement: it is delivered again and dropped by its id. Nothing comes twice.
- It dies between flowray's taking over and the file: what was taken over of the batch in hand (at most `batch`) is
  published again, with the same message ids. Nothing but flowray's own dropping by id can close this gap.
- RabbitMQ dies or the connection breaks: what was not acknowledged is delivered again, and dropped if taken over.
- The file is lost: what was taken over and not acknowledged at that moment comes twice.

A message without `message_id` cannot be recognised: it gets a new id each time, and comes twice where the above says
"dropped".

Outbound, messages are persistent and mandatory, and a call returns with the publisher confirm. An id that was confirmed
is in the file and not sent again. Where a connection breaks between RabbitMQ's accepting and its confirm, the message
is sent again with the same `message_id`: consumers drop it by that. A message that no queue wants goes to the dead
letters. Confirms of a classic or quorum queue mean that it is on disk (of the majority).

One kind of poison stops a queue: a message whose AMQP properties are not UTF-8. The client library cannot read it and
closes the connection, so RabbitMQ delivers it again; `figures().last_error` says so ("Could not unmarshal"). RabbitMQ
puts such a message aside by itself where the queue is a quorum queue with `x-delivery-limit`.

The dead letters are an exchange (fanout) with a queue of the same name, at most `dead_letters` messages.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiormq
from aiormq import exceptions
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp.commands import Basic
from yarl import URL

from flowray.bridges import trail
from flowray.bridges.bridge import LOOK_S, Bridge, Lane, Poison, go_on
from flowray.bridges.config import BridgeConfig, InboundConfig, OutboundConfig
from flowray.bridges.handover import Arrival, hand_over
from flowray.bridges.outbox import Outbox, Sending
from flowray.bridges.recent import Recent
from flowray.bridges.window import IdWindow
from flowray.errors import ConfigError

if TYPE_CHECKING:
    from flowray.bridges.topics import Topics

_PERSISTENT = 2
_WRONG = (exceptions.ChannelNotFoundEntity, exceptions.ChannelPreconditionFailed, exceptions.ChannelAccessRefused)


class Inbox:
    """Deliveries that were read and not looked at; RabbitMQ's prefetch bounds them."""

    def __init__(self) -> None:
        self._waiting: deque[DeliveredMessage] = deque()
        self._filled = asyncio.Event()

    async def put(self, message: DeliveredMessage) -> None:
        self._waiting.append(message)
        self._filled.set()

    async def take(self, max_messages: int, max_bytes: int, wait_s: float) -> list[DeliveredMessage]:
        """What is there, after waiting for something."""
        if not self._waiting:
            self._filled.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._filled.wait()
            except TimeoutError:
                return []
        batch: list[DeliveredMessage] = []
        size = 0
        while self._waiting and len(batch) < max_messages and size < max_bytes:
            batch.append(self._waiting.popleft())
            size += len(batch[-1].body)
        return batch


class RabbitBridge(Bridge):
    """Queues in, exchanges out. RabbitMQ 3.10 or later, AMQP 0.9.1."""

    def __init__(self, config: BridgeConfig, topics: Topics) -> None:
        super().__init__(config, topics)
        self._recent = {route.source: Recent(self.limits.window_ids) for route in config.inbound}
        self._seen: IdWindow | None = None

    @property
    def _window(self) -> IdWindow:
        assert self._seen is not None, "_open comes first"
        return self._seen

    async def _open(self) -> None:
        self._seen = IdWindow(Path(self.config.window_file), self.limits.window_ids)

    async def _close(self) -> None:
        if self._seen is not None:
            seen, self._seen = self._seen, None
            await seen.close()

    def _judge(self, error: Exception, lane: Lane) -> Exception | None:
        refused = (
            exceptions.AuthenticationError,
            exceptions.ProbableAuthenticationError,
            exceptions.ConnectionNotAllowed,
        )
        if isinstance(error, refused) and not lane.was_connected:
            return ConfigError("url", f"RabbitMQ refuses it: {self._address.hide(str(error))}")
        if isinstance(error, _WRONG) and not lane.was_connected:
            return ConfigError("source or target", f"{lane.name}: {error}", "make it, or let `declare: true` do so")
        passing = (exceptions.AMQPError, exceptions.ChannelInvalidStateError, OSError)  # TimeoutError is an OSError
        return None if isinstance(error, passing) else error

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[Channel]:
        """A connection of its own with one channel, for one session."""
        async with asyncio.timeout(self.limits.answer_within_s):
            try:
                url = URL(self._address.read())
                if "heartbeat" not in url.query:  # the default would notice a dead server after three minutes
                    url = url.update_query(heartbeat=max(1, round(self.limits.answer_within_s / 3)))
                connection = await aiormq.connect(url)
            except (ValueError, TypeError):
                raise ConfigError("url", "has an option that aiormq does not know") from None
        try:
            async with asyncio.timeout(self.limits.answer_within_s):
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                assert isinstance(channel, Channel)
            try:
                yield channel
            except (exceptions.ChannelInvalidStateError, ConnectionError) as error:
                closing = connection.closing
                if closing.done() and not closing.cancelled() and (reason := closing.exception()) is not None:
                    raise reason from error  # what closed it says more
                raise
        finally:
            try:
                async with asyncio.timeout(LOOK_S):
                    await connection.close()
            except (TimeoutError, exceptions.AMQPError, ConnectionError) as error:
                self._figures.last_error = f"closing: {type(error).__name__}: {self._address.hide(str(error))}"

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self, route: InboundConfig, lane: Lane) -> None:
        inbox = Inbox()
        async with self._channel() as channel:
            await channel.basic_qos(prefetch_count=2 * self.limits.batch)
            await channel.queue_declare(route.source, durable=True, passive=not self.config.declare)
            consuming = await channel.basic_consume(route.source, inbox.put)
            lane.up()
            while self._reading():
                batch = await inbox.take(self.limits.batch, self.limits.batch_bytes, LOOK_S)
                if batch:
                    lane.in_hand = len(batch)
                    await self._take_over(channel, route, batch)
                    lane.worked()
                elif channel.is_closed or consuming.consumer_tag not in channel.consumers:
                    raise exceptions.ChannelInvalidStateError("the channel was closed, or the queue deleted")

    async def _take_over(self, channel: Channel, route: InboundConfig, batch: list[DeliveredMessage]) -> None:
        """Publish what is new among these, then remember and acknowledge all that is settled."""
        arrivals: list[Arrival[DeliveredMessage]] = []
        buried: list[Arrival[DeliveredMessage]] = []
        for message in batch:
            try:
                arrival = self._decode(message)
            except Poison as poison:
                arrival = Arrival(message, "", message.body)
                arrival.reason = str(poison)
                buried.append(arrival)
            else:
                if arrival is None:
                    self._figures.own += 1
                else:
                    arrivals.append(arrival)
        fresh = await self._fresh(route.source, arrivals)
        taken, dead = await hand_over(self._topics, route.topic, fresh, self.limits, self._figures, self._gave_up)
        ids = [arrival.message_id for arrival in taken]
        self._recent[route.source].add(ids)  # before anything can fail: these must not be published again
        self._figures.messages_in += len(taken)
        if ids:
            await self._window.add(f"in {route.source}", ids)
        for arrival in (*buried, *dead):
            await self._bury(channel, route.source, arrival.reason, arrival.mark.body, arrival.mark.header.properties)
        done = {id(arrival) for arrival in (*taken, *dead)}
        left = {id(arrival.mark) for arrival in fresh if id(arrival) not in done}
        if left:  # stopping: these stay RabbitMQ's
            for message in batch:
                if id(message) not in left and message.delivery_tag is not None:
                    await channel.basic_ack(message.delivery_tag)
        elif batch[-1].delivery_tag is not None:
            await channel.basic_ack(batch[-1].delivery_tag, multiple=True)

    def _decode(self, message: DeliveredMessage) -> Arrival[DeliveredMessage] | None:
        """The message; None for one that this bridge itself had sent. Raises Poison."""
        properties = message.header.properties
        message_id = properties.message_id or uuid.uuid4().hex
        origin = (properties.headers or {}).get(trail.ORIGIN, "")
        if self._is_own(origin if isinstance(origin, str) else "", message_id):
            return None
        return Arrival(message, self._accept(message_id, message.body), message.body)

    async def _fresh(self, queue: str, arrivals: list[Arrival[DeliveredMessage]]) -> list[Arrival[DeliveredMessage]]:
        """Those never taken over before."""
        if not arrivals:
            return []
        recent = self._recent[queue]
        known = await self._window.known(f"in {queue}", [arrival.message_id for arrival in arrivals])
        fresh: dict[str, Arrival[DeliveredMessage]] = {}
        for arrival in arrivals:
            if arrival.message_id in known or arrival.message_id in recent or arrival.message_id in fresh:
                self._figures.duplicates_in += 1
            else:
                fresh[arrival.message_id] = arrival
        return list(fresh.values())

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _write(self, route: OutboundConfig, outbox: Outbox, lane: Lane) -> None:
        async with self._channel() as channel:
            if not route.target and self.config.declare:
                await channel.queue_declare(route.routing_key, durable=True)
            elif route.target:
                await channel.exchange_declare(route.target, passive=True)
            lane.up()
            while go_on():
                batch = await outbox.take(self.limits.batch, self.limits.batch_bytes)
                left = await self._send(channel, route, outbox, batch)
                if left:  # refused by a full queue, for example
                    await lane.backoff.wait(self._gave_up)
                else:
                    lane.worked()

    async def _send(
        self, channel: Channel, route: OutboundConfig, outbox: Outbox, batch: list[Sending]
    ) -> list[Sending]:
        """Send a batch; returns what RabbitMQ did not take now. Raises when the connection breaks."""
        window = f"out {route.target}/{route.routing_key}"
        known = await self._window.known(window, [sending.message.message_id for sending in batch])
        again = [sending for sending in batch if sending.message.message_id in known]
        self._figures.duplicates_out += len(again)
        outbox.confirm(again)
        fresh = [sending for sending in batch if sending.message.message_id not in known]
        answers = await _answers(
            channel, [self._publish(channel, route, sending) for sending in fresh if not sending.reason]
        )
        sent: list[Sending] = []
        left: list[Sending] = []
        broken: BaseException | None = None
        for sending, answer in zip((s for s in fresh if not s.reason), answers, strict=True):
            if isinstance(answer, exceptions.PublishError):
                sending.reason = f"no queue wants it: {answer}"
            elif isinstance(answer, exceptions.DeliveryError):
                self._figures.last_error = f"{route.topic}: {answer}"
                left.append(sending)
            elif isinstance(answer, asyncio.CancelledError):
                broken = exceptions.ChannelInvalidStateError("the channel was closed before the confirm")
            elif isinstance(answer, BaseException):
                broken = answer
            else:
                sent.append(sending)
        if sent:
            await self._window.add(window, [sending.message.message_id for sending in sent])
        self._figures.messages_out += len(sent)
        outbox.confirm(sent)
        if broken is not None:
            raise broken
        for sending in (sending for sending in fresh if sending.reason):
            message = sending.message
            properties = Basic.Properties(
                headers={"message_id": message.message_id}
            )  # it may be too long for AMQP's own
            await self._bury(channel, f"topic {message.topic}", sending.reason, message.body, properties)
            outbox.confirm([sending])
        return left

    async def _publish(self, channel: Channel, route: OutboundConfig, sending: Sending) -> None:
        message = sending.message
        properties = Basic.Properties(
            message_id=message.message_id,
            delivery_mode=_PERSISTENT,
            headers={trail.ORIGIN: self.config.name, "topic": message.topic, "publisher": message.publisher},
        )
        await channel.basic_publish(
            message.body,
            exchange=route.target,
            routing_key=route.routing_key,
            properties=properties,
            mandatory=True,
            wait=False,
        )

    async def _bury(
        self, channel: Channel, source: str, reason: str, body: bytes, properties: Basic.Properties
    ) -> None:
        """Send it to the dead letters, with the reason, and wait until it is safe there."""
        name = self.config.dead_name
        await channel.exchange_declare(name, exchange_type="fanout", durable=True)
        await channel.queue_declare(name, durable=True, arguments={"x-max-length": self.limits.dead_letters})
        await channel.queue_bind(name, name)
        headers = {**(properties.headers or {}), "reason": reason[:1000], "source": source}
        headers[trail.ORIGIN] = self.config.name
        buried = Basic.Properties(
            message_id=properties.message_id,
            content_type=properties.content_type,
            delivery_mode=_PERSISTENT,
            headers=headers,
        )
        await channel.basic_publish(body, exchange=name, properties=buried, mandatory=True)
        self._figures.dead += 1


async def _answers(channel: Channel, publishing: Sequence[Coroutine[Any, Any, None]]) -> list[BaseException | None]:
    """What becomes of each, in their order; a CancelledError is one whose confirm nobody waits for any more.

    aiormq tells those that wait for a confirm when their channel closes, but not one that began to wait just then: it
    would wait for ever. So the channel is looked at meanwhile.
    """
    tasks = [asyncio.ensure_future(one) for one in publishing]
    pending = set(tasks)
    try:
        while pending:
            _, pending = await asyncio.wait(pending, timeout=LOOK_S)
            if channel.is_closed:
                break
    finally:
        for task in pending:
            task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)

"""A bridge to Redis pub/sub: at most once, because Redis keeps nothing for who is not listening.

Inbound, a message published while the bridge is not connected, or does not read for so long that Redis cuts it off
(its `client-output-buffer-limit pubsub`), is gone and cannot be counted. What was read is published into flowray and
tried again until taken; with the process it is gone too. While flowray takes nothing, nothing is read.

Outbound, `on_message` returns once Redis has been given the message. If the connection breaks at that moment it may or
may not have been passed on; it is not sent again, and counted as `lost`.

With `envelope: true` both sides are flowray bridges: a message travels as msgpack [id, origin, topic, publisher, body],
keeps its id (so that one sent twice by its publisher is dropped, by the ids in memory) and does not go in circles.
Without it a channel carries bare bodies, each with a new id, and the configuration refuses one that is both read and
written. Use Streams where messages must not be lost.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from redis import exceptions

from flowray.bridges.bridge import LOOK_S, Lane, Poison, go_on
from flowray.bridges.config import BridgeConfig, InboundConfig, OutboundConfig
from flowray.bridges.handover import Arrival, hand_over
from flowray.bridges.outbox import Outbox
from flowray.bridges.recent import Recent
from flowray.bridges.redis_server import RedisBridge

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from flowray.bridges.topics import TopicMessage, Topics


class Envelope(Struct, frozen=True, array_like=True):
    """A message with what it needs to keep on a channel between two bridges."""

    message_id: str
    origin: str
    topic: str
    publisher: str
    body: bytes


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Envelope)


class RedisPubSubBridge(RedisBridge):
    """Channels in and out."""

    def __init__(self, config: BridgeConfig, topics: Topics) -> None:
        super().__init__(config, topics)
        self._recent = {route.source: Recent(self.limits.window_ids) for route in config.inbound}

    async def _read(self, route: InboundConfig, lane: Lane) -> None:
        async with self._client() as client, client.pubsub() as channel:
            await channel.subscribe(route.source)
            first = await channel.get_message(timeout=self.limits.answer_within_s)
            if first is None or first["type"] != "subscribe":
                raise exceptions.TimeoutError("no answer to SUBSCRIBE")
            lane.up()
            while self._reading():
                batch = await self._next(channel)
                if batch:
                    lane.in_hand = len(batch)
                    await self._take_over(client, route, batch)
                    lane.worked()

    async def _next(self, channel: Any) -> list[bytes]:
        """The bodies that are there, after waiting for one."""
        bodies: list[bytes] = []
        size, wait_s = 0, LOOK_S
        while len(bodies) < self.limits.batch and size < self.limits.batch_bytes:
            message = await channel.get_message(timeout=wait_s)
            if message is None:
                break
            if message["type"] == "message":
                bodies.append(message["data"])
                size += len(message["data"])
            wait_s = 0.0
        return bodies

    async def _take_over(self, client: Redis, route: InboundConfig, bodies: list[bytes]) -> None:
        recent = self._recent[route.source]
        fresh: dict[str, Arrival[bytes]] = {}
        for raw in bodies:
            try:
                arrival = self._decode(route, raw)
            except Poison as poison:
                await self._bury(client, route.source, str(poison), {"body": raw})
                continue
            if arrival is None:
                self._figures.own += 1
            elif arrival.message_id in recent or arrival.message_id in fresh:
                self._figures.duplicates_in += 1
            else:
                fresh[arrival.message_id] = arrival
        arrivals = list(fresh.values())
        taken, dead = await hand_over(self._topics, route.topic, arrivals, self.limits, self._figures, self._gave_up)
        recent.add(arrival.message_id for arrival in taken)
        self._figures.messages_in += len(taken)
        self._figures.lost += len(fresh) - len(taken) - len(dead)
        for arrival in dead:
            await self._bury(client, route.source, arrival.reason, {"body": arrival.mark})

    def _decode(self, route: InboundConfig, raw: bytes) -> Arrival[bytes] | None:
        """The message; None for one that this bridge itself had sent. Raises Poison."""
        if not self.config.envelope:
            message_id, body = f"{route.source}:{uuid.uuid4().hex}", raw
        else:
            try:
                envelope = _decoder.decode(raw)
            except (msgspec.DecodeError, RecursionError) as error:
                raise Poison(f"not an envelope: {error}") from None
            message_id, body = envelope.message_id, envelope.body
            if self._is_own(envelope.origin, message_id):
                return None
        return Arrival(raw, self._accept(message_id, body), body)

    async def _write(self, route: OutboundConfig, outbox: Outbox, lane: Lane) -> None:
        async with self._client() as client:
            await client.ping()
            lane.up()
            while go_on():
                good = await self._sendable(client, outbox)
                if not good:
                    continue
                await client.ping()  # not part of what may be lost: a connection that broke while idle shows here
                pipeline = client.pipeline(transaction=False)
                for sending in good:
                    pipeline.publish(route.target, self._wrap(sending.message))
                try:
                    await pipeline.execute()
                except BaseException:
                    self._figures.lost += len(good)
                    raise
                else:
                    self._figures.messages_out += len(good)
                    lane.worked()
                finally:
                    outbox.confirm(good)

    def _wrap(self, message: TopicMessage) -> bytes:
        if not self.config.envelope:
            return message.body
        name = self.config.name
        return _encode(Envelope(message.message_id, name, message.topic, message.publisher, message.body))

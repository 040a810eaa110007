"""A bridge to Redis Streams, both ways at least once, and once only within the window of remembered ids.

Inbound, an entry is read for a consumer group, published into flowray, and then, in one script that runs in Redis as a
whole, its message id is remembered and the entry acknowledged. What holds after which crash:

- The bridge dies before flowray has taken an entry over: it is still pending in Redis; this bridge, started again with
  the same `consumer`, reads it first; another process of the group claims it after `claim_after_s`. Nothing is lost.
- It dies after the script: remembered and acknowledged. Nothing comes twice.
- It dies between flowray's taking over and the script: Redis does not know. What was taken over of the batch in hand
  (at most `batch` entries for each route) is published again, with the same message ids. Nothing but flowray's own
  dropping by id can close this gap; `batch: 1` makes it one message.
- `stop()` or a broken connection: nothing comes twice, as the ids are in memory besides.
- Redis dies: what it confirmed is as durable as its configuration (`appendfsync always` for all of it). If it forgets
  that entries were acknowledged, they come again and the bridge, still running, drops them by the ids in memory.
- Another process claims an entry that this one holds: only when this one has not said for `claim_after_s` that it
  still works on it (it says so three times as often). Then the entry may be published by both.

A producer that may repeat itself sets the field `message_id`; without it the entry's own id is taken. An entry that is
trimmed from the stream before it is read is gone: do not trim shorter than the longest outage.

Outbound, a script adds a message and its id together, so a batch that is sent again after a broken connection, or a
message that flowray delivers again, is in the stream once. Fields: message_id, body, topic, publisher, flowray-origin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from redis import exceptions

from flowray.bridges import redis_scripts, trail
from flowray.bridges.bridge import LOOK_S, Lane, Poison, end, go_on
from flowray.bridges.config import BridgeConfig, InboundConfig, OutboundConfig
from flowray.bridges.handover import Arrival, hand_over
from flowray.bridges.outbox import Outbox
from flowray.bridges.recent import Recent
from flowray.bridges.redis_server import RedisBridge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from flowray.bridges.topics import Topics

Entries = Sequence[tuple[bytes, dict[bytes, bytes] | None]]


class RedisStreamBridge(RedisBridge):
    """Streams in, by a consumer group, and out."""

    def __init__(self, config: BridgeConfig, topics: Topics) -> None:
        super().__init__(config, topics)
        self._group = config.group or config.name
        self._consumer = config.consumer or config.name
        self._recent = {route.source: Recent(self.limits.window_ids) for route in config.inbound}

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self, route: InboundConfig, lane: Lane) -> None:
        loop = asyncio.get_running_loop()
        limits = self.limits
        async with self._client(LOOK_S) as client:
            await self._make_group(client, route.source, lane)
            lane.up()
            own = True  # first what was read before and not acknowledged
            cursor, claim_at_s = b"0-0", loop.time()
            count = limits.batch
            while self._reading():
                if own:
                    entries = await self._next(client, route.source, "0", count)
                    own = bool(entries)
                elif loop.time() >= claim_at_s:
                    cursor, entries = await self._claim(client, route.source, cursor, count)
                    if cursor == b"0-0":
                        claim_at_s = loop.time() + limits.claim_after_s / 2
                else:
                    entries = await self._next(client, route.source, ">", count)
                if entries:
                    lane.in_hand = len(entries)
                    await self._take_over(client, route, entries)
                    lane.worked()
                    count = self._next_count(entries, count)

    def _next_count(self, entries: Entries, count: int) -> int:
        """Entries to ask for so that about `batch_bytes` come: less at once, more step by step."""
        largest = max(sum(map(len, fields.values())) if fields else 0 for _, fields in entries)
        return max(1, min(self.limits.batch, 2 * count, self.limits.batch_bytes // max(1, largest)))

    async def _make_group(self, client: Redis, stream: str, lane: Lane) -> None:
        # A group that is gone in the middle (the server lost it) begins with all there is; the window sorts it out.
        start = "0" if self.config.start == "oldest" or lane.was_connected else "$"
        try:
            await client.execute_command("XGROUP", "CREATE", stream, self._group, start, "MKSTREAM")
        except exceptions.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def _next(self, client: Redis, stream: str, after: str, count: int) -> Entries:
        found = await client.xreadgroup(
            self._group, self._consumer, {stream: after}, count=count, block=int(LOOK_S * 1000)
        )
        return found[0][1] if found else ()

    async def _claim(self, client: Redis, stream: str, cursor: bytes, count: int) -> tuple[bytes, Entries]:
        idle_ms = int(self.limits.claim_after_s * 1000)
        found: Any = await client.xautoclaim(stream, self._group, self._consumer, idle_ms, start_id=cursor, count=count)
        self._figures.lost += len(found[2]) if len(found) > 2 else 0  # deleted from the stream, unread
        return found[0], found[1]

    async def _take_over(self, client: Redis, route: InboundConfig, entries: Entries) -> None:
        """Publish what is new among these, then remember and acknowledge all that is settled."""
        settled: list[bytes] = []  # entries to acknowledge
        arrivals: list[Arrival[bytes]] = []
        for entry, fields in entries:
            if not fields:  # deleted from the stream since it was delivered
                self._figures.lost += 1
                settled.append(entry)
                continue
            try:
                arrival = self._decode(route, entry, fields)
            except Poison as poison:
                await self._bury_entry(client, route.source, entry, str(poison))
                continue
            if arrival is None:
                self._figures.own += 1
                settled.append(entry)
            else:
                arrivals.append(arrival)
        fresh = await self._fresh(client, route.source, arrivals, settled)
        async with self._holding(client, route.source, [arrival.mark for arrival in fresh]):
            taken, dead = await hand_over(self._topics, route.topic, fresh, self.limits, self._figures, self._gave_up)
        ids = [arrival.message_id for arrival in taken]
        self._recent[route.source].add(ids)  # before anything can fail: these must not be published again
        self._figures.messages_in += len(taken)
        settled += [arrival.mark for arrival in taken]
        if settled:
            arguments = (self._group, self.limits.window_ids, len(ids), *ids, *settled)
            await self._script(client, redis_scripts.SETTLE, (route.source, self._window(route.source)), arguments)
        for arrival in dead:
            await self._bury_entry(client, route.source, arrival.mark, arrival.reason)

    def _decode(self, route: InboundConfig, entry: bytes, fields: dict[bytes, bytes]) -> Arrival[bytes] | None:
        """The message in an entry; None for one that this bridge itself had sent. Raises Poison."""
        body = fields.get(route.body_field.encode())
        if body is None:
            raise Poison(f"the entry has no field {route.body_field!r}")
        try:
            given = fields.get(route.id_field.encode())
            message_id = f"{route.source}:{entry.decode()}" if given is None else given.decode()
            origin = fields.get(trail.ORIGIN.encode(), b"").decode()
        except UnicodeDecodeError:
            raise Poison("the message id or the origin is not UTF-8") from None
        if self._is_own(origin, message_id):
            return None
        return Arrival(entry, self._accept(message_id, body), body)

    async def _fresh(
        self, client: Redis, stream: str, arrivals: list[Arrival[bytes]], settled: list[bytes]
    ) -> list[Arrival[bytes]]:
        """Those never taken over before; the others go to `settled`."""
        if not arrivals:
            return []
        recent = self._recent[stream]
        ids = [arrival.message_id for arrival in arrivals]
        scores = await client.execute_command("ZMSCORE", self._window(stream), *ids)
        fresh: dict[str, Arrival[bytes]] = {}
        for arrival, score in zip(arrivals, scores, strict=True):
            if score is not None or arrival.message_id in recent or arrival.message_id in fresh:
                self._figures.duplicates_in += 1
                settled.append(arrival.mark)
            else:
                fresh[arrival.message_id] = arrival
        return list(fresh.values())

    @asynccontextmanager
    async def _holding(self, client: Redis, stream: str, entries: list[bytes]) -> AsyncIterator[None]:
        """Meanwhile tell Redis again and again that these are being worked on, so that nobody claims them."""

        async def hold() -> None:
            while True:
                await asyncio.sleep(self.limits.claim_after_s / 3)
                for start in range(0, len(entries), 100):
                    part = entries[start : start + 100]
                    await client.xclaim(stream, self._group, self._consumer, 0, part, justid=True)

        task = asyncio.ensure_future(hold())
        try:
            yield
        finally:
            await end(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                # A connection that broke shows at the next command as well; here only nobody was told.
                if not isinstance(error, (exceptions.RedisError, OSError)):
                    raise error
                self._figures.last_error = f"{stream}: {type(error).__name__}: {self._address.hide(str(error))}"

    async def _bury_entry(self, client: Redis, stream: str, entry: bytes, reason: str) -> None:
        arguments = (self._group, entry, self.limits.dead_letters, reason[:1000], self.config.name)
        await self._script(client, redis_scripts.BURY, (stream, self.config.dead_name), arguments)
        self._figures.dead += 1

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _write(self, route: OutboundConfig, outbox: Outbox, lane: Lane) -> None:
        async with self._client() as client:
            await client.ping()
            lane.up()
            keys = (route.target, f"flowray:sent:{{{route.target}}}:{self.config.name}")
            limits = self.limits
            while go_on():
                good = await self._sendable(client, outbox)
                if not good:
                    continue
                arguments: list[Any] = [self.config.name, limits.window_ids, route.max_entries]
                for sending in good:
                    message = sending.message
                    arguments += [message.message_id, message.topic, message.publisher, message.body]
                known = await self._script(client, redis_scripts.SEND, keys, arguments)
                self._figures.messages_out += len(good) - known
                self._figures.duplicates_out += known
                outbox.confirm(good)
                lane.worked()

    # ── both ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _window(self, stream: str) -> str:
        return f"flowray:seen:{{{stream}}}:{self._group}"

    async def _script(self, client: Redis, source: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        # Registered for each call: that costs a hash, and a server that came back without its scripts gets them again.
        return await client.register_script(source)(keys=list(keys), args=list(arguments))

"""The configuration of one bridge, checked when it is made.

    bridges:
      - name: orders
        kind: redis-streams
        url: env:ORDERS_REDIS            # or file:PATH; a URL with a password may not stand here
        inbound:  [{source: orders, topic: orders.new}]
        outbound: [{topic: orders.done, target: orders-done}]

Errors name the field; whoever builds the configuration puts the path in front.
"""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct

from flowray.bridges import address
from flowray.errors import ConfigError

Kind = Literal["redis-streams", "redis-pubsub", "rabbitmq"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MESSAGE_ID_BYTES = 255  # longer ones are refused, with what a bridge puts in front: AMQP has room for no more
NAME_BYTES = 255  # of streams, channels, queues, exchanges and routing keys, as AMQP has it


class InboundConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From the other server into a topic."""

    source: str  # the stream, channel or queue
    topic: str  # flowray's
    body_field: str = "body"  # of a stream's entries
    id_field: str = "message_id"  # of a stream's entries; an entry without it goes by its entry id

    def __post_init__(self) -> None:
        _check_names(source=self.source, topic=self.topic, body_field=self.body_field, id_field=self.id_field)
        if self.body_field == self.id_field:
            raise ConfigError("id_field", "must differ from body_field")


class OutboundConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From a topic to the other server."""

    topic: str  # flowray's
    target: str  # the stream, channel or exchange; with "" RabbitMQ's routing key names a queue
    routing_key: str = ""  # RabbitMQ's
    max_entries: int = 0  # a stream is cut to about this many, oldest first; 0: never

    def __post_init__(self) -> None:
        _check_names(topic=self.topic)
        if not self.target and not self.routing_key:
            raise ConfigError("target", "must not be empty", "RabbitMQ: name an exchange, or a queue as routing_key")
        for name in ("target", "routing_key"):
            if len(getattr(self, name).encode()) > NAME_BYTES:
                raise ConfigError(name, f"must have at most {NAME_BYTES} bytes")
        if self.max_entries < 0:
            raise ConfigError("max_entries", f"must not be negative, got {self.max_entries}")


class BridgeLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes and waits of one bridge. Counts and bytes are per route."""

    message_bytes: int = 1 << 20  # larger ones go to the dead letters
    batch: int = 256  # messages in one round trip; RabbitMQ's prefetch is twice that
    batch_bytes: int = 4 << 20  # of one batch, once the sizes of the last one are known
    buffer_messages: int = 4096  # from flowray, waiting to be sent
    buffer_bytes: int = 16 << 20  # of those
    window_ids: int = 50_000  # ids remembered: a message is recognised until this many others came after it
    dead_letters: int = 10_000  # kept, the oldest go first
    reconnect_min_s: float = 0.1  # the first wait; doubled each time, with jitter
    reconnect_max_s: float = 30.0  # the longest wait
    answer_within_s: float = 10.0  # a server that does not answer for so long counts as lost
    claim_after_s: float = 60.0  # Streams: entries that another consumer left lying so long are taken from it
    drain_s: float = 10.0  # how long `stop` lets messages in hand finish

    def __post_init__(self) -> None:
        for name in ("message_bytes", "batch", "batch_bytes", "buffer_messages", "buffer_bytes", "dead_letters"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"must be at least 1, got {getattr(self, name)}")
        if self.batch > 10_000:
            raise ConfigError("batch", f"must be at most 10000, got {self.batch}")
        for name in ("batch_bytes", "buffer_bytes"):
            if getattr(self, name) < self.message_bytes:
                raise ConfigError(name, f"must be at least message_bytes, got {getattr(self, name)}")
        if self.window_ids < 4 * self.batch:
            raise ConfigError("window_ids", f"must be at least four batches, got {self.window_ids}")
        for name in ("reconnect_min_s", "reconnect_max_s", "answer_within_s", "claim_after_s", "drain_s"):
            if not 0 < getattr(self, name) < 86_400:
                raise ConfigError(name, f"must be positive and under a day, got {getattr(self, name)}")
        if self.reconnect_max_s < self.reconnect_min_s:
            raise ConfigError("reconnect_max_s", "must be at least reconnect_min_s")


class BridgeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One bridge to one server."""

    name: str  # different for all bridges that meet at one server: group, origin and window go by it
    kind: Kind  # redis-streams, redis-pubsub or rabbitmq
    url: str  # env:NAME, file:PATH, or a URL without a password
    inbound: list[InboundConfig] = []  # from the server into topics
    outbound: list[OutboundConfig] = []  # from topics to the server
    group: str = ""  # Streams: the consumer group; "" takes the name
    consumer: str = ""  # Streams: a name for each process that runs this bridge at once; "" takes the name
    start: Literal["oldest", "new"] = "oldest"  # Streams: where a group that does not exist yet begins
    envelope: bool = False  # pub/sub: wrap messages so that they keep id and origin; both sides must then be flowray's
    declare: bool = True  # RabbitMQ: make missing queues (durable); false wants them to be there
    window_file: str = ""  # RabbitMQ: SQLite file of the ids seen, on a local disk; needed
    dead_letters: str = ""  # stream, or exchange and queue, of what cannot be passed on; "" takes "flowray.dead.<name>"
    limits: BridgeLimits = BridgeLimits()  # sizes and waits

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError("name", f"wants 1 to 64 letters, digits, '_', '.', '-', got {self.name!r}")
        address.check(self.url, self.kind)
        if not self.inbound and not self.outbound:
            raise ConfigError("inbound", "a bridge needs at least one route", "give inbound or outbound")
        self._check_routes()
        if self.kind == "rabbitmq" and not self.window_file:
            raise ConfigError("window_file", "RabbitMQ remembers no ids: name a file for them", "on a local disk")
        for name, kind in (("group", "redis-streams"), ("consumer", "redis-streams"), ("window_file", "rabbitmq")):
            if getattr(self, name) and self.kind != kind:
                raise ConfigError(name, f"is for {kind}, not for {self.kind}")
        if self.envelope and self.kind != "redis-pubsub":
            raise ConfigError("envelope", f"is for redis-pubsub: {self.kind} has room for ids beside the body")

    def _check_routes(self) -> None:
        sources = [route.source for route in self.inbound]
        for twice in {name for name in sources if sources.count(name) > 1}:
            raise ConfigError("inbound", f"{twice!r} is read by two routes; each message would go to one of them only")
        pairs = [(route.topic, route.target, route.routing_key) for route in self.outbound]
        for topic, target, _ in {pair for pair in pairs if pairs.count(pair) > 1}:
            raise ConfigError("outbound", f"{topic!r} goes to {target!r} twice")
        for route in self.outbound:
            if self.kind != "rabbitmq" and route.routing_key:
                raise ConfigError("outbound", "routing_key is for rabbitmq")
            if self.kind != "rabbitmq" and not route.target:
                raise ConfigError("outbound", "target must not be empty")
            if self.kind != "redis-streams" and route.max_entries:
                raise ConfigError("outbound", "max_entries is for redis-streams")
        both = set(sources) & {route.target for route in self.outbound}
        if self.kind == "redis-pubsub" and not self.envelope and both:
            problem = f"{min(both)!r} is read and written: its own messages would come back"
            raise ConfigError("envelope", problem, "set envelope: true, or use two channels")
        if self.dead_name in {*sources, *(route.target for route in self.outbound)}:
            raise ConfigError("dead_letters", f"{self.dead_name!r} is a route too")

    @property
    def dead_name(self) -> str:
        """The stream, or exchange and queue, of the dead letters."""
        return self.dead_letters or f"flowray.dead.{self.name}"


def _check_names(**names: str) -> None:
    for field, value in names.items():
        if not value or len(value.encode()) > NAME_BYTES:
            raise ConfigError(field, f"wants 1 to {NAME_BYTES} bytes, got {value!r}")

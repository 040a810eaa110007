"""The parts of a bridge that need no server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flowray.bridges import BridgeConfig, BridgeLimits, Figures, TopicMessage, trail
from flowray.bridges.address import Address
from flowray.bridges.backoff import Backoff
from flowray.bridges.handover import Arrival, hand_over
from flowray.bridges.outbox import Outbox, Sending
from flowray.bridges.recent import Recent
from flowray.bridges.window import IdWindow
from flowray.config import _build
from flowray.errors import ConfigError, NotConnected, StoreError

from .conftest import FAST
from .topics import FakeTopics

GOOD = {"name": "b", "kind": "redis-streams", "url": "env:X", "inbound": [{"source": "s", "topic": "t"}]}
RABBIT = {**GOOD, "kind": "rabbitmq", "window_file": "seen.db"}
PUBSUB = {**GOOD, "kind": "redis-pubsub"}
OUT = [{"topic": "t", "target": "s"}]


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"name": "a/b"}, "name", "letters, digits"),
        ({"kind": "kafka"}, "kind", "Invalid enum value"),
        ({"url": "env:"}, "url", "names nothing"),
        ({"url": "http://x"}, "url", "begins with redis://"),
        ({"url": "redis://:hidden@x/0"}, "url", "holds a password"),
        ({"url": "redis://x/0?password=hidden"}, "url", "holds a password"),
        ({"url": "redis://x:notaport/hidden"}, "url", "is not a URL"),
        ({"url": "hidden"}, "url", "is not a URL"),
        ({"inbound": []}, "inbound", "at least one route"),
        ({"inbound": [{"source": "", "topic": "t"}]}, "inbound[0].source", "1 to 255 bytes"),
        ({"inbound": [{"source": "s", "topic": "t", "id_field": "body"}]}, "inbound[0].id_field", "must differ"),
        ({"inbound": [{"source": "s", "topic": "t"}, {"source": "s", "topic": "u"}]}, "inbound", "two routes"),
        ({"inbound": [{"sauce": "s", "topic": "t"}]}, "inbound[0].sauce", "did you mean 'source'"),
        ({"outbound": OUT + OUT}, "outbound", "twice"),
        ({"outbound": [{"topic": "t", "target": ""}]}, "outbound[0].target", "must not be empty"),
        ({"outbound": [{"topic": "t", "target": "x", "routing_key": "k"}]}, "outbound", "routing_key is for rabbitmq"),
        ({"outbound": [{"topic": "t", "target": "", "routing_key": "k"}]}, "outbound", "routing_key is for rabbitmq"),
        (
            {"outbound": [{"topic": "t", "target": "x", "max_entries": -1}]},
            "outbound[0].max_entries",
            "not be negative",
        ),
        ({**PUBSUB, "outbound": [{"topic": "t", "target": "x", "max_entries": 1}]}, "outbound", "is for redis-streams"),
        ({**PUBSUB, "outbound": OUT}, "envelope", "would come back"),
        ({"envelope": True}, "envelope", "is for redis-pubsub"),
        ({**PUBSUB, "group": "g"}, "group", "is for redis-streams"),
        ({**RABBIT, "window_file": ""}, "window_file", "name a file"),
        ({**RABBIT, "url": "redis://x"}, "url", "begins with amqp://"),
        ({"window_file": "f"}, "window_file", "is for rabbitmq"),
        ({"dead_letters": "s"}, "dead_letters", "is a route too"),
        ({"limits": {"batch": 0}}, "limits.batch", "at least 1"),
        ({"limits": {"batch": 10_001}}, "limits.batch", "at most 10000"),
        ({"limits": {"batch_bytes": 5}}, "limits.batch_bytes", "at least message_bytes"),
        ({"limits": {"window_ids": 5}}, "limits.window_ids", "four batches"),
        ({"limits": {"drain_s": 0}}, "limits.drain_s", "positive"),
        ({"limits": {"reconnect_max_s": 0.01}}, "limits.reconnect_max_s", "at least reconnect_min_s"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_field(changes, field, words):
    with pytest.raises(ConfigError) as caught:
        _build(BridgeConfig, {**GOOD, **changes}, "bridges[0]")
    assert caught.value.field == f"bridges[0].{field}"
    assert words in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_addresses_are_read_when_needed_and_hidden(monkeypatch, tmp_path):
    address = Address("env:BRIDGE_URL", "redis-streams")
    with pytest.raises(ConfigError, match="BRIDGE_URL is not set"):
        address.read()
    monkeypatch.setenv("BRIDGE_URL", "redis://:p%40ss@host/0")
    assert address.read() == "redis://:p%40ss@host/0"
    assert address.hide("p%40ss and p@ss in redis://:p%40ss@host/0") == "*** and *** in ***"
    monkeypatch.setenv("BRIDGE_URL", "amqp://:hidden@host/0")
    with pytest.raises(ConfigError) as caught:
        address.read()
    assert "hidden" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read: FileNotFoundError"):
        Address(f"file:{tmp_path}/none", "rabbitmq").read()
    (tmp_path / "url").write_text("amqp://user:hidden@host/\n")
    from_file = Address(f"file:{tmp_path}/url", "rabbitmq")
    assert from_file.read() == "amqp://user:hidden@host/"
    assert "hidden" not in repr(from_file)


def test_trails_name_every_bridge_on_the_way():
    message_id = trail.arrived("b", trail.arrived("a", "17/x"))
    assert message_id == "via:b/via:a/17/x"
    assert trail.passed("a", message_id)
    assert trail.passed("b", message_id)
    assert not trail.passed("17", message_id)
    assert not trail.passed("a", "a/17")


def test_backoff_doubles_to_its_bound_and_begins_again():
    backoff = Backoff(1.0, 5.0)
    waits = [backoff.next_s() for _ in range(6)]
    for wait_s, whole_s in zip(waits, (1, 2, 4, 5, 5, 5), strict=True):
        assert whole_s / 2 <= wait_s <= whole_s
    assert len(set(waits)) == 6, "no two bridges wait the same time"
    backoff.reset()
    assert backoff.next_s() <= 1.0


def test_recent_ids_are_bounded():
    recent = Recent(3)
    recent.add(["a", "b", "c"])
    recent.add(["a", "d"])
    assert [name for name in "abcd" if name in recent] == ["a", "c", "d"]
    assert len(recent) == 3


async def test_the_window_file_keeps_the_last_ids_of_each_route(tmp_path):
    file = tmp_path / "deep" / "seen.db"
    window = IdWindow(file, 3)
    await window.add("one", ["a", "b"])
    await window.add("two", [f"x{n}" for n in range(1200)])
    await window.add("one", ["c", "a", "d"])
    await window.close()
    window = IdWindow(file, 3)
    assert await window.known("one", ["a", "b", "c", "d", "e"]) == {"a", "c", "d"}
    assert await window.known("two", [f"x{n}" for n in range(1200)]) == {"x1197", "x1198", "x1199"}
    await window.add("one", ["e"])
    assert await window.known("one", ["a", "c", "d", "e"]) == {"a", "d", "e"}
    await window.close()
    with pytest.raises(StoreError, match=r"seen\.db"):
        await window.known("one", ["a"])


def test_a_window_file_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").write_text("x" * 5000)
    with pytest.raises(StoreError, match="not a database"):
        IdWindow(tmp_path / "file", 3)
    with pytest.raises(StoreError, match="below"):
        IdWindow(Path(tmp_path / "file" / "below"), 3)


def sending(number: int, size: int = 1) -> Sending:
    return Sending(TopicMessage("t", b"x" * size, f"m{number}"))


async def test_an_outbox_is_bounded_in_messages_and_bytes_and_lets_writers_in_by_turns():
    outbox = Outbox(3, 10)
    calls = [asyncio.ensure_future(outbox.deliver(sending(n, size))) for n, size in enumerate((4, 4, 4, 1, 1, 1, 99))]
    await asyncio.sleep(0.01)
    assert (len(outbox), outbox.held_bytes) == (2, 8)
    calls[2].cancel()  # whoever waits first gives up
    first = await outbox.take(10, 100)
    outbox.confirm(first[:1])
    await asyncio.sleep(0.01)
    assert calls[0].done()
    assert not calls[1].done()
    assert (len(outbox), outbox.held_bytes) == (3, 6)
    again = await outbox.take(2, 100)
    assert [one.message.message_id for one in again] == ["m1", "m3"], "what is not confirmed comes again, first"
    order = []
    while len(outbox):
        batch = await outbox.take(1, 100)
        order += [one.message.message_id for one in batch]
        outbox.confirm(batch)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert order == ["m1", "m3", "m4", "m5", "m6"]
    assert outbox.held_bytes == 0
    await asyncio.gather(*calls[3:])


async def test_an_outbox_gives_batches_of_bounded_bytes():
    outbox = Outbox(10, 100)
    calls = [asyncio.ensure_future(outbox.deliver(sending(n, 4))) for n in range(5)]
    await asyncio.sleep(0)
    batch = await outbox.take(10, 9)
    assert len(batch) == 2
    outbox.close(NotConnected("closed"))
    for call in calls:
        with pytest.raises(NotConnected):
            await call
    with pytest.raises(NotConnected):
        await outbox.deliver(sending(9))
    assert (len(outbox), outbox.held_bytes) == (0, 0)


async def test_a_handover_that_is_given_up_says_what_was_taken(topics: FakeTopics):
    gave_up = asyncio.Event()
    limits = BridgeLimits(**FAST)
    topics.refuse = lambda message: OSError("down") if message.body == b"2" else None
    batch = [Arrival(n, f"m{n}", str(n).encode()) for n in range(4)]
    figures = Figures()
    handing = asyncio.ensure_future(hand_over(topics, "t", batch, limits, figures, gave_up))
    while figures.refused < 3:
        await asyncio.sleep(0.01)
    assert not handing.done()
    gave_up.set()
    taken, dead = await handing
    assert [arrival.mark for arrival in taken] == [0, 1, 3]
    assert dead == []
    assert figures.last_error == "t: OSError: down"

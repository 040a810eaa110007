"""Redis pub/sub, with a real server."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from redis.asyncio import Redis

from flowray.bridges import TopicMessage
from flowray.errors import PayloadError

from .conftest import configure, running, until
from .servers import missing
from .topics import FakeTopics

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing("redis")), reason=missing("redis") or "-")]


async def test_bare_bodies_come_in_and_go_out(key, redis_url, topics, redis):
    config = configure(
        {"message_bytes": 1000}, name=key, kind="redis-pubsub", url=redis_url,
        inbound=[{"source": f"{key}.in", "topic": "new"}], outbound=[{"topic": "done", "target": f"{key}.out"}],
    )  # fmt: skip
    topics.refuse = lambda message: PayloadError("payload", "no") if message.body == b"never" else None
    async with running(config, topics) as bridge, redis.pubsub(ignore_subscribe_messages=True) as listener:
        await listener.subscribe(f"{key}.out")
        await listener.get_message(timeout=5)
        pipeline = redis.pipeline(transaction=False)
        for number in range(500):
            pipeline.publish(f"{key}.in", str(number))
        pipeline.publish(f"{key}.in", b"x" * 1001).publish(f"{key}.in", "never")
        await pipeline.execute()
        await topics.send("done", {f"m{n}": str(n).encode() for n in range(300)} | {"large": b"x" * 1001})
        heard = []
        while (message := await listener.get_message(timeout=0.3)) is not None:
            heard.append(message["data"])
        await until(lambda: len(topics.taken) == 500 and bridge.figures().dead == 3)
    assert topics.bodies == [str(n).encode() for n in range(500)]
    assert heard == [str(n).encode() for n in range(300)]
    assert len(set(topics.ids)) == 500
    assert topics.ids[0].startswith(f"via:{key}/{key}.in:")
    dead = {fields[b"body"]: fields for _, fields in await redis.xrange(f"flowray.dead.{key}")}
    assert set(dead) == {b"x" * 1001, b"never"}
    assert dead[b"never"][b"reason"] == b"payload: no"
    figures = bridge.figures()
    assert (figures.messages_in, figures.messages_out, figures.lost, figures.pending) == (500, 300, 0, 0)


async def test_envelopes_keep_ids_drop_repeats_and_end_circles(key, redis_url, redis):
    here, there = FakeTopics(), FakeTopics()
    common = {"kind": "redis-pubsub", "url": redis_url, "envelope": True}
    both = {"inbound": [{"source": key, "topic": "t"}], "outbound": [{"topic": "t", "target": key}]}
    async with (
        running(configure(name=f"{key}-a", **common, **both), here) as first,
        running(configure(name=f"{key}-b", **common, **both), there) as second,
    ):
        await here.send("t", {"m1": b"\x00\xff"}, publisher="writer-1")
        await here.send("t", {"m1": b"\x00\xff"})
        await until(lambda: second.figures().duplicates_in == 1 and first.figures().own == 2)
        await there.send("t", {there.ids[0]: there.bodies[0]})  # came in here: stays
        await redis.publish(key, b"not an envelope")
        await redis.publish(key, msgspec.msgpack.encode(["", "", "", "", b"x"]))
        await until(lambda: first.figures().dead == 2 and second.figures().dead == 2)
    assert there.taken == [TopicMessage("t", b"\x00\xff", f"via:{key}-b/m1")]
    assert here.taken == []
    assert second.figures().own == 1
    dead = [fields for _, fields in await redis.xrange(f"flowray.dead.{key}-a")]
    assert dead[0][b"body"] == b"not an envelope"
    assert b"envelope" in dead[0][b"reason"]
    assert b"empty" in dead[1][b"reason"]


async def test_nothing_more_is_read_while_flowray_takes_nothing(key, redis_url, topics, redis):
    config = configure(
        {"batch": 10}, name=key, kind="redis-pubsub", url=redis_url, inbound=[{"source": key, "topic": "new"}]
    )
    topics.open.clear()
    async with running(config, topics) as bridge:
        for number in range(50):
            await redis.publish(key, str(number))
        await until(lambda: topics.waiting > 0)
        await asyncio.sleep(0.3)
        assert topics.waiting == bridge.figures().pending <= 10
        topics.open.set()
        await until(lambda: len(topics.taken) == 50)
    assert topics.bodies == [str(n).encode() for n in range(50)]


async def test_a_server_that_comes_back_is_listened_to_and_sent_to_again(key, own_redis, topics, monkeypatch):
    server = own_redis
    server.start()
    monkeypatch.setenv("BRIDGE_REDIS", server.url)
    config = configure(
        name=key, kind="redis-pubsub", url="env:BRIDGE_REDIS",
        inbound=[{"source": "in", "topic": "new"}], outbound=[{"topic": "done", "target": "out"}],
    )  # fmt: skip
    try:
        async with running(config, topics) as bridge:
            server.kill()
            sending = asyncio.ensure_future(topics.send("done", {"m1": b"while it is down"}))
            await until(lambda: bridge.figures().reconnects >= 2)
            await asyncio.to_thread(server.start)
            await until(lambda: bridge.figures().connected == 2)
            await sending
            async with Redis.from_url(server.url, protocol=2) as redis:
                await redis.publish("in", "after")
                await until(lambda: topics.bodies == [b"after"])
            figures = bridge.figures()
            assert (figures.messages_out, figures.lost) == (1, 0), "it waited for the server, and went once"
    finally:
        server.stop()

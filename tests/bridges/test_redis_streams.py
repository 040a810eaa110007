"""Redis Streams, with a real server."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis

from flowray.bridges import BridgeConfig, TopicMessage, open_bridge
from flowray.errors import ConfigError, MeshError, NotConnected, PayloadError

from .conftest import configure, fails, running, until
from .servers import PASSWORD, QUOTED, missing
from .topics import FakeTopics

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing("redis")), reason=missing("redis") or "-")]


@pytest.fixture
def inbound(key, redis_url) -> BridgeConfig:
    return configure(name=key, kind="redis-streams", url=redis_url, inbound=[{"source": f"{key}.in", "topic": "new"}])


@pytest.fixture
def outbound(key, redis_url) -> BridgeConfig:
    return configure(
        name=key, kind="redis-streams", url=redis_url, outbound=[{"topic": "done", "target": f"{key}.out"}]
    )


async def fill(redis: Redis, stream: str, count: int, start: int = 0, **fields: str) -> None:
    pipeline = redis.pipeline(transaction=False)
    for number in range(start, start + count):
        pipeline.xadd(stream, {"body": str(number), "message_id": f"m{number}", **fields})
    await pipeline.execute()


async def pending(redis: Redis, stream: str, group: str) -> int:
    return int((await redis.xpending(stream, group))["pending"])


async def test_entries_come_in_once_and_are_acknowledged(key, inbound, topics, redis):
    await fill(redis, f"{key}.in", 1000)
    await redis.xadd(f"{key}.in", {"body": b"\x00\xff without an id"})
    async with running(inbound, topics) as bridge:
        await until(lambda: len(topics.taken) == 1001)
        await fill(redis, f"{key}.in", 10)  # a producer that repeats itself
        await fill(redis, f"{key}.in", 1, start=1000)
        await until(lambda: len(topics.taken) == 1002)
    assert topics.bodies[:1000] == [str(n).encode() for n in range(1000)], "in their order"
    assert topics.bodies[1000] == b"\x00\xff without an id"
    assert topics.ids[7] == f"via:{key}/m7"
    assert topics.taken[7].topic == "new"
    assert await pending(redis, f"{key}.in", key) == 0
    figures = bridge.figures()
    assert (figures.messages_in, figures.duplicates_in, figures.pending, figures.dead) == (1002, 10, 0, 0)


async def test_a_bridge_started_again_knows_what_was_taken_over(key, inbound, topics, redis):
    await fill(redis, f"{key}.in", 50)
    async with running(inbound, topics):
        await until(lambda: len(topics.taken) == 50)
    await redis.xgroup_setid(f"{key}.in", key, "0")  # all of it is delivered once more
    async with running(inbound, topics) as again:
        await until(lambda: again.figures().duplicates_in == 50)
        await fill(redis, f"{key}.in", 1, start=50)
        await until(lambda: len(topics.taken) == 51)
    assert await pending(redis, f"{key}.in", key) == 0


async def test_the_window_forgets_the_oldest_first(key, redis_url, topics, redis):
    config = configure(
        {"window_ids": 40, "batch": 10}, name=key, kind="redis-streams", url=redis_url,
        inbound=[{"source": f"{key}.in", "topic": "new"}],
    )  # fmt: skip
    await fill(redis, f"{key}.in", 100)
    async with running(config, topics):
        await until(lambda: len(topics.taken) == 100)
    assert await redis.zcard(f"flowray:seen:{{{key}.in}}:{key}") == 40
    await fill(redis, f"{key}.in", 1, start=60)  # known
    await fill(redis, f"{key}.in", 1, start=59)  # forgotten
    async with running(config, topics):
        await until(lambda: len(topics.taken) == 101)
    assert topics.bodies[-1] == b"59"


async def test_nothing_more_is_read_while_flowray_takes_nothing(key, redis_url, topics, redis):
    config = configure(
        {"batch": 20}, name=key, kind="redis-streams", url=redis_url, inbound=[{"source": f"{key}.in", "topic": "new"}]
    )
    topics.open.clear()
    await fill(redis, f"{key}.in", 200)
    async with running(config, topics) as bridge:
        await until(lambda: topics.waiting == 20)
        await asyncio.sleep(0.3)
        assert topics.waiting == 20
        assert bridge.figures().pending == 20
        assert await pending(redis, f"{key}.in", key) == 20
        topics.open.set()
        await until(lambda: len(topics.taken) == 200)


async def test_what_flowray_refuses_now_is_tried_again_and_what_it_can_never_take_is_buried(
    key, inbound, topics, redis
):
    tries: Counter[bytes] = Counter()

    def refuse(message: TopicMessage) -> Exception | None:
        tries[message.body] += 1
        if message.body == b"3" and tries[b"3"] < 4:
            return MeshError("no coordinator")
        return PayloadError("payload", "too strange") if message.body == b"5" else None

    topics.refuse = refuse
    await fill(redis, f"{key}.in", 8)
    async with running(inbound, topics) as bridge:
        await until(lambda: bridge.figures().dead == 1)
    assert sorted(topics.bodies) == [b"0", b"1", b"2", b"3", b"4", b"6", b"7"]
    assert (tries[b"3"], tries[b"5"], bridge.figures().refused) == (4, 1, 3)
    assert "no coordinator" in bridge.figures().last_error
    ((_, dead),) = await redis.xrange(f"flowray.dead.{key}")
    assert (dead[b"reason"], dead[b"body"], dead[b"message_id"]) == (b"payload: too strange", b"5", b"m5")
    assert await pending(redis, f"{key}.in", key) == 0


async def test_poison_goes_to_the_dead_letters_and_holds_nothing_up(key, redis_url, topics, redis):
    config = configure(
        {"message_bytes": 1000}, name=key, kind="redis-streams", url=redis_url,
        inbound=[{"source": f"{key}.in", "topic": "new"}],
    )  # fmt: skip
    stream = f"{key}.in"
    await redis.xadd(stream, {"text": "no body"})
    await redis.xadd(stream, {"body": b"x" * 1001})
    await redis.xadd(stream, {"body": "b", "message_id": b"\xff\xfe"})
    await redis.xadd(stream, {"body": "b", "message_id": "i" * 256})
    await redis.xadd(stream, {"body": "b", "message_id": ""})
    await redis.xadd(stream, {f"field{n}": "x" for n in range(9000)})  # more than a script can take at once
    await redis.xadd(stream, {"body": b"x" * 1000, "message_id": "good"})
    async with running(config, topics) as bridge:
        await until(lambda: len(topics.taken) == 1 and bridge.figures().dead == 6)
    dead = [fields for _, fields in await redis.xrange(f"flowray.dead.{key}")]
    reasons = [fields[b"reason"].decode() for fields in dead]
    assert [word in reason for word, reason in zip(
        ("no field 'body'", "1001 bytes", "not UTF-8", "more than 255", "is empty", "no field"), reasons, strict=True
    )] == [True] * 6, reasons  # fmt: skip
    assert dead[1][b"body"] == b"x" * 1001, "whole, to be looked at"
    assert dead[0][b"source"] == stream.encode()
    assert await pending(redis, stream, key) == 0


async def test_messages_go_out_once_however_often_they_are_delivered(key, outbound, topics, redis):
    bodies = {f"m{n}": str(n).encode() for n in range(600)}
    async with running(outbound, topics) as bridge:
        await topics.send("done", bodies, publisher="writer-1")
        await topics.send("done", dict(list(bodies.items())[:5]))
    entries = [fields for _, fields in await redis.xrange(f"{key}.out")]
    assert [fields[b"body"] for fields in entries] == list(bodies.values())
    assert entries[3] == {
        b"message_id": b"m3", b"body": b"3", b"topic": b"done", b"publisher": b"writer-1",
        b"flowray-origin": key.encode(),
    }  # fmt: skip
    figures = bridge.figures()
    assert (figures.messages_out, figures.duplicates_out, figures.pending, figures.pending_bytes) == (600, 5, 0, 0)


async def test_too_large_for_the_other_side_is_buried(key, redis_url, topics, redis):
    config = configure(
        {"message_bytes": 10}, name=key, kind="redis-streams", url=redis_url,
        outbound=[{"topic": "done", "target": f"{key}.out", "max_entries": 100}],
    )  # fmt: skip
    async with running(config, topics) as bridge:
        await topics.send("done", {"a": b"x" * 11, "b": b"x" * 10, "i" * 300: b"x"})
    assert [fields[b"message_id"] for _, fields in await redis.xrange(f"{key}.out")] == [b"b"]
    dead = [fields for _, fields in await redis.xrange(f"flowray.dead.{key}")]
    assert [(fields[b"source"], b"bytes" in fields[b"reason"]) for fields in dead] == [(b"topic done", True)] * 2
    assert bridge.figures().dead == 2


async def test_nothing_goes_round_in_circles(key, redis_url, topics, redis):
    routes = {
        "inbound": [{"source": f"{key}.both", "topic": "t"}],
        "outbound": [{"topic": "t", "target": f"{key}.both"}],
    }
    config = configure(name=key, kind="redis-streams", url=redis_url, **routes)
    await fill(redis, f"{key}.both", 3)
    async with running(config, topics) as bridge:
        await until(lambda: len(topics.taken) == 3)
        await topics.send("t", {message.message_id: message.body for message in topics.taken})  # came in: not out again
        await topics.send("t", {f"via:other/{topics.ids[0]}": b"x"})  # nor after a second bridge
        await topics.send("t", {"own": b"from flowray"})  # goes out, and does not come in again
        await until(lambda: bridge.figures().own == 5)
    assert await redis.xlen(f"{key}.both") == 4
    assert len(topics.taken) == 3
    assert await pending(redis, f"{key}.both", key) == 0


async def test_two_bridges_pass_a_message_on_between_two_flowrays(key, redis_url, redis):
    here, there = FakeTopics(), FakeTopics()
    fields = {"kind": "redis-streams", "url": redis_url}
    sends = configure(name=f"{key}-a", outbound=[{"topic": "done", "target": f"{key}.mid"}], **fields)
    takes = configure(name=f"{key}-b", inbound=[{"source": f"{key}.mid", "topic": "new"}], **fields)
    async with running(sends, here), running(takes, there):
        await here.send("done", {"m1": b"1"})
        await until(lambda: len(there.taken) == 1)
    assert there.taken == [TopicMessage("new", b"1", f"via:{key}-b/m1")]


async def test_what_a_dead_consumer_left_is_claimed(key, redis_url, topics, redis):
    stream = f"{key}.in"
    await fill(redis, stream, 30)
    await redis.xgroup_create(stream, key, "0")
    await redis.xreadgroup(key, "dead", {stream: ">"}, count=20)
    config = configure(
        {"claim_after_s": 0.3, "batch": 8}, name=key, kind="redis-streams", url=redis_url, consumer="alive",
        inbound=[{"source": stream, "topic": "new"}],
    )  # fmt: skip
    async with running(config, topics):
        await until(lambda: len(topics.taken) == 30)
    assert sorted(map(int, topics.bodies)) == list(range(30))
    assert await pending(redis, stream, key) == 0


async def test_a_consumer_that_works_long_keeps_its_entries(key, redis_url, redis):
    stream = f"{key}.in"
    await fill(redis, stream, 5)
    slow, other = FakeTopics(), FakeTopics()
    slow.open.clear()

    def one(consumer: str) -> BridgeConfig:
        return configure(
            {"claim_after_s": 0.3}, name=key, kind="redis-streams", url=redis_url, consumer=consumer,
            inbound=[{"source": stream, "topic": "new"}],
        )  # fmt: skip

    async with running(one("slow"), slow):
        await until(lambda: slow.waiting == 5)
        async with running(one("other"), other):
            await asyncio.sleep(1.2)  # four times as long as an entry may lie
            assert other.taken == []
            slow.open.set()
            await until(lambda: len(slow.taken) == 5)
    assert other.taken == []


async def test_entries_deleted_while_they_were_pending_are_counted(key, inbound, topics, redis):
    stream = f"{key}.in"
    await fill(redis, stream, 3)
    await redis.xgroup_create(stream, key, "0")
    ((_, entries),) = await redis.xreadgroup(key, key, {stream: ">"})
    await redis.xdel(stream, entries[0][0], entries[1][0])
    async with running(inbound, topics) as bridge:
        await until(lambda: len(topics.taken) == 1)
    assert bridge.figures().lost == 2
    assert await pending(redis, stream, key) == 0


async def test_stop_finishes_what_is_in_hand_and_gives_back_the_rest(key, redis_url, topics, redis):
    config = configure(
        {"drain_s": 0.2},
        name=key,
        kind="redis-streams",
        url=redis_url,
        inbound=[{"source": f"{key}.in", "topic": "new"}],
    )
    await fill(redis, f"{key}.in", 10)
    stuck = asyncio.Event()

    class HalfStuck(FakeTopics):
        async def publish(self, topic: str, body: bytes, *, message_id: str) -> None:
            if int(body) % 2:
                await stuck.wait()
            await super().publish(topic, body, message_id=message_id)

    half = HalfStuck()
    async with running(config, half):
        await until(lambda: len(half.taken) == 5)
    assert await pending(redis, f"{key}.in", key) == 5, "the five that were taken over are acknowledged"
    async with running(config, topics):
        await until(lambda: len(topics.taken) == 5)
    assert sorted(map(int, half.bodies + topics.bodies)) == list(range(10))


async def test_who_waits_for_a_server_that_is_gone_is_told_when_the_bridge_stops(key, own_redis, topics, monkeypatch):
    server = own_redis
    monkeypatch.setenv("BRIDGE_REDIS", server.url)  # it was never started
    config = configure(
        {"drain_s": 0.1, "buffer_messages": 4}, name=key, kind="redis-streams", url="env:BRIDGE_REDIS",
        outbound=[{"topic": "done", "target": "out"}],
    )  # fmt: skip
    bridge = open_bridge(config, topics)
    await bridge.start()
    (subscription,) = topics.subscriptions["done"]
    calls = [asyncio.ensure_future(subscription.on_message(TopicMessage("done", b"x", f"m{n}"))) for n in range(6)]
    await until(lambda: bridge.figures().reconnects > 1)
    figures = bridge.figures()
    assert (figures.pending, figures.pending_bytes, figures.connected) == (4, 4, 0), "no more than its buffer holds"
    await bridge.stop()
    for call in calls:
        with pytest.raises(NotConnected, match="was not confirmed"):
            await call
    assert topics.subscriptions["done"] == []
    await bridge.wait()
    await bridge.stop()


async def test_the_server_is_killed_again_and_again_and_nothing_is_lost_or_doubled(key, own_redis, topics, monkeypatch):
    server = own_redis
    server.start()
    monkeypatch.setenv("BRIDGE_REDIS", server.url)
    config = configure(
        {"batch": 16}, name=key, kind="redis-streams", url="env:BRIDGE_REDIS",
        inbound=[{"source": "in", "topic": "new"}], outbound=[{"topic": "done", "target": "out"}],
    )  # fmt: skip
    count = 1600
    try:
        async with Redis.from_url(server.url, protocol=2) as redis:
            await fill(redis, "in", count)
        async with running(config, topics) as bridge:
            sending = asyncio.ensure_future(topics.send("done", {f"m{n}": str(n).encode() for n in range(count)}))
            for part in (1, 2):
                await until(lambda part=part: len(topics.taken) > part * count // 4)
                server.kill()
                await until(lambda part=part: bridge.figures().reconnects >= 2 * part)
                await asyncio.to_thread(server.start)
                await until(lambda: bridge.figures().connected == 2)
            await until(lambda: len(topics.taken) >= count)
            await sending
            assert bridge.figures().messages_out + bridge.figures().duplicates_out == count
        async with Redis.from_url(server.url, protocol=2) as redis:
            assert await pending(redis, "in", key) == 0
            out = [fields[b"message_id"].decode() for _, fields in await redis.xrange("out")]
        assert sorted(topics.ids) == sorted(f"via:{key}/m{n}" for n in range(count))
        assert sorted(out) == sorted(f"m{n}" for n in range(count))
    finally:
        server.stop()


async def test_what_was_taken_over_while_the_server_died_is_not_taken_over_again(key, own_redis, topics, monkeypatch):
    """Redis could not be told: the ids in memory stop what it delivers again."""
    server = own_redis
    server.start()
    monkeypatch.setenv("BRIDGE_REDIS", server.url)
    config = configure(
        name=key, kind="redis-streams", url="env:BRIDGE_REDIS", inbound=[{"source": "in", "topic": "new"}]
    )
    topics.open.clear()
    try:
        async with Redis.from_url(server.url, protocol=2) as redis:
            await fill(redis, "in", 5)
        async with running(config, topics) as bridge:
            await until(lambda: topics.waiting == 5)
            server.kill()
            topics.open.set()
            await until(lambda: len(topics.taken) == 5 and bridge.figures().reconnects > 0)
            await asyncio.to_thread(server.start)
            await until(lambda: bridge.figures().duplicates_in == 5)
        async with Redis.from_url(server.url, protocol=2) as redis:
            assert await pending(redis, "in", key) == 0
        assert len(topics.taken) == 5
    finally:
        server.stop()


async def test_a_cancelled_bridge_leaves_nothing_behind_and_doubles_nothing(key, redis_url, topics, redis):
    """Its tasks are cancelled between the taking over and the acknowledgement, as a dying event loop does it."""
    config = configure(
        {"batch": 10}, name=key, kind="redis-streams", url=redis_url, inbound=[{"source": f"{key}.in", "topic": "new"}]
    )
    await fill(redis, f"{key}.in", 100)
    bridge = open_bridge(config, topics)
    await bridge.start()
    await until(lambda: len(topics.taken) >= 30)
    for task in bridge._tasks:
        task.cancel()
    await asyncio.wait(bridge._tasks)
    await bridge.stop()
    async with running(config, topics):
        await until(lambda: {int(body) for body in topics.bodies} == set(range(100)))
    assert await pending(redis, f"{key}.in", key) == 0
    assert len(topics.taken) - len(set(topics.ids)) <= 10, "at most the batch in hand, with the same ids"


async def child(config: BridgeConfig, output: Path, point: str) -> asyncio.subprocess.Process:
    encoded = msgspec.json.encode(config).decode()
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bridges.child", encoded, str(output), point, cwd=Path(__file__).parents[1]
    )


async def test_the_process_is_killed_between_taking_over_and_acknowledging(key, redis_url, redis, tmp_path):
    config = configure(
        {"batch": 10, "claim_after_s": 3600.0},
        name=key,
        kind="redis-streams",
        url=redis_url,
        inbound=[{"source": f"{key}.in", "topic": "new"}],
    )
    await fill(redis, f"{key}.in", 100)
    output = tmp_path / "taken"
    dying = await child(config, output, "published:37")
    assert await dying.wait() == -signal.SIGKILL
    assert len(output.read_bytes().splitlines()) == 37
    assert await pending(redis, f"{key}.in", key) == 10, "three batches are settled, the fourth is not"
    lasting = await child(config, output, "-")
    try:
        await until(lambda: len(set(output.read_bytes().splitlines())) == 100)
    finally:
        lasting.kill()
        await lasting.wait()
    lines = output.read_bytes().splitlines()
    assert {line.split(b"\t")[1] for line in lines} == {str(n).encode() for n in range(100)}
    assert len(lines) == 107, "the seven of the batch in hand came twice, with the same ids, and nothing else did"


async def test_a_wrong_password_ends_the_bridge_and_is_not_shown(key, redis_server, topics, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("BRIDGE_REDIS", redis_server.url.replace(QUOTED, "wr0ng%2Fone"))
    config = configure(
        name=key, kind="redis-streams", url="env:BRIDGE_REDIS", inbound=[{"source": "in", "topic": "new"}]
    )
    bridge, error = await fails(config, topics, ConfigError, "url: Redis refuses it")
    assert "wr0ng" not in f"{error!r} {bridge!r} {bridge.figures()!r} {config!r} {bridge._address!r} {caplog.text}"


async def test_a_password_is_shown_nowhere_while_the_server_dies(key, own_redis, topics, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    server = own_redis
    server.start()
    monkeypatch.setenv("BRIDGE_REDIS", server.url)
    config = configure(
        name=key, kind="redis-streams", url="env:BRIDGE_REDIS", inbound=[{"source": "in", "topic": "new"}]
    )
    try:
        async with running(config, topics) as bridge:
            server.kill()
            await until(lambda: bridge.figures().reconnects > 2)
            assert bridge.figures().connected == 0
            shown = f"{bridge!r} {bridge.figures()!r} {config!r} {caplog.text}"
        assert "lost its server" in caplog.text
        assert PASSWORD not in shown
        assert QUOTED not in shown
    finally:
        server.stop()


async def test_a_key_that_is_no_stream_is_said(key, inbound, topics, redis):
    await redis.set(f"{key}.in", "text")
    await fails(inbound, topics, ConfigError, "is no stream")


async def test_a_bug_of_the_topics_ends_the_bridge(key, inbound, topics, redis):
    topics.refuse = lambda message: TypeError("a bug")
    await fill(redis, f"{key}.in", 1)
    await fails(inbound, topics, TypeError, "a bug")
    assert await pending(redis, f"{key}.in", key) == 1, "the message stays in Redis"

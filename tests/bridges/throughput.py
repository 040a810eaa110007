"""Messages per second of each bridge, beside the same server without one: cd tests && python -m bridges.throughput

Bodies of 100 bytes, topics in memory that take everything at once. "bare" is the same client library with the same
batch that reads and acknowledges, or sends with confirms, and does nothing else; "server" is what redis-benchmark, in
C, gets out of the server. The sides take turns; the median of the repeats is shown. One process for bridge and topics.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiormq
from pamqp.commands import Basic
from redis.asyncio import Redis

from flowray.bridges import TopicMessage

from .conftest import configure, running, until
from .servers import PASSWORD, RabbitServer, RedisServer
from .topics import FakeTopics

BODY = b"x" * 100
BATCH = 256
REPEATS = 3
IN_FLIGHT = 2048  # messages that the topics hand to a bridge before the first is confirmed


class Ids:
    """A new name for each run: servers and windows remember the old ones."""

    number = 0

    @classmethod
    def next(cls) -> str:
        cls.number += 1
        return f"p{cls.number}"


async def send_all(topics: FakeTopics, count: int) -> None:
    (subscription,) = topics.subscriptions["done"]
    window = asyncio.Semaphore(IN_FLIGHT)

    async def one(number: int) -> None:
        try:
            await subscription.on_message(TopicMessage("done", BODY, f"m{number}", "bench"))
        finally:
            window.release()

    jobs = []
    for number in range(count):
        await window.acquire()
        jobs.append(asyncio.ensure_future(one(number)))
    await asyncio.gather(*jobs)


async def took_s(work: Awaitable[Any]) -> float:
    start_s = time.perf_counter()
    await work
    return time.perf_counter() - start_s


# ── Redis Streams ────────────────────────────────────────────────────────────────────────────────────────────────────


async def fill_stream(redis: Redis, stream: str, count: int) -> None:
    for start in range(0, count, 1000):
        pipeline = redis.pipeline(transaction=False)
        for number in range(start, start + 1000):
            pipeline.xadd(stream, {"body": BODY, "message_id": f"m{number}"})
        await pipeline.execute()


async def streams_in(redis: Redis, count: int) -> float:
    name, topics = Ids.next(), FakeTopics()
    await fill_stream(redis, name, count)
    config = configure(name=name, kind="redis-streams", url="env:BENCH_REDIS", inbound=[{"source": name, "topic": "t"}])
    start_s = time.perf_counter()
    async with running(config, topics) as bridge:
        await until(lambda: bridge.figures().messages_in == count, 120)
        return count / (time.perf_counter() - start_s)


async def streams_in_bare(redis: Redis, count: int) -> float:
    name = Ids.next()
    await fill_stream(redis, name, count)
    await redis.xgroup_create(name, name, "0")
    start_s, seen = time.perf_counter(), 0
    while seen < count:
        ((_, entries),) = await redis.xreadgroup(name, name, {name: ">"}, count=BATCH, block=1000)
        await redis.xack(name, name, *(entry for entry, _ in entries))
        seen += len(entries)
    return count / (time.perf_counter() - start_s)


async def streams_out(redis: Redis, count: int) -> float:
    name, topics = Ids.next(), FakeTopics()
    config = configure(
        name=name, kind="redis-streams", url="env:BENCH_REDIS", outbound=[{"topic": "done", "target": name}]
    )
    async with running(config, topics):
        rate = count / await took_s(send_all(topics, count))
    assert await redis.xlen(name) == count
    return rate


async def streams_out_bare(redis: Redis, count: int) -> float:
    name = Ids.next()
    start_s = time.perf_counter()
    for start in range(0, count, BATCH):
        pipeline = redis.pipeline(transaction=False)
        for number in range(start, min(count, start + BATCH)):
            pipeline.xadd(name, {"message_id": f"m{number}", "body": BODY, "topic": "done", "flowray-origin": name})
        await pipeline.execute()
    return count / (time.perf_counter() - start_s)


def server_xadd(port: int) -> float:
    """XADD per second by redis-benchmark, 50 connections with 64 commands each on their way."""
    fields = ["message_id", "m12345", "flowray-origin", "p1", "topic", "done", "body", BODY.decode()]
    options = ["-p", str(port), "-n", "200000", "-P", "64", "--csv", "-a", PASSWORD]
    done = subprocess.run(
        ["redis-benchmark", *options, "XADD", "ceiling", "MAXLEN", "~", "100000", "*", *fields],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.strip().splitlines()[-1].split(",")[-7].strip('"'))


# ── Redis pub/sub ────────────────────────────────────────────────────────────────────────────────────────────────────


async def pubsub_in(redis: Redis, count: int) -> float:
    name, topics = Ids.next(), FakeTopics()
    config = configure(name=name, kind="redis-pubsub", url="env:BENCH_REDIS", inbound=[{"source": name, "topic": "t"}])
    async with running(config, topics) as bridge:
        start_s = time.perf_counter()
        await publish_all(redis, name, count)
        await until(lambda: bridge.figures().messages_in == count, 120)
        return count / (time.perf_counter() - start_s)


async def publish_all(redis: Redis, channel: str, count: int) -> None:
    for _ in range(0, count, 500):
        pipeline = redis.pipeline(transaction=False)
        for _ in range(500):
            pipeline.publish(channel, BODY)
        await pipeline.execute()


async def pubsub_in_bare(redis: Redis, count: int) -> float:
    name = Ids.next()
    async with redis.pubsub() as channel:
        await channel.subscribe(name)
        await channel.get_message(timeout=5)
        start_s = time.perf_counter()
        await publish_all(redis, name, count)
        for _ in range(count):
            assert await channel.get_message(timeout=5) is not None
        return count / (time.perf_counter() - start_s)


async def pubsub_out(redis: Redis, count: int) -> float:
    name, topics = Ids.next(), FakeTopics()
    config = configure(
        name=name, kind="redis-pubsub", url="env:BENCH_REDIS", outbound=[{"topic": "done", "target": name}]
    )
    async with running(config, topics):
        return count / await took_s(send_all(topics, count))


async def pubsub_out_bare(redis: Redis, count: int) -> float:
    return count / await took_s(publish_all(redis, Ids.next(), count))


# ── RabbitMQ ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def fill_queue(channel: Any, queue: str, count: int) -> float:
    """Publish in batches and wait for all confirms of each; returns messages per second."""
    await channel.queue_declare(queue, durable=True)
    start_s = time.perf_counter()
    for start in range(0, count, BATCH):
        await asyncio.gather(
            *(
                channel.basic_publish(
                    BODY, routing_key=queue, mandatory=True, wait=False,
                    properties=Basic.Properties(message_id=f"m{number}", delivery_mode=2),
                )
                for number in range(start, min(count, start + BATCH))
            )
        )  # fmt: skip
    return count / (time.perf_counter() - start_s)


async def rabbit_in(channel: Any, count: int, directory: Path) -> float:
    name, topics = Ids.next(), FakeTopics()
    await fill_queue(channel, name, count)
    config = configure(
        name=name, kind="rabbitmq", url="env:BENCH_RABBIT", window_file=str(directory / f"{name}.db"),
        inbound=[{"source": name, "topic": "t"}],
    )  # fmt: skip
    start_s = time.perf_counter()
    async with running(config, topics) as bridge:
        await until(lambda: bridge.figures().messages_in == count, 120)
        return count / (time.perf_counter() - start_s)


async def rabbit_in_bare(channel: Any, count: int, url: str) -> float:
    name, seen, done = Ids.next(), 0, asyncio.Event()
    await fill_queue(channel, name, count)
    connection = await aiormq.connect(url)
    reader = await connection.channel()
    await reader.basic_qos(prefetch_count=2 * BATCH)

    async def take(message: Any) -> None:
        nonlocal seen
        seen += 1
        if seen % BATCH == 0 or seen == count:
            await reader.basic_ack(message.delivery_tag, multiple=True)
        if seen == count:
            done.set()

    start_s = time.perf_counter()
    await reader.basic_consume(name, take)
    await done.wait()
    rate = count / (time.perf_counter() - start_s)
    await connection.close()
    return rate


async def rabbit_out(count: int, directory: Path) -> float:
    name, topics = Ids.next(), FakeTopics()
    config = configure(
        name=name, kind="rabbitmq", url="env:BENCH_RABBIT", window_file=str(directory / f"{name}.db"),
        outbound=[{"topic": "done", "target": "", "routing_key": name}],
    )  # fmt: skip
    async with running(config, topics):
        return count / await took_s(send_all(topics, count))


async def measure(count: int) -> dict[str, float]:
    rates: dict[str, list[float]] = {}

    async def add(name: str, work: Callable[[], Awaitable[float]]) -> None:
        rates.setdefault(name, []).append(await work())

    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        (directory / "redis").mkdir()
        (directory / "rabbit").mkdir()
        servers = [RedisServer(directory / "redis", fsync="everysec"), RabbitServer(directory / "rabbit")]
        redis_server, rabbit_server = servers
        try:
            for server in servers:
                server.start()
            os.environ["BENCH_REDIS"], os.environ["BENCH_RABBIT"] = redis_server.url, rabbit_server.url
            async with Redis.from_url(redis_server.url, protocol=2) as redis:
                connection = await aiormq.connect(rabbit_server.url)
                channel = await connection.channel()
                for _ in range(REPEATS):
                    for name, side in (
                        ("redis_streams_in_per_s", streams_in),
                        ("redis_streams_in_bare_per_s", streams_in_bare),
                        ("redis_streams_out_per_s", streams_out),
                        ("redis_streams_out_bare_per_s", streams_out_bare),
                        ("redis_pubsub_in_per_s", pubsub_in),
                        ("redis_pubsub_in_bare_per_s", pubsub_in_bare),
                        ("redis_pubsub_out_per_s", pubsub_out),
                        ("redis_pubsub_out_bare_per_s", pubsub_out_bare),
                    ):
                        await add(name, lambda side=side: side(redis, count))
                    rates.setdefault("redis_server_xadd_per_s", []).append(server_xadd(redis_server.port))
                    await add("rabbitmq_in_per_s", lambda: rabbit_in(channel, count, directory))
                    await add("rabbitmq_in_bare_per_s", lambda: rabbit_in_bare(channel, count, rabbit_server.url))
                    await add("rabbitmq_out_per_s", lambda: rabbit_out(count, directory))
                    await add("rabbitmq_out_bare_per_s", lambda: fill_queue(channel, Ids.next(), count))
                await connection.close()
        finally:
            for server in servers:
                server.stop()
    return {name: round(statistics.median(values)) for name, values in rates.items()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(measure(int((sys.argv[1:] or ["10000"])[0]))), indent=2) + "\n")

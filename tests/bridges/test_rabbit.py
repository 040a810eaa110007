"""RabbitMQ, with a real server."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiormq
import msgspec
import pytest
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic

from flowray.bridges import BridgeConfig
from flowray.errors import ConfigError, MeshError, PayloadError

from .conftest import configure, fails, running, until
from .servers import PASSWORD, QUOTED, RabbitServer, missing

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing("rabbitmq")), reason=missing("rabbitmq") or "-")]


@pytest.fixture
async def rabbit(rabbit_server: RabbitServer) -> AsyncIterator[AbstractChannel]:
    connection = await aiormq.connect(rabbit_server.url)
    yield await connection.channel(publisher_confirms=True, on_return_raises=True)
    await connection.close()


@pytest.fixture
def bridge_of(key, rabbit_url, tmp_path):
    def make(limits=None, **fields) -> BridgeConfig:
        given = {"name": key, "url": rabbit_url, "window_file": str(tmp_path / "seen.db"), **fields}
        return configure(limits, kind="rabbitmq", **given)

    return make


async def fill(rabbit: AbstractChannel, queue: str, bodies: dict[str, bytes], **headers: str) -> None:
    await rabbit.queue_declare(queue, durable=True)
    for message_id, body in bodies.items():
        properties = Basic.Properties(message_id=message_id, delivery_mode=2, headers=dict(headers))
        await rabbit.basic_publish(body, routing_key=queue, properties=properties)


async def drain(rabbit: AbstractChannel, queue: str) -> list[DeliveredMessage]:
    """Everything in a queue, taken out."""
    # One by one until RabbitMQ says that none is left: a bridge may go on publishing meanwhile, so that neither a count
    # asked for before nor one asked for afterwards says whether this was all.
    found: list[DeliveredMessage] = []
    while not isinstance((message := await rabbit.basic_get(queue, no_ack=True)).delivery, Basic.GetEmpty):
        found.append(message)
    return found


async def waiting(rabbit: AbstractChannel, queue: str) -> int:
    return int((await rabbit.queue_declare(queue, durable=True, passive=True)).message_count or 0)


def numbers(count: int) -> dict[str, bytes]:
    return {f"m{n}": str(n).encode() for n in range(count)}


async def test_messages_come_in_once_and_are_acknowledged(key, bridge_of, topics, rabbit):
    await fill(rabbit, f"{key}.in", numbers(300))
    config = bridge_of({"batch": 32}, inbound=[{"source": f"{key}.in", "topic": "new"}])
    async with running(config, topics) as bridge:
        await until(lambda: len(topics.taken) == 300)
        await fill(rabbit, f"{key}.in", numbers(5))  # a producer that repeats itself
        await until(lambda: bridge.figures().duplicates_in == 5)
    assert topics.bodies == list(numbers(300).values()), "in their order"
    assert topics.ids[7] == f"via:{key}/m7"
    assert await waiting(rabbit, f"{key}.in") == 0
    await fill(rabbit, f"{key}.in", {"m299": b"299", "m300": b"300"})
    async with running(config, topics) as again:  # started again, it knows what was taken over
        await until(lambda: len(topics.taken) == 301)
        assert again.figures().duplicates_in == 1
    assert topics.bodies[-1] == b"300"


async def test_messages_go_out_with_a_confirm_and_once(key, bridge_of, topics, rabbit):
    await rabbit.exchange_declare(f"{key}.x", exchange_type="topic", durable=True)
    await rabbit.queue_declare(f"{key}.q", durable=True)
    await rabbit.queue_bind(f"{key}.q", f"{key}.x", "done.*")
    config = bridge_of(
        outbound=[
            {"topic": "done", "target": f"{key}.x", "routing_key": "done.now"},
            {"topic": "plain", "target": "", "routing_key": f"{key}.plain"},  # a queue, made by the bridge
            {"topic": "nowhere", "target": f"{key}.x", "routing_key": "other"},
        ]
    )
    async with running(config, topics) as bridge:
        await topics.send("done", numbers(300), publisher="writer-1")
        await topics.send("done", numbers(7))
        await topics.send("plain", {"p": b"\x00\xff", "i" * 300: b"too long an id"})
        await topics.send("nowhere", {"n": b"unwanted"})
    out = await drain(rabbit, f"{key}.q")
    assert [message.body for message in out] == list(numbers(300).values())
    properties = out[3].header.properties
    assert (properties.message_id, properties.delivery_mode) == ("m3", 2)
    assert properties.headers == {"flowray-origin": key, "topic": "done", "publisher": "writer-1"}
    assert [message.body for message in await drain(rabbit, f"{key}.plain")] == [b"\x00\xff"]
    dead = await drain(rabbit, f"flowray.dead.{key}")
    assert [message.body for message in dead] == [b"too long an id", b"unwanted"]
    assert "no queue wants it" in str(dead[1].header.properties.headers["reason"])
    figures = bridge.figures()
    assert (figures.messages_out, figures.duplicates_out, figures.dead, figures.pending) == (301, 7, 2, 0)


async def test_poison_and_what_came_from_here_hold_nothing_up(key, bridge_of, topics, rabbit):
    topics.refuse = lambda message: PayloadError("payload", "too strange") if message.body == b"never" else None
    queue = f"{key}.in"
    await fill(rabbit, queue, {"large": b"x" * 1001, "never": b"never", "i" * 254: b"the id has no room"})
    await fill(rabbit, queue, {"mine": b"mine"}, **{"flowray-origin": key})
    await fill(rabbit, queue, {f"via:{key}/m1": b"mine too"}, **{"flowray-origin": "other"})
    await fill(rabbit, queue, {"good": b"x" * 1000})
    config = bridge_of({"message_bytes": 1000}, inbound=[{"source": queue, "topic": "new"}])
    async with running(config, topics) as bridge:
        await until(lambda: bridge.figures().dead == 3)
    assert topics.ids == [f"via:{key}/good"]
    assert bridge.figures().own == 2
    assert await waiting(rabbit, queue) == 0
    dead = {message.body: message.header.properties for message in await drain(rabbit, f"flowray.dead.{key}")}
    assert set(dead) == {b"x" * 1001, b"never", b"the id has no room"}
    assert dead[b"never"].headers == {"reason": "payload: too strange", "source": queue, "flowray-origin": key}
    assert dead[b"never"].message_id == "never"


async def test_nothing_more_is_read_while_flowray_takes_nothing(key, bridge_of, topics, rabbit):
    await fill(rabbit, f"{key}.in", numbers(100))
    topics.open.clear()
    refusals = iter([MeshError("no coordinator")] * 3)
    topics.refuse = lambda message: next(refusals, None)
    config = bridge_of({"batch": 10}, inbound=[{"source": f"{key}.in", "topic": "new"}])
    async with running(config, topics) as bridge:
        await until(lambda: topics.waiting > 0)
        await asyncio.sleep(0.3)
        assert topics.waiting <= 10
        assert await waiting(rabbit, f"{key}.in") == 80, "two batches are prefetched, the rest stays with the server"
        topics.open.set()
        await until(lambda: len(topics.taken) == 100)
        assert bridge.figures().refused == 3
    assert sorted(map(int, topics.bodies)) == list(range(100))


async def test_a_full_queue_is_waited_for(key, bridge_of, topics, rabbit):
    limited = {"x-max-length": 10, "x-overflow": "reject-publish"}
    await rabbit.queue_declare(f"{key}.small", durable=True, arguments=limited)
    await rabbit.exchange_declare(f"{key}.x", exchange_type="fanout", durable=True)
    await rabbit.queue_bind(f"{key}.small", f"{key}.x")
    config = bridge_of(outbound=[{"topic": "done", "target": f"{key}.x"}])
    async with running(config, topics) as bridge:
        sending = asyncio.ensure_future(topics.send("done", numbers(25)))
        await until(lambda: bridge.figures().last_error != "")
        assert not sending.done()
        found: list[bytes] = []
        while len(found) < 25:
            found += [message.body for message in await drain(rabbit, f"{key}.small")]
            await asyncio.sleep(0.02)
        await sending
    assert sorted(map(int, found)) == list(range(25))


async def child(config: BridgeConfig, output: Path, point: str) -> asyncio.subprocess.Process:
    encoded = msgspec.json.encode(config).decode()
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bridges.child", encoded, str(output), point, cwd=Path(__file__).parents[1]
    )


@pytest.mark.parametrize("point", ["published:37", "recorded"])
async def test_the_process_is_killed_between_taking_over_and_acknowledging(key, bridge_of, rabbit, tmp_path, point):
    await fill(rabbit, f"{key}.in", numbers(100))
    config = bridge_of({"batch": 10}, inbound=[{"source": f"{key}.in", "topic": "new"}])
    output = tmp_path / "taken"
    dying = await child(config, output, point)
    assert await dying.wait() == -signal.SIGKILL
    before = len(output.read_bytes().splitlines())
    lasting = await child(config, output, "-")
    try:
        await until(lambda: len(set(output.read_bytes().splitlines())) == 100)
    finally:
        lasting.kill()
        await lasting.wait()
    lines = output.read_bytes().splitlines()
    assert {line.split(b"\t")[1] for line in lines} == set(numbers(100).values())
    if point == "recorded":
        assert len(lines) == 100, "what was written down came once"
    else:
        assert before == 37
        # Deliveries do not come in whole batches: of the 37, those of the unfinished batch came twice, at most ten.
        assert len(lines) - 100 <= 10


async def test_the_server_is_killed_and_nothing_is_lost_or_doubled(
    key, bridge_of, topics, rabbit_server, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG)
    connection = await aiormq.connect(rabbit_server.url)
    rabbit = await connection.channel()
    count = 1000
    await rabbit.queue_declare(f"{key}.in", durable=True)
    await asyncio.gather(
        *(
            rabbit.basic_publish(
                body, routing_key=f"{key}.in", properties=Basic.Properties(message_id=message_id, delivery_mode=2)
            )
            for message_id, body in numbers(count).items()
        )
    )
    await connection.close()
    config = bridge_of(
        {"batch": 16, "drain_s": 20.0},
        inbound=[{"source": f"{key}.in", "topic": "new"}],
        outbound=[{"topic": "done", "target": "", "routing_key": f"{key}.out"}],
    )
    async with running(config, topics) as bridge:
        sending = asyncio.ensure_future(topics.send("done", numbers(count)))
        await until(lambda: len(topics.taken) > count // 4)
        rabbit_server.kill()
        await until(lambda: bridge.figures().reconnects >= 4)
        await asyncio.to_thread(rabbit_server.start)
        await until(lambda: len(topics.taken) >= count)
        await sending
        shown = f"{bridge!r} {bridge.figures()!r} {config!r} {caplog.text}"
    assert sorted(topics.ids) == sorted(f"via:{key}/m{n}" for n in range(count))
    connection = await aiormq.connect(rabbit_server.url)
    rabbit = await connection.channel()
    out = [message.header.properties.message_id for message in await drain(rabbit, f"{key}.out")]
    assert await waiting(rabbit, f"{key}.in") == 0
    await connection.close()
    assert set(out) == set(numbers(count)), "nothing lost"
    assert len(out) - count <= 16, "what was accepted and not confirmed came again, with the same ids"
    assert "lost its server" in caplog.text
    assert PASSWORD not in shown
    assert QUOTED not in shown


async def test_a_wrong_password_ends_the_bridge_and_is_not_shown(
    key, bridge_of, rabbit_server, topics, tmp_path, caplog
):
    caplog.set_level(logging.DEBUG)
    (tmp_path / "url").write_text(rabbit_server.url.replace(QUOTED, "wr0ng%2Fone"))
    config = bridge_of(url=f"file:{tmp_path / 'url'}", inbound=[{"source": "in", "topic": "new"}])
    bridge, error = await fails(config, topics, ConfigError, "url: RabbitMQ refuses it")
    assert "wr0ng" not in f"{error!r} {bridge!r} {bridge.figures()!r} {config!r} {caplog.text}"


async def test_what_is_missing_on_the_server_is_said(key, bridge_of, topics, rabbit):
    inbound = bridge_of(declare=False, inbound=[{"source": f"{key}.missing", "topic": "new"}])
    outbound = bridge_of(outbound=[{"topic": "done", "target": f"{key}.missing"}])
    for config in (inbound, outbound):
        await fails(config, topics, ConfigError, f"{key}.missing")


async def test_a_queue_that_is_deleted_is_made_again(key, bridge_of, topics, rabbit):
    config = bridge_of(inbound=[{"source": f"{key}.in", "topic": "new"}])
    async with running(config, topics) as bridge:
        await rabbit.queue_delete(f"{key}.in")
        await until(lambda: bridge.figures().reconnects == 1 and bridge.figures().connected == 1)
        await fill(rabbit, f"{key}.in", {"m": b"x"})
        await until(lambda: topics.bodies == [b"x"])

"""A bridge between a runtime's topics and a real Redis server: agents at one end, stream entries at the other."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from talking_agents import Clerk

import flowray as fr
from flowray.errors import ConfigError

redis = pytest.importorskip("redis", reason="the extra 'bus' is not installed (pip install 'flowray[bus]')")
pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 60.0
MANY = 500


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    sys.path.append(str(Path(__file__).parent.parent))  # where the helpers of the bridges' own tests are
    from bridges.servers import RedisServer, missing, started

    if reason := missing("redis"):
        pytest.skip(reason)
    with started(RedisServer(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture(scope="module")
def rt(server: Any, start_runtime: Callable[..., fr.Runtime]) -> Iterator[fr.Runtime]:
    with start_runtime("bridging", tiers__secondary__warm=0) as runtime:
        runtime.agents.add(Clerk)
        runtime.wait_ready()
        yield runtime


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    with redis.Redis.from_url(server.url, protocol=2) as client:
        client.flushall()
        yield client


@pytest.fixture
def config(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    from flowray.bridges import BridgeConfig
    from flowray.bridges.config import InboundConfig, OutboundConfig

    monkeypatch.setenv("BRIDGE_REDIS", server.url)
    return BridgeConfig(
        name="orders",
        kind="redis-streams",
        url="env:BRIDGE_REDIS",
        inbound=[InboundConfig(source="orders", topic="orders")],
        outbound=[OutboundConfig(topic="done", target="orders-done")],
    )


def test_entries_reach_agents_and_what_agents_publish_becomes_entries(
    rt: fr.Runtime, client: Any, config: Any, eventually: Callable[..., Any]
) -> None:
    with rt.bridge(config) as bridge:
        eventually(lambda: bridge.figures().connected == 2, "both routes are connected")
        published = rt.submit({"topic": "done", "body": "by itself", "id": "first"}, agent="clerk").result(WAIT_S)
        assert published == 1
        ((_, entry),) = eventually(lambda: client.xrange("orders-done"), "it is in the stream")
        assert (entry[b"body"], entry[b"message_id"], entry[b"topic"]) == (b"by itself", b"first", b"done")
        assert entry[b"publisher"] == b"clerk-0"
        client.xadd("orders", {"body": "two chairs", "message_id": "o-1"})
        plain = client.xadd("orders", {"body": "a table"})
        client.xadd("orders", {"body": "two chairs", "message_id": "o-1"})  # its producer repeats itself
        eventually(lambda: bridge.figures().messages_out == 3, "the agent's answers are out")
        assert rt.ask("clerk-0").result(WAIT_S) == [
            ["via:orders/o-1", "two chairs"],
            [f"via:orders/orders:{plain.decode()}", "a table"],
        ]
        done = [(fields[b"message_id"], fields[b"body"]) for _, fields in client.xrange("orders-done")[1:]]
        assert done == [(b"done-1", b"did two chairs"), (b"done-2", b"did a table")]
        eventually(lambda: bridge.figures().duplicates_in == 1, "the repeat was dropped")
        figures = bridge.figures()
        assert (figures.messages_in, figures.messages_out, figures.dead, figures.lost) == (2, 3, 0, 0)
        bridge.check()
    assert client.xpending("orders", "orders")["pending"] == 0
    eventually(lambda: rt.publish("done", "nobody hears this").result(WAIT_S) == 0, "the bridge is gone")


def test_many_go_round_and_each_arrives_once(
    rt: fr.Runtime, client: Any, config: Any, eventually: Callable[..., Any]
) -> None:
    before = len(rt.ask("clerk-0").result(WAIT_S))
    with client.pipeline(transaction=False) as batch:
        for number in range(MANY):
            batch.xadd("orders", {"body": f"b{number}", "message_id": f"m{number}"})
        batch.execute()
    with rt.bridge(config) as bridge:
        eventually(lambda: bridge.figures().messages_out == MANY, "all have come back")
        assert bridge.figures().messages_in == MANY
    orders = rt.ask("clerk-0").result(WAIT_S)[before:]
    assert orders == [[f"via:orders/m{number}", f"b{number}"] for number in range(MANY)]
    assert [fields[b"body"] for _, fields in client.xrange("orders-done")] == [
        f"did b{number}".encode() for number in range(MANY)
    ]


def test_a_bridge_outlives_its_coordinator_and_its_server(
    rt: fr.Runtime, server: Any, client: Any, config: Any, eventually: Callable[..., Any]
) -> None:
    with rt.bridge(config) as bridge:
        eventually(lambda: bridge.figures().connected == 2)
        before = rt.status()
        os.kill(before.pid, signal.SIGKILL)
        client.xadd("orders", {"body": "while it is away", "message_id": "away"})
        eventually(lambda: bridge.figures().messages_in == 1, "the agent is known to the bridge")
        assert rt.status().epoch == before.epoch + 1
        rt.wait_ready()
        rt.submit({"topic": "done", "body": "again", "id": "again"}, agent="clerk").result(WAIT_S)
        eventually(
            lambda: b"again" in [fields[b"message_id"] for _, fields in client.xrange("orders-done")],
            "its subscription goes on",
        )
        server.kill()
        rt.submit({"topic": "done", "body": "kept", "id": "kept"}, agent="clerk").result(WAIT_S)
        server.start()
        eventually(lambda: has_loaded(client), "the server has read its file")
        eventually(
            lambda: b"kept" in [fields[b"message_id"] for _, fields in client.xrange("orders-done")], "it was kept"
        )
        bridge.check()
    ids = [fields[b"message_id"] for _, fields in client.xrange("orders-done")]
    assert ids.count(b"again") == 1 and ids.count(b"kept") == 1


def has_loaded(client: Any) -> bool:
    try:
        return bool(client.ping())
    except redis.BusyLoadingError:
        return False


def test_a_bridge_whose_secret_is_missing_is_refused(
    rt: fr.Runtime, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BRIDGE_REDIS")
    with pytest.raises(ConfigError, match="BRIDGE_REDIS"), rt.bridge(config):
        pass

"""Servers for a whole run of these tests, and what each test does with a bridge."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from flowray.bridges import BridgeConfig, open_bridge
from flowray.bridges.bridge import Bridge
from flowray.config import _build

from .servers import RabbitServer, RedisServer, missing, started
from .topics import FakeTopics

_numbers = itertools.count()
FAST = {"reconnect_min_s": 0.02, "reconnect_max_s": 0.2, "answer_within_s": 5.0, "drain_s": 5.0, "claim_after_s": 30.0}


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if reason := missing("redis"):
        pytest.skip(reason)
    with started(RedisServer(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture(scope="session")
def rabbit_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    if reason := missing("rabbitmq"):
        pytest.skip(reason)
    with started(RabbitServer(tmp_path_factory.mktemp("rabbitmq"))) as server:
        yield server


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server to be killed, not started yet."""
    server = RedisServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def topics() -> FakeTopics:
    return FakeTopics()


@pytest.fixture
def key() -> str:
    """A name for this test's streams, queues and bridge on the shared server."""
    return f"t{next(_numbers)}"


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server.url, protocol=2) as client:
        yield client


@pytest.fixture
def redis_url(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("BRIDGE_REDIS", redis_server.url)
    return "env:BRIDGE_REDIS"


@pytest.fixture
def rabbit_url(rabbit_server: RabbitServer, tmp_path: Path) -> str:
    file = tmp_path / "rabbit-url"
    file.write_text(rabbit_server.url + "\n")
    return f"file:{file}"


def configure(limits: dict[str, Any] | None = None, **fields: Any) -> BridgeConfig:
    built = _build(BridgeConfig, {**fields, "limits": {**FAST, **(limits or {})}}, "bridges[0]")  # as from a file
    assert isinstance(built, BridgeConfig)
    return built


@asynccontextmanager
async def running(config: BridgeConfig, topics: FakeTopics) -> AsyncIterator[Bridge]:
    """A bridge that is connected. Fails with what ended it, if something did."""
    bridge = open_bridge(config, topics)
    async with bridge:
        await until(lambda: bridge.figures().connected == bridge.figures().lanes or bridge._ended.is_set())
        if bridge._ended.is_set():
            await bridge.wait()
        yield bridge
    await bridge.wait()


async def fails(
    config: BridgeConfig, topics: FakeTopics, kind: type[Exception], match: str
) -> tuple[Bridge, Exception]:
    """A bridge that ends by itself, and with what."""
    bridge = open_bridge(config, topics)
    await bridge.start()
    with pytest.raises(kind, match=match) as caught:
        await bridge.wait()
    await bridge.stop()
    return bridge, caught.value


async def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
    """Wait for it; a test that waits in vain fails here."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)

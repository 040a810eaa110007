"""Agents that talk over real endpoints: two of them on one loop, with a Unix socket between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest

from flowray.agents import Context
from flowray.errors import AgentUnreachable
from flowray.mesh.endpoint import Endpoint, MeshEvent, PeerGone, SharedSecret
from flowray.mesh.peer import Peer
from flowray.mesh.topics import Directory
from flowray.runtime.talking import Talking


class Process:
    """An endpoint with talking on top: how the two fit together."""

    def __init__(self, name: str, first_number: int) -> None:
        self.endpoint = Endpoint(
            name, runtime="r", on_messages=self._take, on_event=self._hear, gate=SharedSecret("s"), token="s"
        )
        self.talking = Talking(name, self, first_number=first_number, trusts=lambda peer: True)

    def _take(self, peer: Peer, messages: list[bytes]) -> None:
        peer.consumed(len(messages), sum(map(len, messages)))  # lanes have bounds of their own
        self.talking.receive(peer.name, messages)

    def _hear(self, event: MeshEvent) -> None:
        if isinstance(event, PeerGone):
            self.talking.peer_gone(event.peer, event.reason)

    def send(self, peer: str, message: bytes) -> bool:
        return self.endpoint.peer(peer).send(message)

    def room(self, peer: str) -> Awaitable[None]:
        return self.endpoint.peer(peer).room()


@contextlib.asynccontextmanager
async def two(directory: Path) -> AsyncIterator[tuple[Process, Process]]:
    directory.chmod(0o700)
    here, there = Process("here", 1), Process("there", 1_000_000)
    places = Directory(1)
    places.put("me-1", "here")
    places.put("ear-1", "there", {"news"})
    changes = places.changes_since(0, 0)
    assert changes is not None
    assert here.talking.learn(changes) and there.talking.learn(changes)
    await there.endpoint.listen_unix(directory / "s")
    here.endpoint.dial("there", f"unix:{directory / 's'}")
    try:
        yield here, there
    finally:
        for process in (here, there):
            process.talking.close()
            await process.endpoint.close(0)


def context(voice: Any, remaining_s: float | None = None) -> Context:
    return Context(agent_id="", voice=voice)


async def test_asks_tells_and_topics_over_a_stream(tmp_path):
    heard = []

    async def hear(message):
        heard.append((message.topic, message.body))
        return len(heard)

    async with two(tmp_path) as (here, there):
        there.talking.host("ear-1", hear, context)
        me = context(here.talking.speaker("me-1"))
        for n in range(5_000):
            await me.send("ear-1", n)
        assert await me.publish("news", "x") == 1
        assert await me.ask("ear-1", timeout_s=60) == 5_002
    assert heard == [*(("", n) for n in range(5_000)), ("news", "x"), ("", None)]


async def test_a_peer_that_is_given_up_is_told_to_those_who_wait(tmp_path):
    gate = asyncio.Event()
    began = asyncio.Event()

    async def hear(message):
        began.set()
        await gate.wait()

    async with two(tmp_path) as (here, there):
        there.talking.host("ear-1", hear, context)
        reply = context(here.talking.speaker("me-1")).ask("ear-1")
        await began.wait()
        here.endpoint.forget("there", "its node is gone")
        with pytest.raises(AgentUnreachable, match="its node is gone"):
            await reply

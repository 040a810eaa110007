"""Bridges on a runtime: its topics as `flowray.bridges` wants them, and a thread to run one in."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgspec

from flowray.bridges import BridgeConfig, open_bridge
from flowray.bridges.bridge import Bridge
from flowray.bridges.figures import Figures
from flowray.bridges.topics import OnMessage, TopicMessage
from flowray.runtime.listening import Subscription
from flowray.runtime.loops import LoopThread

if TYPE_CHECKING:
    from flowray.runtime.runtime import Runtime

_WINDOW = 1024  # messages on their way to the other server at once: what its batches are made of


class RuntimeTopics:
    """The topics of a runtime, through a driver's link."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def publish(self, topic: str, body: bytes, *, message_id: str) -> None:
        """See bridges.Topics."""
        await self._runtime.publish(topic, body, message_id=message_id)

    async def subscribe(self, topic: str, on_message: OnMessage) -> Following:
        """See bridges.Topics."""
        stack = contextlib.ExitStack()
        loop = asyncio.get_running_loop()
        messages = await loop.run_in_executor(None, stack.enter_context, self._runtime.subscribe(topic))
        return Following(messages, on_message, stack)


class Following:
    """One topic that a bridge follows."""

    def __init__(self, messages: Subscription, on_message: OnMessage, stack: contextlib.ExitStack) -> None:
        self._on_message = on_message
        self._stack = stack
        self._calls: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(_WINDOW)
        self._numbers = itertools.count(1)
        self._origin = secrets.token_hex(8)
        self._task = asyncio.get_running_loop().create_task(self._follow(messages))

    async def _follow(self, messages: Subscription) -> None:
        async for message in messages:
            await self._room.acquire()  # while it is full nothing is taken, and publishers feel that
            message_id = message.message_id or f"{self._origin}-{next(self._numbers)}"
            heard = TopicMessage(message.topic, as_bytes(message.body), message_id, message.sender)
            call = asyncio.get_running_loop().create_task(self._call(heard))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _call(self, message: TopicMessage) -> None:
        try:
            await self._on_message(message)
        finally:
            self._room.release()

    async def close(self) -> None:
        """Hear nothing more."""
        self._task.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._stack.close)


def as_bytes(body: Any) -> bytes:
    """A message's body for another system: bytes and text as they are, other plain data as JSON."""
    if isinstance(body, bytes):
        return body
    return body.encode() if isinstance(body, str) else msgspec.json.encode(body)


class RunningBridge:
    """A bridge in a thread of its own."""

    def __init__(self, bridge: Bridge, ended: Future[None]) -> None:
        self.name = bridge.config.name
        self._bridge = bridge
        self._ended = ended

    def figures(self) -> Figures:
        """What it has carried so far."""
        return self._bridge.figures()

    def check(self) -> None:
        """Raise what ended it, if it did not run any more."""
        if self._ended.done():
            self._ended.result()


@contextlib.contextmanager
def running(runtime: Runtime, config: BridgeConfig) -> Iterator[RunningBridge]:
    """A bridge that runs until the block ends."""
    bridge = open_bridge(config, RuntimeTopics(runtime))
    thread = LoopThread(f"bridge-{config.name}")
    try:
        thread.call(bridge.start)
        try:
            yield RunningBridge(bridge, asyncio.run_coroutine_threadsafe(bridge.wait(), thread.loop))
        finally:
            thread.call(bridge.stop)
    finally:
        thread.end()

"""How fast agents talk: `python tests/mesh/talk_speed.py`. Prints figures and asserts nothing.

First the conversations alone, without IO; then two processes with endpoints on a Unix socket, where one asks and
tells and the other hears. Ratios within one run can be compared; seconds are this machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from flowray.agents import Context
from flowray.mesh.conversations import Conversations
from flowray.mesh.endpoint import Endpoint, SharedSecret
from flowray.mesh.lanes import TalkLimits
from flowray.mesh.peer import Peer
from flowray.mesh.topics import Directory
from flowray.runtime.talking import Talking

BODY = b"x" * 100


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def alone(rounds: int = 200, batch: int = 1_000) -> None:
    """What one message costs its sender and its receiver, in this code."""
    limits = TalkLimits(lane_bytes=64 << 20, window_bytes=4 << 20, first_window_bytes=4 << 20)
    here, there = Conversations("here", limits), Conversations("there", limits)
    lane = there.host("ear-1")
    directory = Directory(1)
    directory.put("ear-1", "there")
    changes = directory.changes_since(0, 0)
    assert changes is not None
    here.learn(changes)
    sending_s = receiving_s = 0.0
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(batch):
            here.tell("me-1", "ear-1", 0, BODY)
        outbox = here.flushable.popleft()
        parcels = []
        while (parcel := here.take_parcel(outbox)) is not None:
            parcels.append(parcel)
        sent = time.perf_counter()
        for parcel in parcels:
            there.receive("here", parcel, 0.0)
        there.woken.clear()
        while (turn := there.take(lane, 0.0)) is not None:
            there.end(turn)
        sending_s += sent - began
        receiving_s += time.perf_counter() - sent
        for outbox in there.flushable:
            while (parcel := there.take_parcel(outbox)) is not None:
                here.receive("there", parcel, 0.0)
        there.flushable.clear()
    count = rounds * batch
    say(f"alone: {count / sending_s:,.0f} messages/s sent, {count / receiving_s:,.0f} received and handled")


class MeshPost:
    """An endpoint as talking wants it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def send(self, peer: str, message: bytes) -> bool:
        return self._endpoint.peer(peer).send(message)

    def room(self, peer: str) -> Awaitable[None]:
        return self._endpoint.peer(peer).room()


class Process:
    def __init__(self, name: str) -> None:
        def take(peer: Peer, messages: list[bytes]) -> None:
            peer.consumed(len(messages), sum(map(len, messages)))
            if messages[0][:1] == b"\xc1":  # no parcel begins like this: it measures the mesh alone
                self.bounced(peer, messages[0])
                return
            self.talking.receive(peer.name, messages)

        self.endpoint = Endpoint(
            name, runtime="speed", on_messages=take, on_event=lambda event: None, gate=SharedSecret("s"), token="s"
        )
        self.talking = Talking(
            name, MeshPost(self.endpoint), first_number=random.getrandbits(40), trusts=lambda peer: True
        )
        directory = Directory(1)
        directory.put("ear-1", "there")
        directory.put("thread-1", "there")
        directory.put("me-1", "here")
        changes = directory.changes_since(0, 0)
        assert changes is not None
        self.talking.learn(changes)

    def bounced(self, peer: Peer, message: bytes) -> None:
        """Back to where it came from."""
        peer.send(message)

    def context(self, voice: Any, remaining_s: float | None) -> Context:
        return Context(agent_id="", voice=voice)


async def listen(path: Path) -> None:
    process = Process("there")
    count = 0

    async def hear(message: Any) -> Any:
        nonlocal count
        count += 1
        return count if message.wants_reply else None

    process.talking.host("ear-1", hear, process.context)
    process.talking.host("thread-1", lambda message: message.body, process.context)
    await process.endpoint.listen_unix(path)
    await asyncio.Event().wait()


async def speak(path: Path) -> None:
    process = Process("here")
    me = process.context(process.talking.speaker("me-1"), None)
    peer = process.endpoint.dial("there", f"unix:{path}")
    await peer.connected.wait()
    back: asyncio.Future[None]
    process.bounced = lambda peer, message: back.set_result(None)  # type: ignore[method-assign]

    async def bounce() -> None:
        nonlocal back
        back = asyncio.get_running_loop().create_future()
        peer.send(b"\xc1" + BODY)
        await back

    for name in ("the mesh alone", "ear-1", "thread-1") * 2:
        took = []
        for _ in range(2_000):
            began = time.perf_counter()
            await (bounce() if name not in ("ear-1", "thread-1") else me.ask(name, BODY))
            took.append(time.perf_counter() - began)
        took.sort()
        say(f"round trip, {name}: p50 {took[1000] * 1e3:.3f} ms, p99 {took[1980] * 1e3:.3f} ms")

    async def keep_asking() -> None:
        for _ in range(300):
            await me.ask("ear-1", BODY)

    for _ in range(2):
        began = time.perf_counter()
        await asyncio.gather(*(keep_asking() for _ in range(64)))
        say(f"asks, 64 in flight: {64 * 300 / (time.perf_counter() - began):,.0f}/s")
    for _ in range(5):
        before = await me.ask("ear-1")
        began = time.perf_counter()
        for _ in range(200_000):
            await me.send("ear-1", BODY)
        heard = await me.ask("ear-1") - before - 1
        took_s = time.perf_counter() - began
        say(f"one way: {heard / took_s:,.0f} messages/s, {heard} heard")

    def run() -> None:
        began = time.perf_counter()
        for _ in range(100_000):
            me.send("ear-1", BODY)
        me.ask("ear-1").result()
        say(f"one way from a thread: {100_000 / (time.perf_counter() - began):,.0f} messages/s")

    await asyncio.to_thread(run)
    process.talking.close()
    await process.endpoint.close()


def main() -> None:
    if len(sys.argv) == 3:
        import uvloop

        uvloop.run({"listen": listen, "speak": speak}[sys.argv[1]](Path(sys.argv[2])))
        return
    for _ in range(3):
        alone()
    environment = {**os.environ, "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener"}
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory, "there.sock"))
        listener = subprocess.Popen([sys.executable, __file__, "listen", path], env=environment)
        try:
            while not Path(path).exists() and listener.poll() is None:
                time.sleep(0.05)
            subprocess.run([sys.executable, __file__, "speak", path], env=environment, timeout=300, check=True)
        finally:
            listener.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                listener.wait(10)


if __name__ == "__main__":
    main()

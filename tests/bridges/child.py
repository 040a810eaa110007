"""A process with a bridge that kills itself at a chosen point: `python -m bridges.child CONFIG OUTPUT POINT`.

Whatever flowray takes over becomes a line "id<tab>body" of the output. POINT: "published:N" kills in the N-th publish,
after flowray has taken it over; "recorded" kills after the first ids were written down, before they are acknowledged;
"-" does not kill.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec

from flowray.bridges import BridgeConfig, OnMessage, Subscription, open_bridge
from flowray.bridges.window import IdWindow


class FileTopics:
    def __init__(self, output: Path, kill_at: int) -> None:
        self._file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._left = kill_at

    async def publish(self, topic: str, body: bytes, *, message_id: str) -> None:
        os.write(self._file, message_id.encode() + b"\t" + body + b"\n")
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    async def subscribe(self, topic: str, on_message: OnMessage) -> Subscription:
        raise NotImplementedError("these tests only bring in")


def kill_once_recorded() -> None:
    add = IdWindow.add

    async def add_and_die(self: IdWindow, route: str, ids: Iterable[str]) -> None:
        await add(self, route, ids)
        os.kill(os.getpid(), signal.SIGKILL)

    IdWindow.add = add_and_die  # type: ignore[method-assign]


async def main(config: str, output: str, point: str) -> None:
    word, _, number = point.partition(":")
    if word == "recorded":
        kill_once_recorded()
    topics = FileTopics(Path(output), int(number or 0))
    bridge = open_bridge(msgspec.json.decode(config, type=BridgeConfig), topics)
    async with bridge:
        await bridge.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))

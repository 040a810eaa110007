"""A process with an endpoint that sends numbered messages to one peer, for tests that kill it or cut it off.

Reads its settings as JSON from the first line of standard input. Prints a JSON line for each event, and one with its
counts when it has been told to "stop" (sending) and all that it sent is confirmed; ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from nodes import RUNTIME, Node

from flowray.mesh import identities
from flowray.mesh.authority import Authority


async def main() -> None:
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line.strip())
        loop.call_soon_threadsafe(lines.put_nowait, "end")

    reading = asyncio.create_task(asyncio.to_thread(read))
    settings = json.loads(await lines.get())
    node = Node(settings["name"])
    seen = 0

    async def tell() -> None:
        nonlocal seen
        while True:
            await node.until(lambda before=seen: len(node.events) > before)
            for event in node.events[seen:]:
                say({"event": type(event).__name__, "peer": event.peer, "reason": getattr(event, "reason", "")})
            seen = len(node.events)

    telling = asyncio.create_task(tell())
    credentials: Any = None
    if settings.get("authority"):
        mine = Authority.open(Path(settings["authority"]), runtime=RUNTIME).issue(settings["name"])
        credentials = identities.channel_credentials(mine)
    if settings.get("host"):
        serving = identities.server_credentials(lambda: mine, require_client=True)
        await node.endpoint.listen_tcp(settings["host"], settings["port"], serving)
    if settings.get("path"):
        await node.endpoint.listen_unix(Path(settings["path"]))
    other = settings["peer"]
    if settings.get("dials"):
        node.endpoint.dial(other, settings["dials"], credentials)
    say({"ready": True})

    async def talk() -> None:
        while True:
            await node.say(other, 50, size=settings.get("size", 0))
            await asyncio.sleep(settings.get("pause_s", 0.01))

    talking = asyncio.create_task(talk())
    while (line := await lines.get()) != "end":
        if line == "stop":
            talking.cancel()
            await asyncio.wait([talking])
            peer = node.endpoint.peer(other)
            await node.until(lambda peer=peer: peer.link.held == 0)
            say({"sent": (peer.link._sent, node.sent.get(other, 0))})
        if line == "count":
            heard = node.heard(other)
            say({"heard": len(heard), "in_order": heard == list(range(len(heard))), "held": peer_held(node, other)})
    for task in (telling, talking):
        task.cancel()
    await node.endpoint.close(0)
    await reading


def peer_held(node: Node, other: str) -> int:
    return node.endpoint.peer(other).link.held


def say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())

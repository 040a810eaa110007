"""Runs `child.py`, and talks with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any


class Child:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    async def hear(self, key: str, value: Any = None) -> dict[str, Any]:
        """The next line that has this key (with this value); events that come before it are kept."""
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            said: dict[str, Any] = json.loads(line)
            if "event" in said:
                self.events.append(said)
            if key in said and value in (None, said[key]):
                return said
        raise AssertionError(f"the child ended before it said {key}")

    async def ask(self, line: str, key: str) -> dict[str, Any]:
        self.tell(line)
        return await self.hear(key)

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


@contextlib.asynccontextmanager
async def child(settings: dict[str, Any], prefix: tuple[str, ...] = ()) -> AsyncIterator[Child]:
    """A started child, ready; killed at the end."""
    one = Child(
        await asyncio.create_subprocess_exec(
            *prefix, sys.executable, str(Path(__file__).with_name("child.py")),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )
    )  # fmt: skip
    try:
        one.tell(json.dumps(settings))
        await one.hear("ready")
        yield one
    finally:
        await one.kill()
        one.process._transport.close()

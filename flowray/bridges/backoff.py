"""Waits that grow, with jitter, so that many bridges do not fall on a server that comes back all at once."""

from __future__ import annotations

import asyncio
import random


class Backoff:
    """`await wait(...)` sleeps between half and all of a time that doubles from `min_s` to `max_s`."""

    def __init__(self, min_s: float, max_s: float) -> None:
        self._min_s, self._max_s = min_s, max_s
        self._next_s = min_s

    def reset(self) -> None:
        """It worked: begin small again."""
        self._next_s = self._min_s

    def next_s(self) -> float:
        """How long to wait now, seconds; the following one is longer."""
        whole_s = self._next_s
        self._next_s = min(whole_s * 2, self._max_s)
        return whole_s * random.uniform(0.5, 1.0)

    async def wait(self, until: asyncio.Event) -> bool:
        """Sleep, or less if the event comes first; says whether it came."""
        try:
            async with asyncio.timeout(self.next_s()):
                await until.wait()
        except TimeoutError:
            return False
        return True

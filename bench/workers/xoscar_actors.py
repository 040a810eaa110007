"""Actors of the xoscar side: in a module, for its processes import them by name."""

from __future__ import annotations

import os
from typing import Any

import xoscar

from bench.workers.loads import answers_per_s, by_the_clock, one_at_a_time, one_way
from bench.workers.ring import ask_all_along


class Echo(xoscar.Actor):
    def __init__(self) -> None:
        super().__init__()
        self._arrived = 0

    async def ask(self, body: bytes) -> bytes:
        return body

    async def take(self, body: bytes) -> None:
        self._arrived += 1

    async def arrived(self) -> int:
        return self._arrived


class Asker(xoscar.Actor):
    async def run(self, echo: Any, settings: dict[str, Any]) -> dict[str, float]:
        figures = await one_at_a_time(echo.ask, settings)
        answered = await answers_per_s(echo.take, settings)
        # `tell` waits for no answer, but each is a message of its own all the same: the better of the two counts.
        body = b"x" * settings["bytes"]
        told = await one_way(echo.take.tell, echo.arrived, body, settings["seconds"])
        figures["one_way_per_s"] = max(answered, told)
        return figures | await by_the_clock(echo.ask, settings)


class Member(xoscar.StatelessActor):
    """One of many that all ask: each its neighbour, all at the same time.

    Stateless in xoscar's words, that is without its lock for each actor: with it who asks could not answer.
    """

    async def ask(self, body: bytes) -> bytes:
        return body

    async def take(self, body: bytes) -> None:
        return None

    async def pid(self) -> int:
        return os.getpid()

    async def run(self, neighbour: Any, settings: dict[str, Any], moment: float) -> int:
        return await ask_all_along(neighbour.ask, settings, moment)

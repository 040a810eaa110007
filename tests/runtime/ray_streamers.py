"""Agents that give out chunks, for the tests on real Ray: what and how fast, a task's payload says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from ray_agents import note, until_open

import flowray as fr


def chunk(plan: dict[str, Any], number: int, attempt: int) -> str:
    """The same in every attempt before the number `flaky_from`."""
    return f"{number}" if number < plan.get("flaky_from", 1 << 60) else f"{number} of attempt {attempt}"


class Reciter:
    """A generator: it waits at a gate in its first attempt, and for a moment before each chunk."""

    def run(self, task: fr.Task, ctx: fr.Context) -> Iterator[Any]:
        plan = task.payload
        try:
            for number in range(plan["count"]):
                if ctx.attempt == 1 and number == plan.get("gate_at"):
                    note(plan["file"], "waits")
                    until_open(plan["gate"])
                if plan.get("pause_s"):
                    time.sleep(plan["pause_s"])
                yield chunk(plan, number, ctx.attempt)
        finally:
            if "file" in plan:
                note(plan["file"], f"closed/{ctx.attempt}")
        return f"attempt {ctx.attempt}"


class Emitter:
    """Async code, by `ctx.emit`."""

    async def run(self, task: fr.Task, ctx: fr.Context) -> str:
        plan = task.payload
        for number in range(plan["count"]):
            while ctx.attempt == 1 and number == plan.get("gate_at") and not Path(plan["gate"]).exists():
                await asyncio.sleep(0.01)
            await ctx.emit(chunk(plan, number, ctx.attempt))
        return f"attempt {ctx.attempt}"


class Yielder:
    """An async generator."""

    async def run(self, task: fr.Task, ctx: fr.Context) -> AsyncIterator[Any]:
        plan = task.payload
        for number in range(plan["count"]):
            while ctx.attempt == 1 and number == plan.get("gate_at") and not Path(plan["gate"]).exists():
                await asyncio.sleep(0.01)
            yield chunk(plan, number, ctx.attempt)


@fr.agent(resumes=True)
class Resumer:
    """It goes on where the last attempt was, and notes what it makes."""

    def run(self, task: fr.Task, ctx: fr.Context) -> Iterator[Any]:
        plan = task.payload
        for number in range(ctx.cursor, plan["count"]):
            if ctx.attempt == 1 and number == plan["gate_at"]:
                note(plan["file"], "waits")
                until_open(plan["gate"])
            note(plan["file"], f"makes/{number}/{ctx.attempt}")
            yield chunk(plan, number, ctx.attempt)
        return "done"


@fr.agent(ahead=5)
class Waiter:
    """It notes what it makes, and runs at most five chunks ahead of its readers."""

    def run(self, task: fr.Task, ctx: fr.Context) -> Iterator[Any]:
        plan = task.payload
        for number in range(plan["count"]):
            note(plan["file"], f"makes/{number}")
            yield chunk(plan, number, ctx.attempt)
        return "done"


class Careless:
    """Sync code that gives out what cannot be, and otherwise as many as it can."""

    def run(self, task: fr.Task, ctx: fr.Context) -> Any:
        if task.prompt == "large":
            ctx.emit("x" * 300_000)
        for number in range(1000):
            ctx.emit(number)
        return None

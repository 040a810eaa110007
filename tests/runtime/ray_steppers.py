"""Agents that take steps, for the tests on real Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ray_agents import note, until_open

import flowray as fr
from flowray.errors import StaleAttempt


def value_of(name: str, size: int, attempt: int) -> str:
    return f"{name} of attempt {attempt}".ljust(size, ".")


class Stepper:
    """Sync code: two steps, and a gate between them."""

    def run(self, task: fr.Task, ctx: fr.Context) -> Any:
        plan = task.payload
        file = plan["file"]
        note(file, f"fence/{ctx.fence}")
        note(file, f"key/{ctx.idempotency_key('send')}")

        def work(name: str) -> str:
            note(file, f"{name}/{ctx.attempt}")
            if name == plan.get("slow_step"):
                until_open(plan["gate"])
            return value_of(name, plan["size"], ctx.attempt)

        first = ctx.step("first", work, "first")
        note(file, f"between/{ctx.attempt}")
        if ctx.attempt == 1 and "slow_step" not in plan:
            until_open(plan["gate"])
        try:
            return [first, ctx.step("second", work, name="second")]
        except StaleAttempt:
            note(file, f"stale/{ctx.attempt}")
            raise


class AsyncStepper:
    """The same, async; its first step is async code, its second is not."""

    async def run(self, task: fr.Task, ctx: fr.Context) -> Any:
        plan = task.payload
        file = plan["file"]

        def sync_work(name: str) -> str:
            note(file, f"{name}/{ctx.attempt}")
            return value_of(name, plan["size"], ctx.attempt)

        async def work(name: str) -> str:
            value = sync_work(name)
            while name == plan.get("slow_step") and not Path(plan["gate"]).exists():
                await asyncio.sleep(0.01)
            return value

        first = await ctx.step("first", work, "first")
        note(file, f"between/{ctx.attempt}")
        while ctx.attempt == 1 and "slow_step" not in plan and not Path(plan["gate"]).exists():
            await asyncio.sleep(0.01)
        return [first, await ctx.step("second", sync_work, "second")]


class Clumsy:
    """What may go wrong with steps, told by name."""

    def run(self, task: fr.Task, ctx: fr.Context) -> Any:
        return getattr(self, task.prompt)(ctx)

    def twice(self, ctx: fr.Context) -> Any:
        ctx.step("a", int)
        return ctx.step("a", int)

    def tries_again(self, ctx: fr.Context) -> Any:
        told = []

        def odd() -> int:
            told.append(len(told))
            if len(told) < 3:
                raise ValueError("not yet")
            return told[-1]

        for _ in range(2):
            try:
                ctx.step("odd", odd)
            except ValueError:
                continue
        return ctx.step("odd", odd)

    def many(self, ctx: fr.Context) -> Any:
        for number in range(300):
            ctx.step(f"step-{number}", int)
        return None

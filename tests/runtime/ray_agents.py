"""Agents for the tests on real Ray: they do what a task's payload says."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
from pathlib import Path
from typing import Any

import flowray as fr

GATE_S = 60.0  # an agent that waits longer for its gate fails: the test has gone wrong


def note(path: str, line: str) -> None:
    """Append one line to a file that the test reads: a witness outside the runtime. One write, so lines stay whole."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def until_open(gate: str) -> None:
    """Wait for a file to appear."""
    deadline = time.monotonic() + GATE_S
    while not Path(gate).exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"nobody opened {gate}")
        time.sleep(0.01)


class Tool:
    """Sync code: `do` in the payload names a method."""

    def run(self, task: fr.Task, ctx: fr.Context) -> Any:
        if task.payload is None:
            return task.prompt.upper()
        return getattr(self, task.payload["do"])(task.payload, task, ctx)

    def echo(self, payload: dict[str, Any], task: fr.Task, ctx: fr.Context) -> Any:
        return payload["value"]

    def who(self, payload: dict[str, Any], task: fr.Task, ctx: fr.Context) -> dict[str, Any]:
        import ray

        group = ray.util.get_current_placement_group()
        resources = ray.get_runtime_context().get_assigned_resources()
        return {
            "agent": ctx.agent_id,
            "tier": ctx.tier,
            "pid": os.getpid(),
            "group": group.id.hex() if group is not None else "",
            "cpu": sum(amount for name, amount in resources.items() if name == "CPU"),
            "remaining_s": ctx.remaining_s,
            "labels": dict(task.labels),
            "needs": list(task.needs),
        }

    def wait(self, payload: dict[str, Any], task: fr.Task, ctx: fr.Context) -> str:
        """Deaf to being cancelled, as most sync code is."""
        if "file" in payload:
            note(payload["file"], f"{payload.get('name', task.id)}")
        until_open(payload["gate"])
        return f"{ctx.agent_id} attempt {ctx.attempt}"

    def hold(self, payload: dict[str, Any], task: fr.Task, ctx: fr.Context) -> str:
        """Keep the interpreter's lock for some seconds: nothing else in the process moves."""
        note(payload["file"], "began")
        ctypes.PyDLL(None).sleep(payload["seconds"])
        return f"{ctx.agent_id} attempt {ctx.attempt}"

    def polite(self, payload: dict[str, Any], task: fr.Task, ctx: fr.Context) -> str:
        """Looks whether anybody still wants the answer."""
        note(payload["file"], "began")
        deadline = time.monotonic() + GATE_S
        while not ctx.cancelled and time.monotonic() < deadline:
            time.sleep(0.01)
        note(payload["file"], "noticed")
        return "nobody reads this"

    def fail(self, payload: dict[str, Any], task: fr.Task, ctx: fr.Context) -> None:
        raise ValueError(payload["message"])

    def flaky(self, payload: dict[str, Any], task: fr.Task, ctx: fr.Context) -> int:
        if ctx.attempt < payload["until"]:
            raise fr.RetryableError(f"not at attempt {ctx.attempt}")
        return ctx.attempt

    def weigh(self, payload: dict[str, Any], task: fr.Task, ctx: fr.Context) -> None:
        for report in payload["reports"]:
            ctx.report(**report)

    def lock(self, payload: dict[str, Any], task: fr.Task, ctx: fr.Context) -> Any:
        return threading.Lock()

    def reverse(self, payload: dict[str, Any], task: fr.Task, ctx: fr.Context) -> bytes:
        return bytes(payload["value"][::-1])

    def die(self, payload: dict[str, Any], task: fr.Task, ctx: fr.Context) -> None:
        note(payload["file"], ctx.agent_id)
        os._exit(9)


class AsyncTool:
    """Async code, several attempts at once."""

    async def run(self, task: fr.Task, ctx: fr.Context) -> Any:
        payload = task.payload
        if payload["do"] == "together":  # each waits until all are running
            note(payload["file"], payload["name"])
            deadline = time.monotonic() + GATE_S
            while len(Path(payload["file"]).read_text().split()) < payload["count"]:
                if time.monotonic() > deadline:
                    raise RuntimeError("the others did not come")
                await asyncio.sleep(0.01)
            return payload["name"]
        try:
            note(payload["file"], "began")
            await asyncio.sleep(GATE_S)
        except asyncio.CancelledError:
            note(payload["file"], "cancelled")
            raise
        return None


class Crasher:
    """Takes its process down when it is made."""

    def __init__(self) -> None:
        os._exit(3)

    def run(self, task: fr.Task) -> None:
        return None


class Broken:
    """Does not start."""

    def __init__(self) -> None:
        raise RuntimeError("no model file here")

    def run(self, task: fr.Task) -> None:
        return None


def shout(task: fr.Task) -> str:
    return f"{task.prompt.upper()}!"


async def whisper(task: fr.Task) -> str:
    await asyncio.sleep(0)
    return f"{task.prompt.lower()}..."

"""Agents that must be alone with their task, for the tests on real Ray."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import psutil
from ray_agents import GATE_S, note

import flowray as fr


def alone(file: str) -> bool:
    """Are the processes of all attempts that began and did not end gone?"""
    path = Path(file)
    lines = path.read_text().split() if path.exists() else []
    over = {line.split("/")[1] for line in lines if line.startswith("over/")}
    pids = [int(line.split("/")[2]) for line in lines if line.startswith("began/") and line.split("/")[1] not in over]
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


class Deaf:
    """Sync code that does not look whether it shall stop."""

    def run(self, task: fr.Task, ctx: fr.Context) -> str:
        plan = task.payload
        who = "alone" if alone(plan["file"]) else "beside-another"
        note(plan["file"], f"began/{ctx.attempt}/{os.getpid()}/{who}")
        deadline = time.monotonic() + GATE_S
        while ctx.attempt == 1 and not Path(plan["gate"]).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        note(plan["file"], f"over/{ctx.attempt}")
        return f"attempt {ctx.attempt}"


class Polite:
    """Async code: told to stop, it stops."""

    async def run(self, task: fr.Task, ctx: fr.Context) -> Any:
        plan = task.payload
        who = "alone" if alone(plan["file"]) else "beside-another"
        note(plan["file"], f"began/{ctx.attempt}/{os.getpid()}/{who}")
        try:
            while ctx.attempt == 1 and not Path(plan["gate"]).exists():
                await asyncio.sleep(0.01)
        finally:
            note(plan["file"], f"over/{ctx.attempt}")
        return f"attempt {ctx.attempt}"

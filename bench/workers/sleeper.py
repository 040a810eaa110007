"""The agent that takes its time, by the kind of the task, and nothing else: its processor is free meanwhile."""

from __future__ import annotations

import asyncio

import flowray as fr


@fr.agent(capabilities={"work"}, num_cpus=0.001)
class Sleeper:
    def __init__(self, short_s: float, long_s: float) -> None:
        self._seconds = {"short": short_s, "long": long_s}

    async def run(self, task: fr.Task) -> None:
        """A task's label "factor" says how much longer than usual it takes."""
        await asyncio.sleep(self._seconds[task.labels["kind"]] * float(task.labels["factor"]))

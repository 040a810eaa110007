"""A driver with a journal that outlives it: forty tasks with keys; run again, it goes on where it was killed."""

from __future__ import annotations

import sys
from pathlib import Path

from ray_agents import Tool, note

import flowray as fr

directory = Path(sys.argv[1])
overrides = {
    "name": "resuming",
    "journal": str(directory / "journal"),
    "store.allow_filesystems": ["overlay", "overlayfs"],
    "ray.num_cpus": 2,
    "ray.object_store_mb": 128,
}


class Slow(Tool):
    """Takes its time, so that a kill finds it at work."""

    def run(self, task: fr.Task, ctx: fr.Context) -> str:
        import time

        note(str(directory / "ran"), task.prompt)
        time.sleep(0.15)
        return task.prompt


if __name__ == "__main__":
    with fr.Runtime.start(overrides=overrides) as rt:
        rt.agents.add(Slow, count=2)
        names = [f"task-{n}" for n in range(40)]
        handles = rt.submit_many([{"prompt": name, "key": name} for name in names])
        if not (directory / "answers").exists():
            for done in handles.as_completed():
                note(str(directory / "answers"), done.result())
        sys.stdout.write(f"{len(set(handles.results(120)))} results\n")

"""Agents that write down when they work, and what starts them: for how long do attempts go on behind a cut cable?

    python zombie_work.py {...}   inside the head node: two classes, with an agent on each node, and a task for each

Each attempt appends the time (CLOCK_MONOTONIC, one for all nodes here) to a file of its own, again and again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import flowray as fr

KINDS = ("ordinary", "exclusive")


class Long:
    """Works until its gate is there, or for a minute, and pays no heed to being told to stop. Whoever does it again is
    done at once: one agent is to follow several."""

    def run(self, task: fr.Task, ctx: fr.Context) -> int:
        directory, name = Path(task.payload["directory"]), task.payload["name"]
        ends_at = time.monotonic() + 60.0
        with (directory / f"{name}-{ctx.attempt}-{os.environ['FLOWRAY_NODE']}").open("a", buffering=1) as witness:
            witness.write(f"{time.monotonic()}\n")
            while ctx.attempt == 1 and time.monotonic() < ends_at and not (directory / f"{name}.gate").exists():
                time.sleep(0.02)
                witness.write(f"{time.monotonic()}\n")
        return ctx.attempt


def main(settings: dict[str, Any]) -> None:
    directory, nodes = Path(settings["directory"]), settings["nodes"]
    overrides: dict[str, Any] = {
        "name": "zombies",
        "journal": settings["journal"],
        "store.allow_filesystems": ["overlay", "overlayfs"],  # of a container that runs the tests
        "tiers.primary.agents_per_block": nodes,  # and a block's agents are on different nodes
        "tiers.primary.agents": nodes * len(KINDS),
        "core.fence_all": settings["fence_all"],
        "tiers.primary.cpu_share": 0.25,
        "tiers.primary.memory_share": 0.1,
    }
    with fr.Runtime.start(overrides=overrides) as rt:
        for kind in KINDS:
            rt.agents.add(Long, name=kind, tier="primary", count=nodes)
        rt.wait_ready()
        handles = {
            f"{kind}{n}": rt.submit(
                {"directory": str(directory), "name": f"{kind}{n}"}, agent=kind, exclusive=kind == "exclusive"
            )
            for kind in KINDS
            for n in range(nodes)
        }
        (directory / "submitted").touch()
        said = {name: handle.result(timeout_s=240.0) for name, handle in handles.items()}
        (directory / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

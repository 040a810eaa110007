"""A runtime and a driver in Ray, for the test that takes the control store away for longer than Ray waits by itself.

python outage_work.py start {...}   in the head node: a runtime that stays, with an agent on either node
python outage_work.py drive {...}   in the other node, through Ray: a task after the other, until told to end
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import flowray as fr

PAUSE_S = 0.1  # between two tasks


class Echo:
    def run(self, task: fr.Task) -> Any:
        return task.payload


def start(settings: dict[str, Any]) -> None:
    overrides: dict[str, Any] = {
        "name": "outage",
        "journal": settings["journal"],
        "store.allow_filesystems": ["overlay", "overlayfs"],  # of a container that runs the tests
        "tiers.primary.agents_per_block": 2,
        "tiers.primary.agents": 2,
        "tiers.primary.cpu_share": 0.25,
        "tiers.primary.memory_share": 0.1,
    }
    rt = fr.Runtime.start(overrides=overrides, keep=True)
    rt.agents.add(Echo, tier="primary", count=2)
    rt.wait_ready()
    rt.disconnect()


def drive(settings: dict[str, Any]) -> None:
    directory = Path(settings["directory"])
    with fr.Runtime.connect("outage", address=os.environ["RAY_ADDRESS"]) as rt:
        assert "ray" in sys.modules
        with (directory / "driven").open("w", buffering=1) as file:
            number = 0
            while not (directory / "end").exists():
                number += 1
                began_at = time.monotonic()
                assert rt.submit(number).result(timeout_s=30.0) == number
                file.write(f"{time.monotonic()} {time.monotonic() - began_at}\n")
                time.sleep(PAUSE_S)


if __name__ == "__main__":
    {"start": start, "drive": drive}[sys.argv[1]](json.loads(sys.argv[2]))

"""The clients of the test in which a coordinator moves to another node. They write down what they do and see.

python moving_client.py start {...}   in one node: a runtime that stays, its journal in PostgreSQL
python moving_client.py write {...}   in the other: keeps tasks open, some of them large, and hears of every outcome
python moving_client.py read  {...}   there too, another process: reads outcomes by id, in the end all of them
"""

from __future__ import annotations

import json
import random
import sys
import threading
from pathlib import Path
from typing import Any

from chaos_client import Writer, load_until, read, watch_status
from chaos_work import Work

import flowray as fr

LARGE_RATIO = 0.05  # of the tasks: their payload and their result are kept apart
LARGE_BYTES = 100_000


class Mover(Work):
    """Sleeps as told and answers, at length if it was asked at length."""

    def run(self, task: fr.Task, ctx: fr.Context) -> dict[str, Any]:
        said = super().run(task, ctx)
        return {**said, "pad": task.payload["pad"].hex()}


class LargeWriter(Writer):
    def request(self, key: str) -> dict[str, Any]:
        asked = super().request(key)
        rng = random.Random(f"large {key}")
        size = LARGE_BYTES if rng.random() < LARGE_RATIO else 1
        return {**asked, "payload": {**asked["payload"], "ask": False, "pad": rng.randbytes(size)}}


def start(settings: dict[str, Any]) -> None:
    overrides = {
        "name": "chaos",
        "store.url": settings["url"],
        "ray.coordinator_labels": {"may": "coordinate"},
        "tiers.primary.agents": settings["agents"],
        "tiers.primary.cpu_share": 0.3,
        "tiers.primary.memory_share": 0.1,
        "limits.unavailable_after_s": 60.0,
    }
    rt = fr.Runtime.start(overrides=overrides, keep=True)
    rt.agents.add(Mover, tier="primary", count=settings["agents"])
    rt.wait_ready()
    status = rt.status()
    said = {"epoch": status.epoch, "journal": status.journal}
    sys.stdout.write(json.dumps(said) + "\n")
    rt.disconnect()


def write(settings: dict[str, Any]) -> None:
    directory = Path(settings["directory"])
    ended = threading.Event()
    with fr.Runtime.connect("chaos", address=settings["address"]) as rt:
        watcher = threading.Thread(target=watch_status, args=(rt, directory / "status.jsonl", ended))
        watcher.start()
        writer = LargeWriter(rt, settings)
        load_until(writer, directory / "phase", settings)
        ended.set()
        watcher.join()
        (directory / "drained").write_text(f"{len(writer.tasks)} {writer.missing}")


if __name__ == "__main__":
    {"start": start, "write": write, "read": read}[sys.argv[1]](json.loads(sys.argv[2]))

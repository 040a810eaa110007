"""The client of the test with the full disk, and the runtime that it starts; what it sees goes to files.

python disk_client.py work  {...}    tasks until a submit fails, until submits work again, and until it is told to end
python disk_client.py again {...}    another runtime on the same journal: every accepted task has its outcome
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from chaos_client import Journal, Writer, seen
from chaos_work import HeadWork

import flowray as fr
from flowray.errors import CoordinatorUnavailable


def start(settings: dict[str, Any]) -> fr.Runtime:
    rt = fr.Runtime.start(
        overrides={
            "name": settings["name"],
            "journal": settings["journal"],
            "ray.num_cpus": 2,
            "ray.object_store_mb": 100,
            "limits.unavailable_after_s": 5.0,
        }
    )
    rt.agents.add(HeadWork, tier="secondary", count=1)
    rt.wait_ready()
    return rt


class Loader(Writer):
    """Submits one batch after another; a batch whose end is not known is submitted again until it is."""

    def request(self, key: str) -> dict[str, Any]:
        return {"payload": {"key": key, "wait_s": 0.0, "filling": "x" * 4000}, "key": key}


def work(settings: dict[str, Any]) -> None:
    directory = Path(settings["directory"])
    with start(settings) as rt:
        loader = Loader(rt, {**settings, "seed": 1, "open": 200}, "work")
        said = False

        def once(error: CoordinatorUnavailable) -> None:
            nonlocal said
            if not said:
                said = True
                tell(directory / "refused", f"{type(error).__name__}: {error}")
                try:
                    fr.Runtime.connect(settings["name"])
                except fr.FlowrayError as other:
                    tell(directory / "connecting", f"{type(other).__name__}: {other}")

        loader.on_unavailable = once
        for _ in range(3):
            loader.fill()
            loader.take(0.1)
        tell(directory / "running", "yes")
        while not (directory / "end").exists():
            loader.take(loader.fill())
            if said and not (directory / "resumed").exists():
                tell(directory / "resumed", "yes")
            time.sleep(0.05)
        deadline = time.monotonic() + 60.0
        while loader.missing and time.monotonic() < deadline:
            loader.take(0.1)
        tell(directory / "tasks", json.dumps(loader.tasks))


def again(settings: dict[str, Any]) -> None:
    directory = Path(settings["directory"])
    journal = Journal(directory / "again.jsonl", "again")
    with start(settings) as rt:
        for task in dict.fromkeys(json.loads((directory / "tasks").read_text())):
            op = journal.invoke("read", task=task)
            handle = rt.handle(task)
            handle.outcome(timeout_s=30.0)
            journal.write(op, "ok", "read", time.monotonic(), task=task, outcome=seen(handle))


def tell(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)  # noqa: PTH105 - whole or not at all


if __name__ == "__main__":
    {"work": work, "again": again}[sys.argv[1]](json.loads(sys.argv[2]))

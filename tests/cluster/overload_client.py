"""A client that submits at a fixed rate whatever the answers are, without waiting for room. Run as a program.

python overload_client.py '{"directory": ..., "name": ..., "runtime": ..., "per_s": ..., "for_s": ..., "threads": ...}'

Each of its threads has an even share of the moments at which a task is due. One that is late submits at once: the
offered rate is a promise that the runtime cannot slow down, as far as the machine lets it. Everything is written down
for the checker; a summary goes to `NAME.json`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from chaos_client import Journal, seen
from overload_work import answer

import flowray as fr

DRAIN_S = 60.0  # for what is open in the end


def submit_at_rate(
    rt: fr.Runtime,
    journal: Journal,
    settings: dict[str, Any],
    thread: int,
    counts: Counter[str],
    done: SimpleQueue[Any],
) -> None:
    gap_s = settings["threads"] / settings["per_s"]
    began = time.monotonic() + gap_s * thread / settings["threads"]
    for number in range(int(settings["for_s"] / gap_s)):
        due = began + number * gap_s
        time.sleep(max(0.0, due - time.monotonic()))
        key = f"{settings['name']}-{thread}-{number}"
        op = journal.invoke("submit", key=key, expect=answer(key))
        payload = {"key": key, "wait_s": settings["wait_s"], "filling": key.ljust(settings["bytes"], "x")}
        try:
            handle = rt.submit(payload=payload, key=key)
        except fr.QueueFull as error:
            counts["refused"] += 1
            counts["without a time to try again"] += error.retry_after_s is None
            journal.write(op, "fail", "submit", time.monotonic(), key=key, error=str(error))
            continue
        counts["accepted"] += 1
        journal.write(op, "ok", "submit", time.monotonic(), key=key, task=handle.task_id)
        read = journal.invoke("read", task=handle.task_id)
        handle.add_done_callback(lambda h, read=read: done.put((time.monotonic(), read, h)))


def main(settings: dict[str, Any]) -> None:
    directory = Path(settings["directory"])
    journal = Journal(directory / f"{settings['name']}.jsonl", settings["name"])
    done: SimpleQueue[Any] = SimpleQueue()
    counts = [Counter[str]() for _ in range(settings["threads"])]
    with fr.Runtime.connect(settings["runtime"]) as rt:
        assert "ray" not in sys.modules
        began = time.monotonic()
        threads = [
            threading.Thread(target=submit_at_rate, args=(rt, journal, settings, thread, count, done))
            for thread, count in enumerate(counts)
        ]
        for thread in threads:
            thread.start()
        total: Counter[str] = Counter()

        def write_down() -> None:
            while (item := done.get()) is not None:
                at, op, handle = item
                journal.write(op, "ok", "read", at, task=handle.task_id, outcome=seen(handle))
                total["seen"] += 1

        writer = threading.Thread(target=write_down)
        writer.start()
        for thread in threads:
            thread.join()
        took_s = time.monotonic() - began
        for count in counts:
            total.update(count)
        deadline = time.monotonic() + DRAIN_S
        while total["seen"] < total["accepted"] and time.monotonic() < deadline:
            time.sleep(0.05)
        done.put(None)
        writer.join()
        (directory / f"{settings['name']}.json").write_text(json.dumps({**total, "took_s": took_s}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

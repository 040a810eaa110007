"""Stateful agents with warm standbys on several nodes, and a caller who hands in inputs at a steady rate, whatever
becomes of those before. Run inside the head node:

    python account_client.py {"directory": ..., "journal": ..., "instances": ..., "entities": ..., "per_s": ...}

Its history is history.jsonl, which `entities` judges. Each outcome is besides a line of answers.jsonl: when it came
(monotonic), the entity, and where the process is that gave it. agents.json says every 0.1 s what the runtime's agents
are. It ends, once all is answered and each entity's state is read, when there is a file named "end".
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from account_work import Account
from chaos_client import Journal, seen
from chaos_work import answer

import flowray as fr
from flowray.errors import CoordinatorUnavailable

EVERY_S = 0.1
DRAIN_S = 90.0
MOST_OPEN = 2000  # of all inputs: more are not handed in


class Client:
    """The caller."""

    def __init__(self, rt: fr.Runtime, settings: dict[str, Any]) -> None:
        self._rt = rt
        self._directory = Path(settings["directory"])
        self._journal = Journal(self._directory / "history.jsonl", "caller")
        self._answers = (self._directory / "answers.jsonl").open("w", buffering=1)
        self._entities = [f"e{number}" for number in range(settings["entities"])]
        self._every_s = 1.0 / settings["per_s"]  # between two inputs of one entity
        self._given = 0  # inputs of each entity
        self._came: SimpleQueue[tuple[float, int, str, fr.Handle] | None] = SimpleQueue()
        self._open = 0
        self._lock = threading.Lock()

    def run(self) -> None:
        """Until there is a file named "end", and all is answered."""
        writer = threading.Thread(target=self._write)
        writer.start()
        due = time.monotonic()
        while not (self._directory / "end").exists():
            due += self._every_s
            time.sleep(max(0.0, due - time.monotonic()))
            if self._open < MOST_OPEN:
                self._give()
        until = time.monotonic() + DRAIN_S
        while self._open and time.monotonic() < until:
            time.sleep(0.05)
        self._came.put(None)
        writer.join()
        for entity in self._entities:
            op = self._journal.invoke("state", entity=entity)
            payload = {"entity": entity, "number": None}
            said = self._rt.submit(payload, agent="account", entity=entity).result(DRAIN_S)
            self._journal.write(op, "ok", "state", time.monotonic(), entity=entity, applied=said["applied"])
        sys.stdout.write(f"{self._given} inputs of each of {len(self._entities)} entities\n")

    def _give(self) -> None:
        """One input to each entity."""
        number, self._given = self._given, self._given + 1
        requests = [
            {
                "payload": {"entity": entity, "number": number},
                "agent": "account",
                "entity": entity,
                "key": f"{entity}/{number}",
            }
            for entity in self._entities
        ]
        while True:
            keys = [str(request["key"]) for request in requests]
            ops = [self._journal.invoke("submit", key=key, expect=answer(key)) for key in keys]
            try:
                handles = self._rt.submit_many(requests)
            except CoordinatorUnavailable as error:
                for op, key in zip(ops, keys, strict=True):
                    self._journal.write(op, "info", "submit", time.monotonic(), key=key, error=str(error))
                continue  # the same ones again, before any later one
            at = time.monotonic()
            for op, key, entity, handle in zip(ops, keys, self._entities, handles, strict=True):
                self._journal.write(op, "ok", "submit", at, key=key, task=handle.task_id)
                self._await(handle, entity)
            return

    def _await(self, handle: fr.Handle, entity: str) -> None:
        with self._lock:
            self._open += 1
        op = self._journal.invoke("read", task=handle.task_id)
        handle.add_done_callback(lambda h: self._came.put((time.monotonic(), op, entity, h)))

    def _write(self) -> None:
        while (one := self._came.get()) is not None:
            at, op, entity, handle = one
            outcome = seen(handle)
            self._journal.write(op, "ok", "read", at, task=handle.task_id, outcome=outcome)
            if outcome["value"] is not None:
                self._answers.write(json.dumps([at, entity, outcome["value"]["ip"], outcome["value"]["pid"]]) + "\n")
            with self._lock:
                self._open -= 1


def tell(rt: fr.Runtime, directory: Path, ended: threading.Event) -> None:
    """Say what the agents are, again and again."""
    while not ended.wait(EVERY_S):
        try:
            status = rt.status()
        except CoordinatorUnavailable:
            continue
        found = {a.agent_id: [a.state, a.node, a.pid] for a in status.agents}
        partial = directory / "agents.partial"
        partial.write_text(json.dumps(found))
        partial.rename(directory / "agents.json")


def main(settings: dict[str, Any]) -> None:
    overrides: dict[str, Any] = {
        "name": "accounts",
        "journal": settings["journal"],
        "store.allow_filesystems": ["overlay", "overlayfs"],  # of a container that runs the tests
        "tiers.secondary.memory_share": 0.02,
        "tiers.secondary.agents_per_block": 1,
    }
    ended = threading.Event()
    with fr.Runtime.start(overrides=overrides) as rt:
        rt.agents.add(Account, count=settings["instances"], num_cpus=0.05)
        rt.wait_ready()
        teller = threading.Thread(target=tell, args=(rt, Path(settings["directory"]), ended))
        teller.start()
        try:
            Client(rt, settings).run()
        finally:
            ended.set()
            teller.join()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

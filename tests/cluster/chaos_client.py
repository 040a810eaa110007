"""The clients of the chaos runs: programs that write down all they do and see.

    python chaos_client.py start {...}   in the head node: starts the runtime, which stays, and leaves tickets
    python chaos_client.py write {...}   beside it, without Ray: hands in tasks, reads every outcome
    python chaos_client.py read  {...}   in the head node, through Ray: reads outcomes by id over and over, all at last
    python chaos_client.py visit {...}   beside another node, without Ray, over the network: hands in some, too

The load is open-loop where there is a `rate_per_s`; else so many tasks are kept open, and all agents have work always.
What the checker judges is in the history files; the writer also notes the runtime's status several times a second,
from which the chaos run learns whom it may kill and when something is back. A file named `phase` says what to do next.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from arrivals import Arrivals
from chaos_work import FarWork, HeadWork, answer
from msgspec import structs

import flowray as fr
from flowray.errors import CoordinatorUnavailable, UnknownTask
from flowray.mesh.private_files import DIRECTORY
from flowray.mesh.tickets import Ticket
from flowray.mesh.tokens import Tokens

BATCH = 100
REPEAT_RATIO = 0.02  # of the submits: the same key once more
ASK_RATIO = 0.1  # of the tasks: their agents ask one of the other node
SCRATCH_RATIO = 0.01  # of the tasks: they need some memory
STATUS_S = 0.1
WAIT_S = 0.02  # at a time, for outcomes


class Journal:
    """A client's history file."""

    def __init__(self, path: Path, client: str) -> None:
        self._file = path.open("w", buffering=1)
        self._client = client
        self._lock = threading.Lock()
        self._ops = count()

    def invoke(self, f: str, **more: Any) -> int:
        op = next(self._ops)
        self.write(op, "invoke", f, time.monotonic(), **more)
        return op

    def write(self, op: int, kind: str, f: str, at: float, **more: Any) -> None:
        line = json.dumps({"at": at, "client": self._client, "op": op, "type": kind, "f": f, **more})
        with self._lock:
            self._file.write(line + "\n")


def seen(handle: fr.Handle) -> dict[str, Any]:
    """An outcome as the history has it: all of it, so that any change shows."""
    outcome = handle.outcome(timeout_s=0)
    return {
        "state": outcome.state.value,
        "value": handle.result(timeout_s=0) if outcome.state.value == "succeeded" else None,
        "failure": f"{outcome.failure.kind}: {outcome.failure.message}" if outcome.failure is not None else "",
        "attempts": outcome.attempts,
        "agent": outcome.agent_id,
        "resolved_at": outcome.resolved_at,
        "story": [[line.at, line.what, line.attempt, line.agent_id, line.detail] for line in outcome.story],
    }


class Writer:
    """Hands in `rate_per_s` tasks a second, or keeps `open` of them open; and hears of every outcome."""

    def __init__(self, rt: fr.Runtime, settings: dict[str, Any], name: str = "writer") -> None:
        self._rt = rt
        self._settings = settings
        self._name = name
        self._rng = random.Random(settings["seed"])
        self._journal = Journal(Path(settings["directory"]) / f"{name}.jsonl", name)
        self._arrived: SimpleQueue[tuple[float, int, fr.Handle]] = SimpleQueue()
        self._asked: list[str] = []
        rate_per_s = settings.get("rate_per_s")
        self._arrivals = Arrivals(rate_per_s, time.monotonic(), self._rng) if rate_per_s else None
        self.tasks: list[str] = []
        self.missing = 0  # tasks whose outcome has not come
        self.on_unavailable: Callable[[CoordinatorUnavailable], None] = lambda _: None
        self.on_outcome: Callable[[fr.Handle], None] = lambda _: None

    def request(self, key: str) -> dict[str, Any]:
        low, high = self._settings["wait_s"]
        rng = random.Random(key)  # a repeat must ask for the same
        payload = {"key": key, "wait_s": rng.uniform(low, high), "ask": rng.random() < ASK_RATIO}
        payload["scratch"] = rng.random() < SCRATCH_RATIO
        return {"payload": payload, "key": key}

    def fill(self) -> float:
        """Submit one batch, if it is time or there is room; for how long there will be none, in seconds."""
        if self._arrivals is not None:
            times = self._arrivals.due(time.monotonic(), BATCH)
            more: list[dict[str, Any]] = [{"due": at} for at in times]
        else:
            room = self._settings["open"] - self.missing
            enough = room >= min(BATCH, self._settings["open"]) // 4
            more = [{}] * min(room, BATCH) if enough else []
        if not more:
            until_next_s = self._arrivals.next_at - time.monotonic() if self._arrivals is not None else WAIT_S
            return max(0.0, min(WAIT_S, until_next_s))
        keys = [f"{self._name}-{self._settings['seed']}-{len(self._asked) + n}" for n in range(len(more))]
        self._asked.extend(keys)
        repeated = [self._rng.choice(self._asked) for _ in keys if self._rng.random() < REPEAT_RATIO]
        self._submit(keys, more, wait=True)
        if repeated:
            self._submit(repeated, [{}] * len(repeated), wait=False)
        return 0.0

    def _submit(self, keys: list[str], more: list[dict[str, Any]], *, wait: bool) -> None:
        while True:
            ops = [
                self._journal.invoke("submit", key=key, expect=answer(key), **one)
                for key, one in zip(keys, more, strict=True)
            ]
            try:
                handles = self._rt.submit_many([self.request(key) for key in keys])
            except CoordinatorUnavailable as error:
                for op, key in zip(ops, keys, strict=True):
                    self._journal.write(op, "info", "submit", time.monotonic(), key=key, error=str(error))
                self.on_unavailable(error)
                continue  # the same keys again: whatever had been accepted must be recognised
            at = time.monotonic()
            for op, key, handle in zip(ops, keys, handles, strict=True):
                self._journal.write(op, "ok", "submit", at, key=key, task=handle.task_id)
                if wait:
                    self.tasks.append(handle.task_id)
                    self.wait_for(handle)
            return

    def wait_for(self, handle: fr.Handle) -> None:
        """Write the outcome down when it comes."""
        self.missing += 1
        op = self._journal.invoke("read", task=handle.task_id)
        handle.add_done_callback(lambda h: self._arrived.put((time.monotonic(), op, h)))

    def take(self, timeout_s: float) -> None:
        """Write down what has come; wait a little for it."""
        try:
            at, op, handle = self._arrived.get(timeout=timeout_s)
            while True:
                self.missing -= 1
                try:
                    self._journal.write(op, "ok", "read", at, task=handle.task_id, outcome=seen(handle))
                    self.on_outcome(handle)
                except CoordinatorUnavailable as error:  # cut off for too long: ask again
                    self._journal.write(op, "info", "read", at, task=handle.task_id, error=str(error))
                    self.wait_for(self._rt.handle(handle.task_id))
                at, op, handle = self._arrived.get_nowait()
        except Empty:
            return


def watch_status(rt: fr.Runtime, path: Path, ended: threading.Event) -> None:
    """Note what the runtime says of itself, several times a second."""
    with path.open("w", buffering=1) as file:
        while not ended.wait(STATUS_S):
            try:
                status = rt.status()
            except CoordinatorUnavailable:
                continue
            agents = [[a.agent_id, a.state, a.incarnation, a.node, a.pid, a.held] for a in status.agents]
            open_now = status.queued + status.running + status.backing_off
            line = {"at": time.monotonic(), "epoch": status.epoch, "pid": status.pid, "open": open_now}
            file.write(json.dumps({**line, "agents": agents, "no_room": status.blocks}) + "\n")


def start(settings: dict[str, Any]) -> None:
    directory = Path(settings["directory"])
    overrides = {
        "name": "chaos",
        "journal": settings["journal"],
        "store.allow_filesystems": ["overlay", "overlayfs"],  # of a container that runs the tests
        "seed": settings["seed"],
        "mesh.listen": settings["listen"],
        "limits.unavailable_after_s": 10.0,  # less than the longest cut, so that clients have to try again themselves
        "tiers.primary.labels": {"node": "0"},
        "tiers.primary.agents": settings["head_agents"],
        "tiers.primary.cpu_share": 0.25,  # half a node: on each there is room for a warm process besides
        "tiers.primary.memory_share": 0.1,
        "tiers.secondary.labels": {"node": settings["far"]},
        "tiers.secondary.agents": settings["far_agents"],
        "tiers.secondary.cpu_share": 0.25,
        "tiers.secondary.memory_share": 0.1,
        "tiers.secondary.agents_per_block": 2,
    }
    rt = fr.Runtime.start(overrides=overrides, keep=True)
    rt.agents.add(HeadWork, tier="primary", count=settings["head_agents"])
    rt.agents.add(FarWork, tier="secondary", count=settings["far_agents"])
    rt.wait_ready()
    own = Ticket.load("chaos")
    # Beside the node its directory has another path; a socket is the same by any.
    socket = own.socket.replace(settings["inner_home"], settings["home"])
    structs.replace(own, socket=socket, address="").save(directory / "near.json")
    token, _ = Tokens(Path(settings["journal"]) / DIRECTORY).create("client", hours=24.0, label="chaos")
    structs.replace(own, socket="", token=token).save(directory / "ticket.json")
    rt.disconnect()


def write(settings: dict[str, Any]) -> None:
    directory = Path(settings["directory"])
    ended = threading.Event()
    with fr.Runtime.connect(address=str(directory / "near.json")) as rt:
        assert "ray" not in sys.modules
        watcher = threading.Thread(target=watch_status, args=(rt, directory / "status.jsonl", ended))
        watcher.start()
        writer = Writer(rt, settings)
        phase = directory / "phase"
        load_until(writer, phase, settings)
        ended.set()
        watcher.join()
        (directory / "drained").write_text(f"{len(writer.tasks)} {writer.missing} {json.dumps(rt.figures())}")
        while phase.read_text() != "end":
            time.sleep(0.05)


def load_until(writer: Writer, phase: Path, settings: dict[str, Any]) -> None:
    """Hand in tasks until the phase changes; then wait for all outcomes."""
    while not phase.exists():
        writer.take(writer.fill())
    deadline = time.monotonic() + settings["drain_s"]
    while writer.missing and time.monotonic() < deadline:
        writer.take(0.1)


def visit(settings: dict[str, Any]) -> None:
    directory = Path(settings["directory"])
    with fr.Runtime.connect(address=str(directory / "ticket.json")) as rt:
        assert "ray" not in sys.modules
        own = {"open": settings["visitor_open"], "rate_per_s": settings["visitor_rate_per_s"]}
        writer = Writer(rt, {**settings, **own}, "visitor")
        load_until(writer, directory / "phase", settings)
        (directory / "visited").write_text(f"{len(writer.tasks)} {writer.missing}")


def read(settings: dict[str, Any]) -> None:
    directory = Path(settings["directory"])
    rng = random.Random(settings["seed"])
    journal = Journal(directory / f"{settings['reader']}.jsonl", settings["reader"])
    with (
        fr.Runtime.connect("chaos", address=settings["address"]) as rt,
        (directory / "writer.jsonl").open() as history,
    ):
        known: list[str] = []
        partial = ""
        while True:
            last = (directory / "drained").exists()
            for line in iter(history.readline, ""):
                partial += line
                if partial.endswith("\n"):
                    record = json.loads(partial)
                    partial = ""
                    if record["type"] == "ok" and record["f"] == "submit":
                        known.append(record["task"])
            chosen = list(dict.fromkeys(known)) if last else rng.choices(known, k=10) if known else []
            for start in range(0, len(chosen), 500):
                look_again(rt, journal, chosen[start : start + 500], last=last)
            if last:
                return
            time.sleep(0.2)


def look_again(rt: fr.Runtime, journal: Journal, tasks: list[str], *, last: bool) -> None:
    """Read outcomes by id. Before the end some are not there yet; in the end each must be."""
    reads = [(journal.invoke("read", task=task), rt.handle(task)) for task in tasks]
    deadline = time.monotonic() + (60.0 if last else 2.0)
    for op, handle in reads:
        try:
            handle.outcome(timeout_s=max(0.0, deadline - time.monotonic()))
        except fr.FlowrayError as error:
            kind = "fail" if last or isinstance(error, UnknownTask) else "info"
            journal.write(op, kind, "read", time.monotonic(), task=handle.task_id, error=str(error))
        else:
            journal.write(op, "ok", "read", time.monotonic(), task=handle.task_id, outcome=seen(handle))


if __name__ == "__main__":
    {"start": start, "write": write, "read": read, "visit": visit}[sys.argv[1]](json.loads(sys.argv[2]))

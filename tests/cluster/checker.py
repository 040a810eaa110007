"""The outside checker: did the runtime keep its promises? It knows none of its code, only what clients wrote down.

A history is a file of JSON lines, one for each thing a client did, with the time on the machine's monotonic clock:

    {"at": 1.0, "client": "c", "op": 7, "type": "invoke", "f": "submit", "key": "k7", "expect": "a7"}
    {"at": 1.1, "client": "c", "op": 7, "type": "ok",     "f": "submit", "key": "k7", "task": "t-1"}
    {"at": 1.5, "client": "c", "op": 8, "type": "ok",     "f": "read", "task": "t-1",
     "outcome": {"state": "succeeded", "value": {"of": "k7", "answer": "a7", ...}, ...}}

`ok` says that it happened, `fail` that it did not, `info` that the client cannot know. A `read` is one sight of a
task's outcome; whoever reads later must see the same, whatever it is, to the last field. Values name the key that they
are an answer to, and the answer follows from the key, so a value that belongs to another task shows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TERMINAL = frozenset({"succeeded", "dead", "cancelled", "expired"})
Record = Mapping[str, Any]


@dataclass
class Verdict:
    """What the checker found. Empty lists are good; each entry says what and where."""

    accepted: int = 0  # tasks whose acceptance some client saw
    unknown: int = 0  # submits whose end no client ever learned; nothing is promised for them
    reads: int = 0  # sights of an outcome
    readers: int = 0  # clients that saw some
    states: dict[str, int] = field(default_factory=dict)  # terminal state -> tasks
    lost: list[str] = field(default_factory=list)  # accepted, but without an outcome, or with one that went away
    twice: list[str] = field(default_factory=list)  # two outcomes, or one delivered twice for one wait
    foreign: list[str] = field(default_factory=list)  # a value that is not this task's answer
    split: list[str] = field(default_factory=list)  # one key with two tasks, or one task with two keys
    impossible: list[str] = field(default_factory=list)  # an effect before its cause; a history that contradicts itself
    disordered: list[str] = field(default_factory=list)  # inputs of an entity that were applied in another order

    @property
    def good(self) -> bool:
        return not (self.lost or self.twice or self.foreign or self.split or self.impossible or self.disordered)

    def __str__(self) -> str:
        lines = [
            f"{self.accepted} tasks accepted, {self.unknown} submits with unknown end, "
            f"{self.reads} reads by {self.readers} clients, {self.states}"
        ]
        for name in ("lost", "twice", "foreign", "split", "impossible", "disordered"):
            found = getattr(self, name)
            lines.append(f"{name}: {len(found)}" + "".join(f"\n  {one}" for one in found[:10]))
        return "\n".join(lines)


def read_history(*paths: Path) -> list[Record]:
    """All records of some files, by time. A last line that is cut off (its writer was killed) is left out."""
    records: list[Record] = []
    for path in paths:
        lines = path.read_text().split("\n")
        records.extend(json.loads(line) for line in lines[:-1])  # what follows the last newline is cut off or empty
    return sorted(records, key=lambda record: float(record["at"]))


def check(history: Iterable[Record]) -> Verdict:
    """Judge a history, whole and ordered by time."""
    verdict = Verdict()
    invoked: dict[tuple[str, int], Record] = {}
    ended: dict[tuple[str, int], str] = {}
    first_invoked_at: dict[str, float] = {}  # key -> when it was first asked for
    expected: dict[str, Any] = {}  # key -> its answer
    task_of: dict[str, str] = {}
    key_of: dict[str, str] = {}
    outcomes: dict[str, tuple[str, str]] = {}  # task -> (its outcome in a fixed spelling, who saw it first)
    raw: dict[str, tuple[Any, float]] = {}
    readers: set[str] = set()
    unresolved: set[str] = set()  # keys with a submit that ended in `info`

    for record in history:
        op = (str(record["client"]), int(record["op"]))
        where = f"{op[0]}#{op[1]} at {record['at']:.3f}"
        kind, what = record["type"], record["f"]
        if kind == "invoke":
            if op in invoked:
                verdict.impossible.append(f"{where}: begun twice")
            invoked[op] = record
            if what == "submit":
                key = str(record["key"])
                first_invoked_at.setdefault(key, float(record["at"]))
                if expected.setdefault(key, record["expect"]) != record["expect"]:
                    verdict.impossible.append(f"{where}: key {key} with two expectations: the client is wrong")
            continue
        if op not in invoked:
            verdict.impossible.append(f"{where}: ended without having begun")
        if op in ended:
            verdict.twice.append(f"{where}: ended twice, {ended[op]} and {kind}: {record.get('task', '')}")
            continue
        ended[op] = kind
        if what == "submit":
            key = str(record["key"])
            if kind == "info":
                unresolved.add(key)
            if kind != "ok":
                continue
            task = str(record["task"])
            if task_of.setdefault(key, task) != task:
                verdict.split.append(f"{where}: key {key} is task {task_of[key]} and task {task}")
            if key_of.setdefault(task, key) != key:
                verdict.split.append(f"{where}: task {task} has the keys {key_of[task]} and {key}")
        elif kind == "fail":
            verdict.lost.append(f"{where}: task {record['task']} could not be read: {record.get('error', '')}")
        elif kind == "ok":
            task, outcome = str(record["task"]), record["outcome"]
            verdict.reads += 1
            readers.add(op[0])
            if outcome["state"] not in TERMINAL:
                verdict.impossible.append(f"{where}: task {task} ended as {outcome['state']!r}")
            spelt = json.dumps(outcome, sort_keys=True)
            known = outcomes.setdefault(task, (spelt, where))
            raw.setdefault(task, (outcome, float(record["at"])))
            if known[0] != spelt:
                verdict.twice.append(f"task {task}: {known[1]} saw {known[0][:200]}; {where} saw {spelt[:200]}")

    for task, key in key_of.items():
        if task not in outcomes:
            verdict.lost.append(f"task {task} (key {key}) was accepted and has no outcome")
    for task, (outcome, at) in raw.items():
        key = key_of.get(task, "")
        if not key:
            verdict.impossible.append(f"task {task} has an outcome and was never accepted")
            continue
        if at < first_invoked_at.get(key, float("-inf")):
            verdict.impossible.append(f"task {task} was answered before it was asked for")
        if outcome["state"] == "succeeded":
            value = outcome.get("value") or {}
            if value.get("of") != key or value.get("answer") != expected.get(key):
                verdict.foreign.append(f"task {task} (key {key}) has the value {str(value)[:200]}")
    verdict.accepted = len(key_of)
    verdict.unknown = len(unresolved - task_of.keys())
    verdict.readers = len(readers)
    verdict.states = dict(sorted(Counter(str(outcome["state"]) for outcome, _ in raw.values()).items()))
    return verdict

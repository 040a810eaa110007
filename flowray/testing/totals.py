"""Sums over many seeds: of a run as it goes, and of a ledger, to which a run adds a line for each slice of seeds.

A run of many thousand virtual hours may be ended at any time and goes on from its ledger's last seed. Each line names
the commit that it was run on.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flowray.testing.swarm import SOMETIMES, SeedReport

MAX_SHOWN = 5  # failing seeds described in full


class Totals:
    """Of many reports; only of those that fail more than sums is kept."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.seeds = self.events = self.steps = self.tasks = 0
        self.virtual_s = self.cpu_s = 0.0
        self.violations: list[int] = []  # seeds
        self.failing: list[SeedReport] = []  # the first of them
        self.invariants: Counter[str] = Counter()
        self.sometimes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._digest = hashlib.blake2b(digest_size=16)

    def enough(self, seeds: int, hours: float | None) -> bool:
        """So many seeds; where hours are given, so many of these instead."""
        return self.seeds >= seeds if hours is None else self.virtual_s >= hours * 3600.0

    def add(self, report: SeedReport) -> None:
        """One more."""
        self.seeds += 1
        self.virtual_s += report.virtual_s
        self.cpu_s += report.cpu_s
        self.events += report.events
        self.steps += report.steps
        self.tasks += report.tasks
        self.sometimes.update(report.sometimes)
        self.faults.update(report.faults)
        self._digest.update(report.digest.encode())
        if report.violation:
            self.violations.append(report.seed)
            self.invariants[report.invariant] += 1
            if len(self.failing) < MAX_SHOWN:
                self.failing.append(report)

    def summary(self, wall_s: float) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "seeds": self.seeds,
            "first": self.first,
            "virtual_hours": round(self.virtual_s / 3600.0, 2),
            "events": self.events,
            "steps": self.steps,
            "tasks": self.tasks,
            "faults": dict(sorted(self.faults.items())),
            "per_virtual_hour": per_virtual_hour(self.virtual_s, self.tasks, self.events, self.faults),
            "wall_s": round(wall_s, 1),
            "cpu_s": round(self.cpu_s, 1),
            "events_per_s": round(self.events / wall_s),
            "virtual_hours_per_core_hour": round(self.virtual_s / max(self.cpu_s, 1e-9)),
            "violations": self.violations,
            "invariants": dict(self.invariants),
            "sometimes": {point: self.sometimes[point] for point in sorted({*SOMETIMES, *self.sometimes})},
            "never": [point for point in SOMETIMES if not self.sometimes[point]],
            "digest": self._digest.hexdigest(),  # equal for equal runs
        }


def per_virtual_hour(virtual_s: float, tasks: int, events: int, faults: Mapping[str, int]) -> dict[str, int]:
    """What one hour holds, so that hours cannot be had by idling."""
    hours = max(virtual_s / 3600.0, 1e-9)
    return {
        "tasks": round(tasks / hours),
        "events": round(events / hours),
        "faults": round(sum(faults.values()) / hours),
    }


class Ledger:
    """A file with a line of JSON for each slice of seeds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._commit = commit()

    def next_seed(self, first: int) -> int:
        """The first that it has not, from `first` on."""
        return max([first, *(int(line["first"]) + int(line["seeds"]) for line in read_ledger(self._path))])

    def virtual_s(self) -> float:
        """What is in it so far."""
        return sum(float(line["virtual_s"]) for line in read_ledger(self._path))

    def add(self, totals: Totals) -> None:
        """One slice more."""
        line = {
            "commit": self._commit,
            "first": totals.first,
            "seeds": totals.seeds,
            "virtual_s": totals.virtual_s,
            "cpu_s": round(totals.cpu_s, 2),
            "events": totals.events,
            "steps": totals.steps,
            "tasks": totals.tasks,
            "faults": totals.faults,
            "sometimes": totals.sometimes,
            "violations": totals.violations,
            "invariants": totals.invariants,
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Its lines, oldest first; none where there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def sums(lines: Iterable[Mapping[str, Any]], field: str) -> Counter[str]:
    """A field of counts, over all lines."""
    found: Counter[str] = Counter()
    for line in lines:
        found.update(line[field])
    return found


def commit() -> str:
    """The one that is checked out, with a `+` where files differ from it; "" outside of a repository."""
    here = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=here, capture_output=True, text=True)
    changed = subprocess.run(["git", "status", "--porcelain", "."], cwd=here, capture_output=True, text=True)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else ""

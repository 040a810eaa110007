"""The journal alone: how many tasks it takes in groups, and how long a command waits for the disk.

The goal: at 400 tasks/s it adds at most 5 ms to 99 of 100 appends (`journal_adds_p99_ms`).
"""

from __future__ import annotations

from functools import partial

from bench.measure import FLOWRAY, Found, Plan, alternate, compared
from bench.processes import run_worker

_UNITS = {
    "tasks_per_s": "tasks/s",
    "us_per_task": "us/task",
    "lone_p50_ms": "ms",
    "lone_p99_ms": "ms",
    "adds_p50_ms": "ms",
    "adds_p99_ms": "ms",
    "adds_to_task_p50_ms": "ms",
    "adds_to_task_p99_ms": "ms",
    "late_p99_ms": "ms",
}
RATE = 400  # tasks/s


class JournalAlone:
    """See the module."""

    name = "journal"
    description = (
        "The store alone, in SQLite and in PostgreSQL: tasks in groups of 64, one command at a time beside a bare "
        f"write and fdatasync, and what it adds to a task while {RATE} come each second"
    )

    peers = ("postgresql", "write_fdatasync")

    def run(self, plan: Plan) -> Found:
        length = {"groups": 1_500, "lone": 1_000, "rate": RATE, "paced_s": 10.0}
        if plan.quick:
            length |= {"groups": 60, "lone": 50, "paced_s": 1.0}
        sides = {
            side: partial(run_worker, "journal_alone", length | {"side": side}, timeout_s=120)
            for side in (FLOWRAY, *self.peers)
            if plan.wants(side)
        }
        names = {name: f"journal_{name}" for name in _UNITS}
        turns = alternate(sides, plan.repeats or (1 if plan.quick else 7))
        found = {
            side: [{names[name]: value for name, value in figures.items()} for figures in runs]
            for side, runs in turns.figures.items()
        }
        measurements = compared(found, {names[name]: unit for name, unit in _UNITS.items()})
        return Found(measurements=measurements, absent=turns.absent, settings=length)

"""What every worker does: take settings, give figures, look at processes."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from bench.measure import SideAbsent
from bench.processes import ABSENT


def main(work: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Run one side and print its figures. Whatever else prints goes to stderr: stdout is one JSON object."""
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        figures: Mapping[str, Any] = work(json.loads(sys.argv[1]))
    except SideAbsent as error:
        figures = {ABSENT: str(error)}
    with os.fdopen(answer, "w") as file:
        json.dump(dict(figures), file)


def private_mb(pids: Iterable[int]) -> float:
    """The median of what these processes do not share (USS), in millions of bytes."""
    return float(statistics.median(psutil.Process(pid).memory_full_info().uss for pid in pids)) / 1e6


def cpu_s(pids: Iterable[int]) -> float:
    """CPU time that these processes have used so far, user and system. In steps of 10 ms each."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return float(sum(t.user + t.system for t in times))


@dataclass(frozen=True)
class Moment:
    """How far a loop is, and what it has cost by then."""

    at: float
    done: int
    cpu_s: dict[str, float]  # group of processes -> CPU seconds

    @classmethod
    def now(cls, done: int, groups: Mapping[str, Iterable[int]]) -> Moment:
        return cls(time.perf_counter(), done, {name: cpu_s(pids) for name, pids in groups.items()})


def between(start: Moment, end: Moment) -> dict[str, float]:
    """Throughput and CPU time for each task, from one moment to another."""
    tasks = end.done - start.done
    if tasks <= 0:
        raise RuntimeError(f"no task ended within {end.at - start.at:.1f} s")
    figures = {"tasks_per_s": tasks / (end.at - start.at)}
    for name in start.cpu_s:
        figures[f"{name}_us_per_task"] = (end.cpu_s[name] - start.cpu_s[name]) / tasks * 1e6
    return figures

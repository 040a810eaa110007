"""How long a stateful agent answers nobody when its active process is killed: python -m bench.workers.stateful_kills

One machine, one agent, eight inputs under way at any time. For each `kill -9` the time from the signal to the next
output of another process, and at the end whether every input was applied once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import deque
from typing import Any

import flowray as fr

OPEN = 8
BETWEEN = 100  # outputs of the new active process before the next kill


class Ledger:
    """Adds up."""

    def __init__(self) -> None:
        self.total = 0

    def apply(self, task: fr.Task) -> list[int]:
        self.total += task.payload
        return [self.total, os.getpid()]

    def snapshot(self) -> int:
        return self.total

    def restore(self, state: int) -> None:
        self.total = state


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--standby", choices=("cold", "warm"), default="warm")
    options = parser.parse_args()
    agent = fr.agent(standby=options.standby)(Ledger)
    # Killed so often, a process would be started again after half a minute only: that is not what is measured.
    pauses = {"core.restart.delay_s": 0.05, "core.restart.delay_max_s": 0.05}
    with fr.Runtime.start(overrides={"name": "kills", "ray.agent_output": False, **pauses}) as rt:
        rt.agents.add(agent, name="ledger", num_cpus=0.05)
        rt.wait_ready()
        gaps, totals, figures = measure(rt, options.kills, 1 + (options.standby == "warm"))
    gaps.sort()
    found: dict[str, Any] = {
        "kills": len(gaps),
        "inputs": len(totals),
        "once": totals == list(range(1, len(totals) + 1)),
    }
    found |= {
        name: round(gaps[min(len(gaps) - 1, int(q * len(gaps)))], 3) for name, q in (("p50_s", 0.5), ("p99_s", 0.99))
    }
    found |= {"max_s": round(gaps[-1], 3), "gaps_s": [round(gap, 3) for gap in gaps], "figures": figures}
    sys.stdout.write(json.dumps(found) + "\n")
    return 0 if found["once"] else 1


def measure(rt: fr.Runtime, kills: int, processes: int) -> tuple[list[float], list[int], dict[str, int]]:
    handles: deque[fr.Handle] = deque()
    gaps: list[float] = []
    totals: list[int] = []
    killed, killed_at, since, pid = 0, 0.0, 0, 0
    while handles or len(gaps) < kills:
        while len(handles) < OPEN and len(gaps) < kills:
            handles.append(rt.submit(1, agent="ledger"))
        total, pid = handles.popleft().result(120.0)
        totals.append(total)
        since += 1
        if killed and pid != killed:
            gaps.append(time.monotonic() - killed_at)
            killed, since = 0, 0
        elif not killed and since >= BETWEEN and len(gaps) < kills and ready(rt) == processes:
            killed, killed_at = pid, time.monotonic()
            os.kill(pid, signal.SIGKILL)
    return gaps, totals, rt.figures()


def ready(rt: fr.Runtime) -> int:
    return sum(one.state == "ready" for one in rt.status().agents)


if __name__ == "__main__":
    sys.exit(main())

"""A coordinator's recovery: from opening the journal of one that was killed until tasks are sent out again."""

from __future__ import annotations

from functools import partial

from bench.measure import Found, Measurement, Plan, alternate
from bench.processes import run_worker

_UNITS = {"ready_s": "s", "ready_cpu_s": "s", "dispatch_s": "s"}
OPEN, RUNNING = 100_000, 1_000


class Recovery:
    """See the module. The goal: at most 2 s with 100,000 open tasks, and nothing that runs is run again."""

    name = "recovery"
    description = (
        "recovery of a coordinator with 100,000 open tasks, 1,000 of them running: all in a snapshot, all in the "
        "journal behind it, half of each with others that came and went meanwhile"
    )
    peers: tuple[str, ...] = ()

    def run(self, plan: Plan) -> Found:
        open_tasks, running = (OPEN // 25, RUNNING // 25) if plan.quick else (OPEN, RUNNING)
        common = {"open": open_tasks, "running": running}
        cases = {
            "snapshot": common | {"in_snapshot": open_tasks, "ended": 0},
            "journal": common | {"in_snapshot": 0, "ended": 0},
            # As many commands behind the snapshot as tasks are open: after more the pump saves the next.
            "mixed": common | {"in_snapshot": open_tasks // 2, "ended": open_tasks // 3},
        }
        sides = {name: partial(run_worker, "recovery", case, timeout_s=300) for name, case in cases.items()}
        found = alternate(sides, plan.repeats or (1 if plan.quick else 5), required=tuple(sides)).figures
        measurements = [
            Measurement(metric=f"recovery_{name}_{figure}", unit=unit, flowray=[each[figure] for each in runs])
            for name, runs in found.items()
            for figure, unit in _UNITS.items()
        ]
        return Found(measurements=measurements, settings=common)

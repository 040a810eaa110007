"""Payloads of 1 MB and 100 MB from one process to another on a node, beside Ray's own put and get."""

from __future__ import annotations

import os

from bench.measure import Figures, Found, Measurement, Plan
from bench.processes import run_worker

# name -> (kind of value, bytes, does the reader read it once through)
CASES = {
    f"{kind}_{size}mb{'_read' if read else ''}": (kind, size * 1_000_000, read)
    for size in (1, 100)
    for kind in ("numpy", "bytes")
    for read in (False, True)
}


class Payloads:
    """See the module. The goal: at least 80% of Ray's rate."""

    name = "payloads"
    description = "1 MB and 100 MB from process to process by flowray's files, on disk and not yet, and by Ray's store"
    peers: tuple[str, ...] = ("ray",)

    def run(self, plan: Plan) -> Found:
        runs: dict[str, list[Figures]] = {name: [] for name in CASES}
        for _ in range(plan.repeats or (1 if plan.quick else 3)):
            for name, found in runs.items():
                found.append(run_worker("payload_pairs", one_case(name, quick=plan.quick), timeout_s=300))
        measurements = []
        for name, found in runs.items():
            ray = {"ray": [figures["ray_mb_per_s"] for figures in found]}
            for side in ("flowray", "flowray_durable"):
                suffix = side.removeprefix("flowray")
                measurements += [
                    Measurement(
                        metric=f"payload_{name}{suffix}_mb_per_s",
                        unit="MB/s",
                        flowray=[figures[f"{side}_mb_per_s"] for figures in found],
                        peers=ray,
                    ),
                    Measurement(
                        metric=f"payload_{name}{suffix}_put_ms",
                        unit="ms",
                        flowray=[figures[f"{side}_put_ms"] for figures in found],
                        peers={"ray": [figures["ray_put_ms"] for figures in found]},
                    ),
                ]
        return Found(measurements=measurements, settings={"rounds": one_case("numpy_100mb", quick=False)["rounds"]})


def one_case(name: str, *, quick: bool) -> dict[str, str | int | bool]:
    """Settings of the worker. FLOWRAY_BENCH_DISK names a directory on the disk to measure; else the temporary one."""
    kind, size, read = CASES[name]
    rounds = (100 if size < 10_000_000 else 15) if not quick else (5 if size < 10_000_000 else 2)
    return {
        "kind": kind,
        "bytes": size,
        "read": read,
        "rounds": rounds,
        "directory": os.environ.get("FLOWRAY_BENCH_DISK", ""),
    }

"""Joins what several chaos runs found: `python tests/cluster/chaos_summary.py out/chaos`.

Prints a table and, as the last line, the same as JSON: of each kind of fault how often it happened, what was lost and
what ended twice in the runs that had it, how many calls of clients failed, and the time in seconds from the fault to
useful work elsewhere: until an agent has begun again with what it had interrupted; of a coordinator, and of a head
(from its return), to the first outcome; of a control store the longest time without any outcome, of Serve the slowest
task of the following seconds; of stateful agents the time until all entities whose process was killed are answered
again. `disordered`: inputs of an entity that were not applied in the order in which they were acknowledged.
`zombie_s`: how long attempts behind a cut cable went on at most, ordinary and exclusive ones, as seen from outside,
and `zombie_n` of how many.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from chaos_run import KINDS, nearest

COLUMNS = ("fault", "n", "lost", "twice", "failed", "p50_s", "p99_s", "max_s")


def joined(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of some runs, as their files have them."""
    times: dict[str, list[float]] = defaultdict(list)
    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(("n", "lost", "twice", "failed"), 0))
    disordered: dict[str, int] = defaultdict(int)
    zombies: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for kind, seen in run.get("zombies", {}).items():
            zombies[kind].extend(one["zombie_s"] for one in seen)
        for name in {fault["fault"] for fault in run.get("faults", ())}:
            counts[name]["lost"] += len(run["verdict"]["lost"])
            counts[name]["twice"] += len(run["verdict"]["twice"])
            disordered[name] += len(run["verdict"].get("disordered", ()))
        for fault in run.get("faults", ()):
            counts[fault["fault"]]["n"] += 1
            counts[fault["fault"]]["failed"] += fault["failed"]
            if fault["useful_s"] is not None:
                times[fault["fault"]].append(fault["useful_s"])
    rows = []
    for name in KINDS.values():
        if counts[name]["n"]:
            quantiles = {"p50_s": 0.5, "p99_s": 0.99, "max_s": 1.0}
            row: dict[str, Any] = {"fault": name, **counts[name]}
            if name.startswith("stateful"):
                row["disordered"] = disordered[name]
            rows.append(row | {label: nearest(times[name], q) for label, q in quantiles.items()})
            if name == "partition" and zombies:
                rows[-1]["zombie_s"] = {kind: max(seen) for kind, seen in sorted(zombies.items())}
                rows[-1]["zombie_n"] = {kind: len(seen) for kind, seen in sorted(zombies.items())}
    return {"faults": rows}


def table(summary: dict[str, Any]) -> str:
    """For people."""
    lines = [COLUMNS, *(tuple("-" if row[c] is None else str(row[c]) for c in COLUMNS) for row in summary["faults"])]
    text = "\n".join(f"{line[0]:<30}" + "".join(f"{cell:>9}" for cell in line[1:]) for line in lines)
    zombies = [(row["zombie_s"], row["zombie_n"]) for row in summary["faults"] if "zombie_s" in row]
    said = "\nattempts behind cut cables went on for at most (s): {0}, of (n): {1}"
    return text + (said.format(*zombies[0]) if zombies else "")


def main(directory: Path) -> int:
    """Exit status 1 where something was lost, or nothing was found."""
    summary = joined([json.loads(file.read_text()) for file in sorted(directory.glob("*.json"))])
    sys.stdout.write(f"{table(summary)}\n{json.dumps(summary)}\n")
    return 0 if summary["faults"] and not any(_broken(row) for row in summary["faults"]) else 1


def _broken(row: dict[str, Any]) -> bool:
    return bool(row["lost"] or row["twice"] or row.get("disordered"))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

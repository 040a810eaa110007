"""How long has been simulated: `python tests/simulation/hours.py LEDGER` writes HOURS.md beside this file.

The ledger is what `python -m flowray.testing --hours 50000 --ledger LEDGER` adds to, slice by slice. Its sums, a line
for each commit, are kept beside this file, so that a run may end on another machine than it began on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowray.testing.swarm import SOMETIMES
from flowray.testing.totals import read_ledger, sums

FOUND = """What long runs found. In seeds 3329, 4249, 4304, 4330 and 4399 a message that a partition had held back was
lost when it was sent on, and nobody gave its stream up, as any transport would. In 2566 a submit was on its way for so
long that it came when its caller had been refused, and was accepted: that task was given no time to end. In 5331 an
agent that was leaving, and therefore given nothing, was called idle. In 8747 a caller asked six times in 400 s,
and each time one that had been a coordinator and was dead. In 151 a task was accepted as late as in 2566, and nobody
waited for those who read its chunks. In 142159 a node was drained of a process whose death was not known yet, and its
start elsewhere was taken for that of a third loss. All six are mistakes of the simulator, not of the core.

Two are of the core. In 79733 an attempt that had ended when it was told to was adopted, as the report that it ran came
late: its answer could not come any more. In 74844 an input whose own output was lost was part of a state that later
outputs told of, and its dead letter did not say so. All are mended, and these seeds are run by
`tests/simulation/test_swarm.py`.
"""
TABLE = Path(__file__).with_name("HOURS.md")
KEPT = Path(__file__).with_name("hours.jsonl")
COUNTED = ("seeds", "virtual_s", "cpu_s", "tasks", "events")
LEAST = 10  # times that a large run must come by each point
HEAD = """# Virtual hours, and what was found in them

Made by `make hours` from the ledger of a long run. A virtual hour is an hour of the simulated world's clock;
what it holds stands beside it.

| commit | seeds | virtual hours | hours of a core | tasks | events | faults | seeds that broke an invariant |
|---|---|---|---|---|---|---|---|"""


def describe(lines: list[dict[str, Any]]) -> str:
    """The whole page."""
    commits = list(dict.fromkeys(line["commit"] for line in lines))
    rows = [_row(f"`{one}`", [line for line in lines if line["commit"] == one]) for one in commits]
    total = [_row("all", lines)] if len(commits) > 1 else []
    hours = _hours(lines)
    faults, points = sums(lines, "faults"), sums(lines, "sometimes")
    each = "\n".join(f"| {kind} | {count} | {count / hours:.3g} |" for kind, count in sorted(faults.items()))
    rarest = sorted(SOMETIMES, key=lambda point: points[point])
    came_by = "\n".join(f"| {point} | {points[point]} |" for point in rarest)
    few = sum(points[point] < LEAST for point in SOMETIMES)
    return f"""{HEAD}
{chr(10).join([*rows, *total])}

{FOUND}
Each virtual hour holds {_sum(lines, "tasks") / hours:.0f} tasks, {_sum(lines, "events") / hours:.0f} events of the core
and {sum(faults.values()) / hours:.0f} faults:

| fault | struck | in a virtual hour |
|---|---|---|
{each}

`Delay`, `Drop`, `Duplicate` and `Reorder` are counted by message, `SlowDisk` by sync, `Slow`, `Crash` and `Partition`
by process.

## Points that it came by

{len(SOMETIMES)} points, {few} of them less than {LEAST} times.

| point | times |
|---|---|
{came_by}
"""


def merged(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each commit, in the order of their seeds; of seeds that two lines have, the first one stands."""
    found: dict[str, dict[str, Any]] = {}
    after = 0
    for line in sorted(lines, key=lambda line: line["first"]):
        if line["first"] < after:
            continue
        after = line["first"] + line["seeds"]
        into = found.setdefault(
            line["commit"],
            {"commit": line["commit"], "first": line["first"], **dict.fromkeys(COUNTED, 0)}
            | {"faults": Counter(), "sometimes": Counter(), "violations": []},
        )
        for field in COUNTED:
            into[field] += line[field]
        for field in ("faults", "sometimes"):
            into[field].update(line[field])
        into["violations"] += line["violations"]
    return list(found.values())


def _row(name: str, lines: list[dict[str, Any]]) -> str:
    first, last = min(line["first"] for line in lines), max(line["first"] + line["seeds"] for line in lines) - 1
    broken = [str(seed) for line in lines for seed in line["violations"]]
    return (
        f"| {name} | {_sum(lines, 'seeds'):.0f} ({first} to {last}) | {_hours(lines):.1f} "
        f"| {_sum(lines, 'cpu_s') / 3600:.2f} | {_sum(lines, 'tasks'):.0f} | {_sum(lines, 'events'):.0f} "
        f"| {sum(sums(lines, 'faults').values())} | {', '.join(broken) or 'none'} |"
    )


def _sum(lines: list[dict[str, Any]], field: str) -> float:
    return sum(float(line[field]) for line in lines)


def _hours(lines: list[Mapping[str, Any]] | list[dict[str, Any]]) -> float:
    return sum(float(line["virtual_s"]) for line in lines) / 3600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ledger", type=Path, nargs="+", help="what a run with --ledger wrote")
    options = parser.parse_args()
    new = [line for path in options.ledger for line in read_ledger(path)]
    if not new:
        parser.error(f"nothing in {', '.join(map(str, options.ledger))}")
    lines = merged([*read_ledger(KEPT), *new])
    KEPT.write_text("".join(json.dumps(line) + "\n" for line in lines))
    TABLE.write_text(describe(lines))
    sys.stdout.write(
        f"{_hours(lines):.1f} virtual hours, {len([s for one in lines for s in one['violations']])} "
        f"violations: {TABLE}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

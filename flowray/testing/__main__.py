"""`python -m flowray.testing --seeds 1000`: run many seeds; `--seed N --trace` replays one and says what happened."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from flowray.testing.shrinking import shrink
from flowray.testing.swarm import SeedReport, collect_never, run_seed
from flowray.testing.totals import Ledger, Totals

BLOCK = 256  # seeds handed out at once,
CHUNK = 8  # so many of them together to one process,
CHUNKS = 32  # of which each takes so many such parts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 when every invariant held."""
    options = _parser().parse_args(arguments)
    if options.seed is not None and options.shrink:
        return _shrink(options.seed)
    if options.seed is not None:
        return _replay(options.seed, trace=options.trace)
    if options.twice:
        return _twice(options.start, options.seeds)
    began = perf_counter()
    totals = _run(options)
    summary = totals.summary(perf_counter() - began)
    if options.save is not None:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        options.save.write_text(json.dumps(summary, indent=2) + "\n")
    if options.json:
        _say(json.dumps(summary, indent=2))
    else:
        _print(summary, totals.failing)
    return 1 if summary["violations"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flowray.testing", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to run")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--hours", type=float, help="instead: as many seeds as make so many virtual hours")
    parser.add_argument("--twice", action="store_true", help="run the seeds in two processes that hash otherwise")
    parser.add_argument("--save", type=Path, help="write the summary as JSON to this file, too")
    parser.add_argument("--ledger", type=Path, help="add each slice of seeds to this file, and go on from its last")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--seed", type=int, help="replay this one seed, checking after every event")
    parser.add_argument("--shrink", action="store_true", help="with --seed: the smallest world that fails like it")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every event and command")
    return parser


def _run(options: argparse.Namespace) -> Totals:
    """As many seeds as are asked for. With a ledger only those that it has not; of what it has it says nothing."""
    ledger = Ledger(options.ledger) if options.ledger is not None else None
    first = options.start if ledger is None else ledger.next_seed(options.start)
    seeds, hours = options.start + options.seeds - first, options.hours
    if ledger is not None and hours is not None:
        hours -= ledger.virtual_s() / 3600.0
    totals = Totals(first)
    with _pool(options.jobs) as run:
        while not totals.enough(seeds, hours):
            begin, part = first + totals.seeds, Totals(first + totals.seeds)
            for report in run(range(begin, begin + (BLOCK if hours is not None else min(BLOCK, seeds - totals.seeds)))):
                totals.add(report)
                part.add(report)
                if totals.enough(seeds, hours):
                    break
            if ledger is not None:
                ledger.add(part)
    return totals


@contextmanager
def _pool(jobs: int) -> Iterator[Callable[[range], Iterable[SeedReport]]]:
    """What runs many seeds, in so many processes."""
    if jobs <= 1:
        yield partial(map, run_seed)
        return
    context = multiprocessing.get_context("forkserver")  # new processes cost nothing: they have everything imported
    context.set_forkserver_preload(["flowray.testing.swarm"])
    with context.Pool(jobs, collect_never, maxtasksperchild=CHUNKS) as pool:
        yield lambda seeds: pool.imap(run_seed, seeds, chunksize=CHUNK)


def _replay(seed: int, *, trace: bool) -> int:
    report = run_seed(seed, trace=trace, thorough=True)
    for line in report.lines:
        _say(line)
    _say(report.options)
    _say(f"  {report.events} events in {report.virtual_s:.0f} virtual s; digest {report.digest}")
    _say(report.violation or "  every invariant held")
    return 1 if report.violation else 0


def _shrink(seed: int) -> int:
    shrunk = shrink(seed)
    _say(shrunk.describe() if shrunk is not None else f"seed {seed}: every invariant held")
    return 1 if shrunk is not None else 0


def _twice(start: int, seeds: int) -> int:
    """0 when two processes whose sets and dictionaries differ in order simulate the very same."""
    command = [sys.executable, "-m", "flowray.testing", "--json", "--jobs", "1"]
    command += ["--start", str(start), "--seeds", str(seeds)]
    digests = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):  # 1: an invariant does not hold, which is not the question here
            _say(done.stderr)
            return done.returncode
        digests.append(json.loads(done.stdout)["digest"])
    _say(f"{seeds} seeds from {start}: {' and '.join(digests)}: {'equal' if len(set(digests)) == 1 else 'NOT EQUAL'}")
    return 0 if len(set(digests)) == 1 else 1


def _print(summary: dict[str, Any], failing: Sequence[SeedReport]) -> None:
    for report in failing:
        _say(f"seed {report.seed} broke invariant {report.invariant}:\n{report.violation.rstrip()}\n{report.options}")
        _say(f"  replay: python -m flowray.testing --seed {report.seed} --trace")
        _say(f"  make it small: python -m flowray.testing --seed {report.seed} --shrink\n")
    each = summary["per_virtual_hour"]
    _say(
        f"{summary['seeds']} seeds from {summary['first']}, {summary['virtual_hours']} virtual hours, "
        f"{summary['tasks']} tasks, {summary['events']} events of the core ({summary['steps']} steps), "
        f"{summary['wall_s']} s, {summary['events_per_s']} events/s, "
        f"{summary['virtual_hours_per_core_hour']} virtual hours for each hour of a core, "
        f"{len(summary['violations'])} violations"
    )
    _say(f"a virtual hour holds {each['tasks']} tasks, {each['events']} events and {each['faults']} faults, of these:")
    _say("  " + ", ".join(f"{kind} {count}" for kind, count in summary["faults"].items()))
    for point, count in sorted(summary["sometimes"].items(), key=lambda item: -item[1]):
        _say(f"  {count:8}  {point}" + ("   <- never: the generator does not get there" if not count else ""))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())

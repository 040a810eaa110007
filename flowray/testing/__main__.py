"""`python -m flowray.testing --seeds 1000`: run many seeds; `--seed N --trace` replays one and says what happened."""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from time import perf_counter

from flowray.testing.shrinking import shrink
from flowray.testing.swarm import SOMETIMES, SeedReport, run_seed

MAX_SHOWN = 5  # failing seeds described in full


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 when every invariant held."""
    options = _parser().parse_args(arguments)
    if options.seed is not None and options.shrink:
        return _shrink(options.seed)
    if options.seed is not None:
        return _replay(options.seed, trace=options.trace)
    began = perf_counter()
    reports = list(_run(range(options.start, options.start + options.seeds), options.jobs))
    summary = _summary(reports, perf_counter() - began)
    if options.json:
        _say(json.dumps(summary, indent=2))
    else:
        _print(summary, reports)
    return 1 if summary["violations"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flowray.testing", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to run")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--seed", type=int, help="replay this one seed, checking after every event")
    parser.add_argument("--shrink", action="store_true", help="with --seed: the smallest world that fails like it")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every event and command")
    return parser


def _run(seeds: Sequence[int], jobs: int) -> Iterator[SeedReport]:
    if jobs <= 1:
        yield from map(run_seed, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, collect_rarely) as pool:
        yield from pool.imap(run_seed, seeds, chunksize=8)


def collect_rarely() -> None:
    """For a process that does nothing but simulate: its worlds are small, and looking for garbage takes a tenth."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


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


def _summary(reports: Sequence[SeedReport], wall_s: float) -> dict[str, object]:
    sometimes: Counter[str] = Counter()
    for report in reports:
        sometimes.update(report.sometimes)
    events = sum(report.events for report in reports)
    return {
        "seeds": len(reports),
        "first": reports[0].seed if reports else 0,
        "virtual_hours": round(sum(report.virtual_s for report in reports) / 3600.0, 2),
        "events": events,
        "steps": sum(report.steps for report in reports),
        "wall_s": round(wall_s, 1),
        "events_per_s": round(events / wall_s) if wall_s else 0,
        "violations": [report.seed for report in reports if report.violation],
        "invariants": dict(Counter(report.invariant for report in reports if report.violation)),
        "sometimes": {point: sometimes[point] for point in sorted({*SOMETIMES, *sometimes})},
        "never": [point for point in SOMETIMES if not sometimes[point]],
    }


def _print(summary: dict[str, object], reports: Sequence[SeedReport]) -> None:
    failing = [report for report in reports if report.violation]
    for report in failing[:MAX_SHOWN]:
        _say(f"seed {report.seed} broke invariant {report.invariant}:\n{report.violation.rstrip()}\n{report.options}")
        _say(f"  replay: python -m flowray.testing --seed {report.seed} --trace")
        _say(f"  make it small: python -m flowray.testing --seed {report.seed} --shrink\n")
    _say(
        f"{summary['seeds']} seeds from {summary['first']}, {summary['virtual_hours']} virtual hours, "
        f"{summary['events']} events of the core ({summary['steps']} steps), {summary['wall_s']} s, "
        f"{summary['events_per_s']} events/s, {len(failing)} violations"
    )
    points = summary["sometimes"]
    assert isinstance(points, dict)
    for point, count in sorted(points.items(), key=lambda item: -item[1]):
        _say(f"  {count:8}  {point}" + ("   <- never: the generator does not get there" if not count else ""))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())

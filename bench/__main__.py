"""The command line: `python -m bench list | NAME | plot NAME`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import registry, report
from bench.measure import FLOWRAY, Plan, SideFailed, say
from bench.processes import LOCK_VARIABLE


class NoRuns(Exception):
    """There is nothing to plot."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done. 1: a measurement failed. 2: wrongly asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure flowray beside its peers.")
    parser.add_argument("what", help="list, plot, or the name of a benchmark")
    parser.add_argument("of", nargs="?", help="for plot: the name of a benchmark")
    parser.add_argument("--json", action="store_true", help="print the document on stdout, and nothing else there")
    parser.add_argument("--quick", action="store_true", help="one short repeat: to see that it works")
    parser.add_argument("--repeats", type=_positive, help="how often each side runs")
    parser.add_argument("--peers", metavar="A,B", help="only these beside flowray (default: all; '' for none)")
    parser.add_argument("--peers-only", action="store_true", help="leave flowray's own side out")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="where results are kept (%(default)s)")
    parser.add_argument("--baseline", action="store_true", help="later runs are held against this one")
    parser.add_argument("--lock", help="hold this file's lock (flock) while a side runs")
    chosen = parser.parse_args(arguments)
    if chosen.baseline and chosen.quick:
        parser.error("a quick run is no baseline")
    if chosen.baseline and (chosen.peers is not None or chosen.peers_only):
        parser.error("a run without all its sides is no baseline: leave out --peers and --peers-only")
    if chosen.lock:
        os.environ[LOCK_VARIABLE] = chosen.lock
    try:
        if chosen.what == "list":
            _list()
        elif chosen.what == "plot":
            _plot(chosen.of or "", chosen.out)
        else:
            _run(chosen)
    except (registry.UnknownMember, registry.UnknownPeer) as error:
        say(str(error))
        return 2
    except (SideFailed, NoRuns) as error:
        say(f"{chosen.what} failed: {error}")
        return 1
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _list() -> None:
    table = Table(box=None, show_header=False)
    for name in registry.names():
        table.add_row(name, registry.find(name).description)
    Console().print(table)


def _run(chosen: argparse.Namespace) -> None:
    member = registry.find(chosen.what)
    if chosen.peers_only and not member.peers:
        raise SideFailed("it has no peers, and --peers-only leaves nothing")
    machine, at_utc = report.machine(), report.now_utc()
    plan = Plan(
        quick=chosen.quick,
        repeats=chosen.repeats,
        peers=registry.chosen_peers(member, chosen.peers),
        flowray=not chosen.peers_only,
    )
    found = report.document(member.name, member.run(plan), machine, at_utc)
    before = report.baseline(member.name)
    say(f"kept in {report.keep(found, chosen.out, quick=chosen.quick)}")
    if chosen.baseline and FLOWRAY in found["absent"]:
        raise SideFailed(f"flowray is absent, and this is no baseline: {found['absent'][FLOWRAY]}")
    if chosen.baseline:
        say(f"baseline: {report.keep_baseline(found)}")
    if not chosen.quick:
        _plot(member.name, chosen.out)
    if chosen.json:
        json.dump(found, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        report.show(found, before, Console(width=None if sys.stdout.isatty() else 160))


def _plot(name: str, out: Path) -> None:
    from bench import plot  # matplotlib takes a second to load

    member = registry.find(name)
    runs = report.history(member.name, out)
    if not runs:
        raise NoRuns(f"no full run of {name!r} is kept in {out / name} yet: run `python -m bench {name}` first")
    for path in plot.draw(member.name, runs, report.baseline(member.name), out / member.name):
        say(f"plotted: {path}")


if __name__ == "__main__":
    # As an exception, so that a side under way is ended too: it has a session of its own and would go on.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())

"""From measurements to what is kept and shown: the document, its file, the table."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.measure import Found, SideFailed, higher_is_better

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
BASELINES = HERE / "baselines"
KEPT = 100  # documents of one member, the newest
_BESIDE = 3  # with more peers than this, spreads stand below their medians: the table would be too wide
_LINE = 200  # characters of a reason in the table
_QUICK = ".quick.json"  # quick documents are kept, but never plotted beside full ones

Document = dict[str, Any]


def document(name: str, found: Found, machine: dict[str, Any], at_utc: str) -> Document:
    """The whole of one run. Raises SideFailed when no side gave a figure."""
    if not found.measurements:
        reasons = "; ".join(f"{side}: {reason}" for side, reason in found.absent.items())
        raise SideFailed(f"no side gave a figure: {reasons or 'none was chosen'}")
    return {
        "name": name,
        "machine": machine,
        "versions": versions() | dict(found.versions),
        "at_utc": at_utc,
        "settings": dict(found.settings),
        "absent": dict(found.absent),
        "results": [measurement.result() for measurement in found.measurements],
    }


def now_utc() -> str:
    """To the second, as in file names."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def machine() -> dict[str, Any]:
    """Where a run takes place. Call it before the run: the load average must be everybody else's."""
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count() or 0,
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Of what the figures depend on; flowray's with its commit, and ".modified" when its files are not as committed."""
    found = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("ray", "flowray", "msgspec", "grpcio")},
    }
    commit = _git("rev-parse", "--short=10", "HEAD")
    if commit:
        found["flowray"] += f"+{commit}{'.modified' if _git('status', '--porcelain', '--', 'flowray') else ''}"
    return found


def _git(*arguments: str) -> str:
    """What git says of this repository; "" when there is none."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=HERE.parent, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────────────


def keep(found: Document, out: Path, *, quick: bool) -> Path:
    """Write a document beside the earlier ones of its name and drop the oldest beyond the bound."""
    directory = out / found["name"]
    directory.mkdir(parents=True, exist_ok=True)
    suffix = _QUICK if quick else ".json"
    path: Path = directory / f"{found['at_utc'].replace(':', '')}{suffix}"
    _write(path, found)
    for old in [p for p in sorted(directory.glob("*.json")) if p.name.endswith(_QUICK) == quick][:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def keep_baseline(found: Document) -> Path:
    """Make a document the one that later runs are held against. It is committed."""
    BASELINES.mkdir(exist_ok=True)
    path = BASELINES / f"{found['name']}.json"
    _write(path, found)
    return path


def _write(path: Path, found: Document) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(path)


def history(name: str, out: Path) -> list[Document]:
    """The full runs that are kept, oldest first."""
    paths = sorted((out / name).glob("*.json"))
    return [json.loads(path.read_text()) for path in paths if not path.name.endswith(_QUICK)]


def baseline(name: str) -> Document | None:
    """None when there is none yet."""
    path = BASELINES / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────────────────


def show(found: Document, held_against: Document | None, console: Console) -> None:
    """A table of one run."""
    peers = list(dict.fromkeys(peer for result in found["results"] for peer in result["peers"]))
    before = {r["metric"]: r for r in held_against["results"]} if held_against is not None else {}
    machine_, versions_ = found["machine"], found["versions"]
    table = Table(
        title=f"{found['name']} at {found['at_utc']}",
        caption=(
            f"{machine_['cpu']}, {machine_['cores']} cores, load {machine_['load_average'][0]} at start; "
            + ", ".join(f"{name} {value}" for name, value in versions_.items())
            + "".join(
                f"\n[bold]{side} is absent[/]: {escape(_brief(why))}" for side, why in found.get("absent", {}).items()
            )
            + "\nmedian, and in brackets the least and greatest of the repeats"
        ),
    )
    table.add_column("metric", no_wrap=True)
    table.add_column("unit")
    below = len(peers) > _BESIDE
    table.add_column("flowray", justify="right")
    for peer in peers:
        table.add_column(peer, justify="right", overflow="fold")
    table.add_column("ratio", justify="right")
    table.add_column("n", justify="right")
    if before:
        table.add_column("baseline", justify="right")
    for result in found["results"]:
        cells = [result["metric"], result["unit"], _figure(result["flowray"], result["spread"], result["n"], below)]
        cells += [
            _figure(result["peers"].get(peer), result["peers_spread"].get(peer), result["n"], below) for peer in peers
        ]
        cells += ["" if result["ratio"] is None else f"{result['ratio']:.2f}", str(result["n"])]
        if before:
            cells.append(_beside(result, before.get(result["metric"])))
        table.add_row(*cells)
    console.print(table)


def _brief(why: str) -> str:
    """A reason in one line; the document has all of it."""
    first, *_, last = [line.strip() for line in why.splitlines() if line.strip()] * 2
    return first[:_LINE] if first == last else f"{first[:_LINE]} ... {last[:_LINE]}"


def _figure(value: float | None, spread: Sequence[float] | None, n: int, below: bool) -> str:
    """The median, and beside or below it its spread, where there is one."""
    if value is None:
        return ""
    if spread is None or n == 1:
        return number(value)
    return f"{number(value)}{chr(10) if below else ' '}[dim]\\[{number(spread[0])}-{number(spread[1])}][/dim]"


def _beside(result: dict[str, Any], before: dict[str, Any] | None) -> str:
    """The baseline's figure; coloured only where the two spreads do not even touch."""
    if before is None or before["flowray"] is None:
        return ""
    text = number(before["flowray"])
    if result["flowray"] is None:
        return text
    if result["spread"][0] <= before["spread"][1] and before["spread"][0] <= result["spread"][1]:
        return text
    better = (result["flowray"] > before["flowray"]) == higher_is_better(result["unit"])
    return f"[{'green' if better else 'red'}]{text}[/]"


def number(value: float) -> str:
    """As short as it can be without losing what four digits say."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

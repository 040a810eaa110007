"""One package's findings into one picture, and all packages' pictures into the summary."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowray.agents import Context, Task, agent
from flowray.skills.audit.findings import AUDIT, SEVERITIES, Finding
from flowray.skills.audit.ranking import by_attention, grade, points, score
from flowray.skills.audit.sources import BadSource, decode, read_bytes

TOP_OF_PACKAGE = 60  # findings with an excerpt that one package hands on
TOP = 100  # of the whole code base
HOT_SPOTS = 60
_AROUND = 2  # lines of source before and after
_WIDEST = 160  # characters of a line in an excerpt

# The same observation by different names.
_SAME = {
    "unused-import": "unused import",
    "unused-variable": "unused variable",
    "B110": "swallowed",
    "B112": "swallowed",
    "swallowed-exception": "swallowed",
    "B307": "eval",
    "bidirectional-control": "bidi",
    "B613": "bidi",
}


@agent(capabilities={"audit.combine"}, tier="primary")
class Combiner:
    """Merges, de-duplicates and ranks the findings of one package, and grades it."""

    def run(self, task: Task, ctx: Context) -> dict[str, Any]:
        """The package's findings, figures, hot files and first findings with their source."""
        return combine(task.payload)


def combine(payload: Mapping[str, Any]) -> dict[str, Any]:
    """See Combiner; files in the payload are [name, lines]."""
    lines: dict[str, int] = dict(payload["files"])
    merged = merge(Finding.of_row(row) for row in payload["findings"])
    measures: dict[str, dict[str, Any]] = payload["measures"]
    spots = hot_spots(lines, merged, measures)
    heat = {spot["file"]: spot["heat"] for spot in spots}
    total = points(merged)
    value = score(total, sum(lines.values()))
    excerpts = _Excerpts(Path(payload["root"]), int(payload["max_bytes"]))
    return {
        "package": payload["package"],
        "files": len(lines),
        "lines": sum(lines.values()),
        "points": total,
        "score": value,
        "grade": grade(value),
        "findings": [f.row() for f in merged],
        "severities": _counts(SEVERITIES, (f.severity for f in merged)),
        "skills": dict(sorted(Counter(f.skill for f in merged).items())),
        "rules": dict(sorted(Counter(f.rule for f in merged).items())),
        "coverage": _coverage(measures),
        "hot": spots[:HOT_SPOTS],
        "top": [{"row": f.row(), "excerpt": excerpts.around(f)} for f in by_attention(merged, heat, TOP_OF_PACKAGE)],
    }


def merge(found: Iterable[Finding]) -> list[Finding]:
    """Sorted; what several skills say of one line in different words is one finding that names them all."""
    groups: dict[tuple[str, int, str, str], list[Finding]] = defaultdict(list)
    for f in sorted(set(found), key=lambda f: f.place):
        same = _SAME.get(f.rule)
        what = (same, "") if same else (f"{f.skill} {f.rule}", f"{f.column} {f.message}")
        groups[f.file, f.line, *what].append(f)
    kept: list[Finding] = []
    for group in groups.values():
        by_skill: dict[str, list[Finding]] = defaultdict(list)
        for f in group:
            by_skill[f.skill].append(f)
        # Two unused imports on one line, seen by two skills, are two findings and not one or four.
        # Of two that see as many, names says more than deadcode, and unicode more than security: the later one.
        first = max(sorted(by_skill), key=lambda skill: (len(by_skill[skill]), skill))
        worst = min(group, key=lambda f: f.rank).severity
        also = " ".join(sorted(set(by_skill) - {first}))
        kept += [replace(f, severity=worst, also=also) if also else f for f in by_skill[first]]
    return sorted(kept, key=lambda f: f.place)


def hot_spots(
    lines: Mapping[str, int], found: Iterable[Finding], measures: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Files by heat, hottest first: points x number of skills that complain x how complex the worst function is."""
    of_file: dict[str, list[Finding]] = defaultdict(list)
    for f in found:
        if f.severity != "note" and f.skill != AUDIT:
            of_file[f.file].append(f)
    spots = []
    for file, some in of_file.items():
        skills = sorted({f.skill for f in some})
        numbers = measures.get(file, {})
        worst = int(numbers.get("complexity_max", 0))
        spots.append(
            {
                "file": file,
                "lines": lines.get(file, 0),
                "points": points(some),
                "skills": skills,
                "complexity_max": worst,
                "maintainability": float(numbers.get("maintainability", 100.0)),
                "findings": len(some),
                "heat": round(points(some) * len(skills) * (1.0 + worst / 20.0), 2),
            }
        )
    return sorted(spots, key=lambda s: (-s["heat"], s["file"]))


def summarise(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The whole code base from its packages (without their findings): totals, ranking, first findings, hot spots."""
    packages: list[dict[str, Any]] = sorted(payload["packages"], key=lambda p: p["package"])
    hot = sorted((spot for p in packages for spot in p["hot"]), key=lambda s: (-s["heat"], s["file"]))
    heat = {spot["file"]: spot["heat"] for spot in hot}
    excerpts = {tuple(top["row"]): top["excerpt"] for p in packages for top in p["top"]}
    first = by_attention((Finding.of_row(row) for row in sorted(excerpts)), heat, TOP)
    skills: Counter[str] = Counter()
    severities: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    coverage: Counter[str] = Counter()
    for p in packages:
        skills.update(p["skills"])
        severities.update(p["severities"])
        rules.update(p["rules"])
        coverage.update(p["coverage"])
    lines = sum(p["lines"] for p in packages)
    value = score(sum(p["points"] for p in packages), lines)
    table = [{k: p[k] for k in _TABLE} for p in packages]
    return {
        "files": sum(p["files"] for p in packages),
        "lines": lines,
        "findings": sum(severities.values()),
        "score": value,
        "grade": grade(value),
        "severities": {s: severities[s] for s in SEVERITIES},
        "skills": dict(sorted(skills.items())),
        "rules": dict(sorted(rules.items())),
        "coverage": dict(sorted(coverage.items())),
        "packages": sorted(table, key=lambda p: (p["score"], p["package"])),
        "hot": hot[:HOT_SPOTS],
        "top": [{"row": f.row(), "excerpt": excerpts[tuple(f.row())]} for f in first],
    }


_TABLE = ("package", "files", "lines", "points", "score", "grade", "severities", "skills", "coverage")
_COVERAGE = ("documentable", "documented", "annotatable", "annotated", "functions", "complexity")


def _coverage(measures: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    return {name: sum(int(measures[file].get(name, 0)) for file in sorted(measures)) for name in _COVERAGE}


def _counts(names: Iterable[str], seen: Iterable[str]) -> dict[str, int]:
    counted = Counter(seen)
    return {name: counted[name] for name in names}


class _Excerpts:
    """Source around a finding; each file is read once."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root, self._max_bytes = root, max_bytes
        self._lines: dict[str, list[str]] = {}

    def around(self, f: Finding) -> list[list[Any]]:
        """[[line number, text], ...]; empty where the finding has no line, or the file cannot be shown."""
        if not f.line:
            return []
        if f.file not in self._lines:
            try:
                text = decode(f.file, read_bytes(self._root, f.file, self._max_bytes))
            except BadSource:
                text = ""
            self._lines[f.file] = text.split("\n")
        lines = self._lines[f.file]
        first, last = max(1, f.line - _AROUND), min(len(lines), f.line + _AROUND)
        shown = [[number, lines[number - 1].expandtabs(4)[:_WIDEST]] for number in range(first, last + 1)]
        return shown if f.line <= len(lines) else []

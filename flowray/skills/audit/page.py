"""report.html: one self-contained file that shows the audit to a person.

Everything but the list of all findings is plain HTML and SVG, readable without JavaScript. The list comes as JSON, is
cut at `limit` rows, and the page says so. Nothing is loaded from anywhere.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from flowray.skills.audit.findings import SEVERITIES, one_line
from flowray.skills.audit.ranking import FORMULA
from flowray.skills.audit.treemap import Box, squarify

CARDS = 60  # first findings with their source
_OPEN_CARDS = 12  # of them shown before "more"
_PACKAGES = 250  # rows of the table of packages
_SPOTS = 48  # files in the treemap
_LONGEST_VALUE = 400  # characters of a value from the run

_SKILLS = {
    "audit": "could not be audited",
    "security": "security",
    "names": "names and imports",
    "exceptions": "error handling",
    "blocking": "blocking in async code",
    "complexity": "complexity",
    "cycles": "import cycles",
    "deadcode": "dead code",
    "duplicates": "copied code",
    "documentation": "documentation",
    "unicode": "deceptive characters",
}
_SHORT = {"documentation": "docs", "audit": "not audited", "blocking": "blocking", "unicode": "unicode"}
_RANK = {severity: rank for rank, severity in enumerate(SEVERITIES)}


def render(summary: Mapping[str, Any], findings: Sequence[Sequence[Any]], run: Mapping[str, Any], *, limit: int) -> str:
    """The whole page. `findings` are rows of findings.parquet."""
    here = Path(__file__).parent
    shown = sorted(findings, key=lambda r: (_RANK[r[6]], r[1], r[2], list(r)))[:limit]
    return Template((here / "report.html").read_text(encoding="utf-8")).substitute(
        style=(here / "report.css").read_text(encoding="utf-8"),
        script=(here / "report.js").read_text(encoding="utf-8"),
        name=escape(summary["name"]),
        grade=escape(summary["grade"]),
        score=f"{summary['score']:.0f}",
        lead=_lead(summary),
        figures=_figures(summary),
        cards=_cards(summary["top"]),
        more_cards=_more_cards(summary["top"]),
        treemap=_treemap(summary["hot"][:_SPOTS]),
        hot=_hot_table(summary["hot"][:8]),
        packages=_packages(summary["packages"]),
        skills=_distribution(findings),
        legend="".join(_pill(s) for s in SEVERITIES if summary["severities"][s]),
        shown=f"{len(shown):,}",
        of=f"{len(findings):,}",
        cut=_cut(len(shown), len(findings)),
        data=_json([[r[0], *r[1:4], r[4], r[5], r[6], r[7], r[8]] for r in shown]),
        labels=_json(_SKILLS),
        formula=_list(FORMULA.split("; ")),
        options=escape(_options(summary["options"])),
        tools=escape(", ".join(f"{name} {version}" for name, version in summary["tools"].items() if version)),
        run=_run(run),
    )


def _lead(summary: Mapping[str, Any]) -> str:
    severe = summary["severities"]["high"] + summary["severities"]["error"]
    worst = summary["packages"][0]["package"] if summary["packages"] else ""
    text = f"{summary['findings']:,} findings in {summary['files']:,} files, {severe:,} of them severe."
    if worst and summary["packages"][0]["score"] < summary["score"]:
        text += f" The lowest score is that of <code>{escape(_package(worst))}</code>."
    return text


def _figures(summary: Mapping[str, Any]) -> str:
    c = summary["coverage"]
    severities = summary["severities"]
    mean = c.get("complexity", 0) / c["functions"] if c.get("functions") else 0.0
    figures = [
        ("lines of code", f"{summary['lines']:,}", f"in {summary['files']:,} files"),
        ("severe", f"{severities['high'] + severities['error']:,}", "high, or not auditable"),
        ("medium", f"{severities['medium']:,}", "worth repairing"),
        ("low", f"{severities['low']:,}", f"untidy; and {severities['note']:,} notes"),
        ("documented", _percent(c.get("documented", 0), c.get("documentable", 0)), "of public definitions"),
        ("annotated", _percent(c.get("annotated", 0), c.get("annotatable", 0)), "of parameters and returns"),
        ("complexity", f"{mean:.1f}", f"mean of {c.get('functions', 0):,} functions"),
    ]
    return "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for label, value, note in figures
    )


def _cards(top: Sequence[Mapping[str, Any]]) -> str:
    return "".join(_card(t) for t in top[:_OPEN_CARDS]) or "<p>Nothing that needs attention was found.</p>"


def _more_cards(top: Sequence[Mapping[str, Any]]) -> str:
    rest = top[_OPEN_CARDS:CARDS]
    if not rest:
        return ""
    cards = "".join(_card(t) for t in rest)
    return f"<details><summary>{len(rest)} more</summary><div class='cards'>{cards}</div></details>"


def _card(top: Mapping[str, Any]) -> str:
    file, line, _, rule, skill, severity, message, also = top["row"]
    where = f"{file}:{line}" if line else file
    kind = " · ".join([_SKILLS.get(skill, skill), rule, *([f"also seen by {also}"] if also else [])])
    return (
        f"<article class='card {severity}'><header>{_pill(severity)}<h3>{escape(message)}</h3></header>"
        f"<p class='where'><code>{escape(where)}</code> <span>{escape(kind)}</span></p>"
        f"{_excerpt(top['excerpt'], line)}</article>"
    )


def _excerpt(lines: Sequence[Sequence[Any]], hit: int) -> str:
    if not lines:
        return ""
    margin = min((len(t) - len(t.lstrip()) for _, t in lines if t.strip()), default=0)
    body = "".join(
        f"<span class='{'hit' if number == hit else 'line'}'><i>{number}</i>{escape(text[margin:])}\n</span>"
        for number, text in lines
    )
    return f"<pre tabindex='0'>{body}</pre>"


def _treemap(spots: Sequence[Mapping[str, Any]]) -> str:
    """Files as areas by their lines, darker the hotter; percentages, so that text keeps its size on a phone."""
    ordered = sorted(spots, key=lambda s: (-s["lines"], s["file"]))
    ordered = [s for s in ordered if s["lines"] > 0]
    heats = sorted(s["heat"] for s in ordered)
    boxes = squarify([float(s["lines"]) for s in ordered], Box(0.0, 0.0, 160.0, 60.0))
    parts = []
    for spot, box in zip(ordered, boxes, strict=True):
        # Fifths of the ranking, not of the value: heat has a long tail and one file would own all the colour.
        step = min(4, 5 * heats.index(spot["heat"]) // len(heats))
        x, y, w, h = box.x / 1.6, box.y / 0.6, box.width / 1.6, box.height / 0.6
        told = (
            f"{spot['file']}: {spot['findings']} findings by {len(spot['skills'])} analyses "
            f"({', '.join(spot['skills'])}), {spot['lines']:,} lines, worst function {spot['complexity_max']}"
        )
        parts.append(
            f"<svg x='{x:.2f}%' y='{y:.2f}%' width='{w:.2f}%' height='{h:.2f}%' class='h{step}'>"
            f"<title>{escape(told)}</title><rect width='100%' height='100%'/>{_label(spot, w, h)}</svg>"
        )
    return "".join(parts)


def _label(spot: Mapping[str, Any], width: float, height: float) -> str:
    """Name and count where a wide screen has room for them; a narrow one clips them."""
    parts = spot["file"].split("/")
    name = "/".join(parts[-2:]) if parts[-1] == "__init__.py" else parts[-1]
    room = int(1.4 * width) - 1  # characters
    if height < 5.5 or room < 4:
        return ""
    name = name if len(name) <= room else name[: room - 1] + "…"
    below = f"<text x='6' y='33' class='sub'>{spot['findings']} findings</text>" if height > 11 and room > 9 else ""
    return f"<text x='6' y='17'>{escape(name)}</text>{below}"


def _hot_table(spots: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><th scope='row'><code>{escape(s['file'])}</code></th><td>{s['findings']}</td><td>{len(s['skills'])}</td>"
        f"<td>{s['complexity_max']}</td><td>{s['maintainability']:.0f}</td></tr>"
        for s in spots
    )
    head = "<tr><th scope='col'>File<th scope='col'>Findings<th scope='col'>Analyses<th scope='col'>Worst function"
    return (
        f"<table class='plain'><thead>{head}<th scope='col'>Maintainability</tr></thead><tbody>{rows}</tbody></table>"
    )


def _packages(packages: Sequence[Mapping[str, Any]]) -> str:
    used = [s for s in _SKILLS if any(s in p["skills"] for p in packages)]
    columns = "".join(f"<th scope='col' class='skill'>{escape(_SHORT.get(s, _SKILLS[s]))}</th>" for s in used)
    most = {s: max(_density(p, s) for p in packages) for s in used}
    rows = []
    for p in packages[:_PACKAGES]:
        cells = "".join(_cell(p, s, most[s]) for s in used)
        rows.append(
            f"<tr><th scope='row'><button type='button' data-package='{escape(p['package'], quote=True)}'>"
            f"{escape(_package(p['package']))}</button></th><td><b class='grade g{p['grade']}'>{p['grade']}</b></td>"
            f"<td class='score'><span class='bar'><i class='g{p['grade']}' style='width:{p['score']:.0f}%'></i></span>"
            f"{p['score']:.0f}</td><td>{p['lines']:,}</td>{cells}</tr>"
        )
    cut = len(packages) - _PACKAGES
    note = f"<p class='cut'>{cut:,} packages with better scores are not shown.</p>" if cut > 0 else ""
    head = f"<tr><th scope='col'>Package<th scope='col'>Grade<th scope='col'>Score<th scope='col'>Lines{columns}</tr>"
    table = f"<table class='heat'><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<div class='scroll' tabindex='0'>{table}</div>{note}"


def _package(name: str) -> str:
    return "(top level)" if name == "." else name


def _density(package: Mapping[str, Any], skill: str) -> float:
    return float(package["skills"].get(skill, 0)) / max(package["lines"], 300)


def _cell(package: Mapping[str, Any], skill: str, most: float) -> str:
    count = package["skills"].get(skill, 0)
    if not count:
        return "<td class='none'>·</td>"
    step = min(4, int(5 * (_density(package, skill) / most) ** 0.5)) if most else 0
    return f"<td class='h{step}'>{count:,}</td>"


def _distribution(findings: Sequence[Sequence[Any]]) -> str:
    """A bar for each analysis, its parts the severities."""
    counted = Counter((r[5], r[6]) for r in findings)
    totals = Counter(r[5] for r in findings)
    most = max(totals.values(), default=1)
    bars = []
    for skill, total in sorted(totals.items(), key=lambda item: (-item[1], item[0])):
        parts = "".join(
            f"<i class='{severity}' style='width:{100 * counted[skill, severity] / most:.2f}%'></i>"
            for severity in SEVERITIES
        )
        label = f"<button type='button' data-skill='{escape(skill, quote=True)}'>{escape(_SKILLS.get(skill, skill))}"
        told = ", ".join(f"{counted[skill, s]} {s}" for s in SEVERITIES if counted[skill, s])
        bars.append(f"<li>{label}</button><span class='bar' title='{told}'>{parts}</span><b>{total:,}</b></li>")
    return "".join(bars)


def _cut(shown: int, of: int) -> str:
    return f"The worst {shown:,} of {of:,}; findings.parquet has them all." if shown < of else f"All {of:,}."


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in sorted(options.items()) if value not in ([], ""))


def _run(run: Mapping[str, Any]) -> str:
    items = "".join(
        f"<div><dt>{escape(one_line(str(name)))}</dt><dd>{escape(one_line(str(value), _LONGEST_VALUE))}</dd></div>"
        for name, value in run.items()
    )
    return f"<dl class='run'>{items}</dl>" if items else ""


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _pill(severity: str) -> str:
    return f"<span class='pill {severity}'>{severity}</span>"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%" if whole else "–"


def _json(value: Any) -> str:
    """JSON that may stand within a script element: no `<`, so no tag and no comment can begin there."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

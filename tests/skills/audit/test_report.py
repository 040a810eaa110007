"""The page: self-contained, escaped, bounded, and honest about what it leaves out."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flowray.jobs import run_sequentially
from flowray.skills.audit.combining import combine, summarise
from flowray.skills.audit.findings import finding
from flowray.skills.audit.job import AuditJob
from flowray.skills.audit.options import AuditOptions
from flowray.skills.audit.page import render
from flowray.skills.audit.report import write_report
from flowray.skills.audit.team import local_team
from flowray.skills.audit.treemap import Box, squarify

from .builders import write

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
VOID = {"meta", "br", "wbr", "input", "rect", "img", "link", "hr"}
OPTIONAL = {"th", "td", "tr", "li", "option", "p"}  # elements whose end tag HTML lets one leave out


class Page(HTMLParser):
    """The tags of a page, and those that were not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.crossed: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open[-1] != tag and self.open[-1] in OPTIONAL:
            self.open.pop()
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.crossed.append(tag)


def summary_of(rows: list[list[Any]], root: Path, name: str = "code") -> dict[str, Any]:
    payload = {"root": str(root), "max_bytes": 1000, "package": "p", "files": [["p/a.py", 100]], "measures": {}}
    package = combine({**payload, "findings": rows})
    return {**summarise({"packages": [package]}), "name": name, "tools": {"radon": "6"}, "options": {"exclude": []}}


def page_of(tmp_path: Path, message: str, **changes: Any) -> str:
    f = finding(f"p/{EVIL[:9]}.py", 1, 1, EVIL[:20], "names", "high", message)
    summary = {**summary_of([f.row()], tmp_path), **changes}
    return render(summary, [["p", *f.row()]], {"agents": EVIL}, limit=10)


def test_page_escapes_what_the_code_contains(tmp_path: Path) -> None:
    text = page_of(tmp_path, EVIL, name=EVIL)
    page = Page(text)
    assert [a.get("type") for tag, a in page.tags if tag == "script"] == ["application/json", "application/json", None]
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert EVIL not in text
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert not set("<>&") & set(data[1])
    assert json.loads(data[1])[0][7] == EVIL  # and yet the text itself is all there


def test_excerpt_is_escaped(tmp_path: Path) -> None:
    write(tmp_path, {"p/a.py": f"x = '{EVIL}'\n"})
    row = finding("p/a.py", 1, 1, "r", "names", "high", "m").row()
    text = render(summary_of([row], tmp_path), [["p", *row]], {}, limit=10)
    assert "x = &#x27;&lt;/script&gt;" in text
    assert EVIL not in text


def test_dollar_signs_are_not_placeholders(tmp_path: Path) -> None:
    assert "costs $5 ${name} $$" in page_of(tmp_path, "costs $5 ${name} $$")


@pytest.mark.slow
def test_real_page_loads_nothing_and_is_well_formed(tmp_path: Path) -> None:
    run_sequentially(AuditJob(Path(json.__file__).parent), local_team(), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.crossed == []
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "action", "data", "poster", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert not re.search(r"url\(|@import|https?://[^\s\"']*\.(js|css|woff2?)", text)
    assert not re.search(r"fetch\(|XMLHttpRequest|sendBeacon|innerHTML", text)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for tag, a in page.tags if tag == "a"}
    assert targets <= {f"#{i}" for i in ids}


@pytest.mark.slow
def test_page_is_bounded_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    some = [finding(f"p/{i % 90}.py", i, 1, "rule", "names", "medium", "m" * 500) for i in range(5000)]
    rows = [f.row() for f in some]
    summary = summary_of(rows, tmp_path)
    report = write_report(
        tmp_path, summary=summary, findings=[("p", r) for r in rows], run={}, options=AuditOptions(report_rows=800)
    )
    text = report.files[0].read_text(encoding="utf-8")
    assert len(text) < 700_000
    assert "The worst 800 of 5,000; findings.parquet has them all." in text


def test_run_facts_are_on_the_page_and_nowhere_else(tmp_path: Path) -> None:
    job = AuditJob(write(tmp_path / "code", {"a.py": "x = 1\n"}))
    job.run = {"failovers": "seventeen failovers"}
    run_sequentially(job, local_team(), tmp_path / "out")
    assert "seventeen failovers" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    for name in ("summary.json", "findings.parquet"):
        assert b"failovers" not in (tmp_path / "out" / name).read_bytes()


def test_treemap_fills_the_whole_and_keeps_proportions() -> None:
    sizes = [50.0, 30.0, 10.0, 5.0, 3.0, 1.0, 1.0]
    boxes = squarify(sizes, Box(0, 0, 160, 60))
    assert [round(b.width * b.height / 96, 6) for b in boxes] == sizes
    for i, a in enumerate(boxes):
        assert a.x >= -1e-9 and a.x + a.width <= 160 + 1e-9 and a.y >= -1e-9 and a.y + a.height <= 60 + 1e-9
        for b in boxes[i + 1 :]:
            across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
            down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
            assert across < 1e-9 or down < 1e-9
    assert squarify([], Box(0, 0, 1, 1)) == []

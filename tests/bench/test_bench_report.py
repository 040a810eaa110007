"""Documents: their shape, how many are kept, how they are drawn."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from bench import plot, report
from bench.measure import Found, Measurement, SideFailed

_NUMBERS = {"type": "object", "additionalProperties": {"type": "number"}}
_SPREAD = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_RATIOS = {"type": "object", "additionalProperties": {"type": ["number", "null"]}}
_RESULT = {
    "metric": {"type": "string"},
    "unit": {"type": "string"},
    "flowray": {"type": ["number", "null"]},
    "peers": _NUMBERS,
    "ratio": {"type": ["number", "null"]},
    "n": {"type": "integer", "minimum": 1},
    "spread": {**_SPREAD, "type": ["array", "null"]},
    "peers_spread": {"type": "object", "additionalProperties": _SPREAD},
}
_MACHINE = {
    "cpu": {"type": "string", "minLength": 1},
    "cores": {"type": "integer", "minimum": 1},
    "memory_bytes": {"type": "integer", "minimum": 1},
    "kernel": {"type": "string"},
    "load_average": {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3},
}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string", "minLength": 1}}


def _exactly(properties: dict[str, Any], since_peers: dict[str, Any] | None = None) -> dict[str, Any]:
    """`since_peers`: what documents have since there are peers in environments of their own."""
    return {
        "type": "object",
        "properties": {**properties, **(since_peers or {})},
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMA = _exactly(
    {
        "name": {"type": "string"},
        "machine": _exactly(_MACHINE),
        "versions": {**_TEXTS, "required": ["python", "ray", "flowray", "msgspec"]},
        "at_utc": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"},
        "results": {"type": "array", "items": _exactly(_RESULT, {"ratios": _RATIOS}), "minItems": 1},
    },
    {"absent": _TEXTS, "settings": {"type": "object"}},
)

MEASUREMENTS = [
    Measurement(metric="tasks_per_s", unit="tasks/s", flowray=[3000.0, 4000.0], peers={"ray": [2000.0, 2100.0]}),
    Measurement(metric="lost", unit="tasks", flowray=[0.0, 0.0]),
    Measurement(metric="far", unit="ms", flowray=[1.0, 1.1], peers={"ray": [500.0, 600.0]}),
    Measurement(metric="growth", unit="times", flowray=[1.5, 1.6]),
]


ABSENT = {"xoscar": "[no] index"}


def document(minute: int = 0, measurements: list[Measurement] | None = None) -> report.Document:
    at_utc = f"2026-01-02T03:{minute:02d}:05Z"
    found = Found(measurements=measurements or MEASUREMENTS, absent=ABSENT, versions={"xoscar": "0.12.2"})
    return report.document("tasks", found, report.machine(), at_utc)


def test_a_document_has_exactly_the_promised_fields() -> None:
    found = json.loads(json.dumps(document()))
    jsonschema.validate(found, SCHEMA)
    assert found["absent"] == ABSENT
    assert found["versions"]["xoscar"] == "0.12.2"


def test_a_run_in_which_nobody_gave_figures_is_no_document() -> None:
    with pytest.raises(SideFailed, match="no side gave a figure: xoscar: no"):
        report.document("tasks", Found(measurements=[], absent={"xoscar": "no"}), report.machine(), "")


@pytest.mark.parametrize("path", sorted(report.BASELINES.glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_baseline_is_such_a_document_of_several_repeats(path: Path) -> None:
    found = json.loads(path.read_text())
    jsonschema.validate(found, SCHEMA)
    assert found["name"] == path.stem
    assert all(result["n"] >= 3 for result in found["results"])
    assert all(result["flowray"] is not None for result in found["results"])


def test_the_newest_documents_are_kept_and_quick_ones_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "KEPT", 3)
    for minute in range(5):
        report.keep(document(minute), tmp_path, quick=False)
    quick = report.keep(document(9), tmp_path, quick=True)
    assert [run["at_utc"][14:16] for run in report.history("tasks", tmp_path)] == ["02", "03", "04"]
    assert quick.exists()
    assert not list(tmp_path.rglob("*.part"))


def test_the_table_shows_figures_spreads_and_the_baseline() -> None:
    worse = [Measurement(metric="tasks_per_s", unit="tasks/s", flowray=[1000.0, 1001.0], peers={"ray": [2000.0]})]
    console = Console(width=160, record=True, file=io.StringIO())
    report.show(document(measurements=worse), document(), console)
    text = console.export_text()
    assert "1,000 [1,000-1,001]" in text
    assert "0.50" in text
    assert "3,500" in text
    assert "xoscar is absent: [no] index" in text


def test_many_peers_have_their_spreads_below_and_a_side_without_the_metric_is_blank() -> None:
    peers = {f"peer{n}": [10.0 + n, 20.0 + n] for n in range(6)}
    console = Console(width=160, record=True, file=io.StringIO())
    report.show(document(measurements=[Measurement(metric="m", unit="s", flowray=[], peers=peers)]), None, console)
    lines = console.export_text().splitlines()
    (row,) = [number for number, line in enumerate(lines) if " m " in line]
    assert all(f"{15 + n}" in lines[row] and f"[{10 + n}-{20 + n}]" in lines[row + 1] for n in range(6))


@pytest.mark.parametrize(
    ("why", "line"), [("gone", "gone"), ("it ended:\n  Traceback\n  File x\nBad: no\n", "it ended: ... Bad: no")]
)
def test_the_table_has_a_reason_in_one_line(why: str, line: str) -> None:
    assert report._brief(why) == line
    assert len(report._brief("x" * 5000)) == 200


def test_a_baseline_is_marked_only_when_the_spreads_do_not_touch() -> None:
    before = Measurement(metric="m", unit="ms", flowray=[1.0, 2.0]).result()
    same = Measurement(metric="m", unit="ms", flowray=[1.9, 3.0]).result()
    slower = Measurement(metric="m", unit="ms", flowray=[2.1, 3.0]).result()
    quicker = Measurement(metric="m", unit="ms", flowray=[0.1, 0.2]).result()
    gone = Measurement(metric="m", unit="ms", flowray=[], peers={"ray": [1.0]}).result()
    marks = [report._beside(r, before) for r in (same, slower, quicker, gone)]
    assert marks == ["1.5", "[red]1.5[/]", "[green]1.5[/]", "1.5"]
    assert report._beside(same, gone) == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("error")  # a layout that does not work out is a warning
@pytest.mark.parametrize("runs", [1, 7])
def test_a_plot_is_written_as_png_and_svg(tmp_path: Path, runs: int) -> None:
    png, svg = plot.draw("tasks", [document(minute) for minute in range(runs)], document(), tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    for metric in ("tasks_per_s", "lost", "far", "growth"):
        assert f">{metric}<" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_a_metric_that_is_new_has_no_past(tmp_path: Path) -> None:
    """A benchmark that learns a new metric still draws the runs from before; a side may be missing in one of them."""
    peers_only = [Measurement(metric="far", unit="ms", flowray=[], peers={"ray": [5.0], "xoscar": [1.0]})]
    runs = [document(0, MEASUREMENTS[:1]), document(1), document(2, [*MEASUREMENTS[:2], *peers_only])]
    plot.draw("tasks", runs, document(3, peers_only), tmp_path)
    assert (tmp_path / "tasks.png").exists()

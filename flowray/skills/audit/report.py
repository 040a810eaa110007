"""What an audit leaves behind: findings.parquet for programs, summary.json for scripts, report.html for people.

The first two are identical to the byte on every run over the same files; only report.html may speak of the run itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flowray.jobs import Report
from flowray.skills.audit.findings import Row
from flowray.skills.audit.options import AuditOptions
from flowray.skills.audit.page import render

_COLUMNS: dict[str, pa.DataType] = {
    "package": pa.string(),
    "file": pa.string(),
    "line": pa.int32(),
    "column": pa.int32(),
    "rule": pa.string(),
    "skill": pa.string(),
    "severity": pa.string(),
    "message": pa.string(),
    "also": pa.string(),
}
SCHEMA = pa.schema(_COLUMNS)
_ROWS_IN_GROUP = 65_536


def write_report(
    out: Path,
    *,
    summary: Mapping[str, Any],
    findings: Sequence[tuple[str, Row]],
    run: Mapping[str, Any],
    options: AuditOptions,
) -> Report:
    """Write the three files and tell the terminal what they say. `findings` are (package, row), in any order."""
    out.mkdir(parents=True, exist_ok=True)
    ordered = sorted(([package, *row] for package, row in findings), key=lambda r: (r[1], r[2], r[3], r))
    parquet, document, page = out / "findings.parquet", out / "summary.json", out / "report.html"
    write_findings(parquet, ordered)
    document.write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    page.write_text(render(summary, ordered, run, limit=options.report_rows), encoding="utf-8")
    return Report(
        headline=headline(summary),
        figures={
            "files": summary["files"],
            "lines": f"{summary['lines']:,}",
            "grade": f"{summary['grade']} ({summary['score']:.0f} of 100)",
            "findings": f"{summary['findings']:,}",
            "high": summary["severities"]["high"] + summary["severities"]["error"],
            "medium": summary["severities"]["medium"],
        },
        table=_table(summary),
        files=(page, parquet, document),
    )


def write_findings(path: Path, ordered: Sequence[Sequence[Any]]) -> None:
    """Parquet with a fixed schema, compression and layout, and no metadata but the schema: the same bytes each time."""
    columns = list(zip(*ordered, strict=True)) or [()] * len(SCHEMA)
    arrays = [pa.array(list(column), field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=SCHEMA)
    pq.write_table(table, path, compression="zstd", compression_level=3, row_group_size=_ROWS_IN_GROUP, version="2.6")


def headline(summary: Mapping[str, Any]) -> str:
    """The audit in one sentence."""
    severe = summary["severities"]["high"] + summary["severities"]["error"]
    return (
        f"{summary['name']}: grade {summary['grade']}, {summary['findings']:,} findings in {summary['files']:,} files, "
        f"{severe:,} of them severe"
    )


def _table(summary: Mapping[str, Any], most: int = 10) -> tuple[tuple[str, ...], ...]:
    header = ("severity", "where", "rule", "what")
    body = []
    for top in summary["top"][:most]:
        file, line, _, rule, _, severity, message, _ = top["row"]
        body.append((severity, f"{file}:{line}" if line else file, rule, message))
    return (header, *body)

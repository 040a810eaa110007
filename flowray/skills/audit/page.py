"""report.html: one file that shows the audit to a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


def render(summary: Mapping[str, Any], findings: Sequence[Sequence[Any]], run: Mapping[str, Any], *, limit: int) -> str:
    """The whole page."""
    shown = "".join(
        f"<tr><td>{escape(r[6])}</td><td>{escape(r[1])}:{r[2]}</td><td>{escape(r[7])}</td></tr>"
        for r in findings[:limit]
    )
    return f"<!doctype html><title>{escape(summary['name'])}</title><table>{shown}</table>"

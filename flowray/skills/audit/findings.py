"""The finding: one thing that a person may want to look at, and its one place in any sorted list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

SEVERITIES = ("error", "high", "medium", "low", "note")  # worst first; error: the audit itself could not be done
AUDIT = "audit"  # the skill of findings about the audit itself: unreadable files, failed analyses

_RANK = {name: rank for rank, name in enumerate(SEVERITIES)}
_LONGEST_MESSAGE = 300  # characters; a tool that quotes a 10,000 character literal says no more by it

Row = list[str | int]  # how a finding travels: [file, line, column, rule, skill, severity, message, also]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One observation at one place."""

    file: str  # relative to the audited directory, with slashes
    line: int = 0  # from 1; 0 when the whole file is meant
    column: int = 0  # from 1; 0 when unknown
    rule: str  # short and stable: "B602", "unused-import"
    skill: str  # the analyser that found it
    severity: str  # one of SEVERITIES
    message: str  # one line
    also: str = ""  # other skills that reported the same thing, sorted, separated by blanks

    def row(self) -> Row:
        """The finding as plain data."""
        return [self.file, self.line, self.column, self.rule, self.skill, self.severity, self.message, self.also]

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> Finding:
        """Back from plain data."""
        file, line, column, rule, skill, severity, message, also = row
        return cls(
            file=file, line=line, column=column, rule=rule, skill=skill, severity=severity, message=message, also=also
        )

    @property
    def rank(self) -> int:
        """0 for the worst severity."""
        return _RANK[self.severity]

    @property
    def place(self) -> tuple[str, int, int, str, str, int, str, str]:
        """The stable sort key: where it is, then what it is. Total, so no order of arrival shows."""
        return (self.file, self.line, self.column, self.skill, self.rule, self.rank, self.message, self.also)


def finding(file: str, line: int, column: int, rule: str, skill: str, severity: str, message: str) -> Finding:
    """A finding with a clean message: one line, printable, bounded, valid Unicode.

    Tools quote names and literals of the audited code, which may hold lone surrogates, control characters or
    megabytes; neither Parquet nor a terminal should meet them.
    """
    return Finding(
        file=file,
        line=max(0, line),
        column=max(0, column),
        rule=rule,
        skill=skill,
        severity=severity,
        message=one_line(message),
    )


def one_line(text: str, longest: int = _LONGEST_MESSAGE) -> str:
    """`text` on one line, without control characters or lone surrogates, cut at `longest` characters."""
    flat = " ".join(text[: 4 * longest].split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in flat)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def rows(found: Iterable[Finding]) -> list[Row]:
    """Sorted, without exact repetitions, as plain data."""
    return [f.row() for f in sorted(set(found), key=lambda f: f.place)]

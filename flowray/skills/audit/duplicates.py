"""Blocks of code that occur twice in a package. Called for by packages of some size.

Lines are compared without indentation, comments and blank lines. Each run of WINDOW such lines is remembered, by hash,
where it first occurs; a later run with the same hash is compared, and stretched as far as the lines agree. So the work
grows with the number of lines, and one copied block is one finding, however long it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flowray.agents import Context, Task, agent
from flowray.skills.audit.findings import Finding, finding, rows
from flowray.skills.audit.sources import Measures, Source, each_source

SKILL = "duplicates"

WINDOW = 12  # lines that must agree: shorter copies are idioms
_MEDIUM_FROM = 40  # lines of a copy that is more than untidy
_DISTINCT = 8  # different lines that a run must have: a table of zeros repeats itself
_PER_FILE = 20  # findings for one file

_COMMENT = re.compile(r"^#|\s#[^'\"]*$")  # a # after a quote may be within a string: leave the line as it is
_CODE = re.compile(r"^[A-Za-z_@]")  # lines of data begin with a quote, a digit or a bracket


@dataclass(frozen=True, slots=True)
class _Lines:
    """The lines of a file that count."""

    file: str
    texts: list[str]
    numbers: list[int]  # where each one is in the file


@agent(capabilities={"audit.duplicates"}, tier="specialist")
class DuplicatesSpecialist:
    """Finds copied code."""

    def run(self, task: Task, ctx: Context) -> dict[str, Any]:
        """Findings for all files of the task, compared with one another and with themselves."""
        files: list[_Lines] = []

        def collect(source: Source) -> tuple[list[Finding], Measures]:
            files.append(_significant(source))
            return [], {}

        answer = each_source(task.payload, ctx, SKILL, collect)
        answer["findings"] = sorted([*answer["findings"], *rows(_copies(files))])
        return answer


def _significant(source: Source) -> _Lines:
    texts: list[str] = []
    numbers: list[int] = []
    for number, line in enumerate(source.lines, 1):
        text = " ".join(_COMMENT.sub("", line.strip()).split())
        if text:
            texts.append(text)
            numbers.append(number)
    return _Lines(source.file, texts, numbers)


def _copies(files: list[_Lines]) -> Iterator[Finding]:
    first: dict[int, tuple[int, int]] = {}  # hash of a run -> file and line where it first occurs
    known: dict[str, int] = {}  # each different line gets a number
    ordered = sorted(files, key=lambda f: f.file)
    for which, lines in enumerate(ordered):
        texts, at, told = lines.texts, 0, 0
        # Numbers, not the texts: their hashes are short work, and the same in every process.
        codes = [known.setdefault(text, len(known)) for text in texts]
        while at + WINDOW <= len(texts) and told < _PER_FILE:
            run = hash(tuple(codes[at : at + WINDOW]))
            other, start = first.setdefault(run, (which, at))
            if (other, start) == (which, at) or (other == which and start + WINDOW > at):
                at += 1
                continue
            original = ordered[other]
            limit = at if other == which else len(original.texts)
            length = _agreeing(original.texts, start, limit, texts, at)
            if length < WINDOW:  # two runs with one hash
                at += 1
                continue
            if _is_code(texts[at : at + length]):
                told += 1
                yield _describe(lines, at, original, start, length)
            at += length


def _agreeing(a: list[str], start: int, limit: int, b: list[str], at: int) -> int:
    length = 0
    while start + length < limit and at + length < len(b) and a[start + length] == b[at + length]:
        length += 1
    return length


def _is_code(texts: list[str]) -> bool:
    code = {text for text in texts if _CODE.match(text) and not text.startswith(("import ", "from "))}
    return len(code) >= _DISTINCT


def _describe(lines: _Lines, at: int, original: _Lines, start: int, length: int) -> Finding:
    begin, end = lines.numbers[at], lines.numbers[at + length - 1]
    other, until = original.numbers[start], original.numbers[start + length - 1]
    severity = "medium" if length >= _MEDIUM_FROM else "low"
    message = f"lines {begin} to {end} are a copy of {original.file}:{other} to {until} ({length} lines of code)"
    return finding(lines.file, begin, 1, "duplicate", SKILL, severity, message)

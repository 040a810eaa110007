"""Undefined and unused names, broken format strings and imports that shadow one another, by pyflakes."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from flowray.agents import Context, Task, agent
from flowray.skills.audit.findings import Finding, finding
from flowray.skills.audit.sources import Measures, Source, each_source, tool

SKILL = "names"

# What fails when it is reached is high, what surely was not meant is medium, what is only untidy is low.
_SEVERITY = {
    "UndefinedName": "high",
    "UndefinedLocal": "high",
    "AssertTuple": "high",
    "IfTuple": "high",
    "DuplicateArgument": "high",
    "ReturnOutsideFunction": "high",
    "YieldOutsideFunction": "high",
    "ContinueOutsideLoop": "high",
    "BreakOutsideLoop": "high",
    "RaiseNotImplemented": "high",
    "PercentFormatPositionalCountMismatch": "high",
    "PercentFormatMissingArgument": "high",
    "PercentFormatInvalidFormat": "high",
    "PercentFormatUnsupportedFormatCharacter": "high",
    "StringDotFormatMissingArgument": "high",
    "StringDotFormatInvalidFormat": "high",
    "UndefinedExport": "medium",
    "MultiValueRepeatedKeyLiteral": "medium",
    "MultiValueRepeatedKeyVariable": "medium",
    "IsLiteral": "medium",
    "InvalidPrintSyntax": "medium",
    "ForwardAnnotationSyntaxError": "medium",
    "ImportStarUsage": "note",
    "ImportStarUsed": "note",
    "FStringMissingPlaceholders": "note",
    "UnusedAnnotation": "note",
}
_ABSENT = ("UndefinedName", "UndefinedExport")
_FILLED = ("globals()", "sys.modules[__name__]", "._convert_(")  # signs of names that only appear at run time
_DOUBTFUL = "names that may come from a star import, or from nowhere"
_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@agent(capabilities={"audit.names"}, tier="secondary")
class NamesAnalyser:
    """Finds names that are used but never bound, or bound but never used."""

    def __init__(self) -> None:
        self._checker = tool("pyflakes.checker")

    def run(self, task: Task, ctx: Context) -> dict[str, Any]:
        """Findings for the task's files."""
        return each_source(task.payload, ctx, SKILL, self._check)

    def _check(self, source: Source) -> tuple[list[Finding], Measures]:
        # withDoctest: pyflakes would otherwise take it from the environment of whoever started the process.
        checker = self._checker.Checker(source.tree, filename=source.file, withDoctest=False)
        grouped: dict[tuple[str, str], list[Any]] = defaultdict(list)
        for message in checker.messages:
            kind = type(message).__name__
            # One star import makes every name of a file doubtful; that is one finding.
            text = _DOUBTFUL if kind == "ImportStarUsage" else str(message.message % message.message_args)
            grouped[kind, text].append(message)
        filled = any(sign in source.text for sign in _FILLED)
        return [_finding(source.file, kind, text, some, filled) for (kind, text), some in grouped.items()], {}


def _finding(file: str, kind: str, text: str, places: list[Any], filled: bool) -> Finding:
    """One finding for one name in one file, at its first place."""
    line, column = min((m.lineno, m.col) for m in places)
    severity = _SEVERITY.get(kind, "low")
    if kind in _ABSENT and filled:
        severity, text = "low", f"{text} (unless made at run time: this module fills its own namespace)"
    if len(places) > 1:
        text = f"{text}; {len(places)} places"
    return finding(file, line, column + 1, _WORD.sub("-", kind).lower(), SKILL, severity, text)

"""Undefined and unused names, broken format strings and imports that shadow one another, by pyflakes."""

from __future__ import annotations

import re
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
        return [self._finding(source.file, message) for message in checker.messages], {}

    def _finding(self, file: str, message: Any) -> Finding:
        kind = type(message).__name__
        text = message.message % message.message_args
        severity = _SEVERITY.get(kind, "low")
        return finding(file, message.lineno, message.col + 1, _WORD.sub("-", kind).lower(), SKILL, severity, text)

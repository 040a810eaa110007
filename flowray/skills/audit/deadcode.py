"""Code that nothing reaches, by vulture.

Each file is judged alone, so an answer does not depend on how files were grouped into tasks. At the default confidence
that loses nothing: what vulture is 80 % sure of (unreachable statements, unused imports, arguments and variables) shows
within one file.
"""

from __future__ import annotations

import ast
from pathlib import PurePosixPath
from typing import Any

from flowray.agents import Context, Task, agent
from flowray.skills.audit.findings import Finding, finding
from flowray.skills.audit.sources import Measures, Source, each_source, tool

SKILL = "deadcode"

_DEFAULT_CONFIDENCE = 80
# Most unused variables that vulture is sure of are parameters, and those a protocol or a base class may ask for.
_SEVERITY = {"unreachable-code": "medium", "unused-variable": "note"}


@agent(capabilities={"audit.deadcode"}, tier="secondary")
class DeadCodeAnalyser:
    """Finds statements that cannot run and names that are never read."""

    def __init__(self) -> None:
        self._core = tool("vulture.core")

    def run(self, task: Task, ctx: Context) -> dict[str, Any]:
        """Findings for the task's files, from the confidence that the task asks for."""
        confidence = int(task.payload.get("dead_code_confidence", _DEFAULT_CONFIDENCE))
        return each_source(task.payload, ctx, SKILL, lambda source: self._check(source, confidence))

    def _check(self, source: Source, confidence: int) -> tuple[list[Finding], Measures]:
        try:
            # Not `scan`: that prints what it cannot parse, and parses once more.
            items = self._unused(source, _with_type_comments(source), confidence)
        except SyntaxError:  # in a type comment, which nothing but vulture reads
            items = self._unused(source, source.tree, confidence)
        return [self._finding(source.file, item) for item in items], {}

    def _unused(self, source: Source, tree: ast.Module, confidence: int) -> list[Any]:
        vulture = self._core.Vulture()
        vulture.code = source.lines
        vulture.noqa_lines = self._core.noqa.parse_noqa(vulture.code)
        vulture.filename = _Name(source.file)
        vulture.visit(tree)
        return list(vulture.get_unused_code(min_confidence=confidence))

    def _finding(self, file: str, item: Any) -> Finding:
        rule = "unreachable-code" if item.typ == "unreachable_code" else f"unused-{item.typ}"
        severity = _SEVERITY.get(rule, "low")
        return finding(file, item.first_lineno, 0, rule, SKILL, severity, str(item.message))


class _Name(PurePosixPath):
    """A relative file name that stays one: vulture resolves names to see whether a file is a test."""

    def resolve(self) -> PurePosixPath:
        """The name below an imaginary root."""
        return PurePosixPath("/", self)


def _with_type_comments(source: Source) -> ast.Module:
    """The tree with type comments where there are any: names that only they mention are in use."""
    return ast.parse(source.text, type_comments=True) if "# type:" in source.text else source.tree

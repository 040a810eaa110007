"""Cyclomatic complexity of functions and maintainability of files, by radon.

radon's own raw line counter is quadratic in the size of a statement (468 s for one data file of the standard library),
so the two line counts that the maintainability index needs are taken from the tree here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from flowray.agents import Context, Task, agent
from flowray.skills.audit.findings import Finding, finding
from flowray.skills.audit.sources import Measures, Source, each_source, tool

SKILL = "complexity"

# radon's own bands: D 21-30 "more than moderate risk", E 31-40 "alarming", F over 40 "unstable"; twice F is ours.
_BANDS = ((81, "high"), (41, "medium"), (21, "low"))
_HARD_TO_MAINTAIN = 9.0  # radon's rank C, on a scale of 0 to 100


@agent(capabilities={"audit.complexity"}, tier="secondary")
class ComplexityAnalyser:
    """Finds functions with too many paths and files that are hard to change."""

    def __init__(self) -> None:
        self._visitors = tool("radon.visitors")
        self._complexity = tool("radon.complexity")
        self._metrics = tool("radon.metrics")

    def run(self, task: Task, ctx: Context) -> dict[str, Any]:
        """Findings and per-file numbers for the task's files."""
        return each_source(task.payload, ctx, SKILL, self._check)

    def _check(self, source: Source) -> tuple[list[Finding], Measures]:
        visitor = self._visitors.ComplexityVisitor.from_ast(source.tree)
        blocks = [b for b in self._complexity.add_inner_blocks(visitor.blocks) if b.letter != "C"]
        maintainability = self._maintainability(source, visitor.total_complexity)
        found = list(_too_complex(source.file, blocks))
        if maintainability <= _HARD_TO_MAINTAIN and blocks:
            message = f"hard to maintain: index {maintainability:.0f} of 100 (size, complexity and comments together)"
            found.append(finding(source.file, 0, 0, "maintainability", SKILL, "low", message))
        numbers: Measures = {
            "functions": len({(b.lineno, b.col_offset) for b in blocks}),
            "complexity": int(sum(b.complexity for b in blocks)),
            "complexity_max": int(max((b.complexity for b in blocks), default=0)),
            "maintainability": round(maintainability, 2),
        }
        return found, numbers

    def _maintainability(self, source: Source, complexity: int) -> float:
        volume = self._metrics.h_visit_ast(source.tree).total.volume
        statements = sum(isinstance(node, ast.stmt) for node in ast.walk(source.tree))
        code = sum(1 for line in source.lines if line.strip())
        commented = sum(1 for line in source.lines if line.lstrip().startswith("#")) + _docstring_lines(source.tree)
        percent = min(100.0, 100.0 * commented / code) if code else 0.0
        return float(self._metrics.mi_compute(volume, complexity, statements, percent))


def _too_complex(file: str, blocks: list[Any]) -> Iterator[Finding]:
    for block in blocks:
        severity = next((s for least, s in _BANDS if block.complexity >= least), "")
        if severity:
            message = f"{block.fullname} has a cyclomatic complexity of {block.complexity}"
            yield finding(file, block.lineno, block.col_offset + 1, "complexity", SKILL, severity, message)


def _docstring_lines(tree: ast.Module) -> int:
    texts = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    return sum((text.end_lineno or text.lineno) - text.lineno + 1 for text in texts)

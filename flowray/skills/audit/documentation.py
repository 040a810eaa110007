"""How much of the public surface is documented and annotated, in one pass over the tree.

One finding for a file, not one for a function: twenty thousand missing docstrings are a number, not a list.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from flowray.agents import Context, Task, agent
from flowray.skills.audit.findings import Finding, finding
from flowray.skills.audit.sources import Measures, Source, each_source

SKILL = "documentation"

_FEW = 5  # fewer public definitions than this make no judgement
_POOR = 0.5  # share below which a file is worth a finding

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(slots=True)
class _Coverage:
    documentable: int = 0
    documented: int = 0
    annotatable: int = 0  # parameters and returns of public functions
    annotated: int = 0


@agent(capabilities={"audit.documentation"}, tier="secondary")
class DocumentationAnalyser:
    """Measures docstrings and type annotations of public definitions."""

    def run(self, task: Task, ctx: Context) -> dict[str, Any]:
        """Findings and per-file counts for the task's files."""
        return each_source(task.payload, ctx, SKILL, _check)


def _check(source: Source) -> tuple[list[Finding], Measures]:
    coverage = _Coverage()
    _count(source.tree, coverage)
    found: list[Finding] = []
    if not _has_docstring(source.tree) and coverage.documentable >= _FEW:
        found.append(
            finding(source.file, 1, 1, "module-docstring", SKILL, "note", "the module does not say what it is")
        )
    for rule, what, has, of in (
        ("docstrings", "public definitions have a docstring", coverage.documented, coverage.documentable),
        ("annotations", "parameters and returns are annotated", coverage.annotated, coverage.annotatable),
    ):
        if of >= _FEW and has < _POOR * of:
            # Undocumented public code costs its readers; missing annotations are a choice that whole projects make.
            severity = "low" if rule == "docstrings" else "note"
            found.append(finding(source.file, 0, 0, rule, SKILL, severity, f"{has} of {of} {what}"))
    numbers: Measures = {name: getattr(coverage, name) for name in _Coverage.__slots__}
    return found, numbers


def _count(parent: ast.AST, coverage: _Coverage, *, in_class: bool = False) -> None:
    """Add the public definitions of a module or class body, also those under if, try and with."""
    waiting = list(ast.iter_child_nodes(parent))
    while waiting:
        node = waiting.pop()
        if isinstance(node, _Definition):
            if not node.name.startswith("_") or node.name == "__init__":
                _count_definition(node, coverage, in_class=in_class)
        elif isinstance(node, ast.stmt | ast.excepthandler) and not isinstance(node, ast.Expr):
            waiting.extend(child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr))


def _count_definition(node: _Definition, coverage: _Coverage, *, in_class: bool) -> None:
    if isinstance(node, ast.ClassDef):
        coverage.documentable += 1
        coverage.documented += _has_docstring(node)
        _count(node, coverage, in_class=True)
        return
    names = {_last_name(d) for d in node.decorator_list}
    if "overload" in names:
        return
    if node.name != "__init__" and "setter" not in names and "deleter" not in names:
        coverage.documentable += 1
        coverage.documented += _has_docstring(node)
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    if in_class and "staticmethod" not in names:
        arguments = arguments[1:]  # self or cls
    arguments += [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
    coverage.annotatable += len(arguments) + 1
    coverage.annotated += sum(a.annotation is not None for a in arguments) + (node.returns is not None)


def _has_docstring(node: ast.Module | _Definition) -> bool:
    first = node.body[0] if node.body else None
    return (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
        and bool(first.value.value.strip())
    )


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""

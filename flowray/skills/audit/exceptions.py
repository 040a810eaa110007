"""How errors are handled: what is caught too widely, swallowed, lost or can never be caught."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from typing import Any

from flowray.agents import Context, Task, agent
from flowray.skills.audit.findings import Finding, finding
from flowray.skills.audit.sources import Measures, Source, each_source

SKILL = "exceptions"

_BROAD = ("Exception", "BaseException")
_BUILTIN: dict[str, type[BaseException]] = {
    name: value
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_LOOPS = (ast.For, ast.AsyncFor, ast.While)


@agent(capabilities={"audit.exceptions"}, tier="secondary")
class ExceptionsAnalyser:
    """Finds error handling that hides errors."""

    def run(self, task: Task, ctx: Context) -> dict[str, Any]:
        """Findings for the task's files."""
        return each_source(task.payload, ctx, SKILL, _check)


def _check(source: Source) -> tuple[list[Finding], Measures]:
    found: list[Finding] = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Try | ast.TryStar):
            complaints = [*_handlers(node), *_order(node), *_final(node)]
        elif isinstance(node, ast.Raise):
            complaints = list(_raised(node))
        else:
            continue
        found += [finding(source.file, n.lineno, n.col_offset + 1, rule, SKILL, s, m) for n, rule, s, m in complaints]
    return found, {}


_Complaint = tuple[Any, str, str, str]  # node, rule, severity, message


def _handlers(node: ast.Try | ast.TryStar) -> Iterator[_Complaint]:
    for handler in node.handlers:
        names = _names(handler.type)
        broad = next((n for n in _BROAD if n in names), "")
        silent = all(_does_nothing(statement) for statement in handler.body)
        raises = any(isinstance(n, ast.Raise) for n in _here(handler.body))
        if isinstance(handler.type, ast.BoolOp):
            yield handler, "except-or", "high", "`except A or B` catches A only; write `except (A, B)`"
        if silent and (handler.type is None or broad):
            what = f"except {broad}" if broad else "a bare except"
            yield handler, "swallowed-exception", "medium", f"{what} that does nothing hides every error, bugs included"
        elif handler.type is None and not raises:
            yield handler, "bare-except", "medium", "a bare except also catches KeyboardInterrupt and SystemExit"
        elif broad == "BaseException" and not raises:
            message = "except BaseException also catches KeyboardInterrupt and SystemExit"
            yield handler, "base-exception", "medium", message
        elif broad and not raises and not _is_used(handler):
            message = (
                f"except {broad} without looking at the error: bugs are treated like the failure that was expected"
            )
            yield handler, "broad-except", "low", message
        yield from _unchained(handler)


def _unchained(handler: ast.ExceptHandler) -> Iterator[_Complaint]:
    for node in _here(handler.body):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.cause is None:
            message = "raised while handling another error, without `from`: the traceback says that handling it failed"
            yield node, "raise-without-from", "note", message


def _order(node: ast.Try | ast.TryStar) -> Iterator[_Complaint]:
    """Handlers that can never run, because an earlier one catches a base class."""
    seen: list[str] = []
    for handler in node.handlers:
        names = _names(handler.type)
        for name in names:
            wider = next((s for s in seen if _catches(s, name)), "")
            if wider:
                yield handler, "unreachable-handler", "high", f"never runs: {wider}, caught above, includes {name}"
        seen += [n for n in names if n in _BUILTIN]


def _catches(wide: str, narrow: str) -> bool:
    return narrow in _BUILTIN and issubclass(_BUILTIN[narrow], _BUILTIN[wide])


def _final(node: ast.Try | ast.TryStar) -> Iterator[_Complaint]:
    for inner, in_loop in _with_loops(node.finalbody, in_loop=False):
        if isinstance(inner, ast.Return) or (isinstance(inner, ast.Break | ast.Continue) and not in_loop):
            word = type(inner).__name__.lower()
            yield inner, f"{word}-in-finally", "high", f"`{word}` in finally silently drops an exception under way"


def _raised(node: ast.Raise) -> Iterator[_Complaint]:
    if isinstance(node.exc, ast.Constant | ast.JoinedStr | ast.Tuple | ast.List | ast.Dict):
        yield (
            node,
            "raise-not-exception",
            "high",
            "raises something that is no exception: a TypeError when it is reached",
        )


def _names(kind: ast.expr | None) -> list[str]:
    """The plain names that a handler catches, in order; a bare `except` has none."""
    parts = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return [part.id for part in parts if isinstance(part, ast.Name)]


def _does_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass | ast.Continue) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _is_used(handler: ast.ExceptHandler) -> bool:
    """Is the error looked at, by its name or by something that logs or formats the current one?"""
    for node in _here(handler.body):
        if isinstance(node, ast.Name) and node.id == handler.name:
            return True
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if name in ("exception", "exc_info", "print_exc", "format_exc", "showtraceback", "handleError", "error"):
            return True
    return False


def _here(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """All nodes below some statements, without those of nested functions and classes."""
    return (node for node, _ in _with_loops(body, in_loop=False))


def _with_loops(body: list[ast.stmt], *, in_loop: bool) -> Iterator[tuple[ast.AST, bool]]:
    waiting: list[tuple[ast.AST, bool]] = [(s, in_loop) for s in reversed(body)]
    while waiting:
        node, looped = waiting.pop()
        yield node, looped
        if not isinstance(node, _SCOPES):
            inner = looped or isinstance(node, _LOOPS)
            waiting += [(child, inner) for child in reversed(list(ast.iter_child_nodes(node)))]

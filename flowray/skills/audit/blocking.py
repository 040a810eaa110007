"""Calls that stop the event loop, and coroutines that nobody awaits. Called for by `async def` in a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from flowray.agents import Context, Task, agent
from flowray.skills.audit.findings import Finding, finding
from flowray.skills.audit.sources import Measures, Source, each_source

SKILL = "blocking"

_ADVICE = {
    "time.sleep": ("high", "await asyncio.sleep"),
    "os.system": ("high", "await asyncio.create_subprocess_shell"),
    "os.wait": ("high", "await the process"),
    "os.waitpid": ("high", "await the process"),
    "subprocess.run": ("high", "await asyncio.create_subprocess_exec"),
    "subprocess.call": ("high", "await asyncio.create_subprocess_exec"),
    "subprocess.check_call": ("high", "await asyncio.create_subprocess_exec"),
    "subprocess.check_output": ("high", "await asyncio.create_subprocess_exec"),
    "urllib.request.urlopen": ("high", "an async client, or asyncio.to_thread"),
    "socket.create_connection": ("high", "await asyncio.open_connection"),
    "socket.getaddrinfo": ("medium", "await loop.getaddrinfo"),
    "socket.gethostbyname": ("medium", "await loop.getaddrinfo"),
    "select.select": ("high", "the event loop's own readers"),
    "input": ("high", "asyncio.to_thread"),
    "sqlite3.connect": ("medium", "asyncio.to_thread"),
    "asyncio.run": ("high", "await: a loop is already running here"),
    "shutil.copytree": ("medium", "asyncio.to_thread"),
    "shutil.rmtree": ("medium", "asyncio.to_thread"),
    "shutil.copyfile": ("low", "asyncio.to_thread"),
    "shutil.copy": ("low", "asyncio.to_thread"),
    "open": ("low", "asyncio.to_thread where the file may be large or slow"),
}
_LIBRARIES = {"requests": ("high", "an async client"), "httpx": ("high", "httpx.AsyncClient")}
_VERBS = frozenset({"get", "post", "put", "patch", "delete", "head", "options", "request"})
_METHODS = frozenset({"read_text", "read_bytes", "write_text", "write_bytes"})
_SPAWN = frozenset({"asyncio.create_task", "asyncio.ensure_future"})


@agent(capabilities={"audit.blocking"}, tier="specialist")
class BlockingSpecialist:
    """Finds what stalls an event loop."""

    def run(self, task: Task, ctx: Context) -> dict[str, Any]:
        """Findings for the task's files."""
        return each_source(task.payload, ctx, SKILL, _check)


def _check(source: Source) -> tuple[list[Finding], Measures]:
    aliases = _aliases(source.tree)
    nodes = list(ast.walk(source.tree))
    functions = [n for n in nodes if isinstance(n, ast.AsyncFunctionDef)]
    # A name defined both ways somewhere in the file may be either: only names that are always async count.
    sync = {n.name for n in nodes if isinstance(n, ast.FunctionDef)}
    known = {f.name for f in functions} - sync
    found = []
    for function in functions:
        for node, rule, severity, message in _complaints(function, aliases, known):
            found.append(finding(source.file, node.lineno, node.col_offset + 1, rule, SKILL, severity, message))
    return found, {}


def _complaints(
    function: ast.AsyncFunctionDef, aliases: dict[str, str], known: set[str]
) -> Iterator[tuple[ast.expr, str, str, str]]:
    where = f"in async {function.name}"
    for node, parent in _body(function):
        if not isinstance(node, ast.Call) or isinstance(parent, ast.Await):
            continue
        name = _dotted(node.func, aliases)
        severity, instead = _advice(name, node)
        if severity:
            yield node, "blocking-call", severity, f"{name}() {where} stops the whole event loop; use {instead}"
        elif isinstance(parent, ast.Expr) and name in _SPAWN:
            message = f"the task from {name}() {where} is kept by nobody: it may be collected before it is done"
            yield node, "task-not-kept", "medium", message
        elif isinstance(parent, ast.Expr) and _own_name(node.func) in known:
            yield node, "never-awaited", "high", f"{_own_name(node.func)}() {where} is a coroutine that nobody awaits"


def _advice(name: str, call: ast.Call) -> tuple[str, str]:
    if name in _ADVICE:
        return _ADVICE[name]
    library, _, rest = name.partition(".")
    if rest in _VERBS and library in _LIBRARIES:
        return _LIBRARIES[library]
    if isinstance(call.func, ast.Attribute) and call.func.attr in _METHODS and not name.startswith("self."):
        return "low", "asyncio.to_thread where the file may be large or slow"
    return "", ""


def _body(function: ast.AsyncFunctionDef) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Nodes that run when the coroutine runs, each with its parent; nested functions are judged on their own."""
    waiting: list[tuple[ast.AST, ast.AST]] = [(s, function) for s in reversed(function.body)]
    while waiting:
        node, parent = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        yield node, parent
        waiting += [(child, node) for child in reversed(list(ast.iter_child_nodes(node)))]


def _aliases(tree: ast.Module) -> dict[str, str]:
    """What names mean that imports bind, wherever in the file they are."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                aliases[name.asname or name.name.partition(".")[0]] = (
                    name.name if name.asname else name.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in node.names:
                aliases[name.asname or name.name] = f"{node.module}.{name.name}"
    return aliases


def _dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    """`sleep` after `from time import sleep` is "time.sleep"; "" for what has no plain name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([aliases.get(node.id, node.id), *reversed(parts)])


def _own_name(function: ast.expr) -> str:
    """The name in `name(...)` and `self.name(...)`."""
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "self":
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""

"""Modules that import one another in a circle. Called for by a tree of more than one module.

Only imports that run when the module is loaded count: an import inside a function, or under `if TYPE_CHECKING`, is the
usual cure of a cycle. A cycle is a strongly connected component of the import graph with more than one module.
"""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterator
from typing import Any

from flowray.agents import Context, Task, agent
from flowray.skills.audit.findings import Finding, finding, rows
from flowray.skills.audit.sources import Measures, Source, each_source, tool

SKILL = "cycles"

_NAMED = 6  # modules of a cycle that its message names


@agent(capabilities={"audit.cycles"}, tier="specialist")
class CyclesSpecialist:
    """Finds circles in the imports of a tree of modules."""

    def __init__(self) -> None:
        self._graphs = tool("rustworkx")

    def run(self, task: Task, ctx: Context) -> dict[str, Any]:
        """Findings for the whole tree; the payload's `top` and `prefix` say how its files are named as modules."""
        top, prefix = str(task.payload["top"]), str(task.payload["prefix"])
        modules = {module_name(file, top, prefix): file for file, _ in task.payload["files"]}
        imports: dict[str, dict[str, int]] = {}  # module -> imported module of this tree -> line

        def collect(source: Source) -> tuple[list[Finding], Measures]:
            name = module_name(source.file, top, prefix)
            imports[name] = _imports(source.tree, name, source.file.endswith("__init__.py"), modules)
            return [], {}

        answer = each_source(task.payload, ctx, SKILL, collect)
        circles = (self._describe(component, imports, modules) for component in self._components(imports))
        answer["findings"] = sorted([*answer["findings"], *rows(circles)])
        return answer

    def _components(self, imports: dict[str, dict[str, int]]) -> list[list[str]]:
        names = sorted(imports)
        graph = self._graphs.PyDiGraph()
        index = dict(zip(names, graph.add_nodes_from(names), strict=True))
        graph.add_edges_from([(index[a], index[b], None) for a in names for b in sorted(imports[a]) if b in index])
        components = (sorted(graph[i] for i in c) for c in self._graphs.strongly_connected_components(graph))
        return sorted(c for c in components if len(c) > 1)

    def _describe(self, component: list[str], imports: dict[str, dict[str, int]], modules: dict[str, str]) -> Finding:
        circle = _shortest_circle(component, imports)
        first = circle[0]
        way = " → ".join([*circle[:_NAMED], *(["…"] if len(circle) > _NAMED else []), first])
        size = f" (one of several among {len(component)} modules)" if len(component) > len(circle) else ""
        line = imports[first][circle[1]]
        # Two modules in a circle load in one order or the other; a dozen are a design that nobody can take apart.
        severity = "medium" if len(component) > 2 else "low"
        return finding(modules[first], line, 1, "import-cycle", SKILL, severity, f"import cycle: {way}{size}")


def module_name(file: str, top: str, prefix: str) -> str:
    """The dotted name of a file: `a/b/__init__.py` in the tree `a` with prefix "a" is "a.b"."""
    inside = file if top == "." else file[len(top) + 1 :]
    parts = [*([prefix] if prefix else []), *inside.removesuffix(".py").split("/")]
    if len(parts) > 1 and parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def _imports(tree: ast.Module, name: str, is_package: bool, modules: dict[str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in _loaded(tree):
        for target in _targets(node, name, is_package, modules):
            if target in modules and target != name:
                found.setdefault(target, node.lineno)
    return found


def _targets(node: ast.Import | ast.ImportFrom, name: str, is_package: bool, modules: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        package = name.split(".") if is_package else name.split(".")[:-1]
        kept = package[: len(package) - node.level + 1]
        base = ".".join([*kept, *([node.module] if node.module else [])])
    for alias in node.names:
        inner = f"{base}.{alias.name}" if base else alias.name
        yield inner if inner in modules else base


def _loaded(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements that run when the module is imported, in the order of the source."""
    waiting: list[ast.AST] = list(reversed(tree.body))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += reversed(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.TryStar | ast.With | ast.ClassDef | ast.ExceptHandler):
            waiting += reversed([n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt | ast.excepthandler)])


def _shortest_circle(component: list[str], imports: dict[str, dict[str, int]]) -> list[str]:
    """A shortest way from the component's first module back to it: breadth first, neighbours in order."""
    start, inside = component[0], set(component)
    came_from: dict[str, str] = {}
    waiting = deque([start])
    while waiting:
        here = waiting.popleft()
        for there in sorted(n for n in imports[here] if n in inside):
            if there == start:
                circle = [here]
                while circle[-1] != start:
                    circle.append(came_from[circle[-1]])
                return circle[::-1]
            if there not in came_from:
                came_from[there] = here
                waiting.append(there)
    return component

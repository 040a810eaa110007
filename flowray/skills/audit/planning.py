"""What there is to audit: the walk over the tree, its packages, and where a specialist is called for.

A package is a directory with Python files, as Python itself has it; its subdirectories are packages of their own. Each
file is read once, here, for its digest, its lines and the triggers; parsing is left to the analysers.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from flowray.agents import Context, Task, agent
from flowray.skills.audit.combining import summarise
from flowray.skills.audit.findings import Finding, rows
from flowray.skills.audit.sources import BadSource, digest, problem, read_bytes

_ASYNC = re.compile(rb"^[ \t]*async[ \t]+def\b", re.MULTILINE)


@agent(capabilities={"audit.plan", "audit.summarise"}, tier="orchestrator")
class Orchestrator:
    """Decides what there is to do, and at the end what it all comes to."""

    def run(self, task: Task, ctx: Context) -> dict[str, Any]:
        """Plan when the payload names a root, summarise when it brings packages."""
        return plan(task.payload) if "root" in task.payload else summarise(task.payload)


def plan(payload: dict[str, Any]) -> dict[str, Any]:
    """The packages with their files, the module trees for the search for cycles, and what could not be read.

    files: [name, bytes, lines, digest]; triggers: analyser -> names of the files that call for it.
    """
    root, max_bytes = Path(payload["root"]), int(payload["max_bytes"])
    files: dict[str, list[list[Any]]] = defaultdict(list)
    triggers: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"blocking": [], "unicode": []})
    found: list[Finding] = []
    for name in walk(root, tuple(payload["exclude"]), found):
        try:
            data = read_bytes(root, name, max_bytes)
        except BadSource as bad:
            found.append(bad.why)
            continue
        package = package_of(name)
        lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
        files[package].append([name, len(data), lines, digest(data)])
        if _ASYNC.search(data):
            triggers[package]["blocking"].append(name)
        if not data.isascii():
            triggers[package]["unicode"].append(name)
    packages = [{"name": p, "files": files[p], "triggers": triggers[p]} for p in sorted(files)]
    return {"packages": packages, "trees": module_trees(root, sorted(files)), "findings": rows(found)}


def walk(root: Path, exclude: tuple[str, ...], found: list[Finding] | None = None) -> Iterator[str]:
    """Relative names of the Python files below `root`, sorted; links to directories are not followed (they may loop).

    What cannot be listed or named is appended to `found`.
    """

    def left_out(name: str) -> bool:
        leaf = name.rpartition("/")[2]
        return any(fnmatchcase(leaf, p) or fnmatchcase(name, p) for p in exclude)

    def unlisted(error: OSError) -> None:
        if found is not None:
            where = Path(error.filename).relative_to(root).as_posix()
            found.append(problem(_shown(where), "unreadable", f"a directory: {error.strerror}"))

    for directory, below, names in os.walk(root, onerror=unlisted):
        relative = Path(directory).relative_to(root).as_posix()
        prefix = "" if relative == "." else relative + "/"
        below[:] = sorted(d for d in below if not left_out(prefix + d))
        for name in sorted(prefix + n for n in names if n.endswith(".py")):
            if left_out(name):
                continue
            if name == _shown(name):
                yield name
            elif found is not None:
                found.append(problem(_shown(name), "bad-name", "a file name that is not valid UTF-8"))


def package_of(file: str) -> str:
    """The package that a file belongs to: its directory, "." for the root."""
    return file.rpartition("/")[0] or "."


def module_trees(root: Path, packages: list[str]) -> list[dict[str, Any]]:
    """Groups of packages that import one another by name: each outermost regular package with all below it.

    `prefix` is the dotted name of the tree's top directory, "" for a plain directory of scripts.
    """
    regular = {p for p in packages if (root / p / "__init__.py").is_file()}
    members: dict[str, list[str]] = defaultdict(list)
    for package in packages:
        top = package
        while top in regular and top != "." and package_of(top) in regular:
            top = package_of(top)
        members[top].append(package)
    above = _name_above(root) if "." in regular else ""
    return [
        {"top": top, "prefix": _prefix(top, top in regular, above), "packages": members[top]} for top in sorted(members)
    ]


def _prefix(top: str, regular: bool, root_name: str) -> str:
    if not regular:
        return ""
    return root_name if top == "." else top.rpartition("/")[2]


def _name_above(root: Path) -> str:
    """The dotted name of a root that is itself a package, perhaps inside others."""
    parts = [root.name]
    above = root.parent
    while (above / "__init__.py").is_file() and above != above.parent:
        parts.insert(0, above.name)
        above = above.parent
    return ".".join(parts)


def _shown(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

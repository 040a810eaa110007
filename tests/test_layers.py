"""Imports go one way, and `import flowray` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "flowray").rglob("*.py"))
PEERS = {"bridges", "routing", "mesh", "store", "memory", "providers", "security", "telemetry", "testing"}
PLAIN = {
    "errors",
    "steps",
    "agents",
    "jobs",
    "values",
    "tasks",
    "attempts",
    "outcomes",
    "references",
    "offers",
}  # what they are, without a runtime
ABOVE = {"api", "cli", "notebook"}
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "steps": {"errors", "core"},
    "agents": {"errors", "steps"},
    "jobs": {"errors", "agents"},
    "core": {"errors"},
    "values": {"errors"},
    "offers": {"errors"},
    "tasks": {"errors", "core", "offers"},
    "attempts": {"errors", "agents", "core"},
    "outcomes": {"errors", "core"},
    "references": {"errors"},
    **{peer: {"core", *PLAIN} for peer in PEERS},
    "skills": {"errors", "agents", "jobs"},
    "config": {"core", *PLAIN, *PEERS},
    "runtime": {"core", "config", *PLAIN, *PEERS},
}
CORE_NEVER = {"time", "random", "asyncio", "logging", "threading", "socket", "os", "datetime", "uuid", "secrets"}
HEAVY = ("torch", "ray", "ray.serve", "pandas", "pyarrow", "numpy")


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, only for type checking) of every import in a file, wherever it stands."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in typing_only
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            for alias in node.names if node.module == "flowray" else ():
                yield f"flowray.{alias.name}", id(node) in typing_only
            if node.module != "flowray":
                yield node.module or "", id(node) in typing_only


def layer_of(module: str) -> str:
    """flowray.core.book -> core."""
    return module.split(".")[1] if "." in module else ""


def place(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def private_uses(source: str) -> list[str]:
    """Where private attributes of others are used. A name that the module has itself may be its own classes'."""
    attributes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    private = [node for node in attributes if node.attr.startswith("_") and not node.attr.endswith("__")]
    own = {node.attr for node in private if ast.unparse(node.value) in ("self", "cls")}
    return [
        ast.unparse(node)
        for node in private
        if ast.unparse(node.value) in ("core", "self._core")
        or (ast.unparse(node.value) not in ("self", "cls") and node.attr not in own)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=place)
def test_imports_go_one_way(path):
    layer = layer_of(place(path))
    if layer not in BELOW:
        return  # the top of the house: api, cli, notebook, and flowray itself
    allowed = BELOW[layer] | {layer}
    for module, typing_only in imports_of(path):
        if module.startswith("flowray.") and not typing_only:
            target = layer_of(module)
            if path.name == "cluster.py" and layer == "testing":
                continue  # real Ray nodes for tests: it may use everything
            known = target in BELOW or target in ABOVE
            assert not known or target in allowed, f"{place(path)} imports {module}: {layer} is below {target}"


@pytest.mark.parametrize("path", [p for p in SOURCES if layer_of(place(p)) == "core"], ids=place)
def test_the_core_is_pure(path):
    for module, _ in imports_of(path):
        top = module.split(".")[0]
        assert top in sys.stdlib_module_names or top in ("msgspec", "flowray"), f"{path.name} imports {module}"
        assert top not in CORE_NEVER, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", [p for p in SOURCES if layer_of(place(p)) == "core"], ids=place)
def test_parts_of_the_core_use_nothing_private_of_one_another(path):
    assert private_uses(path.read_text()) == []


@pytest.mark.parametrize("path", SOURCES, ids=place)
def test_ray_and_torch_stay_in_their_places(path):
    where = place(path)
    for module, typing_only in imports_of(path):
        top = module.split(".")[0]
        if top == "ray" and not typing_only:
            fits = where.startswith("flowray.runtime.") or where == "flowray.testing.cluster"
            assert fits, f"{where} imports {module}"
        if top == "torch":
            assert where.startswith("flowray.routing."), f"{where} imports {module}"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["flowray", "flowray.core.coordination", "flowray.testing", "flowray.jobs"])
def test_importing_is_light(module):
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_check_itself_sees_every_kind_of_import(tmp_path):
    source = tmp_path / "one.py"
    source.write_text(
        "from typing import TYPE_CHECKING\nimport ray.util\nfrom flowray import core\n"
        "if TYPE_CHECKING:\n    import torch\ndef f():\n    from flowray.runtime import x\n"
    )
    assert set(imports_of(source)) == {
        ("typing", False), ("ray.util", False), ("flowray.core", False), ("torch", True), ("flowray.runtime", False),
    }  # fmt: skip


def test_the_check_sees_what_is_private_to_others():
    source = "class A:\n    def f(self, core, other):\n        self._x = core._x, other._x, self._core._y, other._z\n"
    assert private_uses(source) == ["core._x", "self._core._y", "other._z"]

"""From a class, or its name, to what another process needs to start it."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from flowray.agents import agent
from flowray.config import DEFAULT_TIERS
from flowray.core.model import AgentSpec
from flowray.errors import ConfigError
from flowray.runtime.agent import load_target
from flowray.runtime.specs import make_spec


@agent(capabilities={"b", "a"}, tier="primary", slots=3)
class Described:
    def __init__(self, size: int = 1) -> None:
        self.size = size

    def run(self, task: Any) -> int:
        return self.size


def spec(target: Any, **arguments: Any) -> AgentSpec:
    return make_spec(target, tiers=DEFAULT_TIERS, **arguments)


def test_the_class_says_what_the_caller_leaves_out() -> None:
    made = spec(Described)
    assert (made.name, made.tier, made.capabilities, made.slots) == ("described", "primary", ("a", "b"), 3)
    assert made.target.endswith(":Described")
    assert made.code == b""


def test_the_caller_overrides_the_class() -> None:
    made = spec(Described, name="x", tier="secondary", capabilities=["c"], slots=1, count=4, options={"size": 2})
    assert (made.name, made.tier, made.capabilities, made.slots, made.count) == ("x", "secondary", ("c",), 1, 4)
    assert made.options == {"size": 2}


def test_a_class_made_in_a_function_travels_by_value() -> None:
    class Local:
        def run(self, task: Any) -> str:
            return "here"

    made = spec(Local)
    assert made.target == ""
    assert load_target(made)().run(None) == "here"


def test_a_class_from_a_file_is_read_again_where_the_file_is(tmp_path: Path) -> None:
    """Who mends an agent and goes on with an interrupted run wants the mended one."""
    file = tmp_path / "mended.py"
    file.write_text("class Mine:\n    def run(self, task):\n        return 1\n")
    made = spec(f"{file}:Mine")
    assert made.target == f"{file}:Mine"
    file.write_text("class Mine:\n    def run(self, task):\n        return 22\n")
    for name in [name for name in sys.modules if name.startswith("flowray_team_mended_")]:
        del sys.modules[name]  # another process has not read it yet
    assert load_target(made)().run(None) == 22


def test_a_class_from_a_file_travels_by_value(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("BASE = 40\nclass Mine:\n    def run(self, task):\n        return BASE + 2\n")
    made = spec(f"{file}:Mine")
    loaded = [name for name in sys.modules if name.startswith("flowray_team_mine")]
    for name in loaded:
        del sys.modules[name]  # as in another process
    assert pickle.loads(made.code)().run(None) == 42


@pytest.mark.parametrize(
    ("target", "arguments", "problem"),
    [
        ("no.such.module:X", {}, "there is no module"),
        ("json:NoSuchThing", {}, "has no 'NoSuchThing'"),
        ("json", {}, "'json'"),
        (Described, {"tier": "attic"}, "unknown tier 'attic'"),
        (Described, {"count": 0}, "count"),
        (Described, {"slots": 0}, "slots"),
        (Described, {"name": "no blanks"}, "name"),
        (Described, {"options": {"colour": "red"}}, "options"),
        (Described, {"capabilities": "one"}, "capabilities"),
        (Described, {"num_cpus": -1.0}, "num_cpus"),
        (3, {}, "class or a function"),
        (dict, {}, "run"),
    ],
)
def test_what_cannot_be_an_agent_is_said(target: Any, arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        spec(target, **arguments)


def test_what_cannot_be_sent_is_said() -> None:
    lock = __import__("threading").Lock()

    class Holder:
        def run(self, task: Any, lock: Any = lock) -> None:
            return None

    with pytest.raises(ConfigError, match="cannot be sent"):
        spec(Holder)

"""Every command and example in README, ARCHITECTURE and CHANGELOG runs."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = {name: (ROOT / name).read_text() for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md")}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def run_script(code: str, tmp_path: Path) -> str:
    script = tmp_path / "example.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=180, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_the_first_example_prints_what_it_says(tmp_path: Path) -> None:
    printed = run_script(blocks(README, "python")[0], tmp_path).splitlines()
    assert printed[0] == "6"
    assert sorted(line.split()[1] for line in printed[1:4]) == ["1", "2", "3"]
    assert "Attempt 1 went to counter-" in "\n".join(printed[4:])


def test_the_example_of_a_simulation_runs(tmp_path: Path) -> None:
    run_script(blocks(README, "python")[1], tmp_path)


@pytest.mark.ray
@pytest.mark.slow
def test_the_example_of_agents_that_talk_prints_what_was_said(tmp_path: Path) -> None:
    printed = run_script(blocks(README, "python")[2], tmp_path).splitlines()
    assert printed == ["['yes', 'yes', 'yes']", "longer breaks: 3 of 3"]


def test_the_example_of_recorded_steps_runs(tmp_path: Path) -> None:
    run_script(blocks(README, "python")[4], tmp_path)


def test_the_example_of_chunks_runs(tmp_path: Path) -> None:
    [example] = [block for block in blocks(README, "python") if "handle.stream(" in block]
    run_script(example, tmp_path)


def test_the_example_of_an_agent_with_a_state_runs(tmp_path: Path) -> None:
    [example] = [block for block in blocks(README, "python") if "standby=" in block]
    run_script(example, tmp_path)


def test_every_promise_has_a_test() -> None:
    rows = re.findall(r"^\| (P\d) \|.*`(tests/[\w/]+\.py)::(\w+)` \|$", README, re.M)
    assert [number for number, _, _ in rows] == [f"P{n}" for n in range(1, 9)]
    for number, path, name in rows:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{number} names {path}::{name}"


@pytest.mark.ray
@pytest.mark.slow
def test_the_example_of_a_router_finds_the_cheap_one(tmp_path: Path) -> None:
    printed = run_script(blocks(README, "python")[3], tmp_path)
    assert printed.startswith("cheap-0 on one more")
    assert "expected to succeed" in printed


@pytest.mark.ray
@pytest.mark.slow
def test_the_commands_run_in_their_order(tmp_path: Path) -> None:
    """On a small input, in a home of their own."""
    source = tmp_path / "src"
    source.mkdir()
    (source / "one.py").write_text("def f(x):\n    try:\n        return eval(x)\n    except:\n        pass\n")
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("RAY_ADDRESS", None)
    [text] = blocks(README, "console")
    commands = [line.removeprefix("$ ").partition(" #")[0].strip() for line in text.splitlines() if line[:2] == "$ "]
    assert len(commands) >= 6
    outputs = {}
    try:
        for command in commands:
            words = [
                str(source) if w == "src" else str(tmp_path / w) if w == "out/src" else w for w in shlex.split(command)
            ]
            done = subprocess.run(words, capture_output=True, text=True, timeout=240, cwd=ROOT, env=environment)
            assert done.returncode == 0 or words[1] == "doctor", f"{command}: {done.stdout}\n{done.stderr}"
            outputs[words[1]] = done.stdout + done.stderr
    finally:
        subprocess.run(["flowray", "down"], capture_output=True, timeout=120, cwd=ROOT, env=environment)
    assert '"words": 6' in outputs["submit"] or "'words': 6" in outputs["submit"], outputs["submit"]
    assert (tmp_path / "out/src/report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_every_make_target_and_file_named_exists(name: str) -> None:
    text = DOCUMENTS[name]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)\b(?= |`|$)", text, re.M)) - {"it", "them"} <= targets
    for path in re.findall(r"`((?:flowray|tests|clusters|notebooks|bench|models)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), f"{name} names {path}"


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_every_dotted_name_can_be_imported(name: str) -> None:
    for dotted in sorted(set(re.findall(r"`(flowray(?:\.\w+)+)`", DOCUMENTS[name]))):
        parts = dotted.split(".")
        found: object = importlib.import_module("flowray")
        for position, part in enumerate(parts[1:], start=2):
            if not hasattr(found, part):
                importlib.import_module(".".join(parts[:position]))
            found = getattr(found, part)

"""Agents on real Ray are forked from the template, and what that must not change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from template_agents import origin

import flowray as fr

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 60.0
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def rt(start_runtime: Callable[..., fr.Runtime]) -> Iterator[fr.Runtime]:
    with start_runtime("template") as runtime:
        runtime.agents.add(origin, name="one", count=3, slots=1)
        runtime.wait_ready()
        yield runtime


def ask(rt: fr.Runtime) -> dict[str, Any]:
    """What one agent says of itself."""
    said: dict[str, Any] = rt.submit("where from?", needs={"origin"}).result(WAIT_S)
    return said


def ask_all(rt: fr.Runtime, processes: int) -> list[dict[str, Any]]:
    """What each of so many agents says of itself."""
    said: dict[int, dict[str, Any]] = {}
    for _ in range(500):
        if len(said) == processes:
            break
        for one in rt.map(range(2 * processes), needs={"origin"}).results(WAIT_S):
            said.setdefault(one["pid"], one)
    assert len(said) == processes
    return list(said.values())


def test_agents_are_forked_and_have_loaded_nothing_heavy(rt: fr.Runtime) -> None:
    said = ask_all(rt, 3)
    assert [one["forked"] for one in said] == [True] * 3
    assert len({one["parent"] for one in said}) == 1
    assert [one["heavy"] for one in said] == [[]] * 3


def test_forks_draw_their_own_random_numbers(rt: fr.Runtime) -> None:
    drawn = [number for one in ask_all(rt, 3) for number in one["random"]]
    assert len(set(drawn)) == len(drawn) == 6


def all_have_work(template: psutil.Process) -> bool:
    """Whether every fork hosts an actor: Ray gives a worker that is idle, or late, to whoever asks next."""
    ours = ("ray::AgentActor", "ray::Coordinator", "ray::Keeper")
    try:
        return all(fork.name().startswith(ours) for fork in template.children())
    except psutil.NoSuchProcess:
        return False  # one has just ended: look again


def test_agents_outlive_a_killed_template_and_new_ones_come_from_another(
    rt: fr.Runtime, eventually: Callable[..., Any]
) -> None:
    before = {one["pid"] for one in ask_all(rt, 3)}
    first = ask(rt)["parent"]
    template = psutil.Process(first)
    assert any(word.endswith("template.py") for word in template.cmdline())
    eventually(lambda: rt.figures()["warm"] == 1, "the warm process is there, so nothing is asked of the template")
    eventually(lambda: all_have_work(template), "no worker of it is left over for the new agent")
    template.kill()
    psutil.wait_procs([template], timeout=WAIT_S)
    rt.agents.add(origin, name="two", count=1, capabilities={"second"})
    rt.wait_ready()
    new = rt.submit("where from?", needs={"second"}).result(WAIT_S)
    assert new["forked"] and new["parent"] != first and new["pid"] not in before
    assert {one["pid"] for one in ask_all(rt, 3)} == before


def drive(ray_token: Path, tmp_path: Path, preload: str, end: str) -> tuple[dict[str, Any], str]:
    """What a driver of its own found, and what it wrote to standard error."""
    # Files, not pipes: what outlives the driver would keep those open.
    with (tmp_path / "output").open("w") as output, (tmp_path / "errors").open("w") as errors:
        subprocess.run(
            [sys.executable, str(HERE / "template_driver.py"), preload, end],
            stdout=output,
            stderr=errors,
            timeout=240,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(tmp_path)]), "RAY_ADDRESS": ""},
        )
    said = (tmp_path / "output").read_text()
    assert said, (tmp_path / "errors").read_text()
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found, (tmp_path / "errors").read_text()


def test_a_template_that_cannot_be_is_said_and_agents_start_all_the_same(ray_token: Path, tmp_path: Path) -> None:
    (tmp_path / "has_thread.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1e6,), daemon=True, name='mine').start()\n"
    )
    found, errors = drive(ray_token, tmp_path, "has_thread", "stop")
    assert not found["forked"]
    assert "agents start the slow way" in errors and "after importing has_thread there are 2 threads" in errors


def test_a_killed_driver_leaves_no_process_behind(
    ray_token: Path, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    found, _ = drive(ray_token, tmp_path, "", "kill")
    assert found["forked"]

    def left() -> list[str]:
        names = []
        for pid, began_at, name in found["started"]:
            try:
                process = psutil.Process(pid)
                if process.create_time() == began_at and process.status() != psutil.STATUS_ZOMBIE:
                    names.append(f"{name} {pid} ({process.status()}, parent {process.ppid()})")
            except psutil.NoSuchProcess:
                continue
        return names

    try:
        eventually(lambda: not left(), "all are gone")
    except AssertionError as error:
        raise AssertionError(f"left behind: {left()}") from error

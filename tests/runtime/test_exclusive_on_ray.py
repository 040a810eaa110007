"""Exclusive tasks on real Ray: attempts do not overlap, and nobody waits where that is certain."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_loners import Deaf, Polite

import flowray as fr

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 90.0
Lines = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def patient(start_runtime: Callable[..., fr.Runtime]) -> Iterator[fr.Runtime]:
    # Whoever waited here for an attempt to be over would wait longer than any test.
    with start_runtime("patient", core__fence_s=600.0) as runtime:
        runtime.agents.add(Deaf, count=2, capabilities={"deaf"})
        runtime.wait_ready()
        yield runtime


@pytest.fixture(scope="module")
def brief(start_runtime: Callable[..., fr.Runtime]) -> Iterator[fr.Runtime]:
    # A coordinator that is stopped here is not to be ended for that.
    with start_runtime("brief", core__fence_s=2.5, core__fence_all=True, ray__stopped_s=600.0) as runtime:
        runtime.agents.add(Deaf, count=2, capabilities={"deaf"})
        runtime.agents.add(Polite, count=2, capabilities={"polite"})
        runtime.wait_ready()
        yield runtime


def plan(tmp_path: Path) -> dict[str, Any]:
    return {"file": str(tmp_path / "ran"), "gate": str(tmp_path / "gate")}


def test_exclusive_tasks_run(brief: fr.Runtime, tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    plans = [plan(tmp_path) | {"file": str(tmp_path / f"ran-{number}")} for number in range(20)]
    for needs in ({"deaf"}, {"polite"}):
        assert brief.map(plans, needs=needs, exclusive=True).results(WAIT_S) == ["attempt 1"] * 20


def test_a_killed_agents_task_goes_on_at_once(
    patient: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Lines
) -> None:
    """On this machine it is seen that the process is dead."""
    patient.wait_ready(WAIT_S)
    handle = patient.submit(plan(tmp_path), needs={"deaf"}, exclusive=True)
    eventually(lambda: lines("ran"), "it runs")
    os.kill(int(lines("ran")[0].split("/")[2]), signal.SIGKILL)
    assert handle.result(WAIT_S) == "attempt 2"
    assert [line.split("/")[3] for line in lines("ran") if line.startswith("began/")] == ["alone", "alone"]


def test_an_agent_killed_by_the_operator_is_seen_dead_too(
    patient: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Lines
) -> None:
    patient.wait_ready(WAIT_S)
    handle = patient.submit(plan(tmp_path), needs={"deaf"}, exclusive=True)
    eventually(lambda: lines("ran"), "it runs")
    patient.kill_agent(next(line.agent_id for line in handle.story().lines if line.what == "started"))
    assert handle.result(WAIT_S) == "attempt 2"


@pytest.mark.parametrize(("kind", "exclusive"), [("polite", True), ("deaf", True), ("polite", False), ("deaf", False)])
def test_an_agent_without_word_from_its_coordinator_ends_what_it_does(
    brief: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Lines, kind: str, exclusive: bool
) -> None:
    """The coordinator is stopped, so it answers no more. Async code is cancelled; deaf code goes with its process.

    So it is with what is exclusive, and with `core.fence_all` with everything.
    """
    brief.wait_ready(WAIT_S)
    handle = brief.submit(plan(tmp_path), needs={kind}, exclusive=exclusive)
    eventually(lambda: lines("ran"), "it runs")
    process = psutil.Process(int(lines("ran")[0].split("/")[2]))
    coordinator = brief.status().pid
    os.kill(coordinator, signal.SIGSTOP)
    try:
        if kind == "polite":
            eventually(lambda: "over/1" in lines("ran"), "its attempt is cancelled")
            assert process.is_running()
        else:
            eventually(lambda: gone(process), "its process ends itself")
    finally:
        os.kill(coordinator, signal.SIGCONT)
    assert handle.result(WAIT_S) == "attempt 2"
    assert [line.split("/")[3] for line in lines("ran") if line.startswith("began/")] == ["alone", "alone"]


def test_a_coordinator_that_comes_back_soon_leaves_it_running(
    patient: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Lines
) -> None:
    patient.wait_ready(WAIT_S)
    handle = patient.submit(plan(tmp_path), needs={"deaf"}, exclusive=True)
    eventually(lambda: lines("ran"), "it runs")
    before = patient.status()
    os.kill(before.pid, signal.SIGKILL)
    eventually(lambda: patient.status().epoch == before.epoch + 1, "there is another coordinator")
    (tmp_path / "gate").touch()
    assert handle.result(WAIT_S) == "attempt 1"


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

"""Recorded steps on real Ray: a file outside counts how often each function ran, whoever is killed meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_steppers import AsyncStepper, Clumsy, Stepper, value_of

import flowray as fr

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 90.0
Lines = Callable[[str], list[str]]
KINDS = ("sync", "async")


@pytest.fixture(scope="module")
def rt(start_runtime: Callable[..., fr.Runtime]) -> Iterator[fr.Runtime]:
    # Nobody may be ended for being told to stop and going on: a zombie is wanted here.
    with start_runtime("steps", core__cancel_grace_s=600.0, core__adoption_s=600.0) as runtime:
        runtime.agents.add(Stepper, name="sync", count=2, capabilities={"sync"})
        runtime.agents.add(AsyncStepper, name="async", count=2, capabilities={"async"})
        runtime.agents.add(Clumsy, capabilities={"clumsy"})
        runtime.wait_ready()
        yield runtime


def plan(tmp_path: Path, size: int = 20, **more: str) -> dict[str, Any]:
    return {"file": str(tmp_path / "ran"), "gate": str(tmp_path / "gate"), "size": size, **more}


def ran(lines: Lines, *what: str) -> list[str]:
    return [line for line in lines("ran") if line.split("/")[0] in what]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [20, 300_000], ids=["small", "large"])
def test_an_agent_killed_between_two_steps_has_the_first_run_once(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Lines, kind: str, size: int
) -> None:
    rt.wait_ready(WAIT_S)
    handle = rt.submit(plan(tmp_path, size), needs={kind})
    eventually(lambda: "between/1" in lines("ran"), "the first step is over")
    rt.kill_agent(next(line.agent_id for line in handle.story().lines if line.what == "started"))
    assert handle.result(WAIT_S) == [value_of("first", size, 1), value_of("second", size, 2)]
    assert ran(lines, "first", "second", "between") == ["first/1", "between/1", "between/2", "second/2"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_taken_while_no_coordinator_is_there_is_recorded_by_the_next(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Lines, kind: str
) -> None:
    """The coordinator dies while the function runs, and the agent after its successor has answered."""
    rt.wait_ready(WAIT_S)
    handle = rt.submit(plan(tmp_path, slow_step="first"), needs={kind})
    eventually(lambda: "first/1" in lines("ran"), "the step has begun")
    before = rt.status()
    os.kill(before.pid, signal.SIGKILL)
    (tmp_path / "gate").touch()
    assert handle.result(WAIT_S) == [value_of("first", 20, 1), value_of("second", 20, 1)]
    assert rt.status().epoch == before.epoch + 1
    assert ran(lines, "first", "second") == ["first/1", "second/1"]
    assert [line.what for line in handle.story().lines] == ["accepted", "started", "succeeded"]


def test_a_recorded_step_outlives_agent_and_coordinator_together(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Lines
) -> None:
    rt.wait_ready(WAIT_S)
    handle = rt.submit(plan(tmp_path), needs={"sync"})
    eventually(lambda: "between/1" in lines("ran"), "the first step is over")
    status = rt.status()
    victim = next(line.agent_id for line in handle.story().lines if line.what == "started")
    os.kill(status.pid, signal.SIGKILL)
    os.kill(next(a.pid for a in status.agents if a.agent_id == victim), signal.SIGKILL)
    assert handle.result(WAIT_S) == [value_of("first", 20, 1), value_of("second", 20, 2)]
    assert ran(lines, "first", "second") == ["first/1", "second/2"]
    fences = [int(line.split("/")[1]) for line in ran(lines, "fence")]
    assert len(fences) == 2 and fences[1] - fences[0] > 2**32 - 2**16, "another epoch, and a higher fence"
    assert len(set(ran(lines, "key"))) == 1


def test_a_zombies_step_changes_nothing_and_it_is_told_so(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Lines
) -> None:
    rt.wait_ready(WAIT_S)
    handle = rt.submit(plan(tmp_path), needs={"sync"}, attempt_timeout_s=2.0)
    assert handle.result(WAIT_S) == [value_of("first", 20, 1), value_of("second", 20, 2)]
    assert "stale/1" not in lines("ran")
    (tmp_path / "gate").touch()
    eventually(lambda: "stale/1" in lines("ran"), "the first attempt is told")
    assert handle.result(WAIT_S)[1] == value_of("second", 20, 2)


@pytest.mark.parametrize(
    ("what", "error"),
    [("twice", "this attempt has a step 'a' already"), ("many", "has 256 recorded steps, and 256 is the most")],
)
def test_misuse_is_an_error_that_says_what_to_do(rt: fr.Runtime, what: str, error: str) -> None:
    with pytest.raises(fr.TaskFailed, match=error):
        rt.submit(what, needs={"clumsy"}).result(WAIT_S)


def test_a_function_that_raises_records_nothing(rt: fr.Runtime) -> None:
    assert rt.submit("tries_again", needs={"clumsy"}).result(WAIT_S) == 2

"""Losing processes on real Ray: agents, coordinators, drivers. (Losing nodes: tests/cluster.)"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_agents import Broken, Crasher, Tool
from ray_processes import living

import flowray as fr
from flowray.errors import AgentStartFailed, ConfigError

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 90.0
HERE = Path(__file__).parent
GIVEN_UP = {"core__restart__max_crashes": 4}


@pytest.fixture(scope="module")
def rt(start_runtime: Callable[..., fr.Runtime]) -> Iterator[fr.Runtime]:
    # Where nobody reports an agent's loss, its tasks wait for `adoption_s`: so long that a test here would fail.
    with start_runtime("surviving", core__retry__poison_kills=2, core__adoption_s=600.0, **GIVEN_UP) as runtime:
        runtime.agents.add(Tool, count=2, capabilities={"tools"})
        runtime.wait_ready()
        yield runtime


def tool(do: str, **more: Any) -> dict[str, Any]:
    return {"do": do, **more}


def test_a_task_whose_agent_is_killed_completes_on_another(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    handle = rt.submit(tool("wait", gate=str(tmp_path / "gate"), file=str(tmp_path / "ran")), needs={"tools"})
    eventually(lambda: lines("ran"), "it runs")
    victim = next(line.agent_id for line in handle.story().lines if line.what == "started")
    rt.kill_agent(victim)
    eventually(lambda: len(lines("ran")) == 2, "it runs again")
    (tmp_path / "gate").touch()
    answered_by = handle.result(WAIT_S)
    assert answered_by.endswith("attempt 2")
    story = handle.story()
    assert [line.what for line in story.lines] == ["accepted", "started", "requeued", "started", "succeeded"]
    assert story.lines[2].agent_id == victim and f"{victim} was lost" in story.lines[2].detail
    assert story.lines[3].detail == "failover"
    rt.wait_ready(WAIT_S)
    assert rt.figures()["failovers"] >= 1


def test_killing_an_agent_that_is_not_there_says_so(rt: fr.Runtime) -> None:
    with pytest.raises(ConfigError, match="nobody-7"):
        rt.kill_agent("nobody-7")


def test_a_task_that_kills_its_agents_is_stopped(
    rt: fr.Runtime, tmp_path: Path, lines: Callable[[str], list[str]]
) -> None:
    """Two agents, here; after that it is the task, and the agents must stay for the others."""
    handle = rt.submit(tool("die", file=str(tmp_path / "victims")), needs={"tools"})
    outcome = handle.outcome(WAIT_S)
    assert outcome.state.value == "dead" and outcome.failure is not None and outcome.failure.kind == "poison"
    assert len(lines("victims")) == 2
    rt.wait_ready(WAIT_S)
    assert rt.submit("still here", needs={"tools"}).result(WAIT_S) == "STILL HERE"


def test_a_killed_coordinator_loses_nothing_and_repeats_nothing(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    """Two attempts run and many tasks wait while it dies. What runs is adopted: the witness file has each task once."""
    gate, file = tmp_path / "gate", str(tmp_path / "ran")
    names = [f"task-{n}" for n in range(40)]
    handles = rt.map([tool("wait", gate=str(gate), file=file, name=name) for name in names], needs={"tools"})
    eventually(lambda: len(lines("ran")) == 2, "both agents are busy")
    before = rt.status()
    os.kill(before.pid, signal.SIGKILL)
    during = rt.submit("while it is away", needs={"tools"}, priority=9)
    gate.touch()
    assert len(handles.results(WAIT_S)) == 40
    assert during.result(WAIT_S) == "WHILE IT IS AWAY"
    after = rt.status()
    assert after.epoch == before.epoch + 1 and after.pid != before.pid
    assert {a.agent_id: a.incarnation for a in after.agents} == {a.agent_id: a.incarnation for a in before.agents}
    assert Counter(lines("ran")) == Counter(names)
    lost = [line for o in handles.outcomes() for line in o.story if line.what == "requeued" and line.detail]
    assert not lost, "no attempt was given up (some were handed back unstarted)"


def test_a_process_too_busy_to_answer_a_new_coordinator_is_not_taken_for_dead(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    rt.wait_ready(WAIT_S)
    handle = rt.submit(tool("hold", seconds=6, file=str(tmp_path / "ran")), needs={"tools"})
    eventually(lambda: lines("ran"), "it runs")
    before = rt.status()
    os.kill(before.pid, signal.SIGKILL)
    assert rt.submit("meanwhile", needs={"tools"}).result(WAIT_S) == "MEANWHILE"
    assert not handle.done, "the others did not wait for it"
    assert handle.result(WAIT_S).endswith("attempt 1")
    assert lines("ran") == ["began"]
    assert {a.agent_id: a.incarnation for a in rt.status().agents} == {a.agent_id: a.incarnation for a in before.agents}


def test_an_agent_that_dies_while_no_coordinator_is_there_is_missed(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    rt.wait_ready(WAIT_S)
    handle = rt.submit(tool("wait", gate=str(tmp_path / "gate"), file=str(tmp_path / "ran")), needs={"tools"})
    eventually(lambda: lines("ran"), "it runs")
    victim = next(line.agent_id for line in handle.story().lines if line.what == "started")
    status = rt.status()
    pid = next(a.pid for a in status.agents if a.agent_id == victim)
    os.kill(status.pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(lines("ran")) == 2, "it runs again")
    (tmp_path / "gate").touch()
    handle.result(WAIT_S)
    assert f"{victim} was lost" in handle.story().lines[2].detail
    rt.wait_ready(WAIT_S)


def test_a_stopped_agent_is_ended_and_its_task_completes_on_another(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    """Nobody would ever notice: its connections stay, and Ray asks it nothing."""
    rt.wait_ready(WAIT_S)
    eventually(lambda: keepers(rt), "there is a keeper")
    handle = rt.submit(tool("wait", gate=str(tmp_path / "gate"), file=str(tmp_path / "ran")), needs={"tools"})
    eventually(lambda: lines("ran"), "it runs")
    victim = next(line.agent_id for line in handle.story().lines if line.what == "started")
    os.kill(next(a.pid for a in rt.status().agents if a.agent_id == victim), signal.SIGSTOP)
    eventually(lambda: len(lines("ran")) == 2, "it runs again")
    (tmp_path / "gate").touch()
    assert handle.result(WAIT_S).endswith("attempt 2")
    assert "was stopped for 1 s" in handle.story().lines[2].detail
    rt.wait_ready(WAIT_S)


def test_a_stopped_coordinator_is_ended_and_its_successor_repeats_nothing(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    rt.wait_ready(WAIT_S)
    (keeper,) = eventually(lambda: keepers(rt), "there is a keeper")
    gate = tmp_path / "gate"
    handle = rt.submit(tool("wait", gate=str(gate), file=str(tmp_path / "ran")), needs={"tools"})
    eventually(lambda: lines("ran"), "it runs")
    before = rt.status()
    os.kill(before.pid, signal.SIGSTOP)
    assert rt.submit("meanwhile", needs={"tools"}).result(WAIT_S) == "MEANWHILE"
    gate.touch()
    assert handle.result(WAIT_S).endswith("attempt 1")
    after = rt.status()
    assert after.epoch == before.epoch + 1 and after.pid != before.pid
    assert keepers(rt) == [keeper], "the same keeper serves the new coordinator"


def test_a_keeper_that_dies_is_replaced_and_the_next_one_knows_whom_to_watch(
    rt: fr.Runtime, eventually: Callable[..., Any]
) -> None:
    rt.wait_ready(WAIT_S)
    (keeper,) = eventually(lambda: keepers(rt), "there is a keeper")
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: keepers(rt) and keepers(rt) != [keeper], "there is another one")
    before = {a.agent_id: a.incarnation for a in rt.status().agents}
    os.kill(rt.status().agents[0].pid, signal.SIGSTOP)
    eventually(lambda: {a.agent_id: a.incarnation for a in rt.status().agents} != before, "the stopped agent is new")
    rt.wait_ready(WAIT_S)


def keepers(rt: fr.Runtime) -> list[int]:
    """Process ids of the runtime's keepers."""
    return living(f"{rt.config.name}/keeper/")


def test_agents_that_do_not_start_say_why_and_their_tasks_fail(rt: fr.Runtime) -> None:
    rt.agents.add(Broken, capabilities={"broken"})
    waiting = rt.submit("x", needs={"broken"})
    outcome = waiting.outcome(WAIT_S)
    assert outcome.failure is not None and outcome.failure.kind == "no_agent"
    with pytest.raises(fr.TaskFailed, match="broken-0: RuntimeError: no model file here"):
        waiting.result(WAIT_S)
    with pytest.raises(AgentStartFailed, match="broken-0 does not start: RuntimeError: no model file here"):
        rt.wait_ready(WAIT_S)
    with pytest.raises(fr.UnknownCapability, match="its agents do not start"):
        rt.submit("y", needs={"broken"})


def test_a_class_that_takes_its_process_down_at_each_start_is_given_up(rt: fr.Runtime) -> None:
    rt.agents.add(Crasher, capabilities={"crash"})
    doomed = rt.submit("x", needs={"crash"})
    with pytest.raises(fr.TaskFailed, match="CrashLoop: 4 of its processes in a row"):
        doomed.result(WAIT_S)
    shown = next(agent for agent in rt.agents if agent.name == "crasher")
    assert shown.state == "broken" and "CrashLoop" in shown.failure
    with pytest.raises(fr.UnknownCapability, match="CrashLoop"):
        rt.submit("x", needs={"crash"})


def test_a_killed_driver_resumes_from_its_journal(
    ray_token: Path, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    """As a user's script does it: everything is embedded in the driver, and its whole machine room goes with it."""
    driver = [sys.executable, str(HERE / "resuming_driver.py"), str(tmp_path)]
    with (tmp_path / "first.log").open("wb") as log:
        first = subprocess.Popen(driver, stdout=log, stderr=log)
    try:
        eventually(lambda: len(lines("answers")) >= 6 or first.poll() is not None, "some tasks are done", 120.0)
        assert first.poll() is None, (tmp_path / "first.log").read_text()
        # Two small processes of Ray's own that run no user code stay for another minute.
        family = [p for p in psutil.Process(first.pid).children(recursive=True) if not lingers(p)]
    finally:
        first.kill()
        first.wait()
    eventually(lambda: not any(alive(process) for process in family), "Ray is gone")
    answered = lines("answers")
    assert 6 <= len(answered) < 40
    second = subprocess.run(driver, capture_output=True, text=True, timeout=200, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "40 results" in second.stdout
    runs = Counter(lines("ran"))
    assert len(runs) == 40
    assert all(runs[name] == 1 for name in answered), "what was answered before the kill did not run again"
    assert sum(runs.values()) <= 40 + 2 + 2, "at most what ran, or waited at an agent, ran again"


def lingers(process: psutil.Process) -> bool:
    return any(name in " ".join(process.cmdline()) for name in ("ray::DashboardAgent", "ray::RuntimeEnvAgent"))


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

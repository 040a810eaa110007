"""Warm processes, and several light agents in one, on real Ray."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_agents import Tool, note
from ray_processes import living

import flowray as fr
from flowray.testing import ReplayAgent, make_outcomes, replay_specs, replay_tasks

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 60.0
NAME = "density"
PACK = 8


class Picky(Tool):
    """One of its agents does not start: the one that finds the file."""

    def __init__(self, spoilt: str) -> None:
        try:
            os.unlink(spoilt)  # noqa: PTH108 - by whom it was removed must be certain
        except FileNotFoundError:
            return
        raise RuntimeError("somebody spoilt it")


class Counted(Tool):
    """Notes each time that one is made."""

    def __init__(self, file: str) -> None:
        note(file, str(os.getpid()))


@pytest.fixture(scope="module")
def rt(start_runtime: Callable[..., fr.Runtime]) -> Iterator[fr.Runtime]:
    with start_runtime(
        NAME,
        tiers__primary__warm=1,
        tiers__secondary__agents_per_actor=PACK,
        tiers__secondary__warm=0,
        core__adoption_s=600.0,  # where something would wait for it, a test fails
    ) as runtime:
        yield runtime


def tool(do: str, **more: Any) -> dict[str, Any]:
    return {"do": do, **more}


def processes(name: str) -> set[int]:
    """The ids of the processes that Ray has for agents of a class."""
    return set(living(f"{NAME}/agent/{name}-"))


def pids(rt: fr.Runtime, name: str) -> dict[str, int]:
    return {agent.agent_id: agent.pid for agent in rt.agents if agent.name == name}


# ── warm ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_agent_of_a_known_class_and_the_next_life_of_one_find_a_process_ready(
    rt: fr.Runtime, eventually: Callable[..., Any]
) -> None:
    rt.agents.add(Tool, name="warm", tier="primary", capabilities={"warm"})
    rt.wait_ready()

    def spare() -> set[int]:
        """The one warm process, once it is."""
        if rt.figures()["warm"] != 1:
            return set()
        found = processes("warm") - set(pids(rt, "warm").values())
        return found if len(found) == 1 else set()

    before = eventually(spare, "a process without an agent")
    rt.agents.add(Tool, name="warm", tier="primary", capabilities={"warm"}, count=2)
    rt.wait_ready()
    assert pids(rt, "warm")["warm-1"] in before
    again = eventually(spare, "another one")
    first = pids(rt, "warm")["warm-0"]
    assert not again & (before | {first})
    rt.kill_agent("warm-0")
    eventually(lambda: pids(rt, "warm").get("warm-0") in again, "its next life is where nobody was")
    assert rt.submit("on", needs={"warm"}).result(WAIT_S) == "ON"
    third = eventually(spare, "a third one")
    os.kill(next(iter(third)), signal.SIGKILL)
    eventually(lambda: spare() - third, "a warm one that dies is replaced")
    assert {a.incarnation for a in rt.agents if a.name == "warm"} == {1, 2}


# ── several in one process ───────────────────────────────────────────────────────────────────────────────────────────


def test_light_agents_share_processes_and_are_agents_all_the_same(rt: fr.Runtime, tmp_path: Path) -> None:
    file = tmp_path / "here"
    rt.agents.add(Tool, name="light", count=2 * PACK + 1, capabilities={"light"})
    rt.wait_ready()
    found = pids(rt, "light")
    assert sorted(found) == sorted(f"light-{n}" for n in range(2 * PACK + 1))
    assert sorted(Counter(found.values()).values()) == [1, PACK, PACK]
    assert set(found.values()) == processes("light")
    work = [tool("wait", gate=str(tmp_path / "gate"), file=str(file), name=f"t{n}") for n in range(2 * PACK + 1)]
    handles = rt.map(work, needs={"light"})
    while not file.exists() or len(file.read_text().split()) < len(work):
        rt.status()  # all run at once: none ends before the gate opens
    (tmp_path / "gate").touch()
    assert {one.partition(" ")[0] for one in handles.results(WAIT_S)} == set(found)


def test_fewer_agents_leave_the_others_where_they_are(rt: fr.Runtime, eventually: Callable[..., Any]) -> None:
    before = pids(rt, "light")
    rt.agents.add(Tool, name="light", count=3, capabilities={"light"})
    eventually(lambda: len(pids(rt, "light")) == 3, "the others are gone")
    after = pids(rt, "light")
    assert after == {name: before[name] for name in ("light-0", "light-1", "light-2")}
    eventually(lambda: processes("light") == set(after.values()), "nobody lives in the other processes")
    assert rt.map(["x"] * 20, needs={"light"}).results(WAIT_S) == ["X"] * 20
    rt.agents.add(Tool, name="light", count=5, capabilities={"light"})
    rt.wait_ready()
    assert len(pids(rt, "light")) == 5
    assert rt.map(["y"] * 20, needs={"light"}).results(WAIT_S) == ["Y"] * 20


def test_one_that_does_not_start_leaves_the_others_alone(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    spoilt = tmp_path / "spoilt"
    spoilt.touch()
    rt.agents.add(Picky, count=4, capabilities={"picky"}, options={"spoilt": str(spoilt)})
    eventually(lambda: all(a.state == "ready" for a in rt.agents if a.name == "picky"), "they start, one later")
    lives = Counter(a.incarnation for a in rt.agents if a.name == "picky")
    assert lives == {1: 3, 2: 1}
    assert rt.submit("x", needs={"picky"}).result(WAIT_S) == "X"


def test_recorded_outcomes_are_replayed(rt: fr.Runtime, tmp_path: Path) -> None:
    """Async agents in one process, that read the same set."""
    spec = replay_specs(make_outcomes(tmp_path, tasks=60, agents=3), time_scale=0.02, count=2)[1]
    rt.agents.add(**spec.arguments)
    rt.wait_ready()
    assert len(pids(rt, spec.name)) == 2 and len(processes(spec.name)) == 1
    agent = ReplayAgent(**spec.arguments["options"])
    tasks = [{"prompt": text, "labels": labels, "needs": {"replay"}} for text, labels in replay_tasks(tmp_path, "test")]
    for handle in rt.submit_many(tasks).as_completed(WAIT_S):
        outcome = handle.outcome()
        then = agent.recorded(fr.Task(id="", labels=outcome.labels))
        assert handle.result() == {"agent": spec.agent_id, "success": then.success}
        assert (outcome.quality, outcome.cost_usd) == (then.quality, then.cost_usd)
        assert then.latency_s is not None
        assert outcome.run_s > 0.02 * then.latency_s - 0.002, "uvloop's timers count whole milliseconds"


def test_a_killed_process_loses_no_task_of_any_agent_in_it(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    rt.agents.add(Tool, name="packed", count=PACK, capabilities={"packed"})
    rt.wait_ready()
    (victim,) = set(pids(rt, "packed").values())
    gate, file = str(tmp_path / "gate"), str(tmp_path / "ran")
    work = [tool("wait", gate=gate, file=file, name=f"t{n}") for n in range(3 * PACK)]
    handles = rt.map(work, needs={"packed"}, max_attempts=1)
    eventually(lambda: len(lines("ran")) == PACK, "all are busy")
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: len(lines("ran")) == 2 * PACK, "all are busy again")
    Path(gate).touch()
    assert len(handles.results(WAIT_S)) == 3 * PACK
    runs = Counter(lines("ran"))
    assert set(runs) == {f"t{n}" for n in range(3 * PACK)} and sum(runs.values()) == 4 * PACK
    assert {a.incarnation for a in rt.agents if a.name == "packed"} == {2}
    assert victim not in pids(rt, "packed").values() and not psutil.pid_exists(victim)


def test_a_new_coordinator_adopts_packed_and_warm_processes_and_nothing_runs_twice(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    made = tmp_path / "made"
    rt.agents.add(Counted, count=PACK, capabilities={"counted"}, options={"file": str(made)})
    rt.wait_ready()
    gate, file = str(tmp_path / "gate"), str(tmp_path / "ran")
    work = [tool("wait", gate=gate, file=file, name=f"t{n}") for n in range(3 * PACK)]
    handles = rt.map(work, needs={"counted"})
    eventually(lambda: len(lines("ran")) == PACK, "all are busy")
    before = rt.status()
    os.kill(before.pid, signal.SIGKILL)
    after = rt.status()
    assert after.epoch == before.epoch + 1
    Path(gate).touch()
    assert len(handles.results(WAIT_S)) == 3 * PACK
    assert Counter(lines("ran")) == Counter(f"t{n}" for n in range(3 * PACK))
    assert len(lines("made")) == PACK
    assert [(a.agent_id, a.incarnation, a.pid) for a in rt.agents] == [
        (a.agent_id, a.incarnation, a.pid) for a in before.agents
    ]
    rt.agents.add(Counted, count=PACK + 1, capabilities={"counted"}, options={"file": str(made)})
    rt.wait_ready()
    assert rt.map(["x"] * 20, needs={"counted"}).results(WAIT_S) == ["X"] * 20
    rt.kill_agent("counted-0")
    eventually(lambda: {a.incarnation for a in rt.agents if a.name == "counted"} == {1, 2}, "they start again")
    rt.wait_ready()
    assert rt.figures()["warm"] == 1, "it was found"
    assert rt.map(["y"] * 20, needs={"counted"}).results(WAIT_S) == ["Y"] * 20

"""Two attempts of one task at the same time, and fallbacks, on real Ray."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_agents import GATE_S, note

import flowray as fr

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 90.0


class Racer:
    """Attempts whose numbers are in `slow` wait for the gate; `fail` makes them all fail."""

    async def run(self, task: fr.Task, ctx: fr.Context) -> str:
        payload = task.payload
        note(payload["file"], f"began-{ctx.attempt}")
        if payload.get("fail"):
            raise fr.RetryableError("not me")
        deadline = time.monotonic() + GATE_S
        try:
            while ctx.attempt in payload["slow"] and not Path(payload["gate"]).exists():
                if time.monotonic() > deadline:
                    raise RuntimeError("nobody opened the gate")
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            note(payload["file"], f"stopped-{ctx.attempt}")
            raise
        note(payload["file"], f"ended-{ctx.attempt}")
        return ctx.agent_id


class Desk:
    """Knows everything."""

    def run(self, task: fr.Task, ctx: fr.Context) -> str:
        return f"{ctx.agent_id} attempt {ctx.attempt}"


@pytest.fixture(scope="module")
def rt(start_runtime: Callable[..., fr.Runtime]) -> Iterator[fr.Runtime]:
    # What takes twice as long as the tasks before it is hedged, after half a second at least.
    acting = {"hedge_factor": 2.0, "hedge_least_s": 0.5, "hedge_share": 1.0}
    with start_runtime("twice", core__acting=acting, core__adoption_s=600.0) as runtime:
        runtime.agents.add(Racer, count=3, capabilities={"race"})
        runtime.agents.add(Desk, count=1, capabilities={"everything"})
        runtime.wait_ready()
        yield runtime


@pytest.fixture
def race(rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any]) -> Callable[..., fr.Handle]:
    """Submits a task that may run twice, and waits until as many attempts have begun as are expected."""

    def submit(*, slow: tuple[int, ...], began: int = 2, idempotent: bool = True, **more: Any) -> fr.Handle:
        common = {"gate": str(tmp_path / "gate"), "file": str(tmp_path / "seen")}
        before = {**common, "file": str(tmp_path / "before"), "slow": []}
        rt.submit(before, needs={"race"}).result(WAIT_S)  # so that the class's mean is known
        handle = rt.submit({**common, "slow": slow}, needs={"race"}, idempotent=idempotent, **more)
        eventually(lambda: len(seen(tmp_path, "began")) == began, f"{began} attempts begin")
        return handle

    return submit


def seen(directory: Path, what: str) -> list[str]:
    file = directory / "seen"
    lines = file.read_text().split() if file.exists() else []
    return [line for line in lines if line.startswith(what)]


def started(handle: fr.Handle) -> list[str]:
    return [line.agent_id for line in handle.story().lines if line.what == "started"]


def test_a_slow_attempt_is_answered_by_its_hedge_and_stopped(rt, race, tmp_path, eventually):
    handle = race(slow=(1,))
    outcome = handle.outcome(WAIT_S)
    first, second = started(handle)
    assert (outcome.state.value, outcome.agent_id, outcome.attempts) == ("succeeded", second, 2)
    assert first != second
    eventually(lambda: seen(tmp_path, "stopped") == ["stopped-1"], "the slow one is stopped")
    assert seen(tmp_path, "ended") == ["ended-2"]
    assert [line.detail for line in handle.story().lines if line.what == "started"] == ["first", "hedge"]
    assert "took longer than expected" in handle.explain()


def test_what_may_not_run_twice_is_not_hedged(rt, race, tmp_path):
    """A task that began later on an agent of the same class is hedged before this one ends, and this one is not."""
    harmful = race(slow=(1,), began=1, idempotent=False)
    other = {"gate": str(tmp_path / "gate"), "file": str(tmp_path / "other"), "slow": (1,)}
    assert rt.submit(other, needs={"race"}, idempotent=True).outcome(WAIT_S).attempts == 2
    (tmp_path / "gate").touch()
    assert harmful.outcome(WAIT_S).attempts == 1
    assert seen(tmp_path, "began") == ["began-1"]


def test_the_agent_of_one_is_killed_and_the_other_answers(rt, race, tmp_path):
    handle = race(slow=(1, 2))
    first, second = started(handle)
    rt.kill_agent(first)
    assert handle.story().state == "running"
    (tmp_path / "gate").touch()
    outcome = handle.outcome(WAIT_S)
    assert outcome.agent_id == second
    whats = [line.what for line in outcome.story]
    assert whats[:3] == ["accepted", "started", "started"] and whats[-1] == "succeeded"
    # Whether its death or the other's answer is heard first is a race; nothing is started again in either case.
    assert set(whats[3:-1]) <= {"outlived"}
    assert outcome.attempts == 2
    rt.wait_ready(WAIT_S)


def test_a_coordinator_that_dies_finds_both_again(rt, race, tmp_path, eventually):
    handle = race(slow=(1, 2))
    before = rt.status()
    os.kill(before.pid, signal.SIGKILL)
    eventually(lambda: rt.status().epoch == before.epoch + 1, "its successor")
    rt.wait_ready(WAIT_S)
    assert handle.story().state == "running"
    (tmp_path / "gate").touch()
    outcome = handle.outcome(WAIT_S)
    assert (outcome.state.value, outcome.attempts) == ("succeeded", 2)
    assert sorted(seen(tmp_path, "began")) == ["began-1", "began-2"]
    assert outcome.story[-1].agent_id in started(handle)
    eventually(lambda: all(agent.held == 0 for agent in rt.agents.view().agents), "both slots are free again")


def test_the_last_attempt_goes_to_the_fallback(rt, tmp_path):
    payload = {"gate": "", "file": str(tmp_path / "seen"), "slow": [], "fail": True}
    handle = rt.submit(payload, needs={"race"}, max_attempts=3, fallback="desk")
    assert handle.result(WAIT_S) == "desk-0 attempt 3"
    assert seen(tmp_path, "began") == ["began-1", "began-2"]
    assert "the task's fallback" in handle.explain()


def test_an_unknown_fallback_is_refused(rt):
    with pytest.raises(fr.errors.UnknownCapability, match="dask"):
        rt.submit("x", needs={"race"}, fallback="dask")


def test_two_classes_at_once_where_the_router_is_unsure(start_runtime, tmp_path, eventually):
    """A router that knows nothing of two classes expects the same of both."""
    with start_runtime(
        "unsure",
        core__routing={"enabled": True, "within_s": 5.0},
        core__acting={"copy_gain": 0.05, "copy_share": 1.0},
    ) as rt:
        for name in ("red", "blue"):
            rt.agents.add(Racer, name=name, capabilities={"race"})
        rt.wait_ready(timeout_s=WAIT_S)
        eventually(lambda: rt.status().router, "the router is loaded")
        payload = {"gate": str(tmp_path / "gate"), "file": str(tmp_path / "seen"), "slow": (1, 2)}
        handle = rt.submit(payload, prompt="who is it", needs={"race"}, idempotent=True)
        eventually(lambda: len(seen(tmp_path, "began")) == 2, "both begin")
        (tmp_path / "gate").touch()
        outcome = handle.outcome(WAIT_S)
    assert {choice.policy for choice in outcome.choices} == {"routed", "copy"}
    assert sorted(started_in(outcome)) == ["blue-0", "red-0"]
    receipts = [choice.receipt for choice in outcome.choices]
    assert [bool(receipt and receipt.propensities) for receipt in receipts] == [True, False]
    assert outcome.attempts == 2


def started_in(outcome: Any) -> list[str]:
    return [line.agent_id for line in outcome.story if line.what == "started"]

"""Tasks on real Ray: what a caller gives, gets back, waits for and is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_agents import AsyncTool, Tool, shout, whisper

import flowray as fr
from flowray.errors import IdempotencyConflict, InvalidTask, PayloadError, UnknownTask

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 60.0


@pytest.fixture(scope="module")
def rt(start_runtime: Callable[..., fr.Runtime]) -> Iterator[fr.Runtime]:
    with start_runtime("tasks", core__cancel_grace_s=0.5, core__admission__max_open_tasks=12) as runtime:
        runtime.agents.add(Tool, count=2, capabilities={"tools", "summarise"})
        runtime.agents.add(Tool, name="single", capabilities={"alone"})
        runtime.agents.add(AsyncTool, slots=3, capabilities={"async"})
        runtime.agents.add(shout, capabilities={"shout"})
        runtime.agents.add(whisper, capabilities={"whisper"})
        runtime.wait_ready()
        yield runtime


def tool(do: str, **more: Any) -> dict[str, Any]:
    return {"do": do, **more}


# ── giving and getting ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_prompt_comes_back_as_the_agents_answer(rt: fr.Runtime) -> None:
    assert rt.submit("hello", needs={"tools"}).result(WAIT_S) == "HELLO"


@pytest.mark.parametrize("value", [None, 0, "text", b"bytes", [1, [2]], {"a": {"b": 1.5}}, (1, 2), {3, 4}, {1: "one"}])
def test_a_value_comes_back_as_it_was_given(rt: fr.Runtime, value: Any) -> None:
    got = rt.submit(tool("echo", value=value), needs={"tools"}).result(WAIT_S)
    assert got == value and type(got) is type(value)


def test_a_function_is_an_agent_sync_and_async(rt: fr.Runtime) -> None:
    assert rt.submit("Hello", needs={"shout"}).result(WAIT_S) == "HELLO!"
    assert rt.submit("Hello", needs={"whisper"}).result(WAIT_S) == "hello..."


def test_an_agent_is_told_where_and_for_what_it_runs(rt: fr.Runtime) -> None:
    handle = rt.submit(tool("who"), needs={"tools"}, deadline_s=50, labels={"of": "mine"})
    said = handle.result(WAIT_S)
    assert said["agent"] == handle.outcome().agent_id
    assert said["tier"] == "secondary" and said["labels"] == {"of": "mine"} and said["needs"] == ["tools"]
    assert 0 < said["remaining_s"] <= 50


def test_what_an_agent_reports_arrives_with_the_outcome(rt: fr.Runtime) -> None:
    reports = [{"quality": 0.25, "cost_usd": 0.01}, {"quality": 0.75}]
    told = rt.submit(tool("weigh", reports=reports), needs={"tools"}).outcome(WAIT_S)
    assert (told.quality, told.cost_usd) == (0.75, 0.01)
    mute = rt.submit("x", needs={"shout"}).outcome(WAIT_S)
    assert (mute.quality, mute.cost_usd) == (None, None)
    with pytest.raises(fr.TaskFailed, match="cost_usd: wants a number of at least 0, got -1"):
        rt.submit(tool("weigh", reports=[{"cost_usd": -1}]), needs={"tools"}).result(WAIT_S)


def test_handles_can_be_awaited(rt: fr.Runtime) -> None:
    async def both() -> tuple[Any, Any, str]:
        one = rt.submit("one", needs={"tools"})
        two = rt.submit(tool("fail", message="no"), needs={"tools"})
        failure = ""
        try:
            await two
        except fr.TaskFailed as error:
            failure = error.error_type
        return await one, await asyncio.gather(*(rt.submit(n, needs={"shout"}) for n in "ab")), failure

    assert asyncio.run(both()) == ("ONE", ["A!", "B!"], "ValueError")


def test_map_keeps_the_order_and_as_completed_follows_the_outcomes(rt: fr.Runtime, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    work = [tool("wait", gate=str(gate)), tool("echo", value=1), tool("echo", value=2)]
    handles = rt.map(work, needs={"tools"})
    assert len(handles) == 3
    arrived = []
    for done in handles.as_completed(WAIT_S):
        arrived.append(done.task_id)
        if len(arrived) == 2:
            gate.touch()
    assert arrived[2] == handles[0].task_id
    assert handles.results()[1:] == [1, 2]


def test_a_wait_that_is_over_leaves_the_task_alone(rt: fr.Runtime, tmp_path: Path) -> None:
    handle = rt.submit(tool("wait", gate=str(tmp_path / "gate")), needs={"tools"})
    with pytest.raises(fr.WaitTimeout):
        handle.result(timeout_s=0.05)
    (tmp_path / "gate").touch()
    assert handle.result(WAIT_S)


def test_a_large_payload_travels_by_reference_both_ways(rt: fr.Runtime) -> None:
    value = bytes(range(256)) * 20_000
    handle = rt.submit(tool("reverse", value=value), needs={"tools"})
    assert handle.result(WAIT_S) == value[::-1]
    payload = handle.outcome().value
    assert payload is not None and payload.ref is not None and payload.data is None
    assert payload.size_bytes >= len(value)


def test_a_payload_that_cannot_be_pickled_is_refused_at_once(rt: fr.Runtime) -> None:
    with pytest.raises(PayloadError, match="payload: a dict that cannot be pickled"):
        rt.submit({"lock": threading.Lock()}, needs={"tools"})


def test_a_result_that_cannot_be_pickled_fails_its_task(rt: fr.Runtime) -> None:
    with pytest.raises(fr.TaskFailed, match="a lock that cannot be pickled") as caught:
        rt.submit(tool("lock"), needs={"tools"}).result(WAIT_S)
    assert caught.value.error_type == "PayloadError"


def test_a_task_that_makes_no_sense_is_refused_at_once(rt: fr.Runtime) -> None:
    with pytest.raises(InvalidTask, match="deadline_s"):
        rt.submit("late", deadline_s=-1)


# ── order and room ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_urgent_tasks_go_first(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    gate, file = str(tmp_path / "gate"), str(tmp_path / "order")
    first = rt.submit(tool("wait", gate=gate, file=file, name="first"), needs={"alone"})
    eventually(lambda: lines("order"), "the agent is busy")
    waiting = [
        rt.submit(tool("wait", gate=gate, file=file, name=f"p{priority}"), needs={"alone"}, priority=priority)
        for priority in (1, 5, 3, 5)
    ]
    Path(gate).touch()
    for handle in [first, *waiting]:
        handle.result(WAIT_S)
    assert lines("order") == ["first", "p5", "p5", "p3", "p1"]


def test_an_async_agent_runs_as_many_attempts_at_once_as_it_has_slots(rt: fr.Runtime, tmp_path: Path) -> None:
    work = [tool("together", file=str(tmp_path / "here"), name=name, count=3) for name in "abc"]
    assert rt.map(work, needs={"async"}).results(WAIT_S) == ["a", "b", "c"]


def test_a_full_queue_refuses_submit_and_map_waits_for_room(rt: fr.Runtime, tmp_path: Path) -> None:
    """The runtime of this module holds twelve open tasks."""
    gate = str(tmp_path / "gate")
    held = rt.map([tool("wait", gate=gate)] * 12, needs={"alone"})
    with pytest.raises(fr.QueueFull) as caught:
        rt.submit("one more", needs={"alone"})
    assert caught.value.retryable and caught.value.retry_after_s is not None and caught.value.retry_after_s > 0
    found: list[Any] = []
    waiter = threading.Thread(target=lambda: found.extend(rt.map(["late"] * 20, needs={"alone"}).results(WAIT_S)))
    waiter.start()
    Path(gate).touch()
    waiter.join(WAIT_S)
    assert found == ["LATE"] * 20
    assert len(held.results(WAIT_S)) == 12


def test_an_unknown_capability_is_refused_with_the_one_that_was_meant(rt: fr.Runtime) -> None:
    with pytest.raises(fr.UnknownCapability, match="no agent has 'sumarise'; did you mean 'summarise'"):
        rt.submit("x", needs={"sumarise"})


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_repeat_with_the_same_key_is_the_same_task(rt: fr.Runtime, tmp_path: Path) -> None:
    work = tool("wait", gate=str(tmp_path / "gate"))
    first = rt.submit(work, needs={"tools"}, key="once")
    again = rt.submit(work, needs={"tools"}, key="once")
    assert again.task_id == first.task_id
    (tmp_path / "gate").touch()
    assert again.result(WAIT_S) == first.result(WAIT_S)
    late = rt.submit(work, needs={"tools"}, key="once")
    assert late.task_id == first.task_id and late.result(WAIT_S) == first.result()


def test_the_same_key_for_something_else_is_a_conflict(rt: fr.Runtime) -> None:
    rt.submit("one", needs={"tools"}, key="mine").result(WAIT_S)
    with pytest.raises(IdempotencyConflict, match="'mine'"):
        rt.submit("two", needs={"tools"}, key="mine")


# ── failing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_exception_comes_back_with_the_frames_of_the_users_code_alone(rt: fr.Runtime) -> None:
    with pytest.raises(fr.TaskFailed, match="ValueError: the file is empty") as caught:
        rt.submit(tool("fail", message="the file is empty"), needs={"tools"}).result(WAIT_S)
    error = caught.value
    assert error.error_type == "ValueError"
    assert "in fail" in error.agent_traceback and "ray_agents.py" in error.agent_traceback
    assert "flowray/runtime" not in error.agent_traceback
    assert "accepted" in error.story


def test_a_retryable_error_is_tried_again_until_it_works(rt: fr.Runtime) -> None:
    handle = rt.submit(tool("flaky", until=3), needs={"tools"}, max_attempts=3)
    assert handle.result(WAIT_S) == 3
    assert [line.what for line in handle.story().lines].count("attempt_failed") == 2


def test_a_retryable_error_is_not_tried_for_ever(rt: fr.Runtime) -> None:
    with pytest.raises(fr.TaskFailed, match="not at attempt 2"):
        rt.submit(tool("flaky", until=9), needs={"tools"}, max_attempts=2).result(WAIT_S)


def test_a_deadline_ends_a_task(rt: fr.Runtime, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    handle = rt.submit(tool("wait", gate=str(gate)), needs={"tools"}, deadline_s=0.3)
    with pytest.raises(fr.TaskExpired, match=r"not finished within 0\.3 s"):
        handle.result(WAIT_S)
    gate.touch()


def test_an_attempt_that_takes_too_long_fails(rt: fr.Runtime, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    work = tool("wait", gate=str(gate))
    handle = rt.submit(work, needs={"tools"}, attempt_timeout_s=0.2, max_attempts=1)
    with pytest.raises(fr.TaskFailed, match=r"did not end within 0\.2 s"):
        handle.result(WAIT_S)
    gate.touch()


# ── cancelling ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_queued_task_can_be_cancelled(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    gate, file = str(tmp_path / "gate"), str(tmp_path / "ran")
    first = rt.submit(tool("wait", gate=gate, file=file, name="first"), needs={"alone"})
    eventually(lambda: lines("ran"), "the agent is busy")
    second = rt.submit(tool("wait", gate=gate, file=file, name="second"), needs={"alone"})
    assert second.cancel() == "cancelled"
    with pytest.raises(fr.TaskCancelled):
        second.result(WAIT_S)
    Path(gate).touch()
    first.result(WAIT_S)
    assert rt.submit("after", needs={"alone"}).result(WAIT_S) == "AFTER"
    assert lines("ran") == ["first"]


def test_running_async_code_is_cancelled_where_it_waits(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    handle = rt.submit(tool("sleep", file=str(tmp_path / "said")), needs={"async"})
    eventually(lambda: lines("said"), "it runs")
    assert handle.cancel() == "cancelled"
    with pytest.raises(fr.TaskCancelled):
        handle.result(WAIT_S)
    eventually(lambda: lines("said") == ["began", "cancelled"], "the coroutine is told")


def test_sync_code_that_looks_learns_that_it_is_cancelled(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    handle = rt.submit(tool("polite", file=str(tmp_path / "said")), needs={"alone"})
    eventually(lambda: lines("said"), "it runs")
    before = incarnation(rt, "single-0")
    assert handle.cancel() == "cancelled"
    eventually(lambda: lines("said") == ["began", "noticed"], "the context says so")
    assert rt.submit("next", needs={"alone"}).result(WAIT_S) == "NEXT"
    assert incarnation(rt, "single-0") == before


def test_sync_code_that_goes_on_after_a_cancel_loses_its_process(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    handle = rt.submit(
        tool("wait", gate=str(tmp_path / "never"), file=str(tmp_path / "said"), name="began"), needs={"alone"}
    )
    eventually(lambda: lines("said"), "it runs")
    before = incarnation(rt, "single-0")
    assert handle.cancel() == "cancelled"
    assert rt.submit("next", needs={"alone"}).result(WAIT_S) == "NEXT"
    assert incarnation(rt, "single-0") == before + 1


def test_cancelling_what_has_ended_says_how_it_ended(rt: fr.Runtime) -> None:
    handle = rt.submit("x", needs={"tools"})
    handle.result(WAIT_S)
    assert handle.cancel() == "succeeded"
    assert handle.result() == "X"


def incarnation(rt: fr.Runtime, agent_id: str) -> int:
    return next(a.incarnation for a in rt.agents if a.agent_id == agent_id)


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_dead_letters_are_listed_replayed_and_purged(rt: fr.Runtime, tmp_path: Path) -> None:
    failed = rt.submit(tool("fail", message="first time"), needs={"tools"})
    with pytest.raises(fr.TaskFailed):
        failed.result(WAIT_S)
    letters = rt.dead_letters(limit=1).letters
    assert [letter.task.id for letter in letters] == [failed.task_id]
    assert letters[0].outcome.failure is not None and letters[0].outcome.failure.message == "first time"
    again = rt.replay(failed.task_id)
    assert again.task_id != failed.task_id
    with pytest.raises(fr.TaskFailed, match="first time"):
        again.result(WAIT_S)
    assert rt.dead_letter(again.task_id).task.replay_of == failed.task_id
    assert rt.purge(failed.task_id)
    assert not rt.purge(failed.task_id)
    with pytest.raises(UnknownTask):
        rt.dead_letter(failed.task_id)
    with pytest.raises(UnknownTask):
        rt.replay(failed.task_id)
    assert rt.handle(failed.task_id).outcome(WAIT_S).state.value == "dead", "its outcome stays"


def test_a_handle_can_be_had_from_the_id(rt: fr.Runtime) -> None:
    first = rt.submit("again", needs={"tools"})
    first.result(WAIT_S)
    other = rt.handle(first.task_id)
    assert other.result(WAIT_S) == "AGAIN" and other.outcome() == first.outcome()
    with pytest.raises(UnknownTask):
        rt.handle("no-such-task").result(WAIT_S)


def test_story_and_explanation_say_what_happened_and_why(rt: fr.Runtime) -> None:
    handle = rt.submit("tell", needs={"alone"})
    handle.result(WAIT_S)
    assert [line.what for line in handle.story().lines] == ["accepted", "started", "succeeded"]
    assert "single-0" in handle.explain()
    assert "<" in handle._repr_html_()


def test_the_status_counts_and_shows_the_agents(rt: fr.Runtime, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    handles = rt.map([tool("wait", gate=str(gate))] * 3, needs={"alone"})
    status = rt.status()
    assert status.name == "tasks" and status.running >= 1 and status.queued + status.running == 3
    gate.touch()
    handles.results(WAIT_S)
    assert {a.name for a in rt.agents} == {"tool", "single", "asynctool", "shout", "whisper"}
    assert len(rt.agents) == 6 and all(a.state == "ready" and a.pid for a in rt.agents)
    assert rt.status().ended["succeeded"] >= 3

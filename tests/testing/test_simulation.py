"""The public simulation: users' own agents, virtual time, faults on demand."""

from __future__ import annotations

import time

import pytest

import flowray as fr
from flowray.core.admission import AdmissionPolicy
from flowray.core.policy import CorePolicy
from flowray.errors import (
    ConfigError,
    IdempotencyConflict,
    InvalidTask,
    PayloadError,
    QueueFull,
    RetryableError,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    UnknownCapability,
    WaitTimeout,
)
from flowray.testing import (
    AgentStartFailure,
    CoordinatorCrash,
    CoordinatorZombie,
    Crash,
    Delay,
    Drop,
    Duplicate,
    Fixed,
    Hang,
    LogNormal,
    LostTail,
    Reorder,
    Simulation,
    SlowDisk,
    Uniform,
)


@fr.agent(capabilities={"summarise"}, tier="primary")
class Writer:
    def __init__(self, mood="plain"):
        self.mood = mood
        self.seen = 0

    def run(self, task, ctx):
        self.seen += 1
        if task.prompt == "bad":
            raise ValueError("cannot read this")
        if task.prompt == "flaky" and ctx.attempt < 3:
            raise RetryableError("not now")
        return f"{self.mood}: {task.prompt}"


def team(count=2, **fields):
    sim = Simulation(seed=7, **fields)
    sim.agents.add(Writer, count=count)
    return sim


def test_a_task_comes_back_with_its_value_after_virtual_time_only():
    began = time.perf_counter()
    sim = team(service_s=3600.0)
    handle = sim.submit("report", needs={"summarise"}, priority=5)
    assert handle.state in ("queued", "running")
    assert handle.result(timeout_s=4000) == "plain: report"
    assert (handle.state, handle.done) == ("succeeded", True)
    assert 3600 < sim.now < 3700
    assert time.perf_counter() - began < 5.0


def test_options_reach_the_constructor_and_payloads_the_agent():
    sim = Simulation()
    sim.agents.add(Writer, name="glad", options={"mood": "glad"})
    sim.agents.add(lambda task: task.payload, name="back", capabilities={"back"})
    assert sim.submit("x", agent="glad").result() == "glad: x"
    for payload in ([1, "two", None], {"a": b"b"}, ("tuple",), {1, 2}):
        assert sim.submit(payload, needs={"back"}).result() == payload


async def double(task):
    return task.payload * 2


def test_functions_and_async_functions_are_agents():
    sim = Simulation(agents=1)
    assert sim.submit("echo").result() == "echo"
    sim.agents.add(double, capabilities={"double"})
    assert sim.submit(21, needs={"double"}).result() == 42


def test_a_failure_carries_the_agents_traceback_and_the_story():
    with pytest.raises(TaskFailed) as caught:
        team().submit("bad", needs={"summarise"}).result(timeout_s=10)
    assert caught.value.error_type == "ValueError"
    assert 'raise ValueError("cannot read this")' in str(caught.value)
    assert "+0.000 s  accepted" in caught.value.story


def test_retryable_errors_are_tried_again():
    sim = team()
    handle = sim.submit("flaky", needs={"summarise"})
    assert handle.result(timeout_s=60) == "plain: flaky"
    assert handle.story().count("attempt_failed") == 2
    assert len(handle.explain().splitlines()) == 3
    with pytest.raises(TaskFailed, match="not now"):
        sim.submit("flaky", needs={"summarise"}, max_attempts=2).result()


class Weighs:
    def run(self, task, ctx):
        ctx.report(quality=0.25, cost_usd=0.01)
        if task.prompt == "flaky" and ctx.attempt < 2:
            ctx.report(cost_usd=7.0)
            raise RetryableError("not now")
        if task.prompt == "wrong":
            ctx.report(quality=7)
        ctx.report(quality=0.75)


class WeighsLater:
    async def run(self, task, ctx):
        ctx.report(cost_usd=0.5)


def test_what_an_agent_reports_arrives_with_the_outcome():
    sim = Simulation()
    sim.agents.add(Weighs, capabilities={"weigh"})
    sim.agents.add(WeighsLater, capabilities={"later"})
    sim.agents.add(lambda task: task.prompt, name="mute", capabilities={"mute"})

    def reported(prompt, need):
        outcome = sim.submit(prompt, needs={need}).outcome()
        return outcome.quality, outcome.cost_usd

    assert reported("x", "weigh") == (0.75, 0.01)
    assert reported("flaky", "weigh") == (0.75, 0.01), "of the attempt that was accepted"
    assert reported("x", "later") == (None, 0.5)
    assert reported("x", "mute") == (None, None)
    with pytest.raises(TaskFailed, match="quality: wants a number from 0 to 1, got 7"):
        sim.submit("wrong", needs={"weigh"}).result()


def test_every_refusal_has_its_error():
    sim = team(policy=CorePolicy(admission=AdmissionPolicy(max_open_tasks=2)))
    with pytest.raises(UnknownCapability, match="did you mean 'summarise'"):
        sim.submit("x", needs={"sumarise"})
    first = sim.submit("x", key="k")
    assert sim.submit("x", key="k").task_id == first.task_id
    with pytest.raises(IdempotencyConflict):
        sim.submit("y", key="k")
    sim.submit("y")
    with pytest.raises(QueueFull) as caught:
        sim.submit("z")
    assert caught.value.retryable
    assert len(sim.map(["a"] * 5).results(timeout_s=60)) == 5  # map waits for room


def test_a_wait_may_run_out_and_the_task_goes_on():
    sim = team(service_s=10.0)
    handle = sim.submit("x")
    with pytest.raises(WaitTimeout):
        handle.result(timeout_s=1)
    assert handle.result(timeout_s=60) == "plain: x"


def test_deadline_and_cancel():
    sim = team(service_s=10.0)
    late, unwanted = sim.submit("x", deadline_s=2.0), sim.submit("y")
    assert unwanted.cancel() == "cancelled"
    assert unwanted.cancel() == "cancelled"
    with pytest.raises(TaskCancelled):
        unwanted.result()
    with pytest.raises(TaskExpired, match="2 s"):
        late.result()
    assert late.cancel() == "expired"


def test_map_gives_each_as_it_is_done():
    sim = team(count=4)
    sim.agents.add(Writer, count=4, service_s=lambda task: float(task.prompt))
    handles = sim.map(["3", "1", "2"])
    assert len(handles) == 3
    assert [handle.result() for handle in handles.as_completed(timeout_s=60)] == ["plain: 1", "plain: 2", "plain: 3"]
    assert [handle.task_id for handle in handles][:2] == [handle.task_id for handle in handles[:2]]
    with pytest.raises(WaitTimeout):
        sim.map(["50"]).results(timeout_s=1)


@pytest.mark.parametrize("service_s", [0.5, Fixed(0.5), Uniform(0.4, 0.6), LogNormal(0.5, 0.1), lambda task: 0.5])
def test_service_times_come_in_many_shapes(service_s):
    sim = team(service_s=service_s)
    assert 0.1 < sim.submit("x").outcome().run_s < 2.0


@pytest.mark.parametrize(
    "faults",
    [
        [Crash(share=0.5, at_s=3)],
        [Crash(rate_per_s=0.5), LostTail(), SlowDisk()],
        [Hang(share=0.5, at_s=2, lasts_s=3)],
        [CoordinatorCrash(at_s=2), SlowDisk(sync_s=0.5), LostTail()],
        [CoordinatorZombie(at_s=2, pause_s=4)],
        [Drop(ratio=0.1), Duplicate(ratio=0.1), Delay(max_s=1.0), Reorder(ratio=0.1)],
        [AgentStartFailure(ratio=0.3, hang_ratio=0.1)],
    ],
    ids=lambda faults: type(faults[0]).__name__,
)
def test_no_fault_loses_a_task(faults):
    sim = team(count=4, faults=faults, service_s=0.5)
    values = sim.map([f"{n}" for n in range(60)], needs={"summarise"}).results(timeout_s=600)
    assert values == [f"plain: {n}" for n in range(60)]
    assert all(values)


def test_a_hung_agent_is_got_rid_of_by_the_attempts_timeout():
    sim = team(count=1, faults=[Hang(share=1.0, at_s=1.0, lasts_s=float("inf"))], service_s=2.0)
    handle = sim.submit("x", attempt_timeout_s=5.0)
    assert handle.result(timeout_s=60) == "plain: x"
    assert "stop agent" in sim.trace


def test_a_constructor_that_raises_is_told_to_the_next_caller():
    sim = Simulation()
    sim.agents.add(Writer, options={"mod": "glad"})
    handle = sim.submit("x")
    with pytest.raises(TaskFailed, match="unexpected keyword argument 'mod'"):
        handle.result(timeout_s=60)
    with pytest.raises(UnknownCapability, match="unexpected keyword argument"):
        sim.submit("y")


async def test_a_handle_can_be_awaited():
    assert await team().submit("x") == "plain: x"


def test_settling_leaves_nothing_behind():
    with team(count=3, faults=[Crash(rate_per_s=1.0), CoordinatorCrash(rate_per_s=0.3)], service_s=1.0) as sim:
        handles = sim.map([str(n) for n in range(20)])
        sim.run_for(5.0)
        sim.settle()
        assert all(handle.state in ("succeeded", "dead") for handle in handles)
        assert len(sim.agents) == 3


def test_the_same_seed_gives_the_same_run():
    def run(seed):
        sim = Simulation(seed=seed, agents=4, faults=[Crash(rate_per_s=1.0), CoordinatorCrash(rate_per_s=0.2)])
        sim.map(range(50)).results(timeout_s=600)
        return sim.trace

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"needs": "summarise"}, InvalidTask),
        ({"deadline_s": 0.0}, InvalidTask),
        ({"attempt_timeout_s": -1.0}, InvalidTask),
        ({"max_attempts": 0}, InvalidTask),
        ({"payload": lambda: 0}, PayloadError),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(wrong, error):
    with pytest.raises(error):
        team().submit("x", **wrong)


def test_faults_check_their_ranges():
    with pytest.raises(ConfigError, match=r"Drop\.ratio"):
        Drop(ratio=1.5)
    with pytest.raises(ConfigError, match="either at_s or rate_per_s"):
        Crash(share=0.5)
    with pytest.raises(ConfigError, match="negative"):
        SlowDisk(sync_s=-1)


class Counter:
    """A generator: what it yields are chunks, what it returns is the answer."""

    def run(self, task, ctx):
        for number in range(int(task.prompt)):
            yield {"number": number, "attempt": ctx.attempt} if "flaky" in task.labels else number
        return "done"


def test_chunks_are_read_while_virtual_time_passes_and_again_afterwards():
    sim = Simulation(seed=1, service_s=10.0)
    sim.agents.add(Counter, count=2)
    handle = sim.submit("5")
    at = []
    for chunk in handle.stream():
        at.append((chunk.seq, chunk.value, sim.now))
    assert [(seq, value) for seq, value, _ in at] == [(n, n) for n in range(5)]
    assert at[-1][2] - at[0][2] > 5.0, "as they come, not at the end"
    assert [chunk.value for chunk in handle.stream(start=3)] == [3, 4]
    assert handle.result() == "done"
    sim.settle()


@pytest.mark.parametrize("kind", ["function", "async", "async generator"])
def test_every_kind_of_agent_may_give_out_chunks(kind):
    async def yielding(task):
        for number in range(3):
            yield number

    async def emitting(task, ctx):
        for number in range(3):
            await ctx.emit(number)
        return "done"

    def plain(task, ctx):
        for number in range(3):
            ctx.emit(number)
        return "done"

    sim = Simulation(seed=1)
    sim.agents.add({"function": plain, "async": emitting, "async generator": yielding}[kind], name="agent")
    handle = sim.submit("")
    assert [chunk.value for chunk in handle.stream()] == [0, 1, 2]
    assert handle.result() == (2 if kind == "async generator" else "done")


def test_a_crash_is_a_restart_where_the_next_attempt_differs_and_unseen_where_it_does_not():
    for labels, restarted in (({}, False), ({"flaky": "yes"}, True)):
        sim = Simulation(seed=3, service_s=10.0, faults=[Crash(share=1.0, at_s=6.0)])
        sim.agents.add(Counter, count=2)
        parts = []
        items = list(sim.submit("8", labels=labels).stream())
        for item in items:
            if isinstance(item, fr.Restarted):
                del parts[item.seq :]
            else:
                assert item.seq == len(parts)
                parts.append(item.value)
        assert len(parts) == 8
        assert any(isinstance(item, fr.Restarted) for item in items) == restarted
        sim.settle()


def test_a_stream_of_a_task_that_fails_raises_at_its_end():
    def failing(task, ctx):
        ctx.emit("so far")
        raise ValueError("odd")

    sim = Simulation(seed=1)
    sim.agents.add(failing, name="failing")
    stream = sim.submit("").stream()
    assert next(stream).value == "so far"
    with pytest.raises(TaskFailed, match="odd"):
        next(stream)

"""Steps without a runtime, in a simulation, and what is told to those who use them wrongly."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import flowray as fr
from flowray.core.fencing import fence_of, idempotency_key
from flowray.errors import ConfigError, StepLimit
from flowray.steps import InMemory
from flowray.testing import Crash, Simulation


def context(**fields: Any) -> fr.Context:
    return fr.Context(**{"agent_id": "a-0", "task_id": "t", "attempt": 2, "epoch": 3, **fields})


def test_a_context_made_by_hand_keeps_steps_in_memory() -> None:
    ctx = context()
    assert ctx.step("sum", sum, [1, 2]) == 3
    assert ctx.step("options", dict, a=1) == {"a": 1}
    assert ctx.fence == fence_of(3, 2)
    assert ctx.idempotency_key("send") == idempotency_key("t", "send") == context(attempt=5).idempotency_key("send")


def test_what_is_recorded_is_not_run_again() -> None:
    recorder = InMemory()
    runs: list[int] = []

    def work(attempt: int) -> int:
        runs.append(attempt)
        return attempt

    async def async_work(attempt: int) -> int:
        return work(attempt)

    async def both(ctx: fr.Context, attempt: int) -> list[int]:
        return [await ctx.step("b", work, attempt), await ctx.step("c", async_work, attempt)]

    for attempt in (1, 2):
        ctx = context(attempt=attempt, recorder=lambda: recorder)
        assert ctx.step("a", work, attempt) == 1
        assert asyncio.run(both(ctx, attempt)) == [1, 1]
    assert runs == [1, 1, 1]


@pytest.mark.parametrize("what", ["step", "fence", "idempotency_key"])
def test_there_are_no_steps_while_a_message_is_handled(what: str) -> None:
    ctx = fr.Context(agent_id="a-0")
    calls = {
        "step": lambda: ctx.step("x", int),
        "fence": lambda: ctx.fence,
        "idempotency_key": lambda: ctx.idempotency_key("x"),
    }
    with pytest.raises(ConfigError, match=f"ctx.{what}: a-0 runs no task here"):
        calls[what]()


def test_names_are_used_once_and_given_back_by_what_raises() -> None:
    ctx = context()
    with pytest.raises(ZeroDivisionError):
        ctx.step("odd", lambda: 1 // 0)
    assert ctx.step("odd", int) == 0
    with pytest.raises(ConfigError, match=r"has a step 'odd' already.*odd-\{number\}"):
        ctx.step("odd", int)

    async def at_once() -> list[Any]:
        first = ctx.step("same", int)
        with pytest.raises(ConfigError, match="'same' already"):
            ctx.step("same", int)
        return [await first]

    assert asyncio.run(at_once()) == [0]


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", 7])
def test_names_that_are_none(name: Any) -> None:
    with pytest.raises(ConfigError, match="is no name of a step"):
        context().step(name, int)


def test_functions_that_are_none() -> None:
    async def work() -> int:
        return 1

    with pytest.raises(ConfigError, match="wants a function"):
        context().step("a", 7)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'a' is async and this code is not"):
        context().step("a", work)


def test_a_full_task_is_told_before_the_function_runs() -> None:
    recorder = InMemory()
    recorder.values.update({f"s{number}": number for number in range(256)})
    ctx = context(recorder=lambda: recorder)
    ran: list[int] = []
    assert ctx.step("s7", lambda: ran.append(1)) == 7
    with pytest.raises(StepLimit, match="has 256 recorded steps"):
        ctx.step("one more", lambda: ran.append(1))
    assert not ran


def test_simulated_agents_take_steps() -> None:
    """An agent is killed in every attempt but the last: what was recorded until then is what the next one is given."""

    class Worker:
        def run(self, task: fr.Task, ctx: fr.Context) -> list[Any]:
            fences.append(ctx.fence)
            return [ctx.step(f"s{number}", lambda: ctx.attempt) for number in range(3)]

    fences: list[int] = []
    sim = Simulation(seed=5, faults=[Crash(share=1.0, at_s=5.0), Crash(share=1.0, at_s=12.0)], service_s=8.0)
    sim.agents.add(Worker)
    handle = sim.submit("x")
    assert handle.result(timeout_s=600) == [1, 1, 2]
    assert len(fences) == 3 and fences == sorted(set(fences))
    sim.settle()

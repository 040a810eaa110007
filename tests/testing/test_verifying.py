"""Verifiers in the simulation: what an agent's class thinks of its own answers, and the ladder that this makes."""

from __future__ import annotations

import pytest

import flowray as fr
from flowray.errors import ConfigError, GradeRefused, TaskFailed
from flowray.testing import CoordinatorCrash, LostTail, Simulation


class Guess:
    """Answers at random for all it knows; its verifier can tell."""

    def run(self, task: fr.Task, ctx: fr.Context) -> str:
        ctx.report(cost_usd=0.001)
        return "guess" if task.attempt == 1 else "knowledge"

    def verify(self, task: fr.Task, answer: str) -> float:
        return 0.2 if answer == "guess" else 0.9


class Sure(Guess):
    def run(self, task: fr.Task, ctx: fr.Context) -> str:
        ctx.report(quality=0.95)
        return "guess"


class Later(Guess):
    async def run(self, task: fr.Task) -> str:
        return "knowledge"

    async def verify(self, task: fr.Task, answer: str) -> bool:
        return task.prompt == "fine"


class Broken(Guess):
    def verify(self, task: fr.Task, answer: str) -> float:
        raise ConnectionError("no test machine") if task.attempt == 1 else ValueError("odd")


class Wrong(Guess):
    def verify(self, task: fr.Task, answer: str) -> float:
        return 3.0


def test_the_verifier_is_the_quality_and_drives_the_ladder() -> None:
    sim = Simulation(seed=1)
    sim.agents.add(Guess)
    plain = sim.submit("x")
    assert (plain.result(60), plain.outcome().quality) == ("guess", 0.2)
    ladder = sim.submit("x", least_quality=0.8)
    assert (ladder.result(60), ladder.outcome().quality, ladder.outcome().attempts) == ("knowledge", 0.9, 2)
    (short,) = ladder.outcome().not_enough
    assert (short.attempt, short.quality, short.cost_usd) == (1, 0.2, 0.001)
    assert "worth 0.2" in ladder.story()
    sim.settle()


def test_what_run_reported_itself_stands() -> None:
    sim = Simulation(seed=1)
    sim.agents.add(Sure)
    assert sim.submit("x").outcome(60).quality == 0.95


def test_async_verifiers_and_yes_or_no() -> None:
    sim = Simulation(seed=1)
    sim.agents.add(Later)
    assert sim.submit("fine").outcome(60).quality == 1.0
    assert sim.submit("poor").outcome(60).quality == 0.0


def test_what_a_verifier_raises_is_the_attempts_failure_and_told_as_such() -> None:
    sim = Simulation(seed=1)
    sim.agents.add(Broken)
    handle = sim.submit("x", max_attempts=5)
    with pytest.raises(TaskFailed, match="ValueError: verify, after run had answered: odd"):
        handle.result(600)
    assert "no test machine" in handle.story()  # was worth another attempt
    assert handle.outcome().attempts == 2
    sim.agents.add(Wrong)
    with pytest.raises(TaskFailed, match="verify: wants a number from 0 to 1, got 3"):
        sim.submit("x", agent="wrong").result(600)


def test_grades_in_the_simulation_are_on_disk_when_they_are_answered() -> None:
    sim = Simulation(seed=3, faults=[CoordinatorCrash(rate_per_s=0.5), LostTail(ratio=0.5)])
    sim.agents.add(Guess)
    handles = [sim.submit(f"x{number}") for number in range(20)]
    for number, handle in enumerate(handles):
        handle.result(600)
        handle.grade(number / 20)
        assert sim.world.disk.grades[handle.task_id].quality == number / 20
    handles[0].grade(1.0)
    assert sim.world.disk.grades[handles[0].task_id].quality == 1.0
    for wrong in (-0.1, 1.1, "good"):
        with pytest.raises(ConfigError, match="quality"):
            handles[0].grade(wrong)
    cancelled = sim.submit("never")
    assert cancelled.cancel() == "cancelled"
    with pytest.raises(GradeRefused, match="it is cancelled"):
        cancelled.grade(0.5)
    sim.settle()

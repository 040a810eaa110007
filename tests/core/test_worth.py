"""Asking a router only where that pays: what is counted, and what follows for a team's tasks."""

from __future__ import annotations

import random

import pytest

from flowray.core.commands import RequestEstimates, StartAttempt
from flowray.core.coordination import Coordination
from flowray.core.events import AgentReady, AgentsAdded, AttemptFinished, EstimatesReady, TaskSubmitted
from flowray.core.model import AgentId, AgentSpec, Choice, Estimate, Payload, Task, TaskId
from flowray.core.policy import CorePolicy
from flowray.core.routing import RoutingPolicy
from flowray.core.worth import SEEN, Worth

POLICY = RoutingPolicy(enabled=True)


def noted(worth: Worth, times: int, *, better: float, done_s: float, took_s: float) -> Worth:
    for _ in range(times):
        worth.note((0.5 + better, 0.5), (1.0, 0.0), (1, 1), done_s, took_s, POLICY)
    return worth


class TestWorth:
    def test_few_decisions_say_nothing(self) -> None:
        assert noted(Worth(), SEEN - 1, better=0.0, done_s=0.001, took_s=0.01).pays
        assert not noted(Worth(), SEEN, better=0.0, done_s=0.001, took_s=0.01).pays

    def test_of_two_as_likely_agents_the_better_one_is_worth_half_its_lead(self) -> None:
        worth = noted(Worth(), 10, better=0.2, done_s=1.0, took_s=1.0)
        assert worth.gain == pytest.approx(0.1)
        assert worth.cost == pytest.approx(POLICY.slowdown + POLICY.second)

    def test_tasks_that_take_seconds_are_always_asked_about(self) -> None:
        assert noted(Worth(), 1_000, better=0.002, done_s=5.0, took_s=0.003).pays

    def test_short_ones_only_if_it_matters_who_does_them(self) -> None:
        worth = noted(Worth(), 1_000, better=0.01, done_s=0.001, took_s=0.003)
        assert not worth.pays
        assert noted(worth, 200, better=0.3, done_s=0.001, took_s=0.003).pays

    def test_answers_that_take_no_time_always_pay(self) -> None:
        assert noted(Worth(), 1_000, better=0.0, done_s=0.001, took_s=0.0).pays


class Team:
    """Two classes of agents, a router that takes its time, and a clock."""

    def __init__(self, success: dict[str, float], took_s: float = 0.01, **policy: float) -> None:
        self.success, self.took_s, self.now, self.tasks = success, took_s, 0.0, 0
        routing = RoutingPolicy(enabled=True, **policy)
        self.core = Coordination(epoch=1, rng=random.Random(0), policy=CorePolicy(routing=routing))
        for name in success:
            self.core.handle(AgentsAdded(AgentSpec(name=name, tier="", capabilities=("do",))), 0.0)
            self.core.handle(AgentReady(AgentId(f"{name}-0"), 1), 0.0)

    def run(self, times: int, **task: object) -> list[Choice]:
        """So many tasks, one after the other; why each went where it did."""
        choices = []
        for _ in range(times):
            self.tasks += 1
            submitted = Task(id=TaskId(f"t{self.tasks}"), needs=("do",), **task)  # type: ignore[arg-type]
            commands = self.core.handle(TaskSubmitted(submitted), self.now)
            if any(isinstance(command, RequestEstimates) for command in commands):
                self.now += self.took_s
                estimates = tuple(Estimate(name, p, 0.0, None, 0.001) for name, p in self.success.items())
                commands = self.core.handle(EstimatesReady(((submitted.id, estimates),), "local", "v"), self.now)
            (start,) = (command for command in commands if isinstance(command, StartAttempt))
            choices.append(start.choice)
            self.now += 0.001
            self.core.handle(
                AttemptFinished(submitted.id, 1, 1, start.agent_id, value=Payload(data=b"x"), run_s=0.001), self.now
            )
        return choices


def asked(choices: list[Choice]) -> float:
    return sum(choice.receipt is not None for choice in choices) / len(choices)


def test_where_all_are_as_good_most_short_tasks_do_not_wait_for_an_answer() -> None:
    team = Team({"a": 0.9, "b": 0.9})
    assert asked(team.run(SEEN)) == 1.0
    later = team.run(800)
    assert 0.02 < asked(later) < 0.12
    assert {choice.unrouted for choice in later if choice.receipt is None} == {"not_worth"}
    team.core.check()


def test_once_it_matters_again_all_are_asked_about() -> None:
    team = Team({"a": 0.9, "b": 0.9})
    team.run(400)
    team.success["b"] = 0.1
    team.run(1_000)
    assert asked(team.run(200)) == 1.0


def test_what_a_caller_wants_more_of_is_always_asked_about() -> None:
    team = Team({"a": 0.9, "b": 0.9})
    team.run(400)
    for wish in ({"quality": 0.9}, {"max_cost_usd": 1.0}, {"weights": {"usd": 1.0}}, {"builds_on": "a"}):
        assert asked(team.run(20, **wish)) == 1.0, wish


def test_a_policy_may_want_all_to_be_asked_about() -> None:
    assert asked(Team({"a": 0.9, "b": 0.9}, sampled=1.0).run(400)) == 1.0


def test_instant_answers_are_always_wanted() -> None:
    assert asked(Team({"a": 0.9, "b": 0.9}, took_s=0.0).run(400)) == 1.0

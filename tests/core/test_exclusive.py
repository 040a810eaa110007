"""Exclusive tasks in the core: the next attempt begins when the last one is over for certain, or must be."""

from __future__ import annotations

import pytest

from flowray.core.commands import RequeueTask, StartAttempt
from flowray.core.events import AgentLost, AgentReady
from flowray.core.model import AgentId, Running, TaskId
from flowray.core.policy import CorePolicy
from flowray.errors import ConfigError

from .builders import Team

POLICY = CorePolicy(fence_s=11.0, adoption_s=2.0, cancel_grace_s=4.0)


@pytest.fixture
def team() -> Team:
    team = Team(POLICY)
    team.ready(2)
    team.submit("t", exclusive=True)
    return team


def runner(team: Team) -> str:
    return team.core.book.open[TaskId("t")].agent_id


def other(team: Team) -> str:
    return "writer-1" if runner(team) == "writer-0" else "writer-0"


def lose(team: Team, name: str, *, certain: bool) -> None:
    team.tell(AgentLost(AgentId(name), team.incarnation(name), "gone", certain))


def starts(team: Team) -> list[float]:
    """When its attempts were started."""
    return [command.at for command in team.journal if isinstance(command, StartAttempt)]


def test_after_a_certain_death_it_goes_on_at_once(team: Team) -> None:
    lose(team, runner(team), certain=True)
    assert starts(team) == [0.0, 0.0]


def test_after_an_uncertain_loss_it_waits(team: Team) -> None:
    lose(team, runner(team), certain=False)
    assert team.state("t") == "backing_off"
    held_back = team.journal[-1]
    assert isinstance(held_back, RequeueTask) and (held_back.arrow, held_back.not_before) == ("held_back", 11.0)
    team.tick(30.0)
    assert starts(team) == [0.0, 11.0]


def test_others_do_not_wait() -> None:
    team = Team(POLICY)
    team.ready(2)
    team.submit("t")
    lose(team, runner(team), certain=False)
    assert starts(team) == [0.0, 0.0]


def test_an_agent_that_does_not_report_to_a_new_coordinator_is_waited_for(team: Team) -> None:
    team.restart()
    team.up(other(team))
    team.tick(1.9)
    assert team.state("t") == "running"
    team.tick(60.0)
    assert starts(team) == [0.0, 2.0 + 11.0]


def test_the_wait_goes_on_in_the_next_coordinator(team: Team) -> None:
    free = other(team)
    lose(team, runner(team), certain=False)
    team.tick(5.0)
    team.restart()
    team.up(free)
    team.tick(60.0)
    assert starts(team) == [0.0, 5.0 + 11.0], "from the restart: the agent may have been heard in between"


def test_a_timed_out_attempt_is_waited_for_until_it_says_that_it_is_over() -> None:
    team = Team(POLICY)
    team.ready(2)
    team.submit("t", exclusive=True, attempt_timeout_s=1.0)
    slow = runner(team)
    team.tick(3.0)
    assert team.state("t") == "backing_off" and starts(team) == [0.0]
    team.answer(slow, "t")
    team.tick(3.0)
    assert starts(team) == [0.0, 3.0]


def test_a_timed_out_attempt_that_does_not_stop_is_waited_for_until_its_process_must_have_ended() -> None:
    team = Team(POLICY)
    team.ready(2)
    team.submit("t", exclusive=True, attempt_timeout_s=1.0)
    team.tick(60.0)
    assert starts(team)[:2] == [0.0, 1.0 + 4.0 + 11.0]


def test_one_seen_dead_meanwhile_is_not_waited_for() -> None:
    team = Team(POLICY)
    team.ready(2)
    team.submit("t", exclusive=True, attempt_timeout_s=1.0)
    slow = runner(team)
    team.tick(2.0)
    lose(team, slow, certain=True)
    team.tick(2.0)
    assert starts(team) == [0.0, 2.0]


def test_an_agent_that_says_it_does_not_have_it_is_told_to_stop_it_all_the_same(team: Team) -> None:
    """What it says may be from before it had it."""
    name = runner(team)
    team.up(name)
    assert team.state("t") == "backing_off"
    team.tick(1.0)
    assert starts(team) == [0.0]
    team.answer(name, "t")
    team.tick(1.0)
    assert starts(team) == [0.0, 1.0]


def test_a_life_that_was_given_up_and_comes_again_is_waited_for(team: Team) -> None:
    name = runner(team)
    lose(team, name, certain=False)
    incarnation = team.incarnation(name)
    assert not team.core.may_lease(AgentId(name), incarnation)
    team.tick(8.0)
    team.tell(AgentReady(AgentId(name), incarnation - 1, (Running(TaskId("t"), 1, 1),)))
    team.tick(60.0)
    assert starts(team) == [0.0, 8.0 + 11.0]


def test_leases_are_for_agents_that_are_given_attempts(team: Team) -> None:
    name = runner(team)
    assert team.core.may_lease(AgentId(name), 1)
    assert not team.core.may_lease(AgentId(name), 2)
    assert not team.core.may_lease(AgentId("nobody-0"), 1)
    team.restart()
    assert not team.core.may_lease(AgentId(name), 1), "it has not reported yet"
    team.up(name, ("t", 1, 1))
    assert team.core.may_lease(AgentId(name), 1)


def test_the_policy_is_checked() -> None:
    assert CorePolicy().lease_s == 10.0
    with pytest.raises(ConfigError, match="fence_s: must be at least 2, got 1"):
        CorePolicy(fence_s=1.0)

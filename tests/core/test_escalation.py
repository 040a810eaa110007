"""Agents that die of themselves again and again are given up; those that die of something else are not."""

from __future__ import annotations

import pytest

from flowray.core.commands import ResolveTask, StartAgent, StartAttempt
from flowray.core.events import AgentLost, AgentsAdded
from flowray.core.model import AgentId
from flowray.core.policy import CorePolicy
from flowray.core.registry import RestartPolicy
from flowray.core.states import AgentState, TaskState
from flowray.errors import ConfigError

from .builders import Team, spec


def team_of(count: int = 1, crashes: int = 3) -> Team:
    team = Team(CorePolicy(restart=RestartPolicy(max_crashes=crashes, delay_s=0.1, delay_max_s=1.0, window_s=10.0)))
    team.tell(AgentsAdded(spec(count=count)))
    return team


def state_of(team: Team, name: str = "writer-0") -> AgentState:
    agent = team.core.registry.agent(AgentId(name))
    assert agent is not None
    return agent.state


def crash(team: Team, times: int = 1, name: str = "writer-0", **fields: bool) -> list:
    """It dies while it starts, and is started again if it shall be."""
    said: list = []
    for _ in range(times):
        said = team.tell(AgentLost(AgentId(name), team.incarnation(name), "exit code 139", **fields))
        said += team.tick(team.now + 1.1)
    return said


def test_who_dies_at_each_start_is_not_started_for_ever() -> None:
    team = team_of()
    assert [type(c) for c in crash(team, 2)] == [StartAgent]
    assert not crash(team)
    assert state_of(team) is AgentState.BROKEN
    assert team.core.next_due() is None, "nothing more is to come"


def test_what_waits_for_nobody_else_is_a_dead_letter_that_says_why() -> None:
    team = team_of(count=2)
    team.submit("a")
    crash(team, 3)
    assert team.state("a") == "queued", "another of the class may still do it"
    said = crash(team, 3, "writer-1")
    outcome = next(c for c in said if isinstance(c, ResolveTask)).outcome
    assert outcome.state is TaskState.DEAD and outcome.failure is not None
    assert outcome.failure.kind == "no_agent" and "CrashLoop" in outcome.failure.message
    assert "exit code 139" in outcome.failure.message


def test_who_was_not_wanted_for_a_while_begins_anew() -> None:
    team = team_of(count=2)
    crash(team, 2, "writer-1")
    team.tell(AgentsAdded(spec(count=1)))
    team.tell(AgentsAdded(spec(count=2)))
    crash(team, 2, "writer-1")
    assert state_of(team, "writer-1") is AgentState.STARTING
    crash(team, 1, "writer-1")
    assert state_of(team, "writer-1") is AgentState.BROKEN


def test_what_others_can_do_goes_to_them() -> None:
    team = team_of()
    team.submit("a")
    team.tell(AgentsAdded(spec("editor")))
    crash(team, 3)
    assert [c.task_id for c in team.up("editor-0") if isinstance(c, StartAttempt)] == ["a"]


def test_a_death_while_idle_counts_and_one_with_a_task_does_not() -> None:
    team = team_of(crashes=2)
    team.up("writer-0")
    crash(team)
    team.up("writer-0")
    team.submit("a")
    crash(team)
    assert state_of(team) is AgentState.STARTING, "the task may be why: that is the poison rule's"
    crash(team)
    assert state_of(team) is AgentState.BROKEN


def test_whatever_is_finished_in_between_begins_the_count_anew() -> None:
    team = team_of()
    for number in range(5):
        team.up("writer-0")
        team.submit(f"t{number}")
        team.answer("writer-0", f"t{number}", run_s=0.01)
        crash(team, 2)
    assert state_of(team) is AgentState.STARTING


def test_deaths_far_apart_do_not_add_up() -> None:
    team = team_of()
    for _ in range(5):
        crash(team)
        team.up("writer-0")
        team.tick(team.now + 11.0)
    assert state_of(team) is AgentState.READY


def test_a_process_that_could_not_be_had_is_no_crash() -> None:
    team = team_of()
    crash(team, 9, created=False)
    assert state_of(team) is AgentState.STARTING


def test_added_again_it_is_tried_again_and_counted_anew() -> None:
    team = team_of()
    crash(team, 3)
    team.tell(AgentsAdded(spec()))
    assert state_of(team) is AgentState.STARTING
    crash(team, 2)
    assert state_of(team) is AgentState.STARTING


def test_a_new_coordinator_tries_again() -> None:
    team = team_of()
    crash(team, 3)
    team.restart()
    assert state_of(team) is AgentState.STARTING


def test_at_least_one_crash_is_allowed_for() -> None:
    with pytest.raises(ConfigError, match="max_crashes"):
        RestartPolicy(max_crashes=0)

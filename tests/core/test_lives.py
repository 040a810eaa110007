"""Agents that are wanted, not wanted any more, do not start, or come back."""

from __future__ import annotations

from flowray.core.commands import StartAgent
from flowray.core.events import AgentReady, AgentsAdded, AgentStartFailed

from .builders import Team, failure, kinds, spec


def test_an_idle_agent_stops_and_a_busy_one_finishes():
    team = Team()
    team.ready(3)
    busy = team.submit("t")[1].agent_id
    commands = team.tell(AgentsAdded(spec(count=0)))
    assert sorted(c.agent_id for c in commands[1:]) == sorted({"writer-0", "writer-1", "writer-2"} - {busy})
    assert kinds(team.answer(busy, "t")) == ["StopAgent", "ResolveTask"]


def test_an_agent_that_drains_is_kept_when_wanted_again():
    team = Team()
    team.ready(1)
    team.submit("t")
    team.tell(AgentsAdded(spec(count=0)))
    team.tell(AgentsAdded(spec(count=1)))
    team.answer("writer-0", "t")
    assert kinds(team.submit("u")) == ["AcceptTask", "StartAttempt"]


def test_an_agent_that_drains_and_turns_out_to_hold_nothing_stops():
    team = Team()
    team.ready(2)
    busy = team.submit("t")[1].agent_id
    team.tell(AgentsAdded(spec("other")))
    team.tell(AgentsAdded(spec(count=0)))
    commands = team.up(busy)
    assert kinds(commands) == ["RequeueTask", "StopAgent"]
    assert commands[1].reason == "drained"


def test_an_agent_that_comes_back_goes_on_counting():
    team = Team()
    team.ready(1)
    team.tell(AgentsAdded(spec(count=0)))
    assert team.tell(AgentsAdded(spec(count=1)))[1] == StartAgent("writer-0", 2, "writer", 0.0)


def test_what_waits_for_a_class_scaled_to_nothing_ends():
    team = Team()
    team.ready(1)
    for name in "ab":
        team.submit(name)
    team.tell(AgentsAdded(spec(count=0)))
    stop, give_up, resolve = team.answer("writer-0", "a")
    assert (give_up.outcome.task_id, give_up.outcome.failure.kind) == ("b", "no_agent")
    assert (stop.reason, resolve.outcome.task_id) == ("drained", "a")


def test_a_late_report_does_not_revive_a_lost_agent():
    team = Team()
    team.ready(1)
    team.lose("writer-0")
    assert kinds(team.tell(AgentReady("writer-0", 1))) == ["StopAgent"]
    assert team.submit("t")[1:] == []


def test_agents_that_do_not_start_take_their_tasks_with_them():
    team = Team()
    team.tell(AgentsAdded(spec()))
    team.submit("t")
    for _ in range(3):
        commands = team.tell(AgentStartFailed("writer-0", team.incarnation("writer-0"), failure(message="no GPU")))
        team.tick(team.now + 40.0)
    assert commands[0].outcome.failure.kind == "no_agent"
    assert "no GPU" in commands[0].outcome.failure.message
    (refuse,) = team.submit("u")
    assert "its agents do not start" in refuse.detail
    assert kinds(team.tell(AgentsAdded(spec()))) == ["AddAgents", "StartAgent"]  # mended, says its author

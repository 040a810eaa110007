"""Attempts that were told to stop hold their slots until their agents say that they are over."""

from __future__ import annotations

from flowray.core.events import CancelRequested
from flowray.core.policy import CorePolicy

from .builders import Team, failure, kinds


def test_an_agent_that_does_not_stop_is_ended():
    team = Team(CorePolicy(cancel_grace_s=5.0))
    team.ready()
    team.submit("t")
    team.tell(CancelRequested("t"))
    assert team.tick(4.9) == []
    stop, start = team.tick(5.0)
    assert (stop.incarnation, start.incarnation) == (1, 2)


def test_stopped_attempts_say_nothing_about_speed():
    team = Team()
    team.ready()
    team.submit("t")
    team.tell(CancelRequested("t"))
    team.answer("writer-0", "t", failure=failure(kind="cancelled"), run_s=0.0)
    team.submit("a")
    assert kinds(team.submit("b")) == ["AcceptTask"]

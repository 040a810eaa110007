"""What a new epoch does with the attempts of the one before."""

from __future__ import annotations

from flowray.core.commands import StopAgent
from flowray.core.policy import CorePolicy
from flowray.core.retry import RetryPolicy
from flowray.core.states import TaskState

from .builders import Team, failure, kinds


def forgetful():
    """A team whose agent has an attempt of "t", of which the journal of the new epoch knows nothing."""
    team = Team()
    team.ready()
    kept = len(team.journal)
    team.submit("t")
    del team.journal[kept:]
    team.restart()
    return team


def test_running_attempts_are_kept_when_their_agent_says_so():
    team = Team()
    team.ready()
    team.submit("t")
    team.restart()
    assert team.up("writer-0", ("t", 1, 1)) == []
    assert kinds(team.answer("writer-0", "t", epoch=1)) == ["ResolveTask"]


def test_and_start_again_when_it_does_not():
    team = Team()
    team.ready()
    team.submit("t")
    team.restart()
    requeue, start = team.up("writer-0")
    assert (requeue.counts, start.attempt, start.epoch, start.reason) == ("losses", 2, 2, "failover")


def test_or_when_nobody_reports_in_time():
    team = Team(CorePolicy(adoption_s=3.0))
    team.ready()
    team.submit("t")
    team.restart()
    commands = team.tick(3.0)
    assert "RequeueTask" in kinds(commands)
    assert StopAgent("writer-0", 1, "it was not ready in time") in commands


def test_an_attempt_unheard_of_is_adopted_with_its_timeout():
    team = Team()
    team.ready()
    team.submit("t", attempt_timeout_s=5.0)
    del team.journal[-1]
    team.restart()
    (start,) = team.up("writer-0", ("t", 1, 1))
    assert (start.reason, start.attempt, start.epoch) == ("adopted", 1, 1)
    assert kinds(team.tick(5.0)) == ["CancelAttempt", "RequeueTask"]


def test_an_answer_may_come_before_the_report():
    """Agents send the answers that they kept first. The claim must go with it (found by simulation)."""
    team = Team()
    team.ready()
    team.submit("t")
    team.restart()
    assert kinds(team.answer("writer-0", "t", epoch=1)) == ["ResolveTask"]
    assert team.up("writer-0") == []
    assert team.tick(100.0) == []


def test_an_answer_that_overtakes_the_report_of_an_attempt_unheard_of():
    """Nobody answers for it again: it is not adopted, the agent is told to stop it (found by simulation)."""
    team = Team()
    team.ready()
    team.submit("t")
    del team.journal[-1]
    team.restart()
    assert team.answer("writer-0", "t", epoch=1) == []
    stop = team.up("writer-0", ("t", 1, 1))[0]
    assert (type(stop).__name__, stop.attempt, stop.epoch) == ("CancelAttempt", 1, 1)
    (start,) = team.answer("writer-0", "t", epoch=1, failure=failure(kind="cancelled", retryable=False))
    assert (start.attempt, start.epoch, start.reason) == (1, 2, "first")


def test_a_report_from_before_an_attempt_was_stopped_comes_late():
    """It had ended when it was told to, and is not adopted (found by simulation)."""
    team = forgetful()
    assert kinds(team.up("writer-0", ("t", 1, 1))) == ["CancelAttempt"]
    assert team.answer("writer-0", "t", epoch=1, failure=failure(kind="cancelled", retryable=False)) == []
    team.submit("u")
    team.submit("t")
    (stop,) = team.up("writer-0", ("t", 1, 1), ("u", 1, 2))
    assert (type(stop).__name__, stop.task_id, stop.epoch) == ("CancelAttempt", "t", 1)
    assert team.state("t") == "queued"


def test_an_attempt_stopped_for_a_reason_that_was_lost_is_tried_again():
    """The old coordinator's cancel was not on disk (found by simulation)."""
    team = Team()
    team.ready()
    team.submit("t")
    team.restart()
    (requeue,) = team.answer("writer-0", "t", epoch=1, failure=failure(kind="cancelled", retryable=False))
    assert (requeue.counts, team.state("t")) == ("losses", "queued")


def test_the_same_task_in_two_epochs_is_two_attempts():
    """Its acceptance was lost, it was submitted again, and the old attempt answers (found by simulation)."""
    team = forgetful()
    team.up("writer-0")
    team.submit("t")
    assert team.answer("writer-0", "t", epoch=1) == []
    assert team.state("t") == "running"
    assert kinds(team.answer("writer-0", "t", epoch=2)) == ["ResolveTask"]


def test_deadlines_and_back_offs_go_on():
    team = Team(CorePolicy(retry=RetryPolicy(backoff_s=10.0)))
    team.ready()
    team.submit("t", deadline_s=50.0)
    team.answer("writer-0", "t", failure=failure())
    team.restart()
    team.up("writer-0")
    assert "StartAttempt" in kinds(team.tick(10.0))
    commands = team.tick(50.0)
    assert [c.outcome.state for c in commands if hasattr(c, "outcome")] == [TaskState.EXPIRED]


def test_what_was_told_to_stop_is_not_adopted_when_its_task_comes_again():
    """Its acceptance was lost and it was submitted again; a report from before that still names the old attempt."""
    team = forgetful()
    assert kinds(team.up("writer-0", ("t", 1, 1))) == ["CancelAttempt"]
    assert kinds(team.submit("t")) == ["AcceptTask"]
    assert kinds(team.up("writer-0", ("t", 1, 1))) == ["CancelAttempt"]
    (start,) = team.answer("writer-0", "t", epoch=1, failure=failure(kind="cancelled", retryable=False))
    assert (start.attempt, start.epoch, start.reason) == (1, 2, "first")

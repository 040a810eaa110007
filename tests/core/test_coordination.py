"""What the machine does, by name: events in, commands out."""

from __future__ import annotations

import msgspec
import pytest

from flowray.core.admission import AdmissionPolicy
from flowray.core.commands import AnswerCancel, CancelAttempt, KnownTask, RefuseTask, StartAgent, StopAgent
from flowray.core.events import (
    AgentReady,
    AgentsAdded,
    AgentStartFailed,
    AttemptReturned,
    CancelRequested,
)
from flowray.core.placement import PlacementPolicy
from flowray.core.policy import CorePolicy
from flowray.core.retry import RetryPolicy
from flowray.core.states import TaskState
from flowray.errors import ConfigError

from .builders import DONE, Team, failure, kinds, spec


def test_accepts_and_starts_in_this_order():
    team = Team()
    team.ready()
    accept, start = team.submit("t")
    assert kinds([accept, start]) == ["AcceptTask", "StartAttempt"]
    assert (start.task_id, start.attempt, start.epoch, start.agent_id, start.reason) == ("t", 1, 1, "writer-0", "first")
    assert accept.waits
    assert not start.waits


def test_the_first_answer_is_the_outcome():
    team = Team()
    team.ready()
    team.submit("t")
    team.now = 2.0
    (resolve,) = team.answer("writer-0", "t", run_s=1.5)
    outcome = resolve.outcome
    assert (outcome.state, outcome.value, outcome.agent_id, outcome.attempts) == (
        TaskState.SUCCEEDED,
        DONE,
        "writer-0",
        1,
    )
    assert (outcome.run_s, outcome.queue_s) == (1.5, 0.5)
    assert [line.what for line in outcome.story] == ["accepted", "started", "succeeded"]
    assert team.answer("writer-0", "t") == []


def test_a_deadline_reaches_the_agent_as_the_time_that_is_left():
    team = Team()
    team.tell(AgentsAdded(spec()))
    team.submit("t", deadline_s=10.0)
    team.now = 4.0
    (start,) = team.up("writer-0")
    assert start.remaining_s == 6.0


class TestRefusing:
    def test_a_team_that_cannot(self):
        team = Team()
        team.ready(capabilities=("summarise",))
        (refuse,) = team.submit("t", needs=("sumarise",))
        assert isinstance(refuse, RefuseTask)
        assert refuse.reason == "unknown_capability"
        assert "did you mean 'summarise'?" in refuse.detail
        assert refuse.retry_after_s is None

    def test_an_empty_team(self):
        (refuse,) = Team().submit("t")
        assert "the team is empty" in refuse.detail

    def test_a_full_queue_says_when_to_come_back(self):
        team = Team(CorePolicy(admission=AdmissionPolicy(max_open_tasks=1)))
        team.ready()
        team.submit("a")
        (refuse,) = team.submit("b")
        assert (refuse.reason, refuse.retry_after_s) == ("queue_full", 1.0)
        assert team.state("b") == "gone"

    def test_a_starting_team_is_good_enough(self):
        team = Team()
        team.tell(AgentsAdded(spec()))
        assert kinds(team.submit("t")) == ["AcceptTask"]


class TestRepeats:
    def test_by_id_while_open_and_after(self):
        team = Team()
        team.ready()
        team.submit("t")
        assert team.submit("t") == [KnownTask("t", "t")]
        team.answer("writer-0", "t")
        assert team.submit("t") == [KnownTask("t", "t")]

    def test_by_key(self):
        team = Team()
        team.ready()
        team.submit("a", key="k", fingerprint="f")
        assert team.submit("b", key="k", fingerprint="f") == [KnownTask("b", "a")]
        (refuse,) = team.submit("c", key="k", fingerprint="other")
        assert refuse.reason == "conflict"

    def test_by_key_after_a_restart(self):
        team = Team()
        team.ready()
        team.submit("a", key="k", fingerprint="f")
        team.restart()
        assert team.submit("b", key="k", fingerprint="f") == [KnownTask("b", "a")]


class TestFailing:
    def test_backs_off_then_tries_again_then_gives_up(self):
        team = Team(CorePolicy(retry=RetryPolicy(backoff_s=1.0)))
        team.ready()
        team.submit("t", max_attempts=2)
        (requeue,) = team.answer("writer-0", "t", failure=failure())
        assert (requeue.arrow, requeue.counts) == ("failed", "failures")
        assert 0.0 <= requeue.not_before <= 1.0
        assert team.state("t") == "backing_off"
        wake, start = team.tick(1.0)
        assert (wake.task_id, start.attempt, start.reason) == ("t", 2, "retry")
        (resolve,) = team.answer("writer-0", "t", attempt=2, failure=failure())
        assert resolve.outcome.state is TaskState.DEAD
        assert resolve.task.id == "t"

    def test_gives_up_at_once_on_what_is_not_retryable(self):
        team = Team()
        team.ready()
        team.submit("t")
        (resolve,) = team.answer("writer-0", "t", failure=failure(retryable=False, traceback="Traceback ..."))
        assert resolve.outcome.failure.traceback == "Traceback ..."

    def test_an_attempt_that_takes_too_long_is_stopped_and_counts_as_failed(self):
        team = Team()
        team.ready()
        team.submit("t", attempt_timeout_s=2.0, max_attempts=1)
        stop, resolve = team.tick(2.0)
        assert stop == CancelAttempt("t", 1, "writer-0", 1, 1)
        assert resolve.outcome.failure.kind == "timeout"
        team.submit("next")
        assert team.state("next") == "queued"  # the slot is not free before the agent says so
        assert kinds(team.answer("writer-0", "t", failure=failure(kind="cancelled"))) == ["StartAttempt"]


class TestLosing:
    def test_goes_elsewhere_at_once_and_the_agent_comes_back(self):
        team = Team()
        team.ready(2)
        start = team.submit("t")[1]
        other = next(name for name in ("writer-0", "writer-1") if name != start.agent_id)
        requeue, again = team.lose(start.agent_id)
        assert (requeue.counts, again.agent_id, again.attempt, again.reason) == ("kills", other, 2, "failover")
        assert team.tick(0.0) == [StartAgent(start.agent_id, 2, "writer", 0.0)]

    def test_an_answer_from_before_changes_nothing(self):
        team = Team()
        team.ready(2)
        start = team.submit("t")[1]
        team.lose(start.agent_id)
        assert team.answer(start.agent_id, "t", attempt=1) == []
        assert team.state("t") == "running"

    def test_three_dead_agents_make_a_poison(self):
        team = Team()
        team.ready()
        team.submit("t")
        for _ in range(3):
            commands = team.lose("writer-0")
            team.tick(team.now + 40.0)
            team.up("writer-0")
        assert commands[0].outcome.failure.kind == "poison"
        assert "3 agents died" in commands[0].outcome.failure.message

    def test_only_what_can_have_been_running_is_to_blame(self):
        team = Team(CorePolicy(placement=PlacementPolicy(prefetch_s=10.0)))
        team.ready()
        team.submit("first")
        team.answer("writer-0", "first", run_s=0.1)
        for name in "ab":
            team.submit(name)
        commands = team.lose("writer-0")
        assert [(c.task_id, c.counts) for c in commands] == [("a", "kills"), ("b", "losses")]

    def test_agents_that_do_not_start_take_their_tasks_with_them(self):
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

    def test_a_hand_back_is_nobody_s_fault(self):
        team = Team(CorePolicy(placement=PlacementPolicy(prefetch_s=10.0)))
        team.ready()
        team.submit("first")
        team.answer("writer-0", "first", run_s=0.1)
        team.submit("a")
        team.submit("b")
        (requeue,) = team.tell(AttemptReturned("b", 1, 1, "writer-0"))
        assert (requeue.counts, team.state("b")) == ("", "queued")

    def test_an_old_hand_back_ends_prefetching_too(self):
        """It comes late and twice; the agent left the list of those with room all the same (found by simulation)."""
        team = Team(CorePolicy(placement=PlacementPolicy(prefetch_s=10.0)))
        team.ready()
        team.submit("first")
        team.answer("writer-0", "first", run_s=0.1)
        team.submit("a")
        assert team.tell(AttemptReturned("first", 1, 1, "writer-0")) == []
        assert kinds(team.submit("b")) == ["AcceptTask"]

    def test_stopped_attempts_say_nothing_about_speed(self):
        team = Team()
        team.ready()
        team.submit("t")
        team.tell(CancelRequested("t"))
        team.answer("writer-0", "t", failure=failure(kind="cancelled"), run_s=0.0)
        team.submit("a")
        assert kinds(team.submit("b")) == ["AcceptTask"]


class TestCancelling:
    def test_while_it_waits(self):
        team = Team()
        team.tell(AgentsAdded(spec()))
        team.submit("t")
        assert kinds(team.tell(CancelRequested("t"))) == ["ResolveTask", "AnswerCancel"]

    def test_while_it_runs(self):
        team = Team()
        team.ready()
        team.submit("t")
        resolve, stop, answer = team.tell(CancelRequested("t"))
        assert resolve.outcome.state is TaskState.CANCELLED
        assert stop == CancelAttempt("t", 1, "writer-0", 1, 1)
        assert answer == AnswerCancel("t", TaskState.CANCELLED)
        assert team.answer("writer-0", "t") == []

    def test_while_it_backs_off(self):
        team = Team()
        team.ready()
        team.submit("t")
        team.answer("writer-0", "t", failure=failure())
        assert kinds(team.tell(CancelRequested("t"))) == ["ResolveTask", "AnswerCancel"]
        assert team.tick(100.0) == []

    def test_what_is_over_or_was_never_there(self):
        assert Team().tell(CancelRequested("t")) == [AnswerCancel("t", None)]

    def test_an_agent_that_does_not_stop_is_ended(self):
        team = Team(CorePolicy(cancel_grace_s=5.0))
        team.ready()
        team.submit("t")
        team.tell(CancelRequested("t"))
        assert team.tick(4.9) == []
        stop, start = team.tick(5.0)
        assert (stop.incarnation, start.incarnation) == (1, 2)


class TestRestarting:
    def test_running_attempts_are_kept_when_their_agent_says_so(self):
        team = Team()
        team.ready()
        team.submit("t")
        team.restart()
        assert team.up("writer-0", ("t", 1, 1)) == []
        assert kinds(team.answer("writer-0", "t", epoch=1)) == ["ResolveTask"]

    def test_and_start_again_when_it_does_not(self):
        team = Team()
        team.ready()
        team.submit("t")
        team.restart()
        requeue, start = team.up("writer-0")
        assert (requeue.counts, start.attempt, start.epoch, start.reason) == ("losses", 2, 2, "failover")

    def test_or_when_nobody_reports_in_time(self):
        team = Team(CorePolicy(adoption_s=3.0))
        team.ready()
        team.submit("t")
        team.restart()
        commands = team.tick(3.0)
        assert "RequeueTask" in kinds(commands)
        assert StopAgent("writer-0", 1, "it was not ready in time") in commands

    def test_an_attempt_unheard_of_is_adopted_with_its_timeout(self):
        team = Team()
        team.ready()
        team.submit("t", attempt_timeout_s=5.0)
        del team.journal[-1]
        team.restart()
        (start,) = team.up("writer-0", ("t", 1, 1))
        assert (start.reason, start.attempt, start.epoch) == ("adopted", 1, 1)
        assert kinds(team.tick(5.0)) == ["CancelAttempt", "RequeueTask"]

    def test_an_answer_may_come_before_the_report(self):
        """Agents send the answers that they kept first. The claim must go with it (found by simulation)."""
        team = Team()
        team.ready()
        team.submit("t")
        team.restart()
        assert kinds(team.answer("writer-0", "t", epoch=1)) == ["ResolveTask"]
        assert team.up("writer-0") == []
        assert team.tick(100.0) == []

    def test_an_answer_that_overtakes_the_report_of_an_attempt_unheard_of(self):
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

    def test_a_report_from_before_an_attempt_was_stopped_comes_late(self):
        """It had ended when it was told to, and is not adopted (found by simulation)."""
        team = Team()
        team.ready()
        kept = len(team.journal)
        team.submit("t")
        del team.journal[kept:]
        team.restart()
        assert kinds(team.up("writer-0", ("t", 1, 1))) == ["CancelAttempt"]
        assert team.answer("writer-0", "t", epoch=1, failure=failure(kind="cancelled", retryable=False)) == []
        team.submit("u")
        team.submit("t")
        (stop,) = team.up("writer-0", ("t", 1, 1), ("u", 1, 2))
        assert (type(stop).__name__, stop.task_id, stop.epoch) == ("CancelAttempt", "t", 1)
        assert team.state("t") == "queued"

    def test_an_attempt_stopped_for_a_reason_that_was_lost_is_tried_again(self):
        """The old coordinator's cancel was not on disk (found by simulation)."""
        team = Team()
        team.ready()
        team.submit("t")
        team.restart()
        (requeue,) = team.answer("writer-0", "t", epoch=1, failure=failure(kind="cancelled", retryable=False))
        assert (requeue.counts, team.state("t")) == ("losses", "queued")

    def test_the_same_task_in_two_epochs_is_two_attempts(self):
        """Its acceptance was lost, it was submitted again, and the old attempt answers (found by simulation)."""
        team = Team()
        team.ready()
        kept = len(team.journal)
        team.submit("t")
        del team.journal[kept:]
        team.restart()
        team.up("writer-0")
        team.submit("t")
        assert team.answer("writer-0", "t", epoch=1) == []
        assert team.state("t") == "running"
        assert kinds(team.answer("writer-0", "t", epoch=2)) == ["ResolveTask"]

    def test_deadlines_and_back_offs_go_on(self):
        team = Team(CorePolicy(retry=RetryPolicy(backoff_s=10.0)))
        team.ready()
        team.submit("t", deadline_s=50.0)
        team.answer("writer-0", "t", failure=failure())
        team.restart()
        team.up("writer-0")
        assert "StartAttempt" in kinds(team.tick(10.0))
        commands = team.tick(50.0)
        assert [c.outcome.state for c in commands if hasattr(c, "outcome")] == [TaskState.EXPIRED]


class TestScaling:
    def test_an_idle_agent_stops_and_a_busy_one_finishes(self):
        team = Team()
        team.ready(3)
        busy = team.submit("t")[1].agent_id
        commands = team.tell(AgentsAdded(spec(count=0)))
        assert sorted(c.agent_id for c in commands[1:]) == sorted({"writer-0", "writer-1", "writer-2"} - {busy})
        assert kinds(team.answer(busy, "t")) == ["StopAgent", "ResolveTask"]

    def test_an_agent_that_drains_is_kept_when_wanted_again(self):
        team = Team()
        team.ready(1)
        team.submit("t")
        team.tell(AgentsAdded(spec(count=0)))
        team.tell(AgentsAdded(spec(count=1)))
        team.answer("writer-0", "t")
        assert kinds(team.submit("u")) == ["AcceptTask", "StartAttempt"]

    def test_an_agent_that_drains_and_turns_out_to_hold_nothing_stops(self):
        team = Team()
        team.ready(2)
        busy = team.submit("t")[1].agent_id
        team.tell(AgentsAdded(spec("other")))
        team.tell(AgentsAdded(spec(count=0)))
        commands = team.up(busy)
        assert kinds(commands) == ["RequeueTask", "StopAgent"]
        assert commands[1].reason == "drained"

    def test_an_agent_that_comes_back_goes_on_counting(self):
        team = Team()
        team.ready(1)
        team.tell(AgentsAdded(spec(count=0)))
        assert team.tell(AgentsAdded(spec(count=1)))[1] == StartAgent("writer-0", 2, "writer", 0.0)

    def test_what_waits_for_a_class_scaled_to_nothing_ends(self):
        team = Team()
        team.ready(1)
        for name in "ab":
            team.submit(name)
        team.tell(AgentsAdded(spec(count=0)))
        stop, give_up, resolve = team.answer("writer-0", "a")
        assert (give_up.outcome.task_id, give_up.outcome.failure.kind) == ("b", "no_agent")
        assert (stop.reason, resolve.outcome.task_id) == ("drained", "a")

    def test_a_late_report_does_not_revive_a_lost_agent(self):
        team = Team()
        team.ready(1)
        team.lose("writer-0")
        assert kinds(team.tell(AgentReady("writer-0", 1))) == ["StopAgent"]
        assert team.submit("t")[1:] == []


@pytest.mark.parametrize("name", ["cancel_grace_s", "adoption_s", "start_timeout_s"])
def test_durations_are_positive(name):
    with pytest.raises(ConfigError, match=name):
        CorePolicy(**{name: 0.0})


def test_policies_come_from_plain_data_and_refuse_what_they_do_not_know():
    assert msgspec.convert({"retry": {"max_losses": 4}}, CorePolicy).retry.max_losses == 4
    with pytest.raises(msgspec.ValidationError, match="max_loses"):
        msgspec.convert({"retry": {"max_loses": 4}}, CorePolicy)

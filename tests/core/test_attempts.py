"""What follows from the end of an attempt: the next one, or the end of its task."""

from __future__ import annotations

from flowray.core.commands import CancelAttempt, StartAgent
from flowray.core.events import AttemptReturned
from flowray.core.placement import PlacementPolicy
from flowray.core.policy import CorePolicy
from flowray.core.retry import RetryPolicy
from flowray.core.states import TaskState

from .builders import Team, failure, kinds


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

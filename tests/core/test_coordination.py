"""What the machine does with a task that comes in, ends or is withdrawn, by name: events in, commands out."""

from __future__ import annotations

import msgspec
import pytest

from flowray.core.admission import AdmissionPolicy
from flowray.core.commands import AnswerCancel, CancelAttempt, KnownTask, RefuseTask
from flowray.core.events import (
    AgentsAdded,
    CancelRequested,
)
from flowray.core.policy import CorePolicy
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


@pytest.mark.parametrize("name", ["cancel_grace_s", "adoption_s", "start_timeout_s"])
def test_durations_are_positive(name):
    with pytest.raises(ConfigError, match=name):
        CorePolicy(**{name: 0.0})


def test_policies_come_from_plain_data_and_refuse_what_they_do_not_know():
    assert msgspec.convert({"retry": {"max_losses": 4}}, CorePolicy).retry.max_losses == 4
    with pytest.raises(msgspec.ValidationError, match="max_loses"):
        msgspec.convert({"retry": {"max_loses": 4}}, CorePolicy)

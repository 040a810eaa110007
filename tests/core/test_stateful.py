"""Stateful agents in the core: numbers before delivery, one active process, outputs of the current term only."""

from __future__ import annotations

from random import Random
from typing import Any, TypeVar

import pytest

from flowray.core.commands import (
    ActivateSeat,
    AnswerCancel,
    Command,
    DeliverInput,
    DemandSnapshot,
    KeepSnapshot,
    LogInput,
    Promote,
    RecordMismatch,
    RefuseTask,
    ResolveTask,
    RestoreState,
    SkipInput,
    StopAgent,
)
from flowray.core.coordination import Coordination
from flowray.core.events import (
    AgentLost,
    AgentReady,
    AgentsAdded,
    AgentStartFailed,
    CancelRequested,
    OutputGiven,
    SnapshotMade,
    StateRefused,
    TaskSubmitted,
)
from flowray.core.model import AgentId, Payload, StatefulSpec, TaskId
from flowray.core.policy import CorePolicy
from flowray.core.retry import RetryPolicy
from flowray.core.stateful import StatefulPolicy
from flowray.core.states import TaskState
from flowray.errors import ConfigError

from .builders import DONE, Team, failure, spec, task

C = TypeVar("C", bound=Command)
ACTIVE, STANDBY = "ledger-0", "ledger.standby-0"


class Ledger(Team):
    """A team with one stateful class."""

    def __init__(self, standby: str = "warm", count: int = 1, policy: CorePolicy | None = None, **fields: Any) -> None:
        super().__init__(policy)
        self.tell(AgentsAdded(spec("ledger", count=count, stateful=StatefulSpec(standby=standby, **fields))))
        self.said: list[Command] = []

    def tell(self, event: Any) -> list[Command]:
        self.said = super().tell(event)
        return self.said

    def of(self, kind: type[C]) -> list[C]:
        """What was said last, of one kind."""
        return [command for command in self.said if isinstance(command, kind)]

    def input(self, name: str, **fields: Any) -> list[Command]:
        return self.tell(TaskSubmitted(task(name, agent="ledger", **fields)))

    def output(self, seq: int, name: str, seat: str = ACTIVE, term: int = 0, **fields: Any) -> list[Command]:
        fields = fields or {"value": DONE}
        term = term or self.inbox.term
        return self.tell(OutputGiven(AgentId(seat), self.incarnation(seat), term, seq, TaskId(name), **fields))

    def snapshot(self, seq: int, seat: str = ACTIVE, digest: str = "d", term: int | None = None) -> list[Command]:
        value = Payload(data=b"state") if seat == self.inbox.seat else None
        if term is None:
            term = self.inbox.term if value is not None else 0
        return self.tell(SnapshotMade(AgentId(seat), self.incarnation(seat), term, seq, digest, value))

    def lose(self, seat: str, *, certain: bool = True) -> list[Command]:
        return self.tell(AgentLost(AgentId(seat), self.incarnation(seat), "killed", certain))

    def again(self, seat: str, received: int, term: int = 0) -> list[Command]:
        return self.tell(AgentReady(AgentId(seat), self.incarnation(seat), received=received, term=term))

    def restart(self) -> None:
        """Another coordinator, from the journal alone."""
        core = self.core
        self.core = Coordination.recover(
            epoch=core.epoch + 1, rng=Random(1), now=self.now, policy=self.policy, commands=self.journal
        )
        assert self.core.snapshot() == core.snapshot()
        self.core.check()

    @property
    def inbox(self) -> Any:
        return self.core.book.inboxes["ledger-0"]


@pytest.fixture
def warm() -> Ledger:
    team = Ledger()
    team.up(ACTIVE)
    team.up(STANDBY)
    return team


@pytest.fixture
def cold() -> Ledger:
    team = Ledger("cold")
    team.up(ACTIVE)
    return team


def test_an_input_has_its_number_before_it_is_delivered(cold: Ledger) -> None:
    said = cold.input("a")
    kinds = [type(command) for command in said]
    assert kinds.index(LogInput) < kinds.index(DeliverInput)
    assert DeliverInput.waits and LogInput.durable
    (given,) = cold.of(DeliverInput)
    assert (given.agent_id, given.seq, given.after) == (ACTIVE, 1, 0)
    assert cold.state("a") == "running"


def test_an_output_is_the_outcome(cold: Ledger) -> None:
    cold.input("a")
    (resolved,) = [c for c in cold.output(1, "a") if isinstance(c, ResolveTask)]
    assert (resolved.outcome.state, resolved.outcome.value) == (TaskState.SUCCEEDED, DONE)
    assert resolved.outcome.agent_id == ACTIVE and resolved.outcome.attempts == 1
    assert cold.output(1, "a") == []


def test_a_failure_of_apply_is_final(cold: Ledger) -> None:
    cold.input("a")
    cold.output(1, "a", failure=failure(retryable=True))
    (resolved,) = cold.of(ResolveTask)
    assert resolved.outcome.state is TaskState.DEAD and resolved.task is not None


def test_inputs_that_come_before_any_process_wait_for_it() -> None:
    team = Ledger("cold")
    team.input("a")
    team.up(ACTIVE)
    kinds = [type(command) for command in team.said]
    assert kinds == [Promote, RestoreState, ActivateSeat, DeliverInput]


def test_a_standby_is_given_the_same_inputs(warm: Ledger) -> None:
    warm.input("a")
    assert [(one.agent_id, one.seq) for one in warm.of(DeliverInput)] == [(ACTIVE, 1), (STANDBY, 1)]
    assert warm.output(1, "a", seat=STANDBY, term=0) == []


def test_the_standby_takes_over(warm: Ledger) -> None:
    warm.input("a")
    warm.lose(ACTIVE)
    (promoted,) = warm.of(Promote)
    assert (promoted.seat, promoted.term) == (STANDBY, 2)
    (active,) = warm.of(ActivateSeat)
    assert (active.agent_id, active.term) == (STANDBY, 2)
    assert warm.of(RestoreState) == warm.of(DeliverInput) == []
    assert warm.output(1, "a", seat=ACTIVE, term=1) == []  # the one that was lost, late
    assert len(warm.output(1, "a", seat=STANDBY)) == 1


def test_a_lost_active_process_comes_back_as_the_standby(warm: Ledger) -> None:
    warm.input("a")
    warm.lose(ACTIVE)
    warm.tick(0.0)
    warm.up(ACTIVE)
    assert warm.of(Promote) == warm.of(ActivateSeat) == []
    assert [one.seq for one in warm.of(DeliverInput)] == [1]
    assert warm.inbox.seat == STANDBY


def test_what_is_only_called_dead_is_told_to_stop(warm: Ledger) -> None:
    warm.lose(ACTIVE, certain=False)
    assert [(stop.agent_id, stop.incarnation) for stop in warm.of(StopAgent)] == [(ACTIVE, 1)]
    assert warm.inbox.seat == STANDBY


def test_without_a_standby_a_new_process_gets_snapshot_and_log() -> None:
    team = Ledger("cold", snapshot_every=2)
    team.up(ACTIVE)
    team.input("a")
    team.output(1, "a")
    team.input("b")
    assert [one.seq for one in team.of(DemandSnapshot)] == [2]
    team.output(2, "b")
    team.snapshot(2)
    assert [kept.snapshot.seq for kept in team.of(KeepSnapshot)] == [2]
    team.input("c")
    team.lose(ACTIVE)
    team.tick(0.0)
    team.up(ACTIVE)
    (restored,) = team.of(RestoreState)
    assert restored.snapshot is not None and restored.snapshot.seq == 2
    assert [(one.seq, one.after) for one in team.of(DeliverInput)] == [(3, 2)]
    assert [one.term for one in team.of(ActivateSeat)] == [2]


def test_a_snapshot_counts_only_once_the_outputs_before_it_are_here() -> None:
    team = Ledger("cold", snapshot_every=1)
    team.up(ACTIVE)
    team.input("a")
    assert team.snapshot(1) == []
    team.output(1, "a")
    team.snapshot(1)
    assert team.inbox.base == 1 and not team.inbox.inputs


def test_a_snapshot_is_due_after_a_while() -> None:
    team = Ledger("cold", snapshot_every_s=5.0)
    team.up(ACTIVE)
    team.input("a")
    team.output(1, "a")
    team.tick(5.0)
    assert [one.seq for one in team.of(DemandSnapshot)] == [1]
    team.tick(10.0)
    assert [one.seq for one in team.of(DemandSnapshot)] == [1]  # nobody answered
    team.snapshot(1)
    assert len(team.core.timers) == 0


def test_when_the_log_is_full_inputs_wait_for_a_snapshot() -> None:
    team = Ledger("cold", policy=CorePolicy(stateful=StatefulPolicy(max_inputs=2)))
    team.up(ACTIVE)
    for number, name in enumerate("ab", start=1):
        team.input(name)
        team.output(number, name)
    team.input("c")
    assert team.of(LogInput) == [] and team.state("c") == "queued"
    team.snapshot(2)
    assert [(one.task_id, one.seq) for one in team.of(LogInput)] == [("c", 3)]


def test_what_waits_for_its_number_can_be_cancelled_and_what_has_one_is_applied() -> None:
    team = Ledger("cold", policy=CorePolicy(stateful=StatefulPolicy(window=1)))
    team.up(ACTIVE)
    team.input("a")
    team.input("b")
    team.tell(CancelRequested(TaskId("a")))
    assert team.of(AnswerCancel) == [AnswerCancel(TaskId("a"), TaskState.RUNNING)]
    team.tell(CancelRequested(TaskId("b")))
    assert team.of(AnswerCancel) == [AnswerCancel(TaskId("b"), TaskState.CANCELLED)]


def test_an_input_that_is_late_is_applied_all_the_same(cold: Ledger) -> None:
    cold.input("a", deadline_s=1.0)
    cold.tick(1.0)
    (resolved,) = cold.of(ResolveTask)
    assert resolved.outcome.state is TaskState.EXPIRED
    assert resolved.outcome.failure is not None and "the state will have it" in resolved.outcome.failure.message
    assert list(cold.inbox.inputs) == [1] and cold.output(1, "a") == []


def test_another_state_after_the_same_inputs_ends_the_standby() -> None:
    team = Ledger(snapshot_every=1)
    team.up(ACTIVE)
    team.up(STANDBY)
    team.input("a")
    team.output(1, "a")
    team.snapshot(1, STANDBY, "other")
    team.snapshot(1)
    assert [(one.seat, one.seq) for one in team.of(RecordMismatch)] == [(STANDBY, 1)]
    assert [stop.agent_id for stop in team.of(StopAgent)] == [STANDBY]
    team.tick(1.0)
    team.up(STANDBY)
    assert team.of(RestoreState) != []  # once is not enough
    team.input("b")
    team.output(2, "b")
    team.snapshot(2)
    team.snapshot(2, STANDBY, "other")
    assert len(team.of(RecordMismatch)) == 1
    team.tick(40.0)
    team.up(STANDBY)
    assert team.said == []  # it waits without a state
    team.lose(ACTIVE)
    assert [type(c) for c in team.said][:3] == [Promote, RestoreState, ActivateSeat]


def test_an_input_that_kills_its_processes_is_left_out(warm: Ledger) -> None:
    warm.input("a")
    warm.input("b")
    warm.lose(ACTIVE)
    warm.tick(0.0)
    warm.up(ACTIVE)
    warm.lose(STANDBY)
    warm.tick(0.0)
    warm.up(STANDBY)
    warm.lose(ACTIVE)
    assert [one.seq for one in warm.of(SkipInput)] == [1]
    (resolved,) = warm.of(ResolveTask)
    assert resolved.outcome.failure is not None and resolved.outcome.failure.kind == "poison"
    assert [stop.agent_id for stop in warm.of(StopAgent)] == [STANDBY]  # it may have applied it
    warm.tick(30.0)
    warm.up(STANDBY)
    assert [(one.seq, one.after) for one in warm.of(DeliverInput)] == [(2, 0)]


def test_what_a_dead_process_said_of_inputs_after_one_that_is_left_out_does_not_count() -> None:
    """Its words were still under way: they are of a state that has the input that is left out."""
    team = Ledger("cold", policy=CorePolicy(retry=RetryPolicy(poison_kills=1)))
    team.up(ACTIVE)
    team.input("a")
    team.input("b")
    team.lose(ACTIVE)
    assert [one.seq for one in team.of(SkipInput)] == [1]
    assert team.output(1, "a") == team.output(2, "b") == []
    team.tick(1.0)
    team.up(ACTIVE)
    assert len([one for one in team.output(2, "b") if isinstance(one, ResolveTask)]) == 1


def test_a_process_that_was_not_seen_when_an_input_was_left_out_is_not_used() -> None:
    """After a restart the active process dies on the input before its standby, which has applied it, says so."""
    team = Ledger(policy=CorePolicy(retry=RetryPolicy(poison_kills=1)))
    team.up(ACTIVE)
    team.up(STANDBY)
    team.input("a")
    team.restart()
    team.again(ACTIVE, received=1, term=1)
    team.lose(ACTIVE)
    assert [one.barred for one in team.of(SkipInput)] == [{ACTIVE: 1, STANDBY: 1}]
    team.restart()
    team.again(STANDBY, received=1)
    assert [stop.agent_id for stop in team.of(StopAgent)] == [STANDBY] and team.of(Promote) == []
    team.tick(1.0)
    team.up(STANDBY)
    assert len(team.of(Promote)) == 1


def test_a_new_coordinator_waits_for_the_active_process(warm: Ledger) -> None:
    warm.input("a")
    warm.restart()
    warm.again(STANDBY, received=1)
    assert warm.of(Promote) == []
    warm.again(ACTIVE, received=0, term=1)
    assert [one.seq for one in warm.of(DeliverInput)] == [1]
    assert [one.term for one in warm.of(ActivateSeat)] == [1]


def test_a_new_coordinator_promotes_when_the_active_process_is_gone(warm: Ledger) -> None:
    warm.input("a")
    warm.restart()
    warm.again(STANDBY, received=0)
    warm.lose(ACTIVE, certain=False)
    assert [one.seat for one in warm.of(Promote)] == [STANDBY]


def test_a_process_ahead_of_the_journal_is_ended(warm: Ledger) -> None:
    """The journal is an older copy."""
    warm.restart()
    warm.again(STANDBY, received=7)
    assert [stop.agent_id for stop in warm.of(StopAgent)] == [STANDBY]


def test_inputs_of_one_entity_go_to_one_instance() -> None:
    team = Ledger("cold", count=3)
    for number in range(30):
        team.input(f"t{number}", entity=f"account-{number % 5}")
    where: dict[str, set[str]] = {}
    for one in team.journal:
        if isinstance(one, LogInput):
            where.setdefault(f"account-{int(one.task_id[1:]) % 5}", set()).add(one.agent_id)
    assert len(where) == 5 and all(len(found) == 1 for found in where.values())
    assert len(set.union(*where.values())) > 1


def test_instances_are_as_many_as_at_first() -> None:
    team = Ledger("cold", count=2)
    team.tell(AgentsAdded(spec("ledger", count=5, stateful=StatefulSpec(standby="cold"))))
    assert team.core.book.specs["ledger"].count == 2


@pytest.mark.parametrize(
    "fields", [{"exclusive": True}, {"fallback": "x"}, {"least_quality": 0.5}, {"needs": ("fly",)}]
)
def test_what_cannot_be_had_is_refused(cold: Ledger, fields: dict[str, Any]) -> None:
    cold.input("a", **fields)
    (refused,) = cold.of(RefuseTask)
    assert "ledger" in refused.detail


def test_an_entity_is_for_stateful_agents(cold: Ledger) -> None:
    cold.tell(TaskSubmitted(task("a", entity="x")))
    assert "entity" in cold.of(RefuseTask)[0].detail


def test_a_policy_out_of_range_is_named() -> None:
    with pytest.raises(ConfigError, match=r"stateful\.window"):
        StatefulPolicy(window=0)


def test_a_snapshot_of_the_book_has_everything() -> None:
    team = Ledger(snapshot_every=2, policy=CorePolicy(stateful=StatefulPolicy(window=2)))
    team.up(ACTIVE)
    team.up(STANDBY)
    for name in "abcde":
        team.input(name, payload=Payload(ref=f"sha256:{name}"))
    for number, name in enumerate("ab", start=1):
        team.output(number, name)
    team.snapshot(2)
    team.lose(ACTIVE)
    saved = team.core.snapshot()
    other = Coordination.recover(epoch=2, rng=Random(1), now=team.now, policy=team.policy, snapshot=saved)
    other.check()
    assert other.snapshot() == saved
    assert list(other.book.inboxes["ledger-0"].unanswered) == ["c", "d"]
    kept = [ref for ref in other.book.inboxes.references() if ref.startswith("sha256")]
    assert kept == ["sha256:c", "sha256:d"]


def test_a_new_run_on_an_old_journal_goes_on_with_the_state() -> None:
    team = Ledger("cold")
    team.up(ACTIVE)
    team.input("a")
    team.core = Coordination.recover(
        epoch=2, rng=Random(1), now=team.now, policy=team.policy, commands=team.journal, keep_agents=False
    )
    team.core.check()
    team.input("b")
    assert "add them first" in team.of(RefuseTask)[0].detail
    team.tell(AgentsAdded(spec("ledger", stateful=StatefulSpec())))
    team.up(ACTIVE)
    assert [(type(one), getattr(one, "seq", 0)) for one in team.said[1:]] == [
        (RestoreState, 0),
        (ActivateSeat, 0),
        (DeliverInput, 1),
    ]


def test_when_no_process_will_come_what_waits_ends_and_is_left_out(cold: Ledger) -> None:
    cold.input("a")
    cold.lose(ACTIVE)
    cold.tick(0.0)
    for _ in range(3):
        cold.tell(AgentStartFailed(AgentId(ACTIVE), cold.incarnation(ACTIVE), failure()))
        cold.tick(cold.now + 60.0) if cold.core.next_due() else None
    ended = [one.outcome for one in cold.journal if isinstance(one, ResolveTask)]
    assert [(one.task_id, one.failure and one.failure.kind) for one in ended] == [("a", "no_agent")]
    assert not cold.inbox.inputs
    cold.input("b")
    assert "does not start" in cold.of(RefuseTask)[0].detail


def test_what_later_outputs_tell_of_is_not_left_out_when_no_process_will_come(cold: Ledger) -> None:
    """The output of an earlier input was lost, that of a later one was not (found by simulation)."""
    cold.input("a")
    cold.input("b")
    cold.output(2, "b")
    cold.lose(ACTIVE)
    cold.tick(0.0)
    for _ in range(3):
        cold.tell(AgentStartFailed(AgentId(ACTIVE), cold.incarnation(ACTIVE), failure()))
        cold.tick(cold.now + 60.0) if cold.core.next_due() else None
    ended = {one.outcome.task_id: one.outcome for one in cold.journal if isinstance(one, ResolveTask)}
    assert ended["a"].failure is not None and ended["a"].failure.kind == "no_agent"
    assert ended["a"].failure.message.endswith("; its input was applied, and what came of it is lost")
    assert not [one for one in cold.journal if isinstance(one, SkipInput)]
    assert list(cold.inbox.inputs) == [1, 2]


def test_a_process_that_cannot_have_its_state_gives_its_seat_up(cold: Ledger) -> None:
    cold.input("a")
    cold.tell(StateRefused(AgentId(ACTIVE), 1, failure(message="gone from the disk")))
    assert [stop.agent_id for stop in cold.of(StopAgent)] == [ACTIVE]
    cold.tick(1.0)
    cold.up(ACTIVE)
    assert [one.seq for one in cold.of(DeliverInput)] == [1]
    assert not [one for one in cold.journal if isinstance(one, SkipInput)]

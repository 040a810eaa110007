"""Two attempts of one task: when the second one starts, who runs it, and what becomes of both."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.core.acting import Acting, ActingPolicy, may_join
from flowray.core.commands import AnswerStep, CancelAttempt, RequeueTask, ResolveTask, StartAttempt
from flowray.core.coordination import Coordination
from flowray.core.events import AgentsAdded, AttemptReturned, CancelRequested, EstimatesReady, StepFinished
from flowray.core.model import AgentId, Estimate, Payload, Snapshot, TaskId
from flowray.core.policy import CorePolicy
from flowray.core.retry import RetryPolicy
from flowray.core.routing import RoutingPolicy
from flowray.core.states import TaskState
from flowray.errors import ConfigError, InvalidTask
from flowray.tasks import make_task

from .builders import Team, failure, kinds, spec, task

ROUTING = RoutingPolicy(enabled=True, within_s=0.05, good=0.0, explore=0.0)
ACTING = ActingPolicy(hedge_factor=2.0, unsure=0.6, apart=1.0, copy_gain=0.1)


def routed(acting: ActingPolicy = ACTING, routing: RoutingPolicy = ROUTING, **counts: int) -> Team:
    it = Team(CorePolicy(routing=routing, acting=acting))
    for name, count in (counts or {"strong": 1, "weak": 1}).items():
        it.ready(count, name=name)
    return it


def tell(it: Team, task_id: str = "t", deviation: float = 0.3, latency_s: float | None = 1.0, **success: float):
    estimates = tuple(Estimate(name, value, deviation, None, latency_s, 0.01) for name, value in success.items())
    return it.tell(EstimatesReady(((TaskId(task_id), estimates),), "local", "v1"))


def starts(commands) -> list[tuple[str, int, str]]:
    return [(c.agent_id, c.attempt, c.reason) for c in commands if isinstance(c, StartAttempt)]


def stops(commands) -> list[tuple[str, int]]:
    return [(c.agent_id, c.attempt) for c in commands if isinstance(c, CancelAttempt)]


def outcome(commands):
    (found,) = [c.outcome for c in commands if isinstance(c, ResolveTask)]
    return found


def two(**fields) -> Team:
    """A task that runs twice: attempt 1 on writer-0 or writer-1, attempt 2 on the other."""
    it = Team(CorePolicy(acting=ACTING, retry=RetryPolicy(poison_kills=2, max_losses=3)))
    it.ready(2)
    it.submit("before")
    name = next(a.id for a in it.core.registry.agents() if a.outstanding)
    it.answer(name, "before", run_s=1.0)
    it.submit(**{"idempotent": True, **fields})
    it.tick(2.5)
    held = it.core.book.open["t"].running()
    assert [one.attempt for one in held] == [1, 2]
    return it


def agents_of(it: Team) -> list[str]:
    return [one.agent_id for one in it.core.book.open["t"].running()]


class TestHedge:
    def test_after_twice_the_estimate_on_the_best_of_the_others(self):
        it = routed(strong=1, weak=1, middling=1)
        it.submit(idempotent=True)
        assert starts(tell(it, strong=0.99, weak=0.2, middling=0.6, deviation=0.0)) == [("strong-0", 1, "first")]
        assert it.tick(1.9) == []
        (start,) = it.tick(2.1)
        assert (start.agent_id, start.reason, start.beside, start.choice.policy) == (
            "middling-0",
            "hedge",
            True,
            "hedge",
        )
        receipt = start.choice.receipt
        assert (receipt.chosen, receipt.propensities, receipt.explored) == ("middling", (), False)
        assert len(it.core.book.open["t"].choices) == 2

    def test_by_the_mean_of_its_class_where_nobody_estimates(self):
        it = Team(CorePolicy(acting=ACTING))
        it.ready(1)
        it.submit("before")
        it.answer("writer-0", "before", run_s=4.0)
        it.ready(1, name="other")
        it.submit(agent="writer", idempotent=True)
        it.tick(8.1)  # only the other is free, and it cannot do it
        assert len(agents_of(it)) == 1
        it.tell(AgentsAdded(spec(count=2)))
        it.up("writer-1")
        assert starts(it.tick(16.1)) == [("writer-1", 2, "hedge")]  # looked at again after twice the time

    def test_never_where_running_it_twice_may_do_harm(self):
        it = routed()
        it.submit()
        tell(it, strong=0.9, weak=0.5)
        assert starts(it.tick(100.0)) == []

    def test_never_of_an_exclusive_task(self):
        it = routed()
        it.submit(idempotent=True, exclusive=True)  # no caller gets so far, see `test_tasks`
        tell(it, strong=0.9, weak=0.5)
        assert starts(it.tick(100.0)) == []

    def test_never_where_both_failures_would_be_too_many(self):
        it = routed()
        it.submit(idempotent=True, max_attempts=1)
        tell(it, strong=0.9, weak=0.5)
        assert starts(it.tick(100.0)) == []
        assert [may_join(task(idempotent=True, max_attempts=3), failures) for failures in range(3)] == [
            True, True, False,
        ]  # fmt: skip

    def test_never_a_class_that_failed_at_it_while_another_is_free(self):
        it = routed(strong=1, weak=1, middling=1)
        it.submit(idempotent=True, max_attempts=5)
        tell(it, strong=0.9, weak=0.8, middling=0.3, deviation=0.0)
        it.answer("strong-0", "t", failure=failure())
        it.tick(it.core.next_due())
        assert starts(tell(it, strong=0.9, weak=0.8, middling=0.3, deviation=0.0)) == [("weak-0", 2, "retry")]
        assert starts(it.tick(4.0)) == [("middling-0", 3, "hedge")]

    def test_paid_from_credits(self):
        acting = ActingPolicy(hedge_factor=1.0, hedge_share=0.25, hedge_burst=1.0, copy_share=0.0)
        it = routed(acting, strong=20, weak=20)
        for number in range(9):
            it.submit(f"t{number}", idempotent=True)
            tell(it, f"t{number}", strong=0.9, weak=0.5)
        hedged = starts(it.tick(50.0))
        assert len(hedged) == 1  # what was earned while there was a full burst is gone
        it.submit("t9", idempotent=True)
        tell(it, "t9", strong=0.9, weak=0.5)
        assert starts(it.tick(60.0)) == []
        for number in range(10, 13):
            it.submit(f"t{number}", idempotent=True)
            tell(it, f"t{number}", strong=0.9, weak=0.5)
        assert len(starts(it.tick(300.0))) == 1  # four starts earn one

    def test_off_by_policy(self):
        it = routed(ActingPolicy(hedge_share=0.0, copy_share=0.0))
        it.submit(idempotent=True)
        tell(it, strong=0.5, weak=0.5)
        assert starts(it.tick(1000.0)) == []
        assert len(it.core.timers) == 0


class TestEnds:
    @pytest.mark.parametrize("attempt", [1, 2])
    def test_either_may_answer_and_the_other_is_stopped(self, attempt):
        it = two()
        names = agents_of(it)
        winner, loser = names[attempt - 1], names[2 - attempt]
        commands = it.answer(winner, "t", attempt)
        assert kinds(commands) == ["ResolveTask", "CancelAttempt"]
        ended = outcome(commands)
        assert (ended.state, ended.agent_id, ended.attempts) == (TaskState.SUCCEEDED, winner, 2)
        assert (ended.story[-1].what, ended.story[-1].attempt, ended.story[-1].agent_id) == (
            "succeeded",
            attempt,
            winner,
        )
        assert stops(commands) == [(loser, 3 - attempt)]
        assert it.core.registry.agent(loser).held == 1  # until it says that it has stopped
        assert it.answer(loser, "t", 3 - attempt) == []  # its answer changes nothing but that
        assert it.core.registry.agent(loser).held == 0
        assert len(it.core.timers) == 0

    @pytest.mark.parametrize("attempt", [1, 2])
    def test_a_failure_of_one_counts_and_the_other_goes_on(self, attempt):
        it = two()
        names = agents_of(it)
        (over,) = it.answer(names[attempt - 1], "t", attempt, failure=failure())
        assert (over.arrow, over.counts, over.attempt) == ("outlived", "failures", attempt)
        entry = it.core.book.open["t"]
        assert (entry.attempt, entry.agent_id, entry.extra, entry.failures) == (
            3 - attempt,
            names[2 - attempt],
            None,
            1,
        )
        assert outcome(it.answer(names[2 - attempt], "t", 3 - attempt)).attempts == 2

    def test_both_fail_then_it_is_tried_again_under_a_number_of_its_own(self):
        it = two()
        first, second = agents_of(it)
        it.answer(second, "t", 2, failure=failure())
        assert it.answer(first, "t", 1, failure=failure())[0].arrow == "failed"
        assert it.state("t") == "backing_off"
        (start,) = [c for c in it.tick(10.0) if isinstance(c, StartAttempt)]
        assert (start.attempt, start.reason) == (3, "retry")
        ended = outcome(it.answer(start.agent_id, "t", 3, failure=failure()))
        assert (ended.state, ended.attempts) == (TaskState.DEAD, 3)

    def test_one_that_cannot_be_retried_leaves_the_other_its_chance(self):
        it = two()
        first, second = agents_of(it)
        it.answer(first, "t", 1, failure=failure(retryable=False))
        assert it.state("t") == "running"
        assert outcome(it.answer(second, "t", 2)).state is TaskState.SUCCEEDED

    def test_an_answer_that_is_not_enough_is_a_failure(self):
        it = two(least_quality=0.5)
        first, second = agents_of(it)
        (over,) = it.answer(first, "t", 1, quality=0.2, cost_usd=0.3)
        assert (over.arrow, over.quality, over.cost_usd) == ("outlived", 0.2, 0.3)
        assert outcome(it.answer(second, "t", 2, quality=0.7)).quality == 0.7

    def test_cancel_stops_both(self):
        it = two()
        names = agents_of(it)
        commands = it.tell(CancelRequested(TaskId("t")))
        assert kinds(commands) == ["ResolveTask", "CancelAttempt", "CancelAttempt", "AnswerCancel"]
        assert sorted(stops(commands)) == sorted([(names[0], 1), (names[1], 2)])

    def test_a_deadline_stops_both(self):
        it = two(deadline_s=5.0)
        assert len(stops(it.tick(6.0))) == 2

    def test_each_has_its_own_time(self):
        it = two(attempt_timeout_s=4.0)
        first, second = agents_of(it)
        over, stop = it.tick(4.1)
        assert (
            (stop, over.attempt, over.failure.kind) if isinstance(over, RequeueTask) else stops([over]) == [(first, 1)]
        )
        assert agents_of(it) == [second]
        assert stops(it.tick(6.1)) == [(second, 2)]
        assert it.core.book.open["t"].failures == 2

    @pytest.mark.parametrize("attempt", [1, 2])
    def test_a_lost_agent_takes_only_its_own(self, attempt):
        it = two()
        names = agents_of(it)
        commands = it.lose(names[attempt - 1])
        assert [c.arrow for c in commands if isinstance(c, RequeueTask)] == ["outlived"]
        assert starts(commands) == []
        assert agents_of(it) == [names[2 - attempt]]
        assert outcome(it.answer(names[2 - attempt], "t", 3 - attempt)).state is TaskState.SUCCEEDED

    def test_a_killer_of_both_is_poison(self):
        it = two()
        first, second = agents_of(it)
        it.lose(first)
        ended = outcome(it.lose(second))
        assert (ended.state, ended.failure.kind) == (TaskState.DEAD, "poison")

    def test_a_killer_is_not_left_running(self):
        it = two()
        it.core.book.open["t"].kills = 1  # as if it had killed one before
        first, second = agents_of(it)
        commands = it.lose(first)
        assert outcome(commands).failure.kind == "poison"
        assert stops(commands) == [(second, 2)]

    def test_one_handed_back(self):
        it = two()
        first, second = agents_of(it)
        (over,) = it.tell(AttemptReturned(TaskId("t"), 2, 1, second))
        assert (over.arrow, over.counts) == ("outlived", "")
        assert agents_of(it) == [first]

    def test_a_draining_agent_keeps_its_attempt_until_the_other_answers(self):
        it = two()
        names = agents_of(it)
        it.tell(AgentsAdded(spec(count=1)))
        assert sorted(agents_of(it)) == ["writer-0", "writer-1"]
        at = names.index("writer-0")
        commands = it.answer("writer-0", "t", at + 1)
        assert stops(commands) == [("writer-1", 2 - at)]
        assert "StopAgent" in kinds(it.answer("writer-1", "t", 2 - at, failure=failure(kind="cancelled")))


class TestSteps:
    def test_both_record_and_the_first_of_a_name_stands(self):
        it = two()
        first, second = agents_of(it)
        assert record(it, first, 1, "a", b"one") == ("recorded", None)
        assert record(it, second, 2, "a", b"two") == ("known", b"one")
        assert record(it, second, 2, "b", b"two") == ("recorded", None)
        assert record(it, first, 1, "b", b"one") == ("known", b"two")
        assert record(it, first, 2, "c", b"one") == ("stale", None)  # it has the other one
        it.answer(second, "t", 2, failure=failure())
        assert record(it, second, 2, "c", b"two") == ("stale", None)  # over
        assert record(it, first, 1, "c", b"one") == ("recorded", None)
        assert list(it.core.book.open["t"].steps) == ["a", "b", "c"]

    def test_the_fence_of_an_adopted_attempt_is_the_highest(self):
        """Attempt 3 was in a lost tail, and attempt 2 of a later epoch has ended: so it may have shown its fence."""
        it = two()
        first, second = agents_of(it)
        del it.journal[-1]
        it.restart()
        it.up(second)
        it.submit("again")
        it.answer(second, "again", run_s=1.0)
        it.up(first, ("t", 1, 1))
        assert starts(it.tick(it.now + 2.5)) == [(second, 2, "hedge")]
        it.answer(second, "t", 2, failure=failure())
        it.restart()
        commands = it.up(first, ("t", 3, 1))
        assert stops(commands) == [(first, 3)]
        assert not [one for one in starts(commands) if one[2] == "adopted"]


def record(it: Team, agent: str, attempt: int, name: str, value: bytes) -> tuple[str, bytes | None]:
    payload = Payload(data=value, size_bytes=len(value))
    event = StepFinished(TaskId("t"), attempt, it.core.epoch, AgentId(agent), it.incarnation(agent), name, payload)
    answer = it.tell(event)[-1]
    assert isinstance(answer, AnswerStep)
    return answer.verdict, None if answer.value is None else answer.value.data


class TestRecovery:
    def test_both_are_adopted(self):
        it = two()
        first, second = agents_of(it)
        it.restart()
        assert agents_of(it) == [first, second]
        assert it.up(first, ("t", 1, 1)) == []
        assert it.up(second, ("t", 2, 1)) == []
        commands = it.answer(second, "t", 2, epoch=1)
        assert (outcome(commands).agent_id, stops(commands)) == (second, [(first, 1)])

    def test_one_is_not_heard_of(self):
        it = two()
        _, second = agents_of(it)
        it.restart()
        it.up(second, ("t", 2, 1))
        it.tick(it.now + 5.1)
        assert agents_of(it) == [second]
        assert outcome(it.answer(second, "t", 2, epoch=1)).attempts == 2

    def test_one_does_not_have_it_any_more(self):
        it = two()
        first, second = agents_of(it)
        it.restart()
        (over,) = it.up(first)
        assert (over.arrow, over.counts) == ("outlived", "losses")
        assert agents_of(it) == [second]

    def test_the_loser_of_an_answer_that_came_first_is_stopped_when_it_reports(self):
        it = two()
        first, second = agents_of(it)
        it.restart()
        assert stops(it.answer(second, "t", 2, epoch=1)) == []  # the other has not reported
        assert stops(it.up(first, ("t", 1, 1))) == [(first, 1)]

    def test_a_second_attempt_in_a_lost_tail_is_stopped(self):
        it = two()
        first, second = agents_of(it)
        del it.journal[-1]
        it.restart()
        it.up(first, ("t", 1, 1))
        assert stops(it.up(second, ("t", 2, 1))) == [(second, 2)]

    def test_both_in_a_lost_tail(self):
        it = two()
        first, second = agents_of(it)
        del it.journal[-2:]
        it.restart()
        assert starts(it.up(second, ("t", 2, 1))) == [(second, 2, "adopted")]
        assert stops(it.up(first, ("t", 1, 1))) == [(first, 1)]
        assert outcome(it.answer(second, "t", 2, epoch=1)).attempts == 2

    def test_through_a_snapshot_on_the_wire(self):
        it = two()
        body = msgspec.msgpack.encode(it.core.snapshot())
        again = Coordination.recover(
            epoch=2,
            rng=it.core.rng,
            now=it.now,
            policy=it.policy,
            snapshot=msgspec.msgpack.decode(body, type=Snapshot),
        )
        again.check()
        assert again.book.open["t"].running() == it.core.book.open["t"].running()
        assert again.book.snapshot(0.0) == it.core.book.snapshot(0.0)

    def test_a_snapshot_from_before_there_were_second_attempts(self):
        it = Team()
        it.ready(1)
        it.submit()
        built = msgspec.to_builtins(it.core.snapshot())
        for open_task in built["tasks"]:
            open_task.pop("attempts", None)
            open_task.pop("extra", None)
        core = Coordination.recover(
            epoch=2, rng=it.core.rng, now=1.0, snapshot=msgspec.convert(built, Snapshot, strict=False)
        )
        entry = core.book.open["t"]
        assert (entry.attempts, entry.attempt, entry.extra) == (1, 1, None)


class TestCopies:
    def test_two_classes_at_once_where_the_router_is_unsure(self):
        it = routed()
        it.submit(idempotent=True)
        commands = tell(it, strong=0.6, weak=0.55)
        assert starts(commands) == [("strong-0", 1, "first"), ("weak-0", 2, "copy")]
        first, second = (c.choice for c in commands)
        assert (first.policy, second.policy) == ("routed", "copy")
        assert (second.receipt.chosen, second.receipt.propensities) == ("weak", ())
        assert sum(first.receipt.propensities) == 1.0

    def test_when_a_task_that_waited_begins(self):
        it = routed()
        it.submit("before", agent="strong")
        it.submit(idempotent=True)
        tell(it, strong=0.6, weak=0.35, deviation=2.0)
        assert it.state("t") == "queued"
        assert starts(it.answer("strong-0", "before")) == [("strong-0", 1, "first"), ("weak-0", 2, "copy")]

    @pytest.mark.parametrize(
        ("why", "fields", "told"),
        [
            ("it is not idempotent", {"idempotent": False}, {"strong": 0.6, "weak": 0.55}),
            ("the router is sure", {}, {"strong": 0.7, "weak": 0.2, "deviation": 0.05}),
            ("one is good enough", {}, {"strong": 0.95, "weak": 0.9}),
            ("the other adds too little", {}, {"strong": 0.2, "weak": 0.1}),
            ("there is no time for it", {"deadline_s": 0.2}, {"strong": 0.6, "weak": 0.55}),
        ],
    )
    def test_not(self, why, fields, told):
        it = routed()
        it.submit(**{"idempotent": True, **fields})
        assert len(starts(tell(it, **told))) == 1, why

    def test_not_where_it_costs_more_than_it_brings(self):
        it = routed(routing=msgspec.structs.replace(ROUTING, usd=15.0))  # 0.01 dollars are 0.15 of success
        it.submit(idempotent=True)
        assert len(starts(tell(it, strong=0.6, weak=0.55))) == 1  # adds 0.55 * 0.4 - 0.15 = 0.07

    def test_never_waits_for_a_slot(self):
        it = routed()
        it.submit("before", agent="weak")
        it.submit(idempotent=True)
        assert starts(tell(it, strong=0.6, weak=0.55)) == [("strong-0", 1, "first")]

    def test_paid_from_credits(self):
        it = routed(ActingPolicy(unsure=1.0, copy_share=0.0, copy_burst=0.0))
        it.submit(idempotent=True)
        assert len(starts(tell(it, strong=0.6, weak=0.55))) == 1


class TestFallback:
    def test_where_nobody_is_expected_to_do_it(self):
        it = routed(strong=1, weak=1)
        it.ready(1, name="desk", capabilities=("people",))
        it.submit(fallback="desk", agent="")
        (start,) = tell(it, strong=0.05, weak=0.02, deviation=0.0)
        assert (start.agent_id, start.choice.policy, start.reason) == ("desk-0", "fallback", "first")

    def test_where_nobody_is_expected_to_do_it_in_time(self):
        it = routed()
        it.ready(1, name="desk")
        it.submit(fallback="desk", deadline_s=1.0)
        (start,) = tell(it, strong=0.9, weak=0.9, latency_s=10.0)
        assert start.agent_id == "desk-0"

    def test_not_where_somebody_is(self):
        it = routed()
        it.ready(1, name="desk")
        it.submit(fallback="desk")
        assert starts(tell(it, strong=0.5, weak=0.02, deviation=0.0)) == [("strong-0", 1, "first")]

    def test_gets_the_last_attempt_and_what_it_says_is_final(self):
        it = routed()
        it.ready(1, name="desk")
        it.submit(fallback="desk", max_attempts=2)
        tell(it, strong=0.9, weak=0.5)
        it.answer("strong-0", "t", failure=failure())
        (start,) = [c for c in it.tick(1.0) if isinstance(c, StartAttempt)]
        assert (start.agent_id, start.choice.policy, start.choice.receipt) == ("desk-0", "fallback", None)
        assert outcome(it.answer("desk-0", "t", 2, failure=failure())).state is TaskState.DEAD

    def test_its_attempts_are_not_doubled(self):
        it = routed()
        it.ready(1, name="desk")
        it.submit(fallback="desk", idempotent=True)
        tell(it, strong=0.01, weak=0.01, desk=0.05)
        assert starts(it.tick(1000.0)) == []

    def test_when_nobody_else_will_ever_come(self):
        it = Team()
        it.ready(1, name="writer", capabilities=("write",))
        it.ready(1, name="desk")
        it.submit("busy", agent="writer")
        it.submit(needs=("write",), fallback="desk")
        assert it.state("t") == "queued"
        it.tell(AgentsAdded(spec("writer", capabilities=("write",), count=0)))
        commands = it.answer("writer-0", "busy")
        assert starts(commands) == [("desk-0", 1, "first")]

    def test_one_that_nobody_knows_is_refused(self):
        it = Team()
        it.ready(1)
        (refused,) = it.submit(fallback="dsek")
        assert (refused.reason, "dsek" in refused.detail) == ("unknown_capability", True)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.5), st.none() | st.floats(0.001, 50)), min_size=2, max_size=5),
    st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.none() | st.floats(0.1, 20),
)  # fmt: skip
def test_a_copy_is_another_class_and_worth_it(rows, unsure, apart, gain, deadline_s):
    policy = ActingPolicy(unsure=unsure, apart=apart, copy_gain=gain, hedge_share=0.0)
    names = [f"c{number}" for number in range(len(rows))]
    it = routed(policy, **dict.fromkeys(names, 1))
    it.submit(idempotent=True, deadline_s=deadline_s)
    estimates = tuple(Estimate(n, p, d, None, latency) for n, (p, d, latency) in zip(names, rows, strict=True))
    commands = it.tell(EstimatesReady(((TaskId("t"), estimates),), "local", "v1"))
    first, *more = [c for c in commands if isinstance(c, StartAttempt)]
    assert len(more) <= 1
    for second in more:
        receipt = first.choice.receipt
        chance = {each.candidate: each.success for each in receipt.estimates}
        assert receipt.confidence < unsure
        assert second.choice.receipt.chosen != receipt.chosen
        most = apart * chance[second.choice.receipt.chosen]  # before time, and what the first is expected to do
        assert most >= gain


def test_a_policy_says_what_is_wrong():
    with pytest.raises(ConfigError, match=r"acting\.hedge_factor"):
        ActingPolicy(hedge_factor=0.5)
    with pytest.raises(ConfigError, match=r"acting\.unsure"):
        ActingPolicy(unsure=2.0)
    with pytest.raises(ConfigError, match=r"acting\.hedge_least_s"):
        ActingPolicy(hedge_least_s=-1.0)


def test_a_task_says_what_is_wrong():
    with pytest.raises(InvalidTask, match="idempotent"):
        make_task(lambda value, field: None, "x", idempotent="yes")
    with pytest.raises(InvalidTask, match="fallback"):
        make_task(lambda value, field: None, "x", fallback=None)


def test_nothing_is_lost_on_an_empty_list():
    assert not Acting(ActingPolicy(lost=1.0), ROUTING).is_lost([], None)

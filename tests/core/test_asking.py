"""A router is asked where there is a choice, and nothing ever hangs on its answer."""

from __future__ import annotations

import pytest

from flowray.core.commands import RequestEstimates, StartAttempt
from flowray.core.events import AgentsAdded, CancelRequested, EstimatesFailed, EstimatesReady, MemoryTold
from flowray.core.model import AgentId, Estimate, TaskId
from flowray.core.policy import CorePolicy
from flowray.core.routing import RoutingPolicy

from .builders import Team, failure, kinds, spec

ROUTING = RoutingPolicy(enabled=True, within_s=0.05, good=0.0, explore=0.0)


def team(policy: RoutingPolicy = ROUTING, **counts: int) -> Team:
    made = Team(CorePolicy(routing=policy))
    for name, count in (counts or {"strong": 1, "weak": 1}).items():
        made.ready(count, name=name)
    return made


def tell(to: Team, task_id: str = "t", **success: float):
    estimates = tuple(Estimate(name, value, 0.0, None, 1.0) for name, value in success.items())
    return to.tell(EstimatesReady(((TaskId(task_id), estimates),), "local", "v1"))


def starts(commands) -> list[tuple[str, str]]:
    return [(c.task_id, c.agent_id) for c in commands if isinstance(c, StartAttempt)]


def test_asked_then_started_on_the_better_one():
    it = team()
    accept, ask = it.submit()
    assert kinds([accept, ask]) == ["AcceptTask", "RequestEstimates"]
    assert ask == RequestEstimates(TaskId("t"), ("strong", "weak"))
    assert not ask.waits and not ask.durable
    it.now = 0.01
    (start,) = tell(it, strong=0.9, weak=0.3)
    receipt = start.choice.receipt
    assert start.agent_id == "strong-0"
    assert (start.choice.policy, receipt.chosen, receipt.path, receipt.version) == ("routed", "strong", "local", "v1")
    assert receipt.took_s == pytest.approx(0.01)
    assert receipt.propensities == (1.0, 0.0)


def test_nobody_is_asked_where_there_is_no_choice():
    it = team(strong=3)
    assert kinds(it.submit()) == ["AcceptTask", "StartAttempt"]
    it = Team()
    it.ready(name="strong")
    it.ready(name="weak")
    assert kinds(it.submit()) == ["AcceptTask", "StartAttempt"]  # routing is off
    assert kinds(team().submit(agent="weak")) == ["AcceptTask", "StartAttempt"]


class TestWithoutAnswer:
    def test_late(self):
        it = team()
        it.submit()
        (start,) = it.tick(0.06)
        assert start.choice.unrouted == "late"
        assert tell(it, strong=0.9, weak=0.1) == []  # now nobody waits for it

    def test_failed(self):
        it = team()
        it.submit()
        (start,) = it.tell(EstimatesFailed((TaskId("t"),), "no router"))
        assert start.choice.unrouted == "failed"

    def test_about_nobody_of_the_team(self):
        it = team()
        it.submit()
        (start,) = tell(it, stranger=0.9)
        assert start.choice.unrouted == "failed"

    def test_remembered_while_the_task_waits(self):
        it = team(strong=1, weak=1)
        for name in ("a", "b", "c"):
            it.submit(name)
        it.tick(0.06)
        (_, start) = it.answer("strong-0", next(iter(it.core.registry.agent("strong-0").outstanding)))
        assert (start.task_id, start.choice.policy, start.choice.unrouted) == ("c", "next_free", "late")

    def test_cancelled_meanwhile(self):
        it = team()
        it.submit()
        it.tell(CancelRequested(TaskId("t")))
        assert tell(it, strong=0.9, weak=0.1) == []
        assert it.state("t") == "gone"
        assert it.core.next_due() is None

    def test_expired_meanwhile(self):
        it = team(RoutingPolicy(enabled=True, within_s=1.0))
        it.submit(deadline_s=0.5)
        it.tick(0.6)
        assert it.state("t") == "gone"
        assert tell(it, strong=0.9, weak=0.1) == []


class TestWaiting:
    def test_for_the_better_one_if_it_is_worth_it(self):
        it = team()
        it.submit("first")
        assert starts(tell(it, "first", strong=0.9, weak=0.3)) == [("first", "strong-0")]
        it.submit("second")
        assert tell(it, "second", strong=0.9, weak=0.3) == []
        assert starts(it.answer("strong-0", "first")) == [("second", "strong-0")]

    def test_the_oldest_first(self):
        it = team()
        for name in ("a", "b", "c"):
            it.submit(name)
        for name in ("a", "c", "b"):
            tell(it, name, strong=0.9, weak=0.3)
        assert starts(it.answer("strong-0", "a")) == [("b", "strong-0")]

    def test_not_when_another_is_nearly_as_good(self):
        it = team(RoutingPolicy(enabled=True, good=0.02, explore=0.0, slowdown=0.1))
        it.submit("first")
        tell(it, "first", strong=0.9, weak=0.85)
        it.answer("strong-0", "first")  # now it is known how long a task takes
        for name in ("second", "third"):
            it.submit(name)
        assert starts(tell(it, "second", strong=0.9, weak=0.85)) == [("second", "strong-0")]
        assert starts(tell(it, "third", strong=0.9, weak=0.85)) == [("third", "weak-0")]

    def test_an_idle_agent_takes_over_what_waits_too_long_for_another(self):
        it = team(RoutingPolicy(enabled=True, good=0.02, explore=0.0, slowdown=0.05))
        for name in ("warm", "busy"):
            it.submit(name)
            tell(it, name, strong=0.9, weak=0.1)
            if name == "warm":
                it.answer("strong-0", "warm")
        it.submit("other")
        tell(it, "other", strong=0.1, weak=0.9)  # keeps the weak one busy
        it.submit("waits")
        tell(it, "waits", strong=0.9, weak=0.86)
        started = it.answer("weak-0", "other")
        assert starts(started) == [("waits", "weak-0")]
        choice = started[-1].choice
        assert (choice.policy, choice.receipt.chosen, choice.receipt.propensities) == ("taken_over", "weak", ())

    def test_cancelled_while_it_waits(self):
        it = team()
        for name in ("a", "b"):
            it.submit(name)
            tell(it, name, strong=0.9, weak=0.3)
        it.tell(CancelRequested(TaskId("b")))
        assert starts(it.answer("strong-0", "a")) == []

    def test_decided_again_when_the_chosen_class_is_gone(self):
        it = team()
        for name in ("a", "b"):
            it.submit(name)
            tell(it, name, strong=0.9, weak=0.3)
        lost = it.lose("strong-0")
        assert sorted(starts(lost)) == [("a", "weak-0")] or it.state("a") == "queued"
        it.tick(0.1)
        assert {it.state("a"), it.state("b")} == {"running", "queued"}
        runs = next(iter(it.core.registry.agent("weak-0").outstanding))
        (_, start) = it.answer("weak-0", runs, attempt=it.core.book.open[runs].attempt)
        assert start.agent_id == "weak-0"

    def test_and_when_it_is_not_wanted_any_more(self):
        it = team()
        for name in ("a", "b"):
            it.submit(name)
            tell(it, name, strong=0.9, weak=0.3)
        commands = it.tell(AgentsAdded(spec("strong", count=0)))
        assert starts(commands) == [("b", "weak-0")]


def test_a_retry_says_who_failed():
    it = team()
    it.submit()
    tell(it, strong=0.9, weak=0.3)
    it.answer("strong-0", "t", failure=failure())
    asked = [c for c in it.tick(10.0) if isinstance(c, RequestEstimates)]
    assert asked == [RequestEstimates(TaskId("t"), ("strong", "weak"), (("strong", 0.0),))]


def test_a_restart_forgets_questions_and_loses_no_task():
    it = team()
    for name in ("a", "b"):
        it.submit(name)
    it.restart()
    assert it.state("a") == it.state("b") == "queued"
    (start,) = it.up("strong-0")
    assert (start.task_id, start.choice.unrouted) == ("a", "recovered")


class TestNotEnough:
    """An answer that its own agent says is worth too little."""

    def wanting(self, **more):
        it = team(ROUTING, strong=1, middle=1, weak=1)
        it.submit(least_quality=0.5, **more)
        return it

    def test_another_class_is_asked_at_once(self):
        it = self.wanting()
        tell(it, strong=0.9, middle=0.6, weak=0.3)
        (requeue,) = it.answer("strong-0", "t", quality=0.2, cost_usd=0.01)
        assert (requeue.quality, requeue.cost_usd, requeue.not_before) == (0.2, 0.01, it.now)
        (_, asked) = it.tick(it.now)
        assert asked.tried == (("strong", 0.0),)
        (start,) = tell(it, strong=0.9, middle=0.6, weak=0.3)
        assert start.agent_id == "middle-0"
        (resolve,) = it.answer("middle-0", "t", attempt=2, quality=0.7)
        assert (resolve.outcome.state.value, resolve.outcome.quality) == ("succeeded", 0.7)

    def test_after_thrift_comes_the_best(self):
        it = self.wanting(quality=0.5)
        prices = {"strong": 1.0, "middle": 0.1, "weak": 0.01}
        expected = {"strong": 0.9, "middle": 0.7, "weak": 0.6}

        def said():
            estimates = tuple(Estimate(name, expected[name], 0.0, None, 1.0, prices[name]) for name in prices)
            return it.tell(EstimatesReady(((TaskId("t"), estimates),), "local", "v1"))

        assert starts(said()) == [("t", "weak-0")]
        it.answer("weak-0", "t", quality=0.0)
        it.tick(it.now)
        assert starts(said()) == [("t", "strong-0")]

    def test_when_all_attempts_are_used_up_it_is_a_dead_letter_without_a_value(self):
        it = self.wanting(max_attempts=1)
        tell(it, strong=0.9, middle=0.6, weak=0.3)
        (resolve,) = it.answer("strong-0", "t", quality=0.2)
        outcome = resolve.outcome
        assert (outcome.state.value, outcome.failure.kind, outcome.value) == ("dead", "quality", None)
        assert outcome.quality == 0.2
        assert "worth 0.2; at least 0.5" in outcome.failure.message

    def test_without_a_report_an_answer_is_an_answer(self):
        it = self.wanting()
        tell(it, strong=0.9, middle=0.6, weak=0.3)
        (resolve,) = it.answer("strong-0", "t")
        assert resolve.outcome.state.value == "succeeded"

    def test_the_same_class_again_where_there_is_no_other(self):
        it = Team(CorePolicy(routing=ROUTING))
        it.ready(name="only")
        it.submit(least_quality=0.5)
        it.answer("only-0", "t", quality=0.1)
        (_, start) = it.tick(it.now)
        assert start.agent_id == "only-0"


class TestManyClasses:
    policy = RoutingPolicy(enabled=True, shortlist=8, newcomers=2, explore=0.0)

    def test_few_are_asked_about_and_the_best_among_them(self):
        it = team(self.policy, **{f"kind{number:02d}": 1 for number in range(40)})
        for number in range(40):
            one = it.core.registry.named(f"kind{number:02d}")
            for _ in range(20):
                one.graded(number / 40)
        asked = next(c for c in it.submit() if isinstance(c, RequestEstimates)).candidates
        assert len(asked) == 8
        assert {f"kind{number}" for number in range(34, 40)} <= set(asked)

    def test_everybody_is_asked_about_some_time(self):
        it = team(self.policy, **{f"kind{number:02d}": 1 for number in range(20)})
        seen = set()
        for number in range(120):
            (_, asked) = it.submit(f"t{number}")
            seen |= set(asked.candidates)
            it.tell(CancelRequested(TaskId(f"t{number}")))
        assert len(seen) == 20


def test_who_has_no_memory_left_gets_less_and_who_has_enough_all_the_same():
    it = team(own=1, other=2)
    it.tell(MemoryTold(0.3, (AgentId("own-0"),)))
    it.submit("a")
    assert starts(tell(it, "a", own=0.62, other=0.6)) == [("a", "own-0")]
    it.answer("own-0", "a")
    it.tell(MemoryTold(0.05, (AgentId("own-0"), AgentId("nobody-7"))))
    it.submit("b")
    (start,) = tell(it, "b", own=0.62, other=0.6)
    assert start.choice.receipt.chosen == "other"
    assert start.choice.receipt.values[0] == pytest.approx(0.57, abs=0.002)  # half of what is enough: half the cost
    it.tell(MemoryTold(0.0, (AgentId("other-0"),)))  # one of two: on average there is enough
    it.submit("c")
    assert tell(it, "c", own=0.5, other=0.6)[0].choice.receipt.values[1] == pytest.approx(0.6, abs=0.002)


def test_a_tier_may_be_worth_less_than_another():
    it = Team(CorePolicy(routing=RoutingPolicy(enabled=True, good=0.0, explore=0.0, tiers={"spare": -0.3})))
    it.ready(name="own")
    it.tell(AgentsAdded(spec(name="hired", tier="spare")))
    it.up("hired-0")
    it.submit("a")
    assert starts(tell(it, "a", own=0.6, hired=0.8)) == [("a", "own-0")]
    it.submit("b")
    (start,) = tell(it, "b", own=0.6, hired=0.95)
    assert start.agent_id == "hired-0" and start.choice.receipt.values[1] == pytest.approx(0.65, abs=0.01)

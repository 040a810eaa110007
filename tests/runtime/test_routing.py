"""The coordinator's router, without Ray: batches, what it learns, and that no task depends on it."""

from __future__ import annotations

import asyncio
import random

import pytest
from msgspec import structs

from flowray.core.book import Entry
from flowray.core.commands import (
    AcceptTask,
    GradeTask,
    RequestEstimates,
    RequeueTask,
    ResolveTask,
    StartAgent,
    StartAttempt,
)
from flowray.core.coordination import Coordination
from flowray.core.events import AgentReady, AgentsAdded, EstimatesFailed, EstimatesReady, TaskSubmitted
from flowray.core.model import AgentSpec, Choice, Estimate, Failure, Grade, Outcome, Receipt, StoryLine, Task, TaskId
from flowray.core.naming import class_of
from flowray.core.policy import CorePolicy
from flowray.core.routing import RoutingPolicy
from flowray.core.states import AgentState, TaskState
from flowray.runtime import render
from flowray.runtime.pump import Pump
from flowray.runtime.routing import BATCH, RoutingDesk
from flowray.runtime.sentences import explain, why
from flowray.runtime.views import story_of


class FakeRouter:
    """Says 0.5 of everybody, and writes down what it is told."""

    version = "fake+0"

    def __init__(self):
        self.batches: list[int] = []
        self.learned: list[tuple] = []
        self.forgotten: list[str] = []
        self.graded: list[tuple[str, float]] = []
        self.broken = False

    def estimate(self, task_ids, queries):
        if self.broken:
            raise ValueError("odd")
        self.batches.append(len(queries))
        self.texts = [query.text for query in queries]
        self.origins = [query.builds_on for query in queries]
        return [tuple(Estimate(name, 0.5) for name in query.candidates) for query in queries]

    def learn(self, task_id, agent, succeeded, *, quality=None, run_s=None, cost_usd=None):
        self.learned.append((task_id, agent, succeeded, quality, run_s, cost_usd))
        return True

    def regrade(self, task_id, quality):
        self.graded.append((task_id, quality))
        return True

    def forget(self, task_id):
        self.forgotten.append(task_id)


class Desk:
    def __init__(self, load=None):
        self.router = FakeRouter()
        self.events = []
        self.open: dict[TaskId, Entry] = {}
        self.desk = RoutingDesk(
            load or (lambda: self.router), self.events.append, self.open.get, self.open.__contains__
        )

    def ask(self, *names: str):
        for name in names:
            self.open[TaskId(name)] = Entry(
                Task(id=TaskId(name), prompt=f"text of {name}", builds_on=f"origin of {name}"), 0.0, 0
            )
            self.desk.ask(RequestEstimates(TaskId(name), ("a", "b")))


async def until(condition):
    for _ in range(2_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not happen")


async def loaded(desk: Desk) -> Desk:
    desk.desk.begin()
    await until(lambda: desk.desk.version)
    return desk


def test_what_comes_together_is_answered_together():
    async def scenario():
        it = await loaded(Desk())
        it.ask("x", "y", "z")
        await until(lambda: it.events)
        return it

    it = asyncio.run(scenario())
    assert it.router.batches == [3]
    assert it.router.texts == ["text of x", "text of y", "text of z"]
    assert it.router.origins == ["origin of x", "origin of y", "origin of z"]
    (event,) = it.events
    assert isinstance(event, EstimatesReady)
    assert [task_id for task_id, _ in event.answers] == ["x", "y", "z"]
    assert (event.path, event.version) == ("local", "fake+0")


def test_a_batch_is_bounded():
    async def scenario():
        it = await loaded(Desk())
        it.ask(*(f"t{number}" for number in range(2 * BATCH + 1)))
        await until(lambda: len(it.events) == 3)
        return it

    assert asyncio.run(scenario()).router.batches == [BATCH, BATCH, 1]


def test_nobody_waits_for_a_router_that_is_not_loaded():
    async def scenario():
        it = Desk()
        it.ask("x")
        await until(lambda: it.events)
        return it.events

    (event,) = asyncio.run(scenario())
    assert isinstance(event, EstimatesFailed)
    assert event.task_ids == ("x",)
    assert "not loaded" in event.reason


def test_one_that_cannot_be_loaded_says_why(capsys):
    def load():
        raise OSError("no such artifact")

    async def scenario():
        it = Desk(load)
        it.desk.begin()
        await until(lambda: "no such artifact" in it.desk.trouble)
        it.ask("x")
        await until(lambda: it.events)
        return it.events

    (event,) = asyncio.run(scenario())
    assert isinstance(event, EstimatesFailed)
    assert "no such artifact" in event.reason
    assert "no such artifact" in capsys.readouterr().err


def test_one_that_raises_costs_no_task():
    async def scenario():
        it = await loaded(Desk())
        it.router.broken = True
        it.ask("x", "y")
        await until(lambda: it.events)
        it.router.broken = False
        it.ask("z")
        await until(lambda: len(it.events) == 2)
        return it.events

    failed, ready = asyncio.run(scenario())
    assert isinstance(failed, EstimatesFailed)
    assert failed.task_ids == ("x", "y")
    assert isinstance(ready, EstimatesReady)


def test_of_two_questions_about_a_task_the_newer_one_is_answered():
    async def scenario():
        it = await loaded(Desk())
        it.ask("x")  # its patience is over before it is answered, and it is asked again
        it.desk.ask(RequestEstimates(TaskId("x"), ("a", "c"), (("b", 0.0),)))
        await until(lambda: it.events)
        await asyncio.sleep(0.01)
        return it

    (event,) = asyncio.run(scenario()).events
    ((_, estimates),) = event.answers
    assert [estimate.candidate for estimate in estimates] == ["a", "c"]


def test_a_task_that_is_gone_is_not_asked_about():
    async def scenario():
        it = await loaded(Desk())
        it.ask("x", "y")
        del it.open[TaskId("x")]
        await until(lambda: it.events)
        return it.router.texts

    assert asyncio.run(scenario()) == ["text of y"]


class Groups:
    """A journal that keeps what is handed to it together."""

    commands_since_snapshot = 0

    def __init__(self):
        self.groups: list[list] = []

    def append(self, commands, done):
        self.groups.append(list(commands))
        done(None)


async def test_a_decision_goes_to_the_journal_with_the_task_that_it_is_about():
    store, router = Groups(), FakeRouter()
    core = Coordination.recover(
        epoch=1, rng=random.Random(1), now=0.0, policy=CorePolicy(routing=RoutingPolicy(enabled=True))
    )

    def perform(command):
        if isinstance(command, StartAgent):
            pump.put(AgentReady(command.agent_id, command.incarnation))
        elif isinstance(command, RequestEstimates):
            desk.ask(command)

    desk = RoutingDesk(lambda: router, lambda event: pump.put(event), core.book.open.get, core.asking.is_asked)
    pump = Pump(core, store, perform, lambda: 1.0, lambda error: None, [desk], desk.answers)
    desk.begin()
    await until(lambda: desk.version)
    running = asyncio.create_task(pump.run())
    for name in ("a", "b"):
        pump.put(AgentsAdded(AgentSpec(name=name, tier="t", count=BATCH)))
    ready = AgentState.READY
    await until(lambda: sum(agent.state is ready for agent in core.registry.agents()) == 2 * BATCH)
    store.groups.clear()
    for number in range(BATCH + 1):
        pump.put(TaskSubmitted(Task(id=TaskId(f"t{number}"), prompt="x")))
    await until(lambda: sum(isinstance(each, StartAttempt) for group in store.groups for each in group) == BATCH + 1)
    pump.stop()
    await running
    first, *later = store.groups
    assert [sum(isinstance(each, kind) for each in first) for kind in (AcceptTask, StartAttempt)] == [BATCH + 1, BATCH]
    assert all(each.choice.policy == "routed" for group in store.groups for each in group if hasattr(each, "choice"))
    assert sum(isinstance(each, StartAttempt) for group in later for each in group) == 1, "the loop is not held longer"
    assert router.batches == [BATCH, 1]


class TestLearning:
    def told(self, *commands):
        async def scenario():
            it = await loaded(Desk())
            it.ask("x")
            it.open[TaskId("x")].story.append(StoryLine(1.0, "attempt_failed", 1, "good-class-2"))
            for command in commands:
                it.desk(command)
            return it.router

        return asyncio.run(scenario())

    def outcome(self, state=TaskState.SUCCEEDED, **more):
        return ResolveTask(Outcome(task_id=TaskId("x"), state=state, agent_id="good-class-2", run_s=1.5, **more))

    def test_a_success(self):
        router = self.told(self.outcome())
        assert router.learned == [("x", "good-class", True, None, 1.5, None)]
        assert router.forgotten == ["x"]

    def test_what_the_agent_said_of_its_answer(self):
        assert self.told(self.outcome(quality=0.25, cost_usd=0.1)).learned == [
            ("x", "good-class", True, 0.25, 1.5, 0.1)
        ]

    def test_a_failed_attempt(self):
        failed = RequeueTask(TaskId("x"), 1, 2.0, "failed", Failure(kind="application"), "failures")
        assert self.told(failed).learned == [("x", "good-class", False, None, None, None)]

    def test_an_answer_that_was_not_enough(self):
        failure = Failure(kind="quality")
        failed = RequeueTask(
            TaskId("x"), 1, 2.0, "failed", failure, "failures", 2.0, quality=0.3, cost_usd=0.1, run_s=4.0
        )
        assert self.told(failed).learned == [("x", "good-class", False, 0.3, 4.0, 0.1)]

    @pytest.mark.parametrize(
        ("kind", "learned"),
        [("application", 1), ("timeout", 1), ("agent_lost", 0), ("no_agent", 0), ("poison", 0), ("quality", 1)],
    )
    def test_the_end_of_a_dead_letter_only_where_the_agent_is_to_blame(self, kind, learned):
        assert len(self.told(self.outcome(TaskState.DEAD, failure=Failure(kind=kind))).learned) == learned

    def test_nothing_from_a_lost_agent_or_a_cancelled_task(self):
        lost = RequeueTask(TaskId("x"), 1, 2.0, "requeued", Failure(kind="agent_lost"), "kills")
        router = self.told(lost, self.outcome(TaskState.CANCELLED, failure=Failure(kind="cancelled")))
        assert router.learned == []
        assert router.forgotten == ["x"]


def test_the_class_of_an_agent():
    assert class_of("gpt-4o-mini-12") == "gpt-4o-mini"


class TestWords:
    def outcome(self, choice: Choice) -> Outcome:
        story = (
            StoryLine(0.0, "accepted"),
            StoryLine(0.01, "started", 1, "strong-0", "first"),
            StoryLine(1.0, "succeeded", 1, "strong-0"),
        )
        return Outcome(
            task_id=TaskId("x"),
            state=TaskState.SUCCEEDED,
            agent_id="strong-0",
            attempts=1,
            story=story,
            choices=(choice,),
        )

    def receipt(self, **changes) -> Receipt:
        estimates = (Estimate("strong", 0.91, 0.05, None, 2.0, 0.02), Estimate("weak", 0.40, 0.1))
        fields = dict(zip(("explored", "confidence", "wait_s", "took_s"), (False, 0.97, 0.0, 0.0012), strict=True))
        return Receipt("local", "v1+40", estimates, (0.9, 0.4), (1.0, 0.0), "strong", **{**fields, **changes})

    def test_why_this_one_and_not_another(self):
        choice = Choice("routed", 2, (("strong-0", 0.0),), self.receipt())
        told = explain(story_of(self.outcome(choice)))
        assert "went to strong-0: 91% expected to succeed, 2 s, $0.02; " in told
        assert "weak (40% expected to succeed)" in told
        assert "97% sure that nobody is better (answered in 1.2 ms, local, version v1+40)" in told
        assert why(choice, "strong-0") == "estimated to succeed at 91%, 2 candidates"

    def test_what_is_due_to_whose_answer_it_goes_on_from(self):
        related = (Estimate("strong", 0.91, 0.05, None, 2.0, 0.02, 0.124), Estimate("weak", 0.40, 0.1, related=-0.001))
        choice = Choice("routed", 2, (("strong-0", 0.0),), structs.replace(self.receipt(), estimates=related))
        told = explain(story_of(self.outcome(choice)))
        assert "91% expected to succeed (+12 points by whose answer it goes on from), 2 s" in told
        assert "weak (40% expected to succeed)" in told

    def test_chance_is_told(self):
        told = explain(story_of(self.outcome(Choice("routed", 2, (("strong-0", 0.0),), self.receipt(explored=True)))))
        assert "was tried to learn of it" in told

    def test_a_router_without_an_answer_is_told(self):
        choice = Choice("only_one", 1, (("strong-0", 0.0),), None, "late")
        told = explain(story_of(self.outcome(choice)))
        assert "had room (the router did not answer in time)." in told
        assert "did not answer in time" in why(choice, "strong-0")


async def test_a_grade_that_comes_later_is_learned_from():
    it = await loaded(Desk())
    it.desk(GradeTask(TaskId("x"), 0.25, 9.0, "me"))
    assert it.router.graded == [("x", 0.25)]


def test_a_graded_answer_says_so_in_its_story():
    outcome = Outcome(
        task_id=TaskId("x"), state=TaskState.SUCCEEDED, story=(StoryLine(1.0, "accepted"),), accepted_at=1.0
    )
    told = story_of(outcome, Grade(TaskId("x"), 0.25, 3.5, "tests"))
    assert explain(told).endswith("Its answer was graded 0.25 by tests, of at most 1.")
    assert "graded" not in explain(story_of(outcome))
    assert "graded 0.25 by tests" in render.plain(told)

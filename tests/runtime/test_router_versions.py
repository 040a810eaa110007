"""The router in versions, without Ray: who is asked, who is heard, who learns, and what a bad version costs."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from msgspec import structs
from test_routing import Desk, until

from flowray.core.events import VersionDecided
from flowray.core.model import Choice, Estimate, Receipt, RouterPlace
from flowray.core.rollout import Evidence, RolloutPolicy, RolloutStage
from flowray.core.routing import RoutingPolicy, draw
from flowray.errors import RouterRefused
from flowray.routing.queries import Query
from flowray.runtime.rollout import VersionedRouter, load_versions

S = RolloutStage
NAMES = ("a", "b")
ROUTING = RoutingPolicy(enabled=True)
POLICY = RolloutPolicy(
    shadow_share=0.5, shadow_least=20, shadow_most=400, canary_share=0.3, canary_least=10, canary_most=200, watch=150
)
OLD, NEW = RouterPlace("v1", "/old"), RouterPlace("v2", "/new")


class Says:
    """A router that believes the same of every task, and writes down what happens to it."""

    def __init__(self, name: str, **worth: float) -> None:
        self.name, self.worth = name, worth
        self.asked: list[str] = []
        self.learned: list[str] = []
        self.forgotten: list[str] = []
        self.raises, self.settled = False, 0

    @property
    def version(self) -> str:
        return f"{self.name}+{len(self.learned)}"

    def estimate(self, task_ids, queries):
        if self.raises:
            raise ValueError("odd")
        self.asked += task_ids
        return [
            tuple(Estimate(name, self.worth.get(name, 0.5), 0.02, latency_s=1.0) for name in query.candidates)
            for query in queries
        ]

    def learn(self, task_id, agent, succeeded, **more):
        self.learned.append(task_id)
        return True

    def forget(self, task_id):
        self.forgotten.append(task_id)

    drifted = 0

    def settle(self):
        self.settled += 1
        if self.raises:
            raise ValueError("odd")


class World:
    """A router in versions whose tasks are done at once; what agents are worth is given."""

    def __init__(self, policy: RolloutPolicy = POLICY, clock=None, **truth: float) -> None:
        self.truth, self.rng = truth, Random(1)
        self.old, self.new = Says("v1", a=0.8, b=0.4), Says("v2", a=0.4, b=0.8)
        more = {"clock": clock} if clock is not None else {}
        self.versions = VersionedRouter(self.old, OLD, policy, ROUTING, **more)
        self.decided: list = []
        self.versions.begin(lambda event: self.decided.append(event.record))
        self.tasks = 0
        self.by: list[str] = []  # version that answered each task

    def batch(self, size: int = 8) -> list[tuple[Estimate, ...]]:
        ids = [f"t{self.tasks + number}" for number in range(size)]
        self.tasks += size
        found = self.versions.estimate(ids, [Query(text, NAMES) for text in ids])
        answered = self.versions.answered(ids)
        assert sorted(row for _, rows in answered for row in rows) == list(range(size)), "each is whose answer it is"
        for version, rows in answered:
            for row in rows:
                self.by.append(version.partition("+")[0])
                self.end(ids[row], found[row], version)
        return found

    def end(self, task_id: str, estimates, version: str) -> None:
        drawn = draw(estimates, [1.0] * len(NAMES), [0.0] * len(NAMES), None, ROUTING, self.rng)
        agent = estimates[drawn.place].candidate
        good = self.rng.random() < self.truth[agent]
        receipt = Receipt(
            "local", version, estimates, drawn.values, drawn.propensities, agent, drawn.explored, 1.0, 0.0, 0.0
        )
        self.versions.learn(task_id, agent, good)
        self.versions.saw(task_id, agent, good, None, [Choice("routed", 2, (), receipt)])
        self.versions.forget(task_id)

    def until(self, *arrows: str, most: int = 20_000) -> str:
        seen = len(self.decided)
        while self.tasks < most:
            self.batch()
            for record in self.decided[seen:]:
                if record.arrow in arrows:
                    return record.arrow
        raise AssertionError([record.arrow for record in self.decided])


def test_without_a_trial_every_call_goes_straight_through():
    world = World(a=0.8, b=0.4)
    world.batch()
    assert len(world.old.asked) == len(world.old.learned) == len(world.old.forgotten) == 8
    assert world.decided == []
    assert world.versions.version == "v1+8"


def test_a_better_one_comes_into_force_and_stays():
    world = World(a=0.2, b=0.8)
    world.versions.offer(world.new, NEW)
    world.until("passed")
    assert set(world.by) == {"v1"}, "in shadow it is not heard"
    assert 0.3 < len(world.new.asked) / world.tasks < 0.95
    begun = len(world.by)
    world.until("promoted")
    canaries = world.by[begun:].count("v2") / len(world.by[begun:])
    assert 0.15 < canaries < 0.45
    assert world.versions.place == NEW
    begun = len(world.by)
    world.until("settled")
    assert 0.15 < world.by[begun:].count("v1") / len(world.by[begun:]) < 0.45
    world.batch()
    assert set(world.by[-8:]) == {"v2"}
    assert [record.arrow for record in world.decided if record.arrow != "noted"] == [
        "offered", "passed", "promoted", "settled",
    ]  # fmt: skip
    assert all(record.why and record.configured == OLD for record in world.decided)
    assert world.decided[-1].live == NEW and world.decided[-1].other is None


def test_a_bad_one_ends_in_shadow_unheard():
    world = World(a=0.8, b=0.4)
    world.versions.offer(world.new, NEW)
    assert world.until("rejected", "passed") == "rejected"
    assert set(world.by) == {"v1"}
    assert world.versions.stage is S.IDLE
    assert world.versions.other_place is None
    asked = len(world.new.asked)
    world.batch()
    assert len(world.new.asked) == asked


def test_one_that_gets_bad_after_its_promotion_is_rolled_back():
    world = World(structs.replace(POLICY, watch=5_000), a=0.2, b=0.8)
    world.versions.offer(world.new, NEW)
    world.until("promoted")
    world.truth = {"a": 0.8, "b": 0.2}
    assert world.until("rolled_back", "settled") == "rolled_back"
    assert world.versions.place == OLD
    world.batch()
    assert set(world.by[-8:]) == {"v1"}
    assert world.decided[-1].live == OLD


def test_both_learn_of_what_they_were_asked_about():
    world = World(a=0.8, b=0.8)
    world.versions.offer(world.new, NEW)
    world.batch(15)
    assert len(world.old.learned) == len(world.new.learned) == 15, "a LiveRouter knows what it was asked about"
    assert sorted(world.new.forgotten) == sorted(world.old.forgotten)


class TestTrouble:
    @pytest.mark.parametrize("how", ["raises", "nonsense"])
    def test_in_shadow_costs_no_task_an_answer(self, how):
        world = World(a=0.8, b=0.4)
        world.versions.offer(world.new, NEW)
        self.spoil(world.new, how)
        found = world.batch()
        assert [estimate.success for estimate in found[0]] == [0.8, 0.4]
        assert [record.arrow for record in world.decided] == ["offered", "rejected"]
        assert ("raised ValueError" if how == "raises" else "no choice") in world.decided[-1].why
        assert set(world.by) == {"v1"}

    @pytest.mark.parametrize("how", ["raises", "nonsense"])
    def test_in_force_the_earlier_one_answers_at_once(self, how):
        world = World(a=0.2, b=0.8)
        world.versions.offer(world.new, NEW)
        world.until("promoted")
        self.spoil(world.new, how)
        found = world.batch(20)
        assert all([estimate.success for estimate in answer] == [0.8, 0.4] for answer in found)
        assert set(world.by[-20:]) == {"v1"}
        assert world.decided[-1].arrow == "rolled_back"

    def test_of_the_earlier_one_leaves_the_one_in_force(self):
        world = World(a=0.2, b=0.8)
        world.versions.offer(world.new, NEW)
        world.until("promoted")
        world.old.raises = True
        world.batch(20)
        assert world.decided[-1].arrow == "settled"
        assert world.versions.place == NEW

    def test_while_learning_ends_the_trial_alone(self):
        world = World(a=0.8, b=0.4)
        world.versions.offer(world.new, NEW)
        world.new.raises = True
        world.versions.settle()
        assert world.old.settled == 1
        assert world.decided[-1].arrow == "rejected"

    def test_of_the_one_in_force_is_not_the_candidates(self):
        world = World(a=0.8, b=0.4)
        world.versions.offer(world.new, NEW)
        world.old.raises = True
        with pytest.raises(ValueError, match="odd"):
            world.batch()
        assert world.versions.stage is S.SHADOW

    def test_one_that_takes_far_longer_goes(self):
        now = [0.0]

        def clock() -> float:
            now[0] += 0.001
            return now[0]

        world = World(clock=clock, a=0.2, b=0.8)
        slow = world.new.estimate
        world.new.estimate = lambda ids, queries: (now.__setitem__(0, now[0] + 0.1), slow(ids, queries))[1]
        world.versions.offer(world.new, NEW)
        for _ in range(5):
            world.batch(4)
        assert world.decided[-1].arrow == "rejected"
        assert "far longer" in world.decided[-1].why

    def spoil(self, router: Says, how: str) -> None:
        if how == "raises":
            router.raises = True
        else:
            router.worth = {"a": float("nan")}


def test_one_trial_at_a_time_and_none_of_what_is_in_force():
    world = World(a=0.8, b=0.4)
    with pytest.raises(RouterRefused, match="in force already"):
        world.versions.offer(world.new, RouterPlace("v1", "/elsewhere"))
    world.versions.offer(world.new, NEW)
    with pytest.raises(RouterRefused, match="one at a time; version v1 stays"):
        world.versions.offer(Says("v3"), RouterPlace("v3", "/third"))


def test_a_refusal_travels():
    refused = RouterRefused("/new", "it is odd; really", "v1")
    again = RouterRefused.told(str(refused))
    assert (again.router, again.detail, again.kept) == ("/new", "it is odd; really", "v1")
    assert RouterRefused.told(str(RouterRefused("/new", "odd"))).kept == ""


def test_what_never_ends_is_forgotten_in_time(monkeypatch):
    monkeypatch.setattr("flowray.runtime.rollout.MAX_PAIRS", 500)
    world = World(a=0.8, b=0.4)
    world.versions.offer(world.new, NEW)
    for start in range(0, 3_000, 100):
        ids = [f"t{start + number}" for number in range(100)]
        world.versions.estimate(ids, [Query("x", NAMES)] * len(ids))
    assert len(world.versions._pairs) == 500


def test_how_the_trial_stands_is_noted_and_taken_up_again():
    world = World(a=0.2, b=0.8)
    world.versions.offer(world.new, NEW)
    world.until("promoted")
    world.until("noted")
    noted = world.decided[-1]
    assert noted.stage is S.WATCHED
    assert noted.evidence not in (None, Evidence())
    again = VersionedRouter(world.new, noted.live, POLICY, ROUTING, configured=OLD)
    again.resume(world.old, noted)
    parts = [again._rollout.part(f"t{n}") for n in range(300)]
    assert parts == [world.versions._rollout.part(f"t{n}") for n in range(300)]
    assert again._rollout.evidence() == noted.evidence


class TestLoading:
    """`load_versions`, with routers that are not trained."""

    def load(self, records, monkeypatch, broken=()):
        from flowray.config import RouterConfig
        from flowray.runtime import rollout

        def read(place):
            if place.version in broken:
                raise OSError("not there")
            return Says(place.version)

        monkeypatch.setattr(rollout, "read", read)
        monkeypatch.setattr(rollout, "place_of", lambda artifact, history="": RouterPlace("v1", artifact, history))
        versions = load_versions(RouterConfig(artifact="/old"), ROUTING, records)
        said: list = []
        versions.begin(lambda event: said.append(event.record))
        return versions, said

    def records(self, *arrows: str) -> list:
        world = World(a=0.2, b=0.8)
        world.versions.offer(world.new, NEW)
        world.until(*arrows)
        return world.decided

    def test_the_first_time_it_is_what_the_configuration_names(self, monkeypatch):
        versions, said = self.load([], monkeypatch)
        assert versions.place == OLD
        assert [(record.arrow, record.live) for record in said] == [("configured", OLD)]

    def test_what_was_promoted_is_in_force(self, monkeypatch):
        versions, said = self.load(self.records("promoted"), monkeypatch)
        assert (versions.place, versions.other_place, versions.stage) == (NEW, OLD, S.WATCHED)
        assert said == []

    def test_what_was_settled_too(self, monkeypatch):
        versions, _ = self.load(self.records("settled"), monkeypatch)
        assert (versions.place, versions.other_place, versions.stage) == (NEW, None, S.IDLE)

    def test_another_configuration_wins(self, monkeypatch):
        records = self.records("promoted")
        versions, said = self.load([structs.replace(one, configured=NEW) for one in records], monkeypatch)
        assert versions.place == OLD
        assert said[0].arrow == "configured"

    def test_what_is_gone_is_told_and_the_configured_one_taken(self, monkeypatch):
        versions, said = self.load(self.records("settled"), monkeypatch, broken=("v2",))
        assert versions.place == OLD
        assert "v2 could not be loaded: not there" in said[0].why

    @pytest.mark.parametrize(("arrow", "ends"), [("passed", "rejected"), ("promoted", "settled")])
    def test_the_other_one_gone_ends_the_trial(self, monkeypatch, arrow, ends):
        records = self.records(arrow)
        broken = records[-1].other.version
        versions, said = self.load(records, monkeypatch, broken=(broken,))
        assert versions.stage is S.IDLE
        assert said[0].arrow == ends


def test_answers_carry_the_version_that_made_them():
    """Through the desk: one event for each version, and decisions go to the core."""

    async def scenario():
        world = World(a=0.2, b=0.8)
        it = Desk(lambda: world.versions)
        it.desk.begin()
        await until(lambda: it.desk.version)
        world.versions.offer(world.new, NEW)
        decided = [event for event in it.events if isinstance(event, VersionDecided)]
        world.versions.begin(lambda event: world.decided.append(event.record))
        world.until("passed")
        it.events.clear()
        it.ask(*(f"q{number}" for number in range(40)))
        await until(lambda: it.events)
        return world, decided, it.events

    world, decided, events = asyncio.run(scenario())
    assert [event.record.arrow for event in decided] == ["offered"]
    by_version = {event.version.partition("+")[0]: [task_id for task_id, _ in event.answers] for event in events}
    assert set(by_version) == {"v1", "v2"}
    for version, task_ids in by_version.items():
        assert all(world.versions._rollout.part(task_id).by_newer is (version == "v2") for task_id in task_ids)
    for event in events:
        first = event.answers[0][1][0].success
        assert first == (0.8 if event.version.startswith("v1") else 0.4)

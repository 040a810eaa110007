"""Serve first, then the copy in this process, then the heuristic: in virtual time, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec import structs
from virtual_loop import run

from flowray.config import RouterConfig, load
from flowray.core.arranging import BY_HAND
from flowray.core.book import Entry
from flowray.core.breaker import BreakerPolicy
from flowray.core.commands import RequestEstimates, ResolveTask
from flowray.core.events import EstimatesFailed, EstimatesReady, Event, VersionDecided
from flowray.core.hedging import HedgePolicy
from flowray.core.model import Choice, Estimate, Outcome, Receipt, RouterPlace, StoryLine, Task, TaskId
from flowray.core.rollout import RolloutPolicy, RolloutStage
from flowray.core.routing import RoutingPolicy
from flowray.core.states import TaskState
from flowray.errors import ConfigError, NotConnected, RouterRefused, WaitTimeout
from flowray.routing.config import AskingConfig
from flowray.routing.live import LiveRouter
from flowray.routing.queries import Answers, Queries, Query, RouterStatus, decode_queries, encode
from flowray.runtime import reaching
from flowray.runtime import routing as serving_desk
from flowray.runtime.paths import ARRANGE_S, FOR_SERVE, SETTLED_S, Paths, paths_of
from flowray.runtime.rollout import VersionedRouter
from flowray.runtime.routing import BATCH, RoutingDesk
from flowray.runtime.scorers import Failed
from flowray.runtime.sentences import explain
from flowray.runtime.views import story_of

WITHIN_S = 0.05
HUNG_S = 3600.0
ASKING = AskingConfig(
    hedge=HedgePolicy(burst=0.0), breaker=BreakerPolicy(failures=3, wait_s=1.0, longest_wait_s=4.0)
)  # no second question, so that what is asked can be counted
SERVE = RouterConfig(artifact="/copy", through="serve", asking=ASKING)


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would block runs at once: virtual time does not wait for threads."""

    async def at_once(work: Callable[..., Any], *arguments: Any) -> Any:
        await asyncio.sleep(0)
        return work(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", at_once)


@dataclass
class Serve:
    """What is served, and how it behaves now."""

    there: bool = True
    version: str = "v1"
    takes_s: float = 0.003
    fails: Failed | None = None
    odd: bool = False  # says something that is no answer
    ready: bool = True
    incarnation: int = 0  # of Serve itself
    silent: bool = False  # replicas do not say how they are
    other: str = ""  # version beside it
    trouble: str = ""  # what that one raises
    arranged: list[tuple[str, str]] = field(default_factory=list)  # what it was told to hold
    by_hand: bool = False  # what it holds was deployed by hand
    unable: str = ""  # why it cannot hold another version
    batches: list[int] = field(default_factory=list)
    looks: int = 0
    closed: int = 0

    def find(self, known: Any) -> Any:
        self.looks += 1
        if not self.there:
            raise NotConnected("no router is served")
        return known if known is not None and known.incarnation == self.incarnation else Way(self, self.incarnation)


@dataclass(eq=False)
class Way:
    serve: Serve
    incarnation: int

    @property
    def ready(self) -> bool:
        return self.serve.ready

    async def __call__(self, body: bytes) -> bytes | Failed:
        serve = self.serve
        if not serve.there or serve.incarnation != self.incarnation:
            await asyncio.sleep(HUNG_S)
        queries = decode_queries(body)
        asked = queries.queries
        serve.batches.append(len(asked))
        await asyncio.sleep(serve.takes_s)
        if serve.odd:
            return b"\xc1"
        if serve.fails is not None:
            return serve.fails
        held = (serve.version, serve.other) if serve.other else (serve.version,)
        answers = says(queries.version if queries.version in held else serve.version, asked)
        if queries.rows and queries.other in held:
            beside = says(queries.other, tuple(asked[row] for row in queries.rows))
            answers = structs.replace(answers, other=None if serve.trouble else beside, trouble=serve.trouble)
        return encode(answers)

    def statuses(self) -> tuple[RouterStatus, ...]:
        if self.serve.silent:
            raise WaitTimeout("no word", 1.0)
        return (RouterStatus(self.serve.version, f"/routers/{self.serve.version}", "/history", 1, 0, None),)

    def close(self) -> None:
        self.serve.closed += 1


def says(version: str, asked: tuple[Query, ...]) -> Answers:
    """The one called bad believes in nobody."""
    worth = 0.2 if version == "bad" else 0.7
    rows = tuple(tuple(Estimate(name, worth, 0.1, worth, 1.0, 0.01) for name in query.candidates) for query in asked)
    return Answers(version, rows, ("sums", "rest"), ((0.5, 0.5),) * len(asked), ("stranger",))


class Copy(LiveRouter):
    """A local copy: says 0.6 of everybody."""

    def estimate(self, task_ids: Any, queries: Any) -> list[tuple[Estimate, ...]]:
        return [tuple(Estimate(name, 0.6) for name in query.candidates) for query in queries]


class Desk:
    """A desk with its paths; what they load, and what is wrong with it, is said here."""

    def __init__(self, config: RouterConfig = SERVE, **serve: Any) -> None:
        self.serve = Serve(**serve)
        self.loaded: list[tuple[str, str]] = []
        self.broken: set[str] = set()
        self.events: list[Event] = []
        self.open: dict[TaskId, Entry] = {}
        self.patient = True  # the core still waits for its questions
        copy = Copy(version="v1", kinds=("sums", "rest"))
        self.router: Any = self.versioned(copy)
        self.paths = Paths(config, WITHIN_S, self.serve.find, self.load, self.arrange)
        self.desk = RoutingDesk(
            lambda: self.router, self.events.append, self.open.get, lambda task_id: self.patient, self.paths
        )
        self.desk.begin()

    def versioned(self, copy: LiveRouter) -> Any:
        return copy

    arrange: Any = None

    def load(self, router: str, history: str) -> LiveRouter:
        self.loaded.append((router, history))
        if router in self.broken:
            raise OSError("torn")
        return Copy(version=router.rpartition("/")[2], kinds=("sums", "rest"))

    def ask(self, *names: str) -> None:
        for name in names:
            self.open[TaskId(name)] = Entry(Task(id=TaskId(name), prompt=f"text of {name}"), 0.0, 0)
            self.desk.ask(RequestEstimates(TaskId(name), ("a", "stranger")))

    async def answer(self, *names: str) -> Event:
        """What comes of one batch."""
        before = len(self.events)
        self.ask(*(names or ("x",)))
        while len(self.events) == before:
            await asyncio.sleep(0.001)
        return self.events[-1]

    async def path(self) -> str:
        event = await self.answer()
        return event.path if isinstance(event, EstimatesReady) else "nobody"

    async def until(self, path: str, within_s: float) -> float:
        """Ask every 10 ms until the answer comes this way; gives the time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + within_s
        while (found := await self.path()) != path:
            assert loop.time() < end, (found, self.events[-1])
            await asyncio.sleep(0.01)
        return loop.time()


def story(scenario: Callable[[], Any]) -> Any:
    async def told() -> Any:
        found = await scenario()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        return found

    return run(told())


async def found(desk: Desk) -> Desk:
    await asyncio.sleep(0.01)
    return desk


def test_serve_is_asked_and_its_answer_goes_out_with_its_version():
    async def scenario():
        it = await found(Desk())
        return it, await it.answer("x", "y")

    it, event = story(scenario)
    assert it.serve.batches == [2], "what comes together is asked together"
    assert (event.path, event.version, event.detail) == ("serve", "v1+0", "")
    assert [(task_id, len(row)) for task_id, row in event.answers] == [("x", 2), ("y", 2)]
    (known, stranger) = event.answers[0][1]
    assert known.success == pytest.approx(0.7)
    assert stranger.latency_s is None


def test_what_came_of_it_is_learned_on_top():
    async def scenario():
        it = await found(Desk())
        (before, _) = (await it.answer()).answers[0][1]
        for number in range(40):
            await it.answer(f"t{number}")
            outcome = Outcome(task_id=TaskId(f"t{number}"), state=TaskState.SUCCEEDED, agent_id="a-0", quality=0.0)
            it.desk(ResolveTask(outcome))
        event = await it.answer()
        return before, event.answers[0][1][0], event.version

    before, after, version = story(scenario)
    assert after.success < before.success - 0.05
    assert version == "v1+40"


def test_a_task_that_ended_while_serve_was_asked_leaves_nothing_behind():
    async def scenario():
        it = await found(Desk())
        it.ask("x", "y")
        await asyncio.sleep(0)  # it is under way
        del it.open[TaskId("x")]
        while not it.events:
            await asyncio.sleep(0.001)
        return it.paths.copy

    copy = story(scenario)
    assert not copy.learn("x", "a", True)
    assert copy.learn("y", "a", True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"takes_s": HUNG_S}, "Serve: late, no answer"),
        ({"fails": Failed(kind="lost", detail="it died")}, "Serve: lost, it died"),
        ({"fails": Failed(kind="full", detail="32 wait")}, "Serve: full, 32 wait"),
        ({"odd": True}, "Serve: failed, the answer cannot be read"),
        ({"there": False}, "Serve: absent, no router is served"),
        ({"ready": False}, "Serve: absent, none of its replicas"),
    ],
)
def test_the_copy_answers_in_time_and_says_why_serve_did_not(change, words):
    async def scenario():
        it = await found(Desk(**change))
        loop = asyncio.get_running_loop()
        begun = loop.time()
        event = await it.answer()
        return event, loop.time() - begun

    event, took_s = story(scenario)
    assert isinstance(event, EstimatesReady)
    assert event.path == "local"
    assert event.detail.startswith(words)
    assert took_s <= FOR_SERVE * WITHIN_S + 0.002, "the core's patience leaves time for the copy"


@pytest.mark.parametrize("config", [structs.replace(SERVE, artifact=""), SERVE])
def test_without_a_copy_the_heuristic_decides(config):
    async def scenario():
        it = Desk(config, takes_s=HUNG_S)
        it.paths.adopt = lambda router: None  # type: ignore[method-assign]  # it is not loaded yet, or cannot be
        return await (await found(it)).answer()

    event = story(scenario)
    assert isinstance(event, EstimatesFailed)
    assert event.reason.startswith("Serve: late")


def test_hung_serve_costs_three_waits_and_then_nothing_until_it_answers_again():
    async def scenario():
        it = await found(Desk(takes_s=HUNG_S))
        loop, waits = asyncio.get_running_loop(), []
        for _ in range(10):
            begun = loop.time()
            assert await it.path() == "local"
            waits.append(loop.time() - begun)
        details = [event.detail for event in it.events]
        it.serve.takes_s = 0.003
        await it.until("serve", 5.0)
        return waits, details

    waits, details = story(scenario)
    assert all(wait > 0.02 for wait in waits[:3])
    assert all(wait < 0.01 for wait in waits[3:]), "the breaker is open"
    assert details[2].startswith("Serve: late")
    assert details[3].startswith("Serve: open")


def test_nothing_is_served_at_first_and_then_something_is():
    async def scenario():
        it = await found(Desk(there=False))
        assert await it.path() == "local"
        it.serve.there = True
        began = asyncio.get_running_loop().time()
        return await it.until("serve", 5.0) - began

    assert story(scenario) <= reaching.LOOK_S + 0.1


def test_whatever_is_wrong_with_serve_it_is_said_and_looked_for_again(capsys):
    async def scenario():
        it = Desk()
        find, it.paths._reach._find = it.serve.find, lambda known: {}["oddly"]
        await found(it)
        event = await it.answer()
        it.paths._reach._find = find
        await it.until("serve", 5.0)
        return event.detail

    assert story(scenario) == "Serve: absent, KeyError: 'oddly'"
    assert "KeyError: 'oddly'" in capsys.readouterr().err


def test_at_the_end_nobody_is_asked_any_more():
    async def scenario():
        it = await found(Desk(takes_s=HUNG_S))
        it.ask("x")
        await asyncio.sleep(0.001)
        it.desk.end()
        await asyncio.sleep(0.001)
        return it, await it.answer("y"), asyncio.all_tasks() - {asyncio.current_task()}

    it, event, left = story(scenario)
    assert (event.path, event.detail) == ("local", "")
    assert it.serve.batches == [1]
    assert left == set()


def test_serve_is_shut_down_and_started_again():
    async def scenario():
        it = await found(Desk())
        assert await it.path() == "serve"
        it.serve.there = False
        await it.until("local", 1.0)
        for _ in range(300):
            await it.path()
            await asyncio.sleep(0.01)
        detail = it.events[-1].detail
        it.serve.there, it.serve.incarnation = True, 1
        await it.until("serve", 5.0)
        return it.serve, detail

    serve, detail = story(scenario)
    assert detail.startswith("Serve: absent"), "nobody waits for what is known to be gone"
    assert serve.closed == 1, "the way to the old one was let go of"


def test_serve_was_replaced_unnoticed():
    """The old way leads nowhere, and nobody was told."""

    async def scenario():
        it = await found(Desk())
        assert await it.path() == "serve"
        it.serve.incarnation = 1
        await it.until("local", 1.0)
        await it.until("serve", 5.0)
        return it.serve

    assert story(scenario).closed == 1


def test_a_way_on_which_nobody_answers_for_long_is_laid_anew():
    async def scenario():
        it = await found(Desk(takes_s=HUNG_S))
        for _ in range(int((reaching.STALE_LOOKS + 3) * 2 * reaching.LOOK_S)):
            await it.path()
            await asyncio.sleep(0.5)
        return it.serve

    assert story(scenario).closed >= 1


def test_while_it_answers_nobody_looks_again():
    async def scenario():
        it = await found(Desk())
        for _ in range(100):
            await it.path()
            await asyncio.sleep(0.1)
        return it.serve.looks

    assert story(scenario) == 1


async def one_by_one(it: Desk, count: int, every_s: float) -> list[float]:
    """Ask about so many tasks, and wait until each is answered; gives how long each took."""
    loop = asyncio.get_running_loop()
    asked_at = []
    for number in range(count):
        asked_at.append(loop.time())
        it.ask(f"t{number}")
        await asyncio.sleep(every_s)
    while sum(len(event.answers) for event in it.events) < count:
        await asyncio.sleep(0.001)
    return asked_at


def test_what_comes_while_one_batch_is_asked_is_the_next_one():
    async def scenario():
        it = await found(Desk(takes_s=0.01))
        await one_by_one(it, 21, 0.001)
        return it.serve.batches

    batches = story(scenario)
    assert batches[0] == 1
    assert sum(batches) == 21
    assert len(batches) <= 6, "two are under way at once"


def test_hung_serve_keeps_nobody_waiting_beyond_the_cores_patience():
    """Also not those that come while others wait for it."""

    async def scenario():
        it = Desk(structs.replace(SERVE, asking=structs.replace(ASKING, breaker=BreakerPolicy(failures=100))))
        await found(it)
        it.serve.takes_s = HUNG_S
        told: dict[str, float] = {}
        loop = asyncio.get_running_loop()
        put = it.desk._put
        it.desk._put = lambda event: (put(event), told.update((name, loop.time()) for name, _ in event.answers))
        asked_at = await one_by_one(it, 100, 0.002)
        return it, [told[f"t{number}"] - at for number, at in enumerate(asked_at)]

    it, waits = story(scenario)
    assert {event.path for event in it.events} == {"local"}
    assert max(waits) < 0.85 * WITHIN_S
    assert 5 < len(it.serve.batches) < 30, "it is asked again and again, but not for each task"


def test_who_waited_too_long_for_a_turn_is_answered_here():
    async def scenario():
        it = await found(Desk())
        return await it.paths.ask(Queries(()), 0.7 * WITHIN_S)

    assert "no time was left" in story(scenario).detail


def test_whom_the_core_does_not_wait_for_any_more_is_not_answered_here():
    async def scenario():
        it = await found(Desk(takes_s=HUNG_S))
        it.ask("x")
        await asyncio.sleep(0.001)
        it.patient = False
        await asyncio.sleep(0.1)
        return it.events

    assert story(scenario) == []


class TestLocalFirst:
    config = RouterConfig(artifact="/copy", serve_from=8, asking=ASKING)

    def test_large_batches_go_to_serve(self):
        async def scenario():
            it = await found(Desk(self.config))
            few = await it.answer(*"abc")
            many = await it.answer(*"abcdefgh")
            return few.path, many.path, it.serve.batches

        assert story(scenario) == ("local", "serve", [8])

    def test_small_ones_do_not_wait_for_them(self):
        async def scenario():
            it = await found(Desk(self.config, takes_s=HUNG_S))
            it.ask(*(f"t{number}" for number in range(BATCH)))
            await asyncio.sleep(0.001)
            begun = asyncio.get_running_loop().time()
            event = await it.answer()
            return event, asyncio.get_running_loop().time() - begun

        event, took_s = story(scenario)
        assert (event.path, event.detail) == ("local", "")
        assert took_s < 0.005

    async def test_never_by_itself(self):
        assert paths_of(RouterConfig(), WITHIN_S) is None
        assert paths_of(self.config, WITHIN_S) is not None


class TestVersions:
    async def swapped(self, it: Desk) -> None:
        await found(it)
        assert await it.path() == "serve"
        it.serve.version = "v2"
        assert await it.path() == "serve"
        assert it.events[-1].version == "v2+0", "what Serve says counts at once"

    async def later(self, it: Desk, seconds: float = SETTLED_S + 0.5) -> None:
        for _ in range(int(seconds / 0.02)):
            await it.path()
            await asyncio.sleep(0.02)

    def test_the_copy_follows_what_serve_answers_with(self):
        async def scenario():
            it = Desk()
            await self.swapped(it)
            it.desk(ResolveTask(Outcome(task_id=TaskId("x"), state=TaskState.SUCCEEDED, agent_id="a-0")))
            assert it.paths.copy.base_version == "v1", "not before the version has stayed"
            await self.later(it)
            it.serve.takes_s = HUNG_S
            return it, await it.answer()

        it, event = story(scenario)
        assert it.loaded == [("/routers/v2", "/history")]
        assert (event.path, event.version) == ("local", "v2+1"), "and what was learned meanwhile is kept"
        assert it.desk.trouble == ""

    def test_versions_that_come_and_go_load_nothing(self):
        async def scenario():
            it = await found(Desk())
            for number in range(300):
                it.serve.version = "v2" if number % 2 else "v1"
                await it.path()
                await asyncio.sleep(0.02)
            return it.loaded

        assert story(scenario) == []

    def test_one_that_cannot_be_loaded_is_refused_once_and_said(self, capsys):
        async def scenario():
            it = Desk()
            it.broken = {"/routers/v2"}
            await self.swapped(it)
            await self.later(it, 10.0)
            path, trouble = await it.path(), it.desk.trouble
            it.serve.takes_s = HUNG_S
            event = await it.answer()
            it.serve.takes_s, it.serve.version = 0.003, "v3"
            await self.later(it, 10.0)
            return it, path, trouble, event

        it, path, trouble, event = story(scenario)
        assert path == "serve", "Serve itself goes on with it"
        assert "v2" in trouble and "torn" in trouble
        assert "torn" in capsys.readouterr().err
        assert (event.path, event.version) == ("local", "v1+0"), "the older copy stays"
        assert [router for router, _ in it.loaded] == ["/routers/v2", "/routers/v3"]
        assert it.desk.trouble == "", "another one could be loaded"

    def test_files_of_another_version_are_refused(self):
        async def scenario():
            it = Desk()
            it.load = lambda router, history: Copy(version="else")
            it.paths._load = it.load
            await self.swapped(it)
            await self.later(it)
            return it.desk.trouble

        assert "are else here" in story(scenario)

    def test_replicas_that_say_nothing_are_asked_again(self):
        async def scenario():
            it = Desk(silent=True)
            await self.swapped(it)
            await self.later(it)
            assert it.paths.copy.base_version == "v1"
            it.serve.silent = False
            await self.later(it, 2 * SETTLED_S)
            return it

        it = story(scenario)
        assert it.paths.copy.base_version == "v2"
        assert it.desk.trouble == ""

    def test_a_coordinator_without_a_router_takes_the_one_that_is_served(self):
        async def scenario():
            it = Desk(structs.replace(SERVE, artifact=""))
            await found(it)
            assert it.desk.version == ""
            await self.later(it)
            it.serve.takes_s = HUNG_S
            return it, await it.answer()

        it, event = story(scenario)
        assert it.loaded == [("/routers/v1", "/history")]
        assert (event.path, event.version) == ("local", "v1+0")


class Trial(Desk):
    """A desk whose router has versions: v1 in force, and what is offered of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **serve: Any) -> None:
        monkeypatch.setattr(serving_desk, "place_of", lambda artifact, history: at(artifact.rpartition("/")[2]))
        monkeypatch.setattr(serving_desk, "read", lambda place: self.load(place.artifact, place.history))
        self.tasks = 0
        super().__init__(**serve)

    def versioned(self, copy: LiveRouter) -> VersionedRouter:
        self.versions = VersionedRouter(copy, at("v1"), QUICK, RoutingPolicy(enabled=True))
        return self.versions

    def arrange(self, live: RouterPlace, other: RouterPlace | None) -> str:
        if not self.serve.there:
            raise NotConnected("no router is served")
        told = live.version, "" if other is None else other.version
        if self.serve.by_hand:
            return BY_HAND
        self.serve.arranged.append(told)
        if told[1] and self.serve.unable:
            return self.serve.unable
        self.serve.version, self.serve.other = told
        return ""

    @property
    def arrows(self) -> list[str]:
        records = [event.record for event in self.events if isinstance(event, VersionDecided)]
        return [record.arrow for record in records if record.arrow != "noted"]

    async def do(self, count: int = 8) -> dict[str, list[EstimatesReady]]:
        """Ask about some tasks, which end at once; gives the answers by path."""
        names = [f"t{self.tasks + number}" for number in range(count)]
        self.tasks += count
        before = len(self.events)
        self.ask(*names)
        answers: list[EstimatesReady] = []
        while sum(len(event.answers) for event in answers) < count:
            await asyncio.sleep(0.001)
            answers = [event for event in self.events[before:] if isinstance(event, EstimatesReady)]
        for event in answers:
            for task_id, estimates in event.answers:
                entry = self.open.pop(task_id)
                receipt = Receipt(
                    event.path, event.version, estimates, (0.5, 0.5), (0.5, 0.5), "a", False, 1.0, 0.0, 0.0
                )
                self.desk(
                    ResolveTask(
                        Outcome(
                            task_id=entry.task.id,
                            state=TaskState.SUCCEEDED,
                            agent_id="a-0",
                            quality=1.0,
                            choices=(Choice("routed", 2, (), receipt),),
                        )
                    )
                )
        return {path: [event for event in answers if event.path == path] for path in ("serve", "local")}

    async def until_arrow(self, *arrows: str) -> str:
        for _ in range(600):
            await self.do()
            for arrow in self.arrows:
                if arrow in arrows:
                    return arrow
        raise AssertionError(self.arrows)


QUICK = RolloutPolicy(
    shadow_share=0.5, shadow_least=20, shadow_most=400, canary_share=0.3, canary_least=10, canary_most=200, watch=10_000
)


def at(version: str) -> RouterPlace:
    return RouterPlace(version, f"/routers/{version}", "/history")


def by(answers: list[EstimatesReady]) -> set[str]:
    return {event.version.partition("+")[0] for event in answers}


class TestTrials:
    """Two versions behind Serve: who is asked, who is heard, and what Serve is told."""

    def test_in_shadow_serve_is_asked_about_both_and_one_is_heard(self, monkeypatch):
        async def scenario():
            it = await found(Trial(monkeypatch))
            assert await it.desk.offer("/routers/v2", "/history") == "v2"
            answers = await it.do(64)
            return it, answers, len(it.versions._pairs)

        it, answers, pairs = story(scenario)
        assert it.serve.arranged[-1] == ("v1", "v2")
        assert by(answers["serve"]) == {"v1"}
        assert answers["local"] == []
        assert it.serve.batches == [64], "one call asks about both"
        assert pairs == 0 and it.versions._rollout.outcomes > 10, "what both said was compared"

    def test_a_version_that_is_wrong_is_rejected_and_serve_forgets_it(self, monkeypatch):
        async def scenario():
            it = await found(Trial(monkeypatch))
            await it.desk.offer("/routers/bad", "/history")
            await it.until_arrow("rejected", "passed", "promoted")
            await asyncio.sleep(0.1)
            return it, by((await it.do())["serve"])

        it, answered = story(scenario)
        assert it.arrows[-1] == "rejected"
        assert answered == {"v1"}
        assert (it.serve.version, it.serve.other) == ("v1", "")

    def test_a_promotion_counts_at_once_and_serve_is_told_after(self, monkeypatch):
        async def scenario():
            it = await found(Trial(monkeypatch))
            await it.desk.offer("/routers/v2", "/history")
            await it.do()
            it.versions._follow(it.versions._rollout._follow("passed", "as a test"))
            canary = by((await it.do(64))["serve"])
            it.serve.there = True
            it.versions._follow(it.versions._rollout._follow("promoted", "as a test"))
            told = it.serve.version  # nobody was told yet
            answers = await it.do(64)
            await asyncio.sleep(0.1)
            return it, canary, told, answers

        it, canary, told, answers = story(scenario)
        assert canary == {"v1", "v2"}
        assert told == "v1"
        assert by(answers["serve"]) == {"v1", "v2"}
        count = sum(len(event.answers) for event in answers["serve"] if event.version.startswith("v2"))
        assert count > 32, "the new one answers nearly all"
        assert (it.serve.version, it.serve.other) == ("v2", "v1")
        assert it.paths.copy.base_version == "v2", "and so does the copy here"

    def test_one_that_was_promoted_and_raises_is_rolled_back(self, monkeypatch):
        async def scenario():
            it = await found(Trial(monkeypatch))
            await it.desk.offer("/routers/v2", "/history")
            for arrow in ("passed", "promoted"):
                it.versions._follow(it.versions._rollout._follow(arrow, "as a test"))
            await asyncio.sleep(0.1)
            it.versions._follow(it.versions._rollout.broke("it says nonsense"))
            answers = await it.do()
            await asyncio.sleep(0.1)
            return it, answers

        it, answers = story(scenario)
        assert by(answers["serve"]) == {"v1"}
        assert it.arrows[-1] == "rolled_back"
        assert (it.serve.version, it.serve.other) == ("v1", "")

    def test_a_version_that_raises_in_a_replica_is_out_at_once(self, monkeypatch):
        async def scenario():
            it = await found(Trial(monkeypatch))
            await it.desk.offer("/routers/v2", "/history")
            it.serve.trouble = "ValueError: odd"
            answers = await it.do(32)
            return it, answers

        it, answers = story(scenario)
        assert it.arrows[-1] == "rejected"
        records = [event.record for event in it.events if isinstance(event, VersionDecided)]
        assert "ValueError: odd" in records[-1].why
        assert by(answers["serve"]) == {"v1"}

    @pytest.mark.parametrize(
        ("serve", "words"), [({"unable": "OSError: torn"}, "torn"), ({"there": False}, "no router is served")]
    )
    def test_what_serve_cannot_hold_is_refused_and_nothing_changes(self, monkeypatch, serve, words):
        async def scenario():
            it = await found(Trial(monkeypatch, **serve))
            with pytest.raises(RouterRefused, match=words) as refusal:
                await it.desk.offer("/routers/v2", "/history")
            return it, refusal.value.kept

        it, kept = story(scenario)
        assert kept == "v1"
        assert it.arrows == []
        assert it.versions.stage is RolloutStage.IDLE

    def test_while_serve_is_gone_the_trial_goes_on_here(self, monkeypatch):
        async def scenario():
            it = await found(Trial(monkeypatch))
            await it.desk.offer("/routers/v2", "/history")
            it.serve.there = False
            answers = await it.do(64)
            return it, answers

        it, answers = story(scenario)
        assert answers["serve"] == []
        assert by(answers["local"]) == {"v1"}
        assert it.versions._rollout.outcomes > 10

    def test_a_replica_that_has_not_loaded_it_yet_compares_nothing(self, monkeypatch):
        async def scenario():
            it = await found(Trial(monkeypatch))
            await it.desk.offer("/routers/v2", "/history")
            await asyncio.sleep(0.1)
            it.serve.other = ""
            answers = await it.do(64)
            return it, answers

        it, answers = story(scenario)
        assert by(answers["serve"]) == {"v1"}
        assert it.versions._rollout.outcomes == 0
        assert it.versions.stage is RolloutStage.SHADOW

    def test_what_is_deployed_by_hand_ends_the_trial(self, monkeypatch):
        async def scenario():
            it = await found(Trial(monkeypatch))
            await it.desk.offer("/routers/v2", "/history")
            await asyncio.sleep(0.1)
            it.serve.version, it.serve.other = "v3", ""
            for _ in range(int((SETTLED_S + 1.0) / 0.02)):
                await it.do(1)
                await asyncio.sleep(0.02)
            return it

        it = story(scenario)
        assert it.versions.place.version == it.paths.copy.base_version == "v3"
        assert it.versions.stage is RolloutStage.IDLE
        assert it.arrows == ["offered", "configured"]

    async def watched(self, monkeypatch) -> Trial:
        """v2 was promoted, and Serve holds both."""
        it = await found(Trial(monkeypatch))
        await it.desk.offer("/routers/v2", "/history")
        for arrow in ("passed", "promoted"):
            it.versions._follow(it.versions._rollout._follow(arrow, "as a test"))
        await asyncio.sleep(0.1)
        return it

    async def settled(self, it: Trial) -> dict[str, list[EstimatesReady]]:
        """After a version that answers would have been followed."""
        for _ in range(int((SETTLED_S + ARRANGE_S + 1.0) / 0.02)):
            answers = await it.do(1)
            await asyncio.sleep(0.02)
        return answers

    def test_a_replica_that_does_not_hold_what_was_promoted_is_not_followed(self, monkeypatch):
        """It was started a moment ago, and loads the promoted version yet: the copy here answers with that."""

        async def scenario():
            it = await self.watched(monkeypatch)
            monkeypatch.setattr(it.paths, "_arrange", lambda live, other: "")
            it.serve.version, it.serve.other = "v1", ""
            answers = await self.settled(it)
            it.serve.version, it.serve.other = "v2", "v1"
            return it, answers, await it.do(64)

        it, answers, after = story(scenario)
        assert answers["serve"] == []
        assert answers["local"][0].detail == "Serve: failed, it answers with v1, for it does not hold v2"
        assert by(after["serve"]) == {"v1", "v2"}
        assert it.versions.stage is RolloutStage.WATCHED

    def test_the_older_one_deployed_by_hand_counts_more_than_a_promotion(self, monkeypatch):
        async def scenario():
            it = await self.watched(monkeypatch)
            it.serve.version, it.serve.other, it.serve.by_hand = "v1", "", True
            answers = await self.settled(it)
            return it, answers

        it, answers = story(scenario)
        assert by(answers["serve"]) == {"v1"}
        assert it.versions.place.version == it.paths.copy.base_version == "v1"
        assert it.versions.stage is RolloutStage.IDLE

    def test_serve_that_is_not_there_is_told_when_it_is(self, monkeypatch):
        async def scenario():
            it = await found(Trial(monkeypatch))
            await it.desk.offer("/routers/v2", "/history")
            it.serve.there = False
            it.versions._follow(it.versions._rollout.broke("as a test"))
            await asyncio.sleep(5 * ARRANGE_S)
            before = it.serve.other
            it.serve.there = True
            await asyncio.sleep(2 * ARRANGE_S)
            return before, it.serve

        before, serve = story(scenario)
        assert before == "v2"
        assert (serve.version, serve.other) == ("v1", "")


class TestWords:
    @pytest.fixture
    def told(self) -> Iterator[Callable[[Choice], str]]:
        def words(choice: Choice) -> str:
            lines = (StoryLine(0.0, "accepted"), StoryLine(0.01, "started", 1, "a-0", "first"))
            outcome = Outcome(
                task_id=TaskId("x"), state=TaskState.SUCCEEDED, agent_id="a-0", story=lines, choices=(choice,)
            )
            return explain(story_of(outcome))

        return words

    def test_why_serve_did_not_answer_is_told(self, told):
        receipt = Receipt(
            "local", "v1+4", (Estimate("a", 0.9),), (0.9,), (1.0,), "a", False, 1.0, 0.0, 0.03, detail="Serve: late"
        )
        assert "local (Serve: late), version v1+4" in told(Choice("routed", 1, (("a-0", 0.0),), receipt))

    def test_why_nobody_did_is_told(self, told):
        choice = Choice("only_one", 1, (("a-0", 0.0),), None, "failed", "Serve: absent, nothing is served")
        assert "(the router had no answer: Serve: absent, nothing is served)" in told(choice)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"router.through": "grpc"}, "router.through"),
        ({"router.served": ""}, "router.served"),
        ({"router.serve_from": -1}, "router.serve_from"),
        ({"router.asking.deadline_s": 0.0}, "deadline_s"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changes, where):
    with pytest.raises(ConfigError, match=where):
        load(None, {}, changes)

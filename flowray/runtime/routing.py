"""The coordinator's router: answers the core's questions in batches, and learns from what became of them.

It scores in this process, for a question to another one takes as long as the answer; or Ray Serve is asked first, where
the configuration says so (`flowray.runtime.paths`). What one turn of the pump asks is answered in it (`answers`); what
comes in while Serve answers one batch is the next one. A router that is not loaded yet, or raises, costs no task: the
core decides without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, cast

from flowray.core.book import Entry
from flowray.core.commands import Command, GradeTask, RequestEstimates, RequeueTask, ResolveTask
from flowray.core.events import EstimatesFailed, EstimatesReady, Event
from flowray.core.model import AGENTS_FAULT, Choice, Estimate, Outcome, RouterPlace, TaskId
from flowray.core.naming import class_of
from flowray.core.states import TaskState
from flowray.errors import RouterRefused
from flowray.routing.queries import Queries, Query, query_of
from flowray.runtime.paths import Paths
from flowray.runtime.rollout import Router, VersionedRouter, place_of, read
from flowray.runtime.saying import say
from flowray.runtime.scorers import Failed, Scored

if TYPE_CHECKING:
    from flowray.routing.live import LiveRouter

SETTLE_S = 0.02  # what came of attempts is taken in so often: loads and answers are as old
BATCH = 64  # questions answered together at most: bounds how long the event loop is held
DETAIL = 160  # characters of why Serve did not answer: they go into every receipt


class RoutingDesk:
    """See the module. Use only from the coordinator's event loop; it is an observer of the pump too."""

    def __init__(
        self,
        load: Callable[[], Router],
        put: Callable[[Event], None],
        find: Callable[[TaskId], Entry | None],
        is_asked: Callable[[TaskId], bool],
        paths: Paths | None = None,
    ) -> None:
        """`load` makes the router, in a thread (a `LiveRouter` where there are `paths`); `put` hands an event to the
        core; `find` finds an open task.

        `is_asked` tells whether the core still waits for the estimates of a task: if not, none are made. `paths` says
        what Serve is asked; without it everything is answered here.
        """
        self._load = load
        self._put = put
        self._find = find
        self._is_asked = is_asked
        self._paths = paths
        self._router: Router | None = None  # that answered last, and learns
        self._versions: VersionedRouter | None = None  # the router, where it has versions
        self._trouble = ""
        self._asked: dict[TaskId, RequestEstimates] = {}  # the newest question about each task
        self._asked_at = 0.0  # the first of these, by the event loop's clock
        self._loading: asyncio.Task[None] | None = None
        self._settling = False  # it will be, soon
        self._offering = asyncio.Lock()

    @property
    def version(self) -> str:
        """Of the router; "" until it is loaded, and where it could not be."""
        return self._router.version if self._router is not None else ""

    @property
    def trouble(self) -> str:
        """Why the router could not be loaded; "" where it was, or is not yet."""
        return self._trouble or (self._paths.trouble if self._paths is not None else "")

    @property
    def versions(self) -> VersionedRouter | None:
        """What is in force and on trial; None until it is loaded."""
        return self._versions

    async def offer(self, artifact: str, history: str) -> str:
        """Load another version and begin its trial; gives the version.

        Raises:
            RouterRefused: it cannot be loaded, or another trial is under way.
        """
        versions = self._versions
        if versions is None:
            raise RouterRefused(artifact, self._trouble or "the router in force is not loaded yet")
        async with self._offering:
            kept = versions.place.version
            try:
                place: RouterPlace = await asyncio.to_thread(place_of, artifact, history)
                router = await asyncio.to_thread(read, place)
            except Exception as error:
                raise RouterRefused(artifact, f"{type(error).__name__}: {error}", kept) from error
            if self._paths is not None:
                versions.may_offer(place)
                await self._paths.lay_beside(versions.place, place)
            versions.offer(router, place)
        return place.version

    def begin(self) -> None:
        """Load the router beside everything else, and look for Serve where it is to be asked."""
        if self._paths is not None:
            self._paths.begin()
        self._loading = asyncio.get_running_loop().create_task(self._begin())

    def end(self) -> None:
        """Ask Serve no more."""
        if self._paths is not None:
            self._paths.end()

    async def _begin(self) -> None:
        try:
            router = await asyncio.to_thread(self._load)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with an artifact, tasks go on without it
            self._trouble = f"{type(error).__name__}: {error}"
            if self._paths is not None:
                self._paths.adopt(None)
            say(f"the router could not be loaded: {self._trouble}")
            return
        if isinstance(router, VersionedRouter):
            self._versions = router
            router.begin(self._put)
        if self._paths is None:
            self._router = router
            return
        if self._versions is None:
            self._paths.adopt(cast("LiveRouter", router))
        else:
            versions, paths = self._versions, self._paths
            paths.followed = lambda made, place: versions.replaced(made, place, "Serve answers with it")
            versions.changed = self._exchanged
            paths.adopt(cast("LiveRouter", versions.live), named=bool(versions.place.artifact))
            if versions.place.artifact:
                paths.want(versions.place, versions.other_place)
        self._router = self._router or self._here()  # Serve may have answered before

    def _exchanged(self) -> None:
        """Another version is in force or on trial, or none is on trial any more."""
        versions, paths = self._versions, self._paths
        assert versions is not None
        assert paths is not None
        paths.copy = cast("LiveRouter", versions.live)
        paths.want(versions.place, versions.other_place)

    def _here(self) -> Router | None:
        """Who answers in this process."""
        if self._paths is None:
            return self._router
        return self._versioned(self._paths.copy)

    def _versioned(self, router: LiveRouter | None) -> Router | None:
        """The router with its versions, where this is the one in force."""
        versions = self._versions
        return versions if versions is not None and router is versions.live else router

    def ask(self, command: RequestEstimates) -> None:
        """The core wants estimates."""
        if not self._asked:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._answer)
            self._asked_at = loop.time()
        self._asked[command.task_id] = command

    def answers(self) -> list[Event]:
        """What this process has to say to the questions there are, or to the first of many."""
        if not self._asked or self._way() != "here":
            return []
        return self._answers_here(self._next())

    def _answer(self) -> None:
        """What was not answered within its turn."""
        way = self._way() if self._asked else "wait"
        if way == "wait":
            return
        batch = self._next()
        paths = self._paths
        if batch and paths is not None and way == "serve":
            waited_s = asyncio.get_running_loop().time() - self._asked_at
            paths.run(self._by_serve(paths, batch, waited_s), self._answer)
        else:
            self._put_all(self._answers_here(batch))

    def _way(self) -> Literal["here", "serve", "wait"]:
        return "here" if self._paths is None else self._paths.way(min(len(self._asked), BATCH))

    def _next(self) -> list[RequestEstimates]:
        """The next batch; what is left is seen to soon."""
        batch: list[RequestEstimates] = []
        while self._asked and len(batch) < BATCH:
            command = self._asked.pop(next(iter(self._asked)))
            if self._is_asked(command.task_id):
                batch.append(command)
        if self._asked:
            asyncio.get_running_loop().call_soon(self._answer)
        return batch

    def _put_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self._put(event)

    async def _by_serve(self, paths: Paths, batch: list[RequestEstimates], waited_s: float) -> None:
        """Ask Serve; what it does not answer is answered here."""
        task_ids, queries = self._queries(batch)
        versions = self._versions
        asked = Queries(tuple(queries)) if versions is None else versions.asking(task_ids, queries)
        try:
            said = self._in_force(paths, await paths.ask(asked, waited_s))
            if isinstance(said, Scored):
                live = paths.router_for(said.answers)
                router = self._versioned(live) or live
                if router is versions and versions is not None:
                    found = versions.estimate_from(task_ids, asked, said.answers)
                else:
                    found = live.estimate_from(task_ids, queries, said.answers)
        except Exception as error:  # noqa: BLE001 - whatever Serve says, it must not take the coordinator down
            said = Failed(kind="failed", detail=f"{type(error).__name__}: {error}")
        if isinstance(said, Failed):
            why = f"Serve: {said.kind}, {said.detail.partition(';')[0]}"[:DETAIL]
            self._put_all(self._answers_here([each for each in batch if self._is_asked(each.task_id)], why))
            return
        self._router = router
        for task_id in task_ids:
            if self._find(task_id) is None:  # it ended meanwhile: nothing more comes of it
                router.forget(task_id)
        for version, answers in self._by_version(router, task_ids, found):
            self._put(EstimatesReady(answers, "serve", version))

    def _in_force(self, paths: Paths, said: Scored | Failed) -> Scored | Failed:
        """What Serve says, unless that is of the version that is not in force: a replica may not hold the other yet."""
        versions = self._versions
        if isinstance(said, Failed) or versions is None or versions.other_place is None or paths.by_hand:
            return said
        found = said.answers.version
        if found != versions.other_place.version:
            return said
        paths.doubt(versions.place, versions.other_place)
        return Failed(kind="failed", detail=f"it answers with {found}, for it does not hold {versions.place.version}")

    def _queries(self, batch: Sequence[RequestEstimates]) -> tuple[list[TaskId], list[Query]]:
        asked = [(entry.task, each) for each in batch if (entry := self._find(each.task_id)) is not None]
        return [task.id for task, _ in asked], [query_of(task, each.candidates, each.tried) for task, each in asked]

    def _answers_here(self, batch: list[RequestEstimates], detail: str = "") -> list[Event]:
        """`detail` says why Serve does not, where it was asked."""
        router = self._here()
        if not batch:
            return []
        if router is None:
            return [_failed(batch, detail or self._trouble or "the router is not loaded yet")]
        task_ids, queries = self._queries(batch)
        try:
            found = router.estimate(task_ids, queries)
        except Exception as error:  # noqa: BLE001 - a router must not take the coordinator down
            say(f"no estimates: {type(error).__name__}: {error}")
            return [_failed(batch, f"{type(error).__name__}: {error}")]
        self._router = router
        return [
            EstimatesReady(answers, "local", version, detail)
            for version, answers in self._by_version(router, task_ids, found)
        ]

    def _by_version(
        self, router: Router, task_ids: list[TaskId], found: list[tuple[Estimate, ...]]
    ) -> Iterator[tuple[str, tuple[tuple[TaskId, tuple[Estimate, ...]], ...]]]:
        if self._versions is None or router is not self._versions or self._versions.other_place is None:
            yield router.version, tuple(zip(task_ids, found, strict=True))
            return
        for version, rows in self._versions.answered(task_ids):
            yield version, tuple((task_ids[row], found[row]) for row in rows)

    # ── learning ─────────────────────────────────────────────────────────────────────────────────────────────────

    def __call__(self, command: Command) -> None:
        """Learn from what became of attempts."""
        router = self._router
        if router is None:
            return
        if isinstance(command, ResolveTask):
            self._resolved(router, command.outcome)
            router.forget(command.outcome.task_id)
        elif isinstance(command, GradeTask):
            router.regrade(command.task_id, command.quality)
        elif isinstance(command, RequeueTask) and command.counts == "failures":
            entry = self._find(command.task_id)
            if entry is not None:
                self._learn(router, entry.agent_of(command.attempt), False, command, entry.choices)

    def _resolved(self, router: Router, outcome: Outcome) -> None:
        succeeded, failure = outcome.state is TaskState.SUCCEEDED, outcome.failure
        if succeeded or (failure is not None and failure.kind in AGENTS_FAULT):
            self._learn(router, outcome.agent_id, succeeded, outcome, outcome.choices)

    def _learn(
        self, router: Router, agent_id: str, succeeded: bool, of: Outcome | RequeueTask, choices: Sequence[Choice]
    ) -> None:
        """What an attempt of this agent came to, as `of` has it; `choices` are those of the task so far."""
        agent = class_of(agent_id)
        learned = router.learn(
            of.task_id, agent, succeeded, quality=of.quality, run_s=of.run_s or None, cost_usd=of.cost_usd
        )
        if self._versions is not None:
            self._versions.saw(of.task_id, agent, succeeded, of.quality, choices)
        if learned and not self._settling:
            self._settling = True
            asyncio.get_running_loop().call_later(SETTLE_S, self._settle)

    def _settle(self) -> None:
        """Of outcomes that are taken in together each costs a fraction."""
        self._settling = False
        if self._router is not None:
            self._router.settle()


def _failed(batch: Sequence[RequestEstimates], reason: str) -> EstimatesFailed:
    return EstimatesFailed(tuple(command.task_id for command in batch), reason)

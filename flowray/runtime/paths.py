"""Who answers the coordinator's questions: Ray Serve, or a copy of its router in this process.

    questions ──▶ Serve, by `Reach` ── answers of a version ──▶ the copy of that version, or a relay ──▶ estimates
                      │ late, lost, open, absent, ...
                      └──▶ the copy in this process; without one the core's heuristic decides

Serve says what its router expects; what was learned since is added here either way, by the `LiveRouter` that is the
copy. Where Serve answers with another version than the copy's, a relay stands in: a `LiveRouter` that scores nothing
itself. When that version has stayed for a while, the router and the history that the replicas name are loaded in a
thread, and take the place of both. What cannot be loaded is refused: the older copy stays for when Serve is not there.

While another version is on trial (`flowray.runtime.rollout`), Serve holds both, and one question asks about both: it
says by its version who is in force, so a promotion counts at once. What Serve is to hold it is told by the way
(`want`), again and again until it does; what somebody deploys by hand counts more, and ends a trial.

The time for Serve ends so long before the core's own patience that the copy can still answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from msgspec import structs

from flowray.core.arranging import BY_HAND
from flowray.core.model import RouterPlace
from flowray.errors import NotConnected, RouterRefused, WaitTimeout
from flowray.routing.queries import Answers, Queries
from flowray.runtime.reaching import Find, Reach, Way
from flowray.runtime.saying import say
from flowray.runtime.scorers import Failed, Scored

if TYPE_CHECKING:
    from flowray.config import RouterConfig
    from flowray.routing.live import LiveRouter

FOR_SERVE = 0.5  # share of the core's patience that Serve gets
FOR_COPY = 0.2  # and that a copy is left with at least
# A call costs many times what its answer costs (here 5 ms of this process's processors, and 7 of the replica's), so one
# is made after another and what comes meanwhile is the next one's batch, unless an answer takes its time.
PACE = 0.25  # share of the core's patience after which the next batch does not wait for the one before
ABREAST = 2  # batches that do not wait for one another at all
UNDER_WAY = 4  # batches at Serve at once
ARRANGE_S = 2.0  # between two tries to tell Serve what to hold
SETTLED_S = 2.0  # a version that answers must have stayed before it is loaded here

Arrange = Callable[[RouterPlace, RouterPlace | None], str]


class Paths:
    """See the module. Use only from the coordinator's event loop."""

    def __init__(
        self,
        config: RouterConfig,
        within_s: float,
        find: Find,
        load: Callable[[str, str], LiveRouter],
        arrange: Arrange | None = None,
    ) -> None:
        """`within_s` is the core's patience; `load` makes a router of two directories, in a thread. `arrange` tells
        Serve what to hold, in a thread, too, and gives why it cannot; without it there are no trials.
        """
        self._config, self._within_s, self._load, self._arrange = config, within_s, load, arrange
        self._wanted: tuple[RouterPlace, RouterPlace | None] | None = None  # that Serve shall hold and may not yet
        self._arranging: asyncio.Task[None] | None = None
        self._arranged_at = 0.0  # when it was told last, or had no need
        self.by_hand = False  # what it holds was deployed by hand since
        self.followed: Callable[[LiveRouter, RouterPlace], object] = lambda router, place: None  # hears of a new copy
        self._deadline_s = min(config.asking.deadline_s, FOR_SERVE * within_s)
        self._reach = Reach(find, structs.replace(config.asking, deadline_s=self._deadline_s))
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_at = 0.0  # when the next batch need not wait for those under way
        self._ended = False
        self.copy: LiveRouter | None = None  # that can answer here
        self._begun = False  # the copy is there, or cannot be
        self._relay: LiveRouter | None = None
        self._answering, self._since = "", 0.0  # the version of the last answer, and since when it is that one
        self._following: asyncio.Task[None] | None = None
        self._refused = ""  # the version that cannot be loaded here
        self.trouble = ""  # why not

    def begin(self) -> None:
        """Look for Serve."""
        self._reach.begin()

    def end(self) -> None:
        """Ask Serve no more."""
        self._ended = True
        self._reach.end()
        for task in (*self._tasks, self._following, self._arranging):
            if task is not None:
                task.cancel()

    def adopt(self, router: LiveRouter | None, *, named: bool = False) -> None:
        """This is in force by the configuration or the journal, or cannot be loaded. `named`: it lies somewhere."""
        self._begun = True
        if router is not None and (named or self._config.artifact or self._config.through == "local"):
            if self._relay is not None:
                router.take_over(self._relay)
            self.copy = router

    def way(self, count: int) -> Literal["here", "serve", "wait"]:
        """Which way a batch of so many questions goes now. Those that wait are told by `run`."""
        large = 0 < self._config.serve_from <= count
        if self._ended or (self._config.through == "local" and not large):
            return "here"
        paced = len(self._tasks) < ABREAST or asyncio.get_running_loop().time() >= self._next_at
        if paced and len(self._tasks) < UNDER_WAY:
            return "serve"
        return "wait" if self._config.through == "serve" else "here"

    def run(self, asking: Coroutine[Any, Any, None], then: Callable[[], object]) -> None:
        """Let a batch be asked beside everything else; `then` is called when the next one may be."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(asking)
        self._tasks.add(task)
        self._next_at = loop.time() + PACE * self._within_s
        timer = loop.call_at(self._next_at, then)

        def ended(_: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            timer.cancel()
            then()

        task.add_done_callback(ended)

    async def ask(self, queries: Queries, waited_s: float) -> Scored | Failed:
        """What Serve says; the oldest of these questions has waited so long already."""
        left_s = (1.0 - FOR_COPY) * self._within_s - waited_s
        if left_s <= 0.0 or (left_s < self._deadline_s and self.copy is not None):
            return Failed(kind="late", detail=f"no time was left for it after {1000 * waited_s:.0f} ms")
        return await self._reach.score(queries, min(left_s, self._deadline_s))

    def router_for(self, answers: Answers) -> LiveRouter:
        """Who goes on from these answers: the copy where it is of their version, else a relay."""
        from flowray.routing.live import LiveRouter

        version = answers.version
        now = asyncio.get_running_loop().time()
        if version != self._answering:
            self._answering, self._since = version, now
        if self.copy is not None and self.copy.base_version == version:
            return self.copy
        if self._relay is None or self._relay.base_version != version:
            relay = LiveRouter(version=version, kinds=answers.kinds, at_once=False)
            older = self._relay or self.copy
            if older is not None:
                relay.take_over(older)
            self._relay = relay
        stayed = now >= self._since + SETTLED_S and (self._wanted is None or self.by_hand)  # nor is it told otherwise
        if self._begun and self._following is None and version != self._refused and stayed:
            self._following = asyncio.get_running_loop().create_task(self._follow(version))
        return self._relay

    async def lay_beside(self, live: RouterPlace, other: RouterPlace) -> None:
        """Have Serve hold another version beside the one in force.

        Raises:
            RouterRefused: it cannot, or does not say so.
        """
        if self._arrange is None:
            raise RouterRefused(other.artifact, "Serve is not told of trials here", live.version)
        try:
            why = await asyncio.to_thread(self._arrange, live, other)
        except (NotConnected, WaitTimeout) as error:
            why = f"Serve: {error}"
        if why:
            self.want(live, None)
            raise RouterRefused(other.artifact, why, live.version)

    def want(self, live: RouterPlace, other: RouterPlace | None) -> None:
        """Have Serve hold these, as soon as it can."""
        self._wanted = live, other
        if self._arrange is not None and self._arranging is None and not self._ended:
            self._arranging = asyncio.get_running_loop().create_task(self._keep_arranged(self._arrange))

    def doubt(self, live: RouterPlace, other: RouterPlace | None) -> None:
        """Serve does not answer with what it shall hold: see to it, now and then."""
        if asyncio.get_running_loop().time() >= self._arranged_at + ARRANGE_S:
            self.want(live, other)

    async def _keep_arranged(self, arrange: Arrange) -> None:
        try:
            while self._wanted is not None:
                wanted = self._wanted
                try:
                    why = await asyncio.to_thread(arrange, *wanted)
                except Exception as error:  # noqa: BLE001 - whatever Serve is up to, it is asked by version all the same
                    await asyncio.sleep(ARRANGE_S)
                    if not isinstance(error, NotConnected | WaitTimeout):
                        say(f"Serve was not told of {wanted}: {type(error).__name__}: {error}")
                    continue
                self.by_hand, self._arranged_at = why == BY_HAND, asyncio.get_running_loop().time()
                if why:
                    say(f"Serve does not hold {wanted[0].version} as it shall: {why}")
                if self._wanted is wanted:
                    self._wanted = None
        finally:
            self._arranging = None

    async def _follow(self, version: str) -> None:
        """Load what Serve answers with, and put it in the place of the copy."""
        try:
            router, history = await self._places_of(version)
            made = await asyncio.to_thread(self._loaded, version, router, history)
            self._accept(made, RouterPlace(version, router, history))
        except (NotConnected, WaitTimeout):
            self._since = asyncio.get_running_loop().time()  # nobody says where it is: perhaps later
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the older one goes on
            self._refused = version
            self.trouble = f"version {version}, which Serve answers with: {type(error).__name__}: {error}"
            say(f"no copy of {self.trouble}")
        finally:
            self._following = None

    async def _places_of(self, version: str) -> tuple[str, str]:
        """The directories of the router and of its history. Raises NotConnected where no replica has it any more."""
        for status in await self._reach.statuses():
            if status.version == version:
                return status.router, status.history
        raise NotConnected(f"no replica answers with {version}")

    def _loaded(self, version: str, router: str, history: str) -> LiveRouter:
        made = self._load(router, history)
        if made.base_version != version:
            raise OSError(f"{router} and {history or 'no history'} are {made.base_version} here")
        return made

    def _accept(self, made: LiveRouter, place: RouterPlace) -> None:
        for older in (self.copy, self._relay):  # the relay is of this version, or what it knows is newer
            if older is not None:
                made.take_over(older)
        self.copy, self._relay, self.by_hand = made, None, False
        self._refused = self.trouble = ""
        self.followed(made, place)


def paths_of(config: RouterConfig, within_s: float) -> Paths | None:
    """The paths that the configuration asks for; None where Serve is never asked. For a running event loop."""
    if config.through == "local" and not config.serve_from:
        return None
    loop = asyncio.get_running_loop()
    return Paths(config, within_s, partial(_find, config.served, loop), _load, partial(_arrange, config.served))


def _find(name: str, loop: asyncio.AbstractEventLoop, known: Way | None) -> Way:
    """In a thread: the modules take a second to load."""
    from flowray.routing import live as _live  # noqa: F401 - so that the event loop finds it loaded
    from flowray.runtime import serving

    return serving.find_router(name, known if isinstance(known, serving.ServedRouter) else None, loop)


def _arrange(name: str, live: RouterPlace, other: RouterPlace | None) -> str:
    from flowray.runtime import serving

    return serving.arrange(name, live, other)


def _load(router: str, history: str) -> LiveRouter:
    from flowray.routing import live

    return live.load(router, history, at_once=False)

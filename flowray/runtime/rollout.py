"""The router in versions: what is in force answers, and another one is on trial beside it.

What the trial means, and when it ends, is decided in `flowray.core.rollout`; here the two routers are asked, taught and
exchanged. While nothing is on trial every call goes straight to the router in force.

The older version is the one that was in force when the trial began, the newer one the one on trial; after a promotion
the newer one is in force and the older one is still asked now and then. A newer version that raises, says what is no
number, or takes far longer than the other is out at once, and whoever asked gets the older one's answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from flowray.core.comparing import Pair, compare, seen, sound
from flowray.core.events import VersionDecided
from flowray.core.model import Choice, Estimate, RouterPlace, RouterRecord
from flowray.core.rollout import Decision, Part, Rollout, RolloutPolicy, RolloutStage
from flowray.core.routing import RoutingPolicy
from flowray.errors import FlowrayError, RouterRefused
from flowray.routing.queries import Answers, Queries, Query
from flowray.runtime.saying import say

if TYPE_CHECKING:
    from flowray.config import RouterConfig
    from flowray.routing.live import LiveRouter

MAX_PAIRS = 50_000  # tasks that both were asked about and whose outcome has not come: the oldest are forgotten
_NOTE_EVERY = 100  # outcomes of a trial after which the journal hears how it stands
_GRACE_S = 0.25  # that a newer version may be slower in all, before it is asked how many times
_Rows = list[int]


class Router(Protocol):
    """What is asked here: `flowray.routing.live.LiveRouter`."""

    @property
    def version(self) -> str: ...

    def estimate(self, task_ids: Sequence[str], queries: Sequence[Query]) -> list[tuple[Estimate, ...]]: ...

    def learn(
        self,
        task_id: str,
        agent: str,
        succeeded: bool,
        *,
        quality: float | None = None,
        run_s: float | None = None,
        cost_usd: float | None = None,
    ) -> bool: ...

    def regrade(self, task_id: str, quality: float) -> bool: ...

    def forget(self, task_id: str) -> None: ...

    @property
    def drifted(self) -> int: ...

    def settle(self) -> None: ...


class VersionedRouter:
    """See the module. Use only from the coordinator's event loop."""

    def __init__(
        self,
        live: Router,
        place: RouterPlace,
        policy: RolloutPolicy,
        routing: RoutingPolicy,
        *,
        configured: RouterPlace | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`place` says where the router in force lies, `configured` what the configuration names."""
        self._policy, self._routing, self._clock = policy, routing, clock
        self._configured = configured or place
        self._live, self._place = live, place
        self._other: Router | None = None
        self._other_place: RouterPlace | None = None
        self._rollout = Rollout(policy)
        self._pairs: dict[str, Pair] = {}
        self.learned = 0  # outcomes, whichever version was in force
        self._parts: list[Part] = []  # of the tasks asked about last
        self._seconds = [0.0, 0.0]  # that the older and the newer one took for the same questions
        self._put: Callable[[VersionDecided], None] | None = None
        self._unsaid: list[RouterRecord] = []
        self.changed: Callable[[], object] = lambda: None  # is called when another version is in force or on trial

    @property
    def live(self) -> Router:
        """The router in force."""
        return self._live

    @property
    def version(self) -> str:
        """Of the router in force."""
        return self._live.version

    @property
    def place(self) -> RouterPlace:
        """Where it lies."""
        return self._place

    @property
    def other_place(self) -> RouterPlace | None:
        """The version on trial; while watched, the one that was in force before."""
        return self._other_place

    @property
    def configured(self) -> RouterPlace:
        """What the configuration names."""
        return self._configured

    @property
    def drifted(self) -> int:
        """See `LiveRouter.drifted`, of the router in force."""
        return self._live.drifted

    @property
    def stage(self) -> RolloutStage:
        return self._rollout.stage

    def part(self, task_id: str) -> Part:
        """What this task is for the trial."""
        return self._rollout.part(task_id)

    def begin(self, put: Callable[[VersionDecided], None]) -> None:
        """From now on `put` hears what is decided; first what was decided before."""
        self._put = put
        unsaid, self._unsaid = self._unsaid, []
        for record in unsaid:
            put(VersionDecided(record))

    # ── versions ─────────────────────────────────────────────────────────────────────────────────────────────────

    def may_offer(self, place: RouterPlace) -> None:
        """Could its trial begin now?

        Raises:
            RouterRefused: another trial is under way, or this version is in force already.
        """
        if self._other_place is not None:
            detail = f"version {self._other_place.version} is {self.stage.value}, one at a time"
            raise RouterRefused(place.artifact, detail, self._place.version)
        if place.version == self._place.version:
            raise RouterRefused(place.artifact, "this version is in force already", self._place.version)

    def offer(self, router: Router, place: RouterPlace) -> None:
        """Begin the trial of another version. Raises what `may_offer` does."""
        self.may_offer(place)
        self._other, self._other_place = router, place
        self._fresh()
        self._tell(self._rollout.offered(place.version), place)

    def resume(self, router: Router, record: RouterRecord) -> None:
        """Go on with a trial that an earlier coordinator began; `router` is the record's other one."""
        assert record.other is not None
        self._other, self._other_place = router, record.other
        newer = self._place if record.stage is RolloutStage.WATCHED else record.other
        self._rollout = Rollout(self._policy, record.stage, newer.version, record.evidence)

    def replaced(self, router: Router, place: RouterPlace, why: str) -> None:
        """Another version was put into force from elsewhere: if there is a trial, it is over."""
        self._live, self._place = router, place
        self._other = self._other_place = None
        self._rollout = Rollout(self._policy)
        self._fresh()
        self.record("configured", why, trial=False)
        self.changed()

    def record(self, arrow: str, why: str, *, trial: bool = True) -> None:
        """Have it written down how things stand. `trial`: with how the trial does."""
        evidence = self._rollout.evidence() if trial and self._other is not None else None
        record = RouterRecord(
            at=0.0,  # the core sets it
            arrow=arrow,
            stage=self.stage,
            live=self._place,
            other=self._other_place,
            why=why,
            configured=self._configured,
            evidence=evidence,
        )
        if self._put is None:
            self._unsaid.append(record)
        else:
            self._put(VersionDecided(record))

    def _follow(self, decision: Decision | None) -> None:
        """Exchange or drop routers, as was decided."""
        if decision is None:
            return
        tried = self._place if decision.arrow in ("settled", "rolled_back") else self._other_place
        assert tried is not None
        if decision.arrow in ("promoted", "rolled_back"):
            assert self._other is not None
            assert self._other_place is not None
            self._live, self._other = self._other, self._live
            self._place, self._other_place = self._other_place, self._place
        if decision.stage is RolloutStage.IDLE:
            self._other = self._other_place = None
            self._fresh()
        self._tell(decision, tried)

    def _tell(self, decision: Decision, tried: RouterPlace) -> None:
        told = f"the router's version {tried.version} was {decision.arrow.replace('_', ' ')}: {decision.why}"
        say(told)
        gone = tried not in (self._place, self._other_place)
        self.record(decision.arrow, f"{tried.version}: {decision.why}" if gone else decision.why, trial=False)
        self.changed()

    def _fresh(self) -> None:
        self._pairs.clear()
        self._parts = []
        self._seconds = [0.0, 0.0]

    # ── asked ────────────────────────────────────────────────────────────────────────────────────────────────────

    def estimate(self, task_ids: Sequence[str], queries: Sequence[Query]) -> list[tuple[Estimate, ...]]:
        """See `LiveRouter.estimate`. Whose answer each is says `answered`."""
        if self._other is None:
            return self._live.estimate(task_ids, queries)
        parts = self._parts = [self._rollout.part(task_id) for task_id in task_ids]
        both = [row for row, part in enumerate(parts) if part.both]
        watched = self.stage is RolloutStage.WATCHED
        begun = self._clock()
        try:
            answers = self._live.estimate(task_ids, queries)
        except Exception as error:
            if not watched:
                raise
            self._follow(self._rollout.broke(_raised(error)))
            return self._live.estimate(task_ids, queries)  # now the earlier one
        ended = self._clock()
        if not both:
            return answers
        try:
            others = self._other.estimate([task_ids[row] for row in both], [queries[row] for row in both])
        except Exception as error:  # noqa: BLE001 - whatever it is, the router in force has answered
            broke = self._rollout.older_broke if watched else self._rollout.broke
            self._follow(broke(_raised(error)))
            return answers
        took = ended - begun, self._clock() - ended
        return self._heard(task_ids, queries, answers, others, both, took)

    def asking(self, task_ids: Sequence[str], queries: Sequence[Query]) -> Queries:
        """What to ask somebody who has both versions; what he says goes to `estimate_from`."""
        if self._other_place is None:
            return Queries(tuple(queries), self._place.version)
        rows = tuple(row for row, task_id in enumerate(task_ids) if self._rollout.part(task_id).both)
        return Queries(tuple(queries), self._place.version, self._other_place.version, rows)

    def estimate_from(self, task_ids: Sequence[str], asked: Queries, answers: Answers) -> list[tuple[Estimate, ...]]:
        """As `estimate`, from what somebody else said to these questions: the version in force, and the other one.

        Raises:
            RouterRefused: the version that said it was rolled back for it.
        """
        task_ids, queries = list(task_ids), asked.queries
        live = cast("LiveRouter", self._live)
        found = live.estimate_from(task_ids, queries, answers)
        other, place = self._other, self._other_place
        self._parts = []
        if other is None or place is None:
            return found
        watched = self.stage is RolloutStage.WATCHED
        if answers.trouble and asked.other == place.version:
            broke = self._rollout.older_broke if watched else self._rollout.broke
            self._follow(broke(f"it raised {answers.trouble}"))
            return found
        said = answers.other
        both = list(asked.rows)
        if said is None or said.version != place.version or not said.fits(Queries(tuple(queries[row] for row in both))):
            return found  # it is not there yet, or another one is on trial by now
        self._parts = [self._rollout.part(task_id) for task_id in task_ids]
        others = cast("LiveRouter", other).estimate_from(
            [task_ids[row] for row in both], [queries[row] for row in both], said
        )
        before = self._place
        heard = self._heard(task_ids, queries, found, others, both, (answers.took_s, said.took_s))
        if self._place is not before:
            raise RouterRefused(before.artifact, "it was rolled back", self._place.version)
        return heard

    def _heard(
        self,
        task_ids: Sequence[str],
        queries: Sequence[Query],
        answers: list[tuple[Estimate, ...]],
        others: list[tuple[Estimate, ...]],
        both: list[int],
        took: tuple[float, float],
    ) -> list[tuple[Estimate, ...]]:
        """What is answered, now that both have spoken: the one in force to all, the other one to some (`both`)."""
        watched, parts = self.stage is RolloutStage.WATCHED, self._parts
        older, newer = ([answers[row] for row in both], others) if not watched else (others, [answers[r] for r in both])
        trouble = self._trouble(newer, *(reversed(took) if watched else took))
        if trouble:
            earlier = dict(zip(both, older, strict=True))
            self._follow(self._rollout.broke(trouble))
            if not watched:
                return answers
            left = [row for row in range(len(task_ids)) if row not in earlier]
            rest = self._live.estimate([task_ids[row] for row in left], [queries[row] for row in left])
            earlier.update(zip(left, rest, strict=True))
            return [earlier[row] for row in range(len(task_ids))]
        for at, row in enumerate(both):
            by_newer = parts[row].by_newer
            self._pairs[task_ids[row]] = compare(older[at], newer[at], self._routing, by_newer=by_newer)
            answers[row] = (newer if by_newer else older)[at]
        while len(self._pairs) > MAX_PAIRS:
            del self._pairs[next(iter(self._pairs))]
        return answers

    def answered(self, task_ids: Sequence[str]) -> list[tuple[str, _Rows]]:
        """(version, rows) of the answers that `estimate` gave last, to these tasks."""
        every = list(range(len(task_ids)))
        if self._other is None or len(self._parts) != len(every):
            return [(self._live.version, every)]
        watched = self.stage is RolloutStage.WATCHED
        groups = {True: list[int](), False: list[int]()}
        for row, part in enumerate(self._parts):
            groups[part.by_newer is watched].append(row)
        return [
            (router.version, rows)
            for router, rows in ((self._live, groups[True]), (self._other, groups[False]))
            if rows
        ]

    def _trouble(self, newer: Sequence[tuple[Estimate, ...]], older_s: float, newer_s: float) -> str:
        """What makes the newer version unusable; "" where nothing does. Both were timed in the same turn."""
        for answer in newer:
            if not sound(answer):
                return f"it says what no choice can be made from: {answer}"[:500]
        spent = self._seconds
        spent[0] += older_s
        spent[1] += newer_s
        if spent[1] > self._policy.slow_factor * spent[0] + _GRACE_S:
            return f"it takes far longer: {spent[1]:.3f} s where the other one took {spent[0]:.3f} s"
        return ""

    # ── learning ─────────────────────────────────────────────────────────────────────────────────────────────────

    def learn(
        self,
        task_id: str,
        agent: str,
        succeeded: bool,
        *,
        quality: float | None = None,
        run_s: float | None = None,
        cost_usd: float | None = None,
    ) -> bool:
        """See `LiveRouter.learn`: both learn, each of what it was asked about."""
        if (other := self._other) is not None:
            self._spare(lambda: other.learn(task_id, agent, succeeded, quality=quality, run_s=run_s, cost_usd=cost_usd))
        learned = self._live.learn(task_id, agent, succeeded, quality=quality, run_s=run_s, cost_usd=cost_usd)
        self.learned += learned
        return learned

    def regrade(self, task_id: str, quality: float) -> bool:
        """See `LiveRouter.regrade`: both learn anew. A trial counts what was known when the task ended."""
        if (other := self._other) is not None:
            self._spare(lambda: other.regrade(task_id, quality))
        return self._live.regrade(task_id, quality)

    def settle(self) -> None:
        """See `LiveRouter.settle`."""
        if self._other is not None:
            self._spare(self._other.settle)
        self._live.settle()

    def _spare(self, teach: Callable[[], object]) -> None:
        """Teach the router that is not in force; if it cannot learn, its trial is over and nobody else notices."""
        try:
            teach()
        except Exception as error:  # noqa: BLE001 - whatever it is, the router in force goes on
            broke = self._rollout.older_broke if self.stage is RolloutStage.WATCHED else self._rollout.broke
            self._follow(broke(_raised(error)))

    def saw(self, task_id: str, agent: str, succeeded: bool, quality: float | None, choices: Sequence[Choice]) -> None:
        """What came of an attempt, for the trial; `choices` are those of the task so far."""
        if self._other is None:
            return
        pair = self._pairs.pop(task_id, None)
        if pair is None:
            return
        receipt = choices[-1].receipt if choices else None
        found = seen(
            pair,
            agent,
            succeeded,
            quality,
            receipt,
            least_propensity=self._policy.least_propensity,
            first=len(choices) <= 1,
        )
        decision = self._rollout.saw(found)
        self._follow(decision)
        if decision is None and self._rollout.outcomes % _NOTE_EVERY == 0:
            self.record("noted", f"{self._rollout.outcomes} outcomes")

    def forget(self, task_id: str) -> None:
        """The task has ended."""
        self._live.forget(task_id)
        if self._other is not None:
            self._other.forget(task_id)
            self._pairs.pop(task_id, None)


def place_of(artifact: str, history: str = "") -> RouterPlace:
    """The version that lies there.

    Raises:
        ArtifactError: there is no router. OSError: the history cannot be read.
    """
    if not artifact:
        return RouterPlace("none")
    from flowray.routing.versions import version_of

    return RouterPlace(version_of(artifact, history), artifact, history)


def read(place: RouterPlace) -> Router:
    """Load a version. Takes seconds: the past is read, and the network gets acquainted with it.

    Raises:
        RouterRefused: another version lies there by now.
        MissingExtra: torch is not installed. ArtifactError, ConfigError: the router or the history cannot be read.
    """
    from flowray.routing import live

    if not place.artifact:
        return live.LiveRouter(at_once=False)
    found = place_of(place.artifact, place.history)
    if found.version != place.version:
        raise RouterRefused(place.artifact, f"this is version {found.version}, not {place.version}")
    return live.load(place.artifact, place.history, at_once=False)


def load_versions(config: RouterConfig, routing: RoutingPolicy, records: Sequence[RouterRecord]) -> VersionedRouter:
    """The router in force, and the one on trial, as the journal's records say; else what the configuration names.

    Takes seconds. Raises what `read` does, of what the configuration names.
    """
    configured = place_of(config.artifact, config.history)
    last = records[-1] if records else None
    if last is None or last.configured != configured:
        versions = VersionedRouter(read(configured), configured, config.rollout, routing, configured=configured)
        versions.record("configured", "the configuration names it")
        return versions
    try:
        live = read(last.live)
    except (FlowrayError, OSError) as error:
        versions = VersionedRouter(read(configured), configured, config.rollout, routing, configured=configured)
        versions.record("configured", f"{last.live.version} could not be loaded: {error}")
        return versions
    versions = VersionedRouter(live, last.live, config.rollout, routing, configured=configured)
    if last.stage is not RolloutStage.IDLE and last.other is not None:
        try:
            versions.resume(read(last.other), last)
        except (FlowrayError, OSError) as error:
            arrow = "settled" if last.stage is RolloutStage.WATCHED else "rejected"
            versions.record(arrow, f"{last.other.version} could not be loaded again: {error}")
    return versions


def _raised(error: Exception) -> str:
    return f"it raised {type(error).__name__}: {error}"[:500]

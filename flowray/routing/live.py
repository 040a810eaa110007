"""A router in service: what is asked of it task by task, and what it learns from each outcome at once.

What does not change between two questions is worked out when it is loaded: the network, and the past of the agents
that were known then. What happens since is learned by the posteriors on top (`flowray.routing.posteriors`). An agent
that the past does not know begins as the mean of those it knows, or of all such strangers as far as these were seen,
and as unsure as can be.

Agents are classes of agents here (a core's candidates). The past speaks of agents by ids of its own; the two are the
same when their names are, written as the name of a class (`flowray.core.naming`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from flowray.core.model import Estimate
from flowray.core.naming import class_names
from flowray.errors import MissingExtra
from flowray.routing.asked import batch_of, known
from flowray.routing.data import OutcomeSet
from flowray.routing.estimates import AgentBatch, Estimates, Estimator, Floats, Histories, Outcomes, TaskBatch
from flowray.routing.kernels import bound
from flowray.routing.posteriors import PROBABLE, Doubles, PosteriorPolicy, Posteriors, weights_of
from flowray.routing.queries import Answers, Query
from flowray.routing.regrading import Gradable
from flowray.routing.relationships import Relationships, pair

MOST_HEARD = 64  # outcomes that are taken in together
MAX_PENDING = 200_000  # tasks asked about whose outcome has not come: the oldest are forgotten
KIND_HEADS = ("task", "category")  # of the network: the first that it has tells what kind of task it is
STRANGERS_SCALE = 0.5  # outcomes that pull what an agent without a past takes and costs towards a unit
STRANGERS_LIMIT = 5.0  # of a logarithm, that one outcome may pull these: the first ones have far to go
POOLED = 200  # outcomes of each stranger that say what strangers are like
_POOL = "all strangers"
UNKNOWN_SUCCESS = 0.5  # of an agent of which nothing is known, beside others of which nothing is known


_Figures = list[list[float | None]]  # [tasks][candidates] seconds or dollars; None where nothing is known


class _Said(NamedTuple):
    """What was said of some tasks with the same candidates, before anything learned since."""

    names: tuple[str, ...]
    kinds: Floats  # [tasks, kinds]
    success: Floats  # [tasks, candidates]
    quality: Floats
    latency_s: Floats
    cost_usd: Floats
    builds_on: str = ""  # the class whose answers all these tasks go on from
    alone: Floats | None = None  # success as it was learned, without regard to that; where there is one


class _Heard(NamedTuple):
    """What came of an attempt."""

    said: _Said
    row: int  # there, of the task
    at: int  # there, of the agent
    agent: str
    pooled: bool  # of a stranger: it also says what strangers are like
    graded: bool  # its quality was reported
    grade: float
    run_s: float | None
    cost_usd: float | None


class LiveRouter:
    """See the module. Not safe to use by several threads at once."""

    def __init__(
        self,
        estimator: Estimator | None = None,
        past: OutcomeSet | None = None,
        *,
        version: str = "none",
        kinds: Sequence[str] = (),
        policy: PosteriorPolicy | None = None,
        at_once: bool = True,
    ) -> None:
        """Without an estimator all candidates are alike until outcomes tell them apart, by `kinds` if there are any.

        `at_once`: every question is answered with all that was learned before it. Else that is taken in when somebody
        calls `settle`, or when there is much of it: few outcomes cost as much together as one.
        """
        self._estimator = estimator
        self._at_once = at_once
        self.base_version = version  # of the router, whatever was learned since
        self.learned = 0  # outcomes
        self._pending: dict[str, tuple[_Said, int]] = {}  # -> with which others, and its row there
        if past is not None:
            self._agents, self._histories = past.agents, past.histories()
        else:
            self._agents = AgentBatch.of_ids(())
            self._histories = Histories(tasks=TaskBatch.of_texts(()), outcomes=Outcomes.none(0, 0))
        self._column = {name: at for at, name in enumerate(class_names(self._agents.agent_ids))}
        self._acquainted = set(self._column)  # those that the past knows, be it here or where answers come from
        base = self._base(TaskBatch.of_texts(["to get acquainted"]))
        if base is not None:
            kinds = kinds_in(base)[0]
        rules = policy or PosteriorPolicy()
        self._known = Posteriors(kinds, rules)  # of agents with a past: what changed since
        open_minded = replace(
            rules,
            agent_strength=rules.doubted_agent_strength,
            kind_strength=rules.doubted_kind_strength,
            scale_strength=STRANGERS_SCALE,
            scale_limit=STRANGERS_LIMIT,
        )
        self._strangers = Posteriors(kinds, open_minded)  # of the others: all that is known of them
        self._pool = Posteriors(kinds, open_minded)  # of the others as if they were one
        self._relationships = Relationships(kinds, rules)
        self._seen: dict[str, int] = {}  # stranger -> outcomes
        self._timed: dict[str, int] = {}  # of these, with seconds
        self._priced: dict[str, int] = {}  # and with dollars
        self._heard: list[_Heard] = []  # outcomes that the posteriors have yet to take in
        self._gradable = Gradable()

    @property
    def version(self) -> str:
        """Of the router, and how many outcomes it took in since it was loaded."""
        waiting = 0 if self._at_once else len(self._heard)
        return f"{self.base_version}+{self.learned - waiting}"

    @property
    def known(self) -> Posteriors:
        """What was learned of agents with a past."""
        self.settle()
        return self._known

    @property
    def strangers(self) -> Posteriors:
        """What was learned of the others."""
        self.settle()
        return self._strangers

    @property
    def relationships(self) -> Relationships:
        """What was learned of who goes on from whose answers."""
        self.settle()
        return self._relationships

    @property
    def drifted(self) -> int:
        """Grows when an agent is found to have changed; 0 while none was."""
        found = (posteriors.detections() for posteriors in (self.known, self.strangers))
        return sum(max((each.at_outcome for each in changes), default=0) for changes in found)

    def estimate(self, task_ids: Sequence[str], queries: Sequence[Query]) -> list[tuple[Estimate, ...]]:
        """Of each task its candidates, in their order; `task_ids` are what outcomes will be told by."""
        if not queries:
            return []
        if self._at_once:
            self.settle()
        base = self._base(batch_of(queries, self._column, len(self._agents)))
        kinds = np.zeros((len(queries), 0), np.float32) if base is None else kinds_in(base)[1]
        return self._corrected_and_kept(
            task_ids, queries, kinds, lambda rows, names: self._said(base, rows, kinds[rows], names)
        )

    def estimate_from(
        self, task_ids: Sequence[str], queries: Sequence[Query], answers: Answers
    ) -> list[tuple[Estimate, ...]]:
        """The same, from what another process said of these queries with the same router and past (`Answers.fits`).

        Raises:
            ValueError: its router tells other kinds of tasks apart.
        """
        if self._at_once:
            self.settle()
        if answers.kinds != self._known.kinds:
            raise ValueError(f"answers of {answers.version} are about other kinds of tasks than {self.base_version}'s")
        kinds = np.array(answers.shares, np.float32).reshape(len(queries), len(answers.kinds))
        strangers = set(answers.strangers)
        self._acquainted.update(name for query in queries for name in query.candidates if name not in strangers)
        return self._corrected_and_kept(
            task_ids, queries, kinds, lambda rows, names: _told(answers, rows, kinds[rows], names, strangers)
        )

    def take_over(self, older: LiveRouter) -> None:
        """Go on with what another one has learned: all of it where it is of the same router and past.

        Otherwise what it knows of agents without a past, for the rest was measured against what its own router said;
        and nothing where that one tells other kinds of tasks apart.
        """
        if older.known.kinds != self.known.kinds:
            return
        if older.base_version == self.base_version:
            self._known, self.learned, self._pending = older.known, older.learned, older._pending
        self._strangers, self._pool = older.strangers, older._pool
        self._relationships = older._relationships
        self._seen, self._timed, self._priced = older._seen, older._timed, older._priced

    def _corrected_and_kept(
        self,
        task_ids: Sequence[str],
        queries: Sequence[Query],
        kinds: Floats,
        said_of: Callable[[list[int], tuple[str, ...]], _Said],
    ) -> list[tuple[Estimate, ...]]:
        """Correct what is said of the queries by what was learned, and remember it for what will be."""
        alike: dict[tuple[tuple[str, ...], str], list[int]] = {}  # what has the same candidates is answered together
        for row, query in enumerate(queries):
            alike.setdefault((query.candidates, query.builds_on), []).append(row)
        answers: list[tuple[Estimate, ...]] = [()] * len(queries)
        for (names, builds_on), rows in alike.items():
            said, found = self._answers(said_of(rows, names), builds_on)
            for at, (row, answer) in enumerate(zip(rows, found, strict=True)):
                answers[row] = answer
                self._pending[task_ids[row]] = said, at
        while len(self._pending) > MAX_PENDING:
            del self._pending[next(iter(self._pending))]
        return answers

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
        """What came of an attempt, and what it took. False where nothing was asked about the task.

        A reported quality (0..1) is held against the quality that was expected, else success against success. The
        posteriors take it in with the next `settle`: of several outcomes at once each costs a fraction.
        """
        said, row = self._pending.get(task_id, (None, 0))
        if said is None or agent not in said.names:
            return False
        at = said.names.index(agent)
        grade = float(succeeded) if quality is None else quality
        if not 0.0 <= grade <= 1.0:
            raise ValueError(f"the quality of {agent!r} must lie in 0..1, got {grade!r}")
        told = [(self._known, agent)]
        pooled = False
        if agent not in self._acquainted:
            told = [(self._strangers, agent)]
            most = self._strangers.policy.max_agents
            pooled = self._seen.get(agent, 0) < POOLED
            if pooled:
                told.append((self._pool, _POOL))
            _remember(self._seen, agent, most)
            for figure, seen in ((run_s, self._timed), (cost_usd, self._priced)):
                if figure:
                    _remember(seen, agent, most)
        if said.builds_on:
            told.append((self._relationships.posteriors, pair(said.builds_on, agent)))
        self._heard.append(_Heard(said, row, at, agent, pooled, quality is not None, grade, run_s, cost_usd))
        self.learned += 1
        expected = float((said.success if quality is None else said.quality)[row, at])
        worth = float(said.quality[row, at])
        self._gradable.note(task_id, told, said.kinds[row], grade - expected, worth, answered=succeeded)
        if len(self._heard) >= MOST_HEARD:
            self.settle()
        return True

    def regrade(self, task_id: str, quality: float) -> bool:
        """What the answer of a task turned out to be worth, 0..1: what was learned of it is revised.

        False where it is not among the last answers (`flowray.routing.regrading.MOST`) that this router learned from.
        """
        self.settle()
        return self._gradable.regrade(task_id, quality)

    def settle(self) -> None:
        """Let the posteriors take in what was learned since."""
        heard, self._heard = self._heard, []
        if not heard:
            return
        strange = [one for one in heard if one.agent not in self._acquainted]
        _take_in(self._pool, [one._replace(agent=_POOL, run_s=None, cost_usd=None) for one in strange if one.pooled])
        _take_in(self._strangers, strange)
        if len(strange) < len(heard):
            _take_in(self._known, [one for one in heard if one.agent in self._acquainted])
        if related := [one for one in heard if one.said.builds_on]:
            _relate(self._relationships, related)

    def forget(self, task_id: str) -> None:
        """The task has ended: nothing more comes of it."""
        self._pending.pop(task_id, None)

    def _base(self, tasks: TaskBatch) -> Estimates | None:
        if self._estimator is None:
            return None
        return self._estimator.estimate(tasks, self._agents, self._histories)

    def _said(self, base: Estimates | None, rows: list[int], kinds: Floats, names: tuple[str, ...]) -> _Said:
        shape = len(rows), len(names)
        if base is None or not len(self._agents):
            alike, unit = _nothing_known(*shape)
            return _Said(names, kinds, alike, alike, unit, unit)
        columns = np.array([self._column.get(name, -1) for name in names])
        place = np.array(rows)[:, None], columns
        success, quality, latency_s, cost_usd = (
            values[place] for values in (base.success, base.quality, base.latency_s, base.cost_usd)
        )
        strangers = columns < 0
        if strangers.any():
            success[:, strangers] = base.success[rows].mean(axis=1, keepdims=True)
            quality[:, strangers] = base.quality[rows].mean(axis=1, keepdims=True)
            latency_s[:, strangers] = cost_usd[:, strangers] = 1.0  # what is learned of them is all that there is
        return _Said(names, kinds, success, quality, latency_s, cost_usd)

    def _answers(self, said: _Said, builds_on: str) -> tuple[_Said, list[tuple[Estimate, ...]]]:
        """Corrected by what was learned; and what was said, with what it takes to learn of the relationship."""
        names, weights = said.names, weights_of(said.kinds)
        strangers = [at for at, name in enumerate(names) if name not in self._acquainted]
        if len(strangers) == len(names):
            success, deviation, latency_s, cost_usd = self._of_strangers(said, weights)
        else:
            known = self._known
            success, deviation = known.corrected_success(names, weights, said.success)
            latency_s = _listed(known.expected_seconds(names, weights, said.latency_s))
            cost_usd = _listed(known.expected_dollars(names, weights, said.cost_usd))
            if strangers:
                learned = self._of_strangers(said, weights)
                success[:, strangers], deviation[:, strangers] = learned[0][:, strangers], learned[1][:, strangers]
                for values, theirs in ((latency_s, learned[2]), (cost_usd, learned[3])):
                    for of_task, of_strangers in zip(values, theirs, strict=True):
                        for at in strangers:
                            of_task[at] = of_strangers[at]
        more: list[list[list[float]]] = []
        if builds_on:
            alone = success
            success, unsure = self._relationships.related(builds_on, names, said.kinds, alone)
            deviation = np.hypot(deviation, unsure)
            said = said._replace(builds_on=builds_on, alone=alone)
            more = [(success - alone).tolist()]
        quality = bound(said.quality + (success - said.success), *PROBABLE)  # what changed one changed the other
        columns = [success.tolist(), deviation.tolist(), quality.tolist(), latency_s, cost_usd]
        return said, [tuple(map(Estimate, names, *of_task)) for of_task in zip(*columns, *more, strict=True)]

    def _of_strangers(self, said: _Said, weights: Doubles) -> tuple[Floats, Floats, _Figures, _Figures]:
        """Success, its deviation, seconds and dollars [tasks, candidates], as if the past knew none of them."""
        names, posteriors = said.names, self._strangers
        success, deviation = posteriors.corrected_success(names, weights, said.success)
        # Who was seen seldom is taken for like the others: the same shrinkage, towards what all strangers did.
        first = said.success[:, [next(at for at, name in enumerate(names) if name not in self._acquainted)]]
        pooled = self._pool.expected_success((_POOL,), weights, first) - first
        strength = posteriors.policy.agent_strength
        moved = success + pooled * [strength / (strength + self._seen.get(name, 0)) for name in names]
        success[:] = np.minimum(np.maximum(moved, PROBABLE[0], out=moved), PROBABLE[1], out=moved)
        latency_s = self._figures(said.latency_s, self._timed, names, weights, posteriors.expected_seconds)
        cost_usd = self._figures(said.cost_usd, self._priced, names, weights, posteriors.expected_dollars)
        return success, deviation, latency_s, cost_usd

    @staticmethod
    def _figures(
        said: Floats,
        seen: dict[str, int],
        names: tuple[str, ...],
        weights: Doubles,
        learned: Callable[[tuple[str, ...], Doubles, Floats], Floats],
    ) -> _Figures:
        """What strangers take or cost, as far as it was seen of each."""
        unknown = [at for at, name in enumerate(names) if name not in seen]
        if len(unknown) == len(names):
            return [[None] * len(names) for _ in range(len(said))]
        values = learned(names, weights, said)
        if unknown:
            values[:, unknown] = np.nan
        return _listed(values)


def kinds_in(base: Estimates) -> tuple[tuple[str, ...], Floats]:
    """Kinds of tasks that a router tells apart, and their shares [tasks, kinds] in what it was asked about."""
    head = next((base.capabilities[head] for head in KIND_HEADS if head in base.capabilities), None)
    if head is None:
        return (), np.zeros((len(base.success), 0), np.float32)
    return head.labels, head.probabilities


def _told(answers: Answers, rows: list[int], kinds: Floats, names: tuple[str, ...], strangers: Set[str]) -> _Said:
    """What another process said of some queries with the same candidates."""
    found = [[(e.success, e.quality, e.latency_s, e.cost_usd) for e in answers.estimates[row]] for row in rows]
    values = np.array(found, np.float32).reshape(len(rows), len(names), 4)  # None becomes NaN
    unknown = [at for at, name in enumerate(names) if name in strangers]
    values[:, unknown, 2:] = 1.0  # what is learned of them is all that there is
    success, quality, latency_s, cost_usd = (np.ascontiguousarray(values[:, :, at]) for at in range(4))
    return _Said(names, kinds, success, quality, latency_s, cost_usd)


def _take_in(posteriors: Posteriors, heard: Sequence[_Heard]) -> None:
    if not heard:
        return
    agents = [one.agent for one in heard]
    kinds = np.stack([one.said.kinds[one.row] for one in heard])
    expected = [(one.said.quality if one.graded else one.said.success)[one.row, one.at] for one in heard]
    posteriors.observe_all(agents, kinds, np.array(expected, np.float64), np.array([one.grade for one in heard]))
    if any(one.run_s for one in heard):
        latency_s = np.array([one.said.latency_s[one.row, one.at] for one in heard], np.float64)
        posteriors.observe_all_seconds(agents, kinds, latency_s, _positive([one.run_s for one in heard]))
    if any(one.cost_usd for one in heard):
        cost_usd = np.array([one.said.cost_usd[one.row, one.at] for one in heard], np.float64)
        posteriors.observe_all_dollars(agents, kinds, cost_usd, _positive([one.cost_usd for one in heard]))


def _relate(relationships: Relationships, heard: Sequence[_Heard]) -> None:
    """Learn of pairs, from what is left when the agent's own corrections are taken off."""
    expected = []
    for one in heard:
        assert one.said.alone is not None
        alone = float(one.said.alone[one.row, one.at])
        moved = float(one.said.quality[one.row, one.at]) - float(one.said.success[one.row, one.at])
        expected.append(min(max(alone + moved, PROBABLE[0]), PROBABLE[1]) if one.graded else alone)
    pairs = [pair(one.said.builds_on, one.agent) for one in heard]
    kinds = np.stack([one.said.kinds[one.row] for one in heard])
    relationships.observe_all(pairs, kinds, np.array(expected), np.array([one.grade for one in heard]))


def _listed(values: Floats) -> _Figures:
    """As messages have them: None for what is not known."""
    rows: _Figures = values.tolist()
    if np.isfinite(values).all():
        return rows
    return [[known(value) for value in row] for row in rows]  # type: ignore[arg-type]


@lru_cache(maxsize=4 * MOST_HEARD)
def _nothing_known(n_tasks: int, n_agents: int) -> tuple[Floats, Floats]:
    """[tasks, agents] of which nothing is known: their success, and a unit of seconds or dollars. Not to be changed."""
    success, unit = np.full((n_tasks, n_agents), UNKNOWN_SUCCESS, np.float32), np.ones((n_tasks, n_agents), np.float32)
    success.flags.writeable = unit.flags.writeable = False
    return success, unit


def _positive(values: Sequence[float | None]) -> Doubles:
    """0 for those that are not known, which posteriors leave out."""
    return np.array([value or 0.0 for value in values])


def _remember(seen: dict[str, int], agent: str, most: int) -> None:
    """Count one more; of more than so many agents the one counted longest ago is forgotten."""
    seen[agent] = seen.pop(agent, 0) + 1
    if len(seen) > most:
        del seen[next(iter(seen))]


def load(artifact: str, history: str = "", *, at_once: bool = True) -> LiveRouter:
    """A trained router and the past of the agents that it is asked about, for a process that has other things to do.

    Raises:
        MissingExtra: torch is not installed. ArtifactError, ConfigError: the router or the history cannot be read.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("a trained router", "router") from error
    from flowray.routing import data, estimator
    from flowray.routing.versions import version_of

    torch.set_num_threads(1)
    past = data.load(history) if history else None
    version = version_of(artifact, history)
    return LiveRouter(estimator.load(artifact, "float32"), past, version=version, at_once=at_once)

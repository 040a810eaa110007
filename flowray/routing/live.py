"""A router in service: what is asked of it task by task, and what it learns from each outcome at once.

What does not change between two questions is worked out when it is loaded: the network, and the past of the agents
that were known then. What happens since is learned by the posteriors on top (`flowray.routing.posteriors`). An agent
that the past does not know begins as the mean of those it knows, or of all such strangers as far as these were seen,
and as unsure as can be.

Agents are classes of agents here (a core's candidates). The past speaks of agents by ids of its own; the two are the
same when their names are, written as the name of a class (`flowray.core.naming`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from flowray.core.model import Estimate
from flowray.core.naming import class_names
from flowray.errors import MissingExtra
from flowray.routing.asked import batch_of, known
from flowray.routing.data import OutcomeSet
from flowray.routing.estimates import AgentBatch, Estimates, Estimator, Floats, Histories, Outcomes, TaskBatch
from flowray.routing.posteriors import PROBABLE, Doubles, PosteriorPolicy, Posteriors
from flowray.routing.queries import Query
from flowray.routing.regrading import Gradable

MOST_HEARD = 64  # outcomes that are taken in together
MAX_PENDING = 200_000  # tasks asked about whose outcome has not come: the oldest are forgotten
KIND_HEADS = ("task", "category")  # of the network: the first that it has tells what kind of task it is
STRANGERS_SCALE = 0.5  # outcomes that pull what an agent without a past takes and costs towards a unit
STRANGERS_LIMIT = 5.0  # of a logarithm, that one outcome may pull these: the first ones have far to go
POOLED = 200  # outcomes of each stranger that say what strangers are like
_POOL = "all strangers"
UNKNOWN_SUCCESS = 0.5  # of an agent of which nothing is known, beside others of which nothing is known


class _Said(NamedTuple):
    """What was said of some tasks with the same candidates, before anything learned since."""

    names: tuple[str, ...]
    kinds: Floats  # [tasks, kinds]
    success: Floats  # [tasks, candidates]
    quality: Floats
    latency_s: Floats
    cost_usd: Floats


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
        policy: PosteriorPolicy | None = None,
    ) -> None:
        """Without an estimator all candidates are alike until outcomes tell them apart."""
        self._estimator = estimator
        self._version = version
        self.learned = 0  # outcomes
        self._pending: dict[str, tuple[_Said, int]] = {}  # -> with which others, and its row there
        if past is not None:
            self._agents, self._histories = past.agents, past.histories()
        else:
            self._agents = AgentBatch.of_ids(())
            self._histories = Histories(tasks=TaskBatch.of_texts(()), outcomes=Outcomes.none(0, 0))
        self._column = {name: at for at, name in enumerate(class_names(self._agents.agent_ids))}
        base = self._base(TaskBatch.of_texts(["to get acquainted"]))
        heads = base.capabilities if base is not None else {}
        self._head = next((head for head in KIND_HEADS if head in heads), None)
        kinds = heads[self._head].labels if self._head is not None else ()
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
        self._seen: dict[str, int] = {}  # stranger -> outcomes
        self._timed: dict[str, int] = {}  # of these, with seconds
        self._priced: dict[str, int] = {}  # and with dollars
        self._gradable = Gradable()
        self._heard: list[_Heard] = []  # outcomes that the posteriors have yet to take in

    @property
    def version(self) -> str:
        """Of the router, and how many outcomes it learned since it was loaded."""
        return f"{self._version}+{self.learned}"

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

    def estimate(self, task_ids: Sequence[str], queries: Sequence[Query]) -> list[tuple[Estimate, ...]]:
        """Of each task its candidates, in their order; `task_ids` are what outcomes will be told by."""
        if not queries:
            return []
        self.settle()
        base = self._base(batch_of(queries, self._column, len(self._agents)))
        kinds = self._kinds(base, len(queries))
        alike: dict[tuple[str, ...], list[int]] = {}  # what has the same candidates is answered together
        for row, query in enumerate(queries):
            alike.setdefault(query.candidates, []).append(row)
        answers: list[tuple[Estimate, ...]] = [()] * len(queries)
        for names, rows in alike.items():
            said = self._said(base, rows, kinds[rows], names)
            for at, (row, answer) in enumerate(zip(rows, self._answers(said), strict=True)):
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
        pooled = False
        if agent not in self._column:
            most = self._strangers.policy.max_agents
            pooled = self._seen.get(agent, 0) < POOLED
            _remember(self._seen, agent, most)
            for figure, seen in ((run_s, self._timed), (cost_usd, self._priced)):
                if figure:
                    _remember(seen, agent, most)
        self._heard.append(_Heard(said, row, at, agent, pooled, quality is not None, grade, run_s, cost_usd))
        self.learned += 1
        told = [(self._known, agent)] if agent in self._column else [(self._strangers, agent)]
        if pooled:
            told.append((self._pool, _POOL))
        expected = (said.success if quality is None else said.quality)[row, at]
        worth = float(said.quality[row, at])
        self._gradable.note(task_id, told, said.kinds[row], grade - float(expected), worth, answered=succeeded)
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
        strange = [one for one in heard if one.agent not in self._column]
        _take_in(self._pool, [one._replace(agent=_POOL, run_s=None, cost_usd=None) for one in strange if one.pooled])
        _take_in(self._strangers, strange)
        if len(strange) < len(heard):
            _take_in(self._known, [one for one in heard if one.agent in self._column])

    def forget(self, task_id: str) -> None:
        """The task has ended: nothing more comes of it."""
        self._pending.pop(task_id, None)

    def _base(self, tasks: TaskBatch) -> Estimates | None:
        if self._estimator is None:
            return None
        return self._estimator.estimate(tasks, self._agents, self._histories)

    def _kinds(self, base: Estimates | None, n_tasks: int) -> Floats:
        """[tasks, kinds] shares; of no kinds where nothing tells them."""
        if base is None or self._head is None:
            return np.zeros((n_tasks, 0), np.float32)
        return base.capabilities[self._head].probabilities

    def _said(self, base: Estimates | None, rows: list[int], kinds: Floats, names: tuple[str, ...]) -> _Said:
        shape = len(rows), len(names)
        if base is None or not len(self._agents):
            unit = np.ones(shape, np.float32)
            prior = np.full(len(rows), UNKNOWN_SUCCESS, np.float32)
            alike = np.repeat(prior[:, None], len(names), axis=1)
            return _Said(names, kinds, alike, alike, unit, unit)
        columns = np.array([self._column.get(name, -1) for name in names])
        success, quality, latency_s, cost_usd = (
            values[rows][:, columns] for values in (base.success, base.quality, base.latency_s, base.cost_usd)
        )
        strangers = columns < 0
        if strangers.any():
            success[:, strangers] = base.success[rows].mean(axis=1, keepdims=True)
            quality[:, strangers] = base.quality[rows].mean(axis=1, keepdims=True)
            latency_s[:, strangers] = cost_usd[:, strangers] = 1.0  # what is learned of them is all that there is
        return _Said(names, kinds, success, quality, latency_s, cost_usd)

    def _answers(self, said: _Said) -> list[tuple[Estimate, ...]]:
        names = said.names
        strangers = [at for at, name in enumerate(names) if name not in self._column]
        corrected = self._corrected(self._known if len(strangers) < len(names) else self._strangers, said)
        if strangers:
            if len(strangers) < len(names):
                for values, learned in zip(corrected, self._corrected(self._strangers, said), strict=True):
                    values[:, strangers] = learned[:, strangers]
            # Who was seen seldom is taken for like the others: the same shrinkage, towards what all strangers did.
            first = said.success[:, strangers[:1]]
            pooled = self._pool.corrected((_POOL,), said.kinds, first)[0] - first
            strength = self._strangers.policy.agent_strength
            shares = [strength / (strength + self._seen.get(names[at], 0)) for at in strangers]
            corrected[0][:, strangers] = np.clip(corrected[0][:, strangers] + pooled * shares, *PROBABLE)
            for values, seen in zip(corrected[2:], (self._timed, self._priced), strict=True):
                unknown = [at for at in strangers if names[at] not in seen]
                if unknown:
                    values[:, unknown] = np.nan
        success, deviation, latency_s, cost_usd = corrected
        quality = np.clip(said.quality + (success - said.success), *PROBABLE)  # what changed one changed the other
        columns = [values.tolist() for values in (success, deviation, quality)]
        columns += [_known(values) for values in (latency_s, cost_usd)]
        return [tuple(map(Estimate, names, *of_task)) for of_task in zip(*columns, strict=True)]

    @staticmethod
    def _corrected(posteriors: Posteriors, said: _Said) -> tuple[Floats, Floats, Floats, Floats]:
        """Success, its deviation, seconds and dollars [tasks, candidates]."""
        success, deviation = posteriors.corrected(said.names, said.kinds, said.success)
        latency_s, _ = posteriors.corrected_seconds(said.names, said.kinds, said.latency_s)
        cost_usd, _ = posteriors.corrected_dollars(said.names, said.kinds, said.cost_usd)
        return success, deviation, latency_s, cost_usd


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


def _known(values: Floats) -> list[list[float | None]]:
    """As messages have them: None for what is not known."""
    rows: list[list[float | None]] = values.tolist()
    if np.isfinite(values).all():
        return rows
    return [[known(value) for value in row] for row in rows]  # type: ignore[arg-type]


def _positive(values: Sequence[float | None]) -> Doubles:
    """0 for those that are not known, which posteriors leave out."""
    return np.array([value or 0.0 for value in values])


def _remember(seen: dict[str, int], agent: str, most: int) -> None:
    """Count one more; of more than so many agents the one counted longest ago is forgotten."""
    seen[agent] = seen.pop(agent, 0) + 1
    if len(seen) > most:
        del seen[next(iter(seen))]


def load(artifact: str, history: str = "") -> LiveRouter:
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
    return LiveRouter(estimator.load(artifact, "float32"), past, version=version_of(artifact, history))

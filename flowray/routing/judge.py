"""One set on trial: what everybody estimates of its tasks, what happened, and how a metric is taken of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from flowray.routing import baselines, metrics
from flowray.routing.data import NOMINAL_TOKENS, OutcomeSet
from flowray.routing.estimates import AgentBatch, Estimates, Estimator, Floats, Histories, Outcomes, TaskBatch
from flowray.routing.metrics import Measured, Statistic

ROUTER = "router"
BAR = "table"  # the baseline that a router must beat
Places = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric of one set, for everybody it applies to."""

    router: float | None  # None where there is no router, or it never reaches what is asked for
    baselines: Mapping[str, float]
    interval: tuple[float, float] | None  # of the router's value: 95 %, over groups of tasks
    oracle: float | None = None  # what knowing all outcomes would give
    over_table: Measured | None = None  # the router's value less the table's, on the same draws


Metrics = Iterator[tuple[str, Metric]]


class Judge:
    """Asks every method once and keeps the answers; scores are of the pool, the agents that can be chosen.

    `methods` are the router and the baselines by name, `estimates` what they say of all agents, `pool` the columns of
    the pool, `success` [tasks, agents of the pool] what happened, `best` the position in the pool of the agent that
    did best on train and val. `notes` collects what a reader of the figures must know.
    """

    def __init__(
        self,
        router: Estimator | None,
        judged: OutcomeSet,
        past: OutcomeSet | None,
        *,
        with_baselines: bool,
        resamples: int,
        seed: int,
    ) -> None:
        self.judged, self.past, self.seed = judged, past, seed
        self._resamples = resamples
        self.notes: list[str] = []
        self.histories = _histories(judged, past)
        if not len(self.histories.tasks) and len(judged.agents):
            self.notes.append("No train outcomes are known: agents have no history, and no baseline can be fitted.")
        self.methods: dict[str, Estimator] = {ROUTER: router} if router is not None else {}
        if with_baselines and past is not None:
            self.methods |= baselines.fit(past.split("train"), seed)
        self.estimates: dict[str, Estimates] = {
            name: method.estimate(judged.tasks, judged.agents, self.histories) for name, method in self.methods.items()
        }
        self.pool: Places = np.flatnonzero(judged.pool & judged.outcomes.known.any(axis=0))
        self.success: Floats = judged.outcomes.success[:, self.pool]
        self.probabilities: dict[str, Floats] = {
            name: each.success[:, self.pool]
            for name, each in self.estimates.items()
            if np.isfinite(each.success[:, self.pool]).all()
        }
        self.best = self._best_single()

    def agent_id(self, place: int) -> str:
        """The agent at a position of the pool."""
        return self.judged.agents.agent_ids[int(self.pool[place])]

    def costs(self, name: str) -> Floats:
        """[tasks, agents of the pool] a method's estimate of dollars, see `filled_costs`."""
        return filled_costs(self.estimates[name], self.judged.agents, self.histories)[:, self.pool]

    def measured(
        self,
        name: str,
        each: Mapping[str, Statistic],
        *,
        oracle: Statistic | None = None,
        cells: int = 0,
        rows: Places | None = None,
    ) -> Metrics:
        """The metric of every method, the router's with its interval; nothing where it applies to nobody.

        `rows` are the tasks that the statistics are about (default: all), `cells` as in `metrics.measure`.
        """
        groups = self.judged.groups if rows is None else self.judged.groups[rows]
        found = {method: metrics.measure(one, groups).value for method, one in each.items() if method != ROUTER}
        found = {method: value for method, value in found.items() if math.isfinite(value)}
        measured = partial(metrics.measure, groups=groups, resamples=self._resamples, seed=self.seed, cells=cells)
        router = measured(each[ROUTER]) if ROUTER in each else None
        over = measured(metrics.difference(each[ROUTER], each[BAR])) if {ROUTER, BAR} <= each.keys() else None
        if not found and (router is None or not math.isfinite(router.value)):
            return
        yield (
            name,
            Metric(
                router=None if router is None else router.value,
                baselines=found,
                interval=None if router is None else router.interval,
                oracle=None if oracle is None else metrics.measure(oracle, groups).value,
                over_table=over,
            ),
        )

    def _best_single(self) -> int | None:
        if self.past is None or not len(self.pool):
            return None
        earlier = self.past.histories("train", "val", agents=self.judged.agents).outcomes.success[:, self.pool]
        counts = np.isfinite(earlier).sum(axis=0)
        if not counts.any():
            return None
        rates = np.where(counts > 0, np.nansum(earlier, axis=0) / np.maximum(counts, 1), -1.0)
        return int(rates.argmax())


def filled_costs(estimates: Estimates, agents: AgentBatch, histories: Histories) -> Floats:
    """[tasks, agents] estimated dollars; NaN only where nothing at all is known of costs.

    Where a method cannot tell: what the agent's attempts cost on average; for an agent without any, its price for as
    many tokens as attempts take; without a price, what the other agents cost.
    """
    past = histories.outcomes
    counted = past.tokens[np.isfinite(past.tokens)]
    tokens = float(counted.mean()) if len(counted) else NOMINAL_TOKENS
    usual = _means(past.cost_usd)  # [agents]
    usual = np.where(np.isfinite(usual), usual, (agents.price_in_per_m + agents.price_out_per_m) / 2 * tokens / 1e6)
    usual = np.where(np.isfinite(usual), usual, _means(usual[:, None]))
    return np.where(np.isfinite(estimates.cost_usd), estimates.cost_usd, usual).astype(np.float32)


def _means(values: Floats) -> Floats:
    """[columns] means of what is known; NaN for a column of which nothing is."""
    known = np.isfinite(values)
    total, count = np.where(known, values, 0.0).sum(axis=0, dtype=np.float64), known.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _histories(judged: OutcomeSet, past: OutcomeSet | None) -> Histories:
    """What the judged agents did at the train tasks; nothing where no past is known."""
    if past is None:
        return Histories(tasks=TaskBatch.of_texts(()), outcomes=Outcomes.none(0, len(judged.agents)))
    return past.histories("train", agents=judged.agents)

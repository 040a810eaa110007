"""Judges a router on outcome sets, beside the baselines, in one process and on one split.

For each set: what the agents did at its train tasks is their history, the baselines are fitted on the same train
tasks, everybody estimates the judged tasks, and every metric is taken of all of them. Labels are compared with, never
shown. Agents and costs follow the set's pool. The metrics, where they apply:

    success_accuracy, success_auc, within_agent_auc, brier, ece      estimated success against what happened
    unseen_success_accuracy, unseen_success_auc                      the same for agents that training never saw
    after_attempt_accuracy, after_attempt_auc                        the same when one agent's attempt is already known
    routed_success                                                   success of the agent with the highest estimate
    q60_share, aiq, usd_per_million_tokens, q60_share_fixed, cost_cut_fixed     see `flowray.routing.tradeoff`
    category_, task_, capability_, intent_, domain_accuracy, oos_recall         text to label
    apgr, apgr_gsm8k, cpt50, cpt80                                   RouteLLM's metrics, where there are two agents
    latency_median_ape, latency_r2                                   seconds

`q60_share` reads the best operating point off the judged tasks' own hull, as the literature does; in the `_fixed` ones
the price of money was chosen on val and is only applied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from flowray.errors import ConfigError
from flowray.routing import baselines, metrics
from flowray.routing.data import OutcomeSet
from flowray.routing.estimates import Estimates, Estimator, Floats, Histories, Labelled, Outcomes, TaskBatch
from flowray.routing.metrics import Reliability, Statistic, Values
from flowray.routing.tradeoff import (
    BUDGET,
    Market,
    Points,
    choose,
    dollars_per_million_tokens,
    hull,
    market,
    quality_area,
    quality_share,
    rates_for,
)

ROUTER = "router"
OUT_OF_SCOPE = "oos"  # the label of a task that no capability fits
_HEADS = {"task_type": ("category", "task", "task_type")}  # heads that may answer for a column, others by its name


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric of one set, for everybody it applies to."""

    router: float | None  # None where there is no router, or it never reaches what is asked for
    baselines: Mapping[str, float]
    interval: tuple[float, float] | None  # of the router's value: 95 %, over groups of tasks
    oracle: float | None = None  # what knowing all outcomes would give


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Operating points of one method, cheapest first."""

    cost_usd: Values  # mean per task
    success: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReport:
    """All that was measured on one set."""

    name: str
    split: str
    n_tasks: int
    n_agents: int  # of the pool
    best_single: str | None  # agent, chosen on train and val
    metrics: Mapping[str, Metric]
    curves: Mapping[str, Curve]  # method -> hull
    singles: Mapping[str, tuple[float, float]]  # agent -> its mean cost and success
    reliability: Mapping[str, Reliability]  # method -> bins
    notes: Sequence[str]  # what a reader must know to read the figures


def as_json(reports: Sequence[SetReport]) -> dict[str, Any]:
    """The document of `flowray router evaluate --json`; NaN is null."""

    def plain(metric: Metric) -> dict[str, Any]:
        row: dict[str, Any] = {
            "router": _finite(metric.router),
            "baselines": {name: _finite(value) for name, value in metric.baselines.items()},
            "interval": list(metric.interval) if metric.interval else None,
        }
        return row if metric.oracle is None else {**row, "oracle": _finite(metric.oracle)}

    return {"sets": {report.name: {name: plain(m) for name, m in report.metrics.items()} for report in reports}}


def evaluate(
    router: Estimator | None,
    judged: OutcomeSet,
    *,
    past: OutcomeSet | None = None,
    split: str = "test",
    with_baselines: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> SetReport:
    """Judge a router (None: the baselines alone) on one split of a set.

    `past` is where the agents' histories and the baselines' training come from when the set has no `train` split.

    Raises:
        ConfigError: the set has no tasks in that split.
        MissingExtra: baselines are asked for and scikit-learn is not installed.
    """
    if split not in judged.splits:
        there = ", ".join(sorted(set(judged.splits)))
        raise ConfigError("split", f"set {judged.name!r} has no tasks in {split!r}", f"it has {there}")
    past = judged if "train" in judged.splits else past
    return _Judge(router, judged.split(split), past, split, with_baselines, resamples, seed).report()


class _Judge:
    """One set, one split: the estimates of everybody, and the metrics that apply."""

    def __init__(
        self,
        router: Estimator | None,
        judged: OutcomeSet,
        past: OutcomeSet | None,
        split: str,
        with_baselines: bool,
        resamples: int,
        seed: int,
    ) -> None:
        self.judged, self.past, self.split_name, self.resamples, self.seed = judged, past, split, resamples, seed
        self.notes: list[str] = []
        self.histories = _histories(judged, past)
        if not len(self.histories.tasks) and len(judged.agents):
            self.notes.append(
                "No train outcomes of this set are known: agents have no history, baselines are left out."
            )
        self.methods: dict[str, Estimator] = {ROUTER: router} if router is not None else {}
        if with_baselines and past is not None:
            self.methods |= baselines.fit(past.split("train"), seed)
        self.estimates = {
            name: method.estimate(judged.tasks, judged.agents, self.histories) for name, method in self.methods.items()
        }
        self.pool = np.flatnonzero(judged.pool & judged.outcomes.known.any(axis=0))
        self.success = judged.outcomes.success[:, self.pool]  # [tasks, agents of the pool]
        self.curves: dict[str, Curve] = {}
        self.singles: dict[str, tuple[float, float]] = {}
        self.best = self._best_single()

    def report(self) -> SetReport:
        parts: list[Callable[[], Iterator[tuple[str, Metric]]]] = [self._labels]
        if len(self.pool):
            parts += [self._success, self._unseen, self._after_attempt, self._routing, self._cost, self._calls]
            parts += [self._latency]
        found = {name: metric for part in parts for name, metric in part()}
        return SetReport(
            name=self.judged.name,
            split=self.split_name,
            n_tasks=len(self.judged),
            n_agents=len(self.pool),
            best_single=None if self.best is None else self.judged.agents.agent_ids[self.pool[self.best]],
            metrics=found,
            curves=self.curves,
            singles=self.singles,
            reliability={name: metrics.reliability(p, self.success) for name, p in self._probabilities().items()}
            if len(self.pool)
            else {},
            notes=self.notes,
        )

    # What everybody estimates of the pool

    def _probabilities(self) -> dict[str, Floats]:
        return {
            name: each.success[:, self.pool]
            for name, each in self.estimates.items()
            if np.isfinite(each.success[:, self.pool]).all()
        }

    def _best_single(self) -> int | None:
        """Position in the pool of the agent that succeeded most on train and val."""
        if self.past is None or not len(self.pool):
            return None
        earlier = self.past.histories("train", "val", agents=self.judged.agents).outcomes.success[:, self.pool]
        counts = np.isfinite(earlier).sum(axis=0)
        if not counts.any():
            return None
        rates = np.where(counts > 0, np.nansum(earlier, axis=0) / np.maximum(counts, 1), -1.0)
        return int(rates.argmax())

    # The metrics

    def _success(self) -> Iterator[tuple[str, Metric]]:
        yield from self._pairs("", self._probabilities(), self.success)

    def _unseen(self) -> Iterator[tuple[str, Metric]]:
        unseen = ~self.judged.seen[self.pool]
        if unseen.any():
            probabilities = {name: p[:, unseen] for name, p in self._probabilities().items()}
            yield from self._pairs("unseen_", probabilities, self.success[:, unseen], only=("accuracy", "auc"))

    def _pairs(
        self, prefix: str, probabilities: Mapping[str, Floats], success: Floats, only: Sequence[str] = ()
    ) -> Iterator[tuple[str, Metric]]:
        figures = {
            "success_accuracy": metrics.accuracy,
            "success_auc": metrics.auc,
            "within_agent_auc": metrics.within_agent_auc,
            "brier": metrics.brier,
            "ece": metrics.calibration_error,
        }
        for name, figure in figures.items():
            if only and name.removeprefix("success_") not in only:
                continue
            each = {method: figure(p, success) for method, p in probabilities.items()}
            yield from self._measured(prefix + name, each, cells=success.size if "auc" in name else 0)

    def _after_attempt(self) -> Iterator[tuple[str, Metric]]:
        """One agent of the pool, drawn per task, tried before: what does its outcome tell of the others?"""
        router = self.methods.get(ROUTER)
        if router is None or len(self.pool) < 2:
            return
        drawn = self.pool[np.random.default_rng(self.seed).integers(len(self.pool), size=len(self.judged))]
        rows = np.arange(len(self.judged))
        attempts = np.full(self.judged.outcomes.success.shape, np.nan, np.float32)
        attempts[rows, drawn] = self.judged.outcomes.success[rows, drawn]
        tasks = replace(self.judged.tasks, attempts=attempts)
        told = router.estimate(tasks, self.judged.agents, self.histories)
        others = np.where(np.isfinite(attempts), np.nan, self.judged.outcomes.success)[:, self.pool]
        probabilities = {**self._probabilities(), ROUTER: told.success[:, self.pool]}
        for name, metric in self._pairs("after_attempt_", probabilities, others, only=("accuracy", "auc")):
            yield name.replace("_success", ""), metric

    def _routing(self) -> Iterator[tuple[str, Metric]]:
        each = {name: metrics.mean(self._of_chosen(p, self._costs(name))) for name, p in self._probabilities().items()}
        if self.best is not None:
            each["best_single"] = metrics.mean(self.success[:, self.best])
        each["random"] = metrics.mean(_row_means(self.success))
        oracle = metrics.mean(self._of_chosen(np.nan_to_num(self.success), np.zeros_like(self.success)))
        yield from self._measured("routed_success", each, oracle=oracle)

    def _of_chosen(self, success: Floats, cost_usd: Floats) -> Floats:
        """[tasks] what became of each task at the agent of the highest estimate, NaN where nobody tried it."""
        chosen = choose(success, cost_usd, np.isfinite(self.success), rate=0.0)
        return np.take_along_axis(self.success, chosen[:, None], axis=1)[:, 0]

    def _cost(self) -> Iterator[tuple[str, Metric]]:
        priced = self._market()
        if priced is None:
            return
        stage = priced.market
        single, cheapest = stage.single(stage.best), stage.single(stage.cheapest)
        points = {name: stage.swept(*each) for name, each in self._choosers(priced).items()}
        points["random_mixing"] = stage.singles()
        oracle = stage.oracle()
        self._remember(points | {"oracle": oracle}, priced)

        def every(name: str, figure: Callable[[Points], Statistic], **more: Points) -> Iterator[tuple[str, Metric]]:
            each = {method: figure(one) for method, one in (points | more).items()}
            yield from self._measured(name, each, oracle=figure(oracle), rows=priced.rows)

        yield from every("q60_share", lambda each: quality_share(each, single))
        yield from every("aiq", lambda each: quality_area(each, single, cheapest))
        if np.isfinite(stage.tokens).any():
            price = partial(dollars_per_million_tokens, single=single)
            yield from every("usd_per_million_tokens", price, best_single=single)
        yield from self._fixed(priced)

    def _market(self) -> _Priced | None:
        """What choosing among the priced agents of the pool gives; None where there is nothing to choose."""
        outcomes = self.judged.outcomes.take(slice(None), self.pool)
        columns = np.flatnonzero((np.isfinite(outcomes.cost_usd) & outcomes.known).any(axis=0))
        if self.best is None or self.best not in columns or len(columns) < 2:
            return None
        rows = np.flatnonzero(outcomes.known[:, columns].all(axis=1))
        if len(rows) < len(self.judged):
            self.notes.append(f"Cost figures are of the {len(rows)} tasks that every priced agent tried.")
        if not len(rows):
            return None
        tried = outcomes.take(rows, columns)
        best = int(np.flatnonzero(columns == self.best)[0])
        return _Priced(rows=rows, columns=columns, market=market(tried.success, tried.cost_usd, tried.tokens, best))

    def _fixed(self, priced: _Priced) -> Iterator[tuple[str, Metric]]:
        """The price of money chosen on val, where val lies in the past of this set, and applied here."""
        val = self.past.split("val") if self.past is not None else None
        if val is None or not len(val) or self.split_name == "val":
            return
        agents = self.pool[priced.columns]
        then = val.histories("val", agents=self.judged.agents).outcomes.take(slice(None), agents)
        tried = then.known.all(axis=1)
        if not (np.isfinite(then.cost_usd[tried])).any(axis=0).all():
            return
        past_market = market(then.success[tried], then.cost_usd[tried], then.tokens[tried], priced.market.best)
        shares: dict[str, Statistic] = {}
        cuts: dict[str, Statistic] = {}
        single = priced.market.single(priced.market.best)
        for name, (p, costs) in self._choosers(priced).items():
            estimates = self.methods[name].estimate(val.tasks, self.judged.agents, self.histories)
            costs_then = _filled_costs(estimates, self.histories)[tried][:, agents]
            rate = _rate_within_budget(past_market, estimates.success[tried][:, agents], costs_then)
            now = priced.market.routed(p, costs, np.array([rate]))
            shares[name] = metrics.ratio(now.success[:, 0], single.success[:, 0])
            cuts[name] = _less(metrics.ratio(now.cost_usd[:, 0], single.cost_usd[:, 0]))
        yield from self._measured("q60_share_fixed", shares, rows=priced.rows)
        yield from self._measured("cost_cut_fixed", cuts, rows=priced.rows)

    def _choosers(self, priced: _Priced) -> dict[str, tuple[Floats, Floats]]:
        """Who can choose among the priced agents, with estimates of success and dollars [tasks, agents]."""
        cells = np.ix_(priced.rows, priced.columns)
        both = {name: (p[cells], self._costs(name)[cells]) for name, p in self._probabilities().items()}
        return {name: each for name, each in both.items() if np.isfinite(each[1]).all()}

    def _calls(self) -> Iterator[tuple[str, Metric]]:
        """RouteLLM's metrics: how many calls must go to the strong one of two agents?"""
        if len(self.pool) != 2 or self.best is None:
            return
        strong, weak = self.best, 1 - self.best
        both = np.isfinite(self.success).all(axis=1)
        benchmark = np.array(self.judged.labels.get("benchmark", ("mmlu",) * len(self.judged)))
        clean = np.array(
            [value != "true" for value in self.judged.labels.get("contaminated", ("",) * len(self.judged))]
        )
        for name, rows in (("apgr", benchmark == "mmlu"), ("apgr_gsm8k", benchmark == "gsm8k")):
            rows = np.flatnonzero(rows & both & clean)
            if self.success[rows, strong].sum() <= self.success[rows, weak].sum():
                continue  # there is no gap to recover
            given = self.success[rows, strong], self.success[rows, weak]
            gains = {method: (p[:, strong] - p[:, weak])[rows] for method, p in self._probabilities().items()}
            gains["random_mixing"] = np.zeros(len(rows), np.float32)
            each = {method: metrics.apgr(gain, *given) for method, gain in gains.items()}
            yield from self._measured(name, each, rows=rows)
            for recovered in (0.5, 0.8) if name == "apgr" else ():
                shares = {m: metrics.call_curve(gain, *given).call_share(recovered) for m, gain in gains.items()}
                router = shares.pop(ROUTER, None)
                yield f"cpt{recovered * 100:.0f}", Metric(router=router, baselines=shares, interval=None)

    def _latency(self) -> Iterator[tuple[str, Metric]]:
        actual = np.where(self.judged.outcomes.latency_s > 0, self.judged.outcomes.latency_s, np.nan)[:, self.pool]
        measured = np.isfinite(actual)
        if not measured.any():
            return
        errors: dict[str, Statistic] = {}
        explained: dict[str, Statistic] = {}
        logs = np.log(actual)
        spread = np.where(measured, (logs - np.nanmean(logs)) ** 2, 0.0).sum(axis=1)
        for name, each in self.estimates.items():
            expected = each.latency_s[:, self.pool]
            if np.isfinite(expected[measured]).all() and (expected[measured] > 0).all():
                errors[name] = metrics.median(np.abs(expected / actual - 1))
                missed = np.where(measured, (np.log(np.where(measured, expected, 1.0)) - logs) ** 2, 0.0).sum(axis=1)
                share = metrics.ratio(missed.astype(np.float32), spread.astype(np.float32))
                explained[name] = _less(share)
        yield from self._measured("latency_median_ape", errors, cells=actual.size)
        yield from self._measured("latency_r2", explained)

    def _labels(self) -> Iterator[tuple[str, Metric]]:
        for column in baselines.TARGETS:
            labels = np.array(self.judged.labels.get(column, ()), dtype=np.str_)
            rows = np.flatnonzero((labels != "") & (labels != OUT_OF_SCOPE))
            if not len(rows):
                continue
            heads = {name: _head(each.capabilities, column, set(labels[rows])) for name, each in self.estimates.items()}
            answers = {name: np.array(head.best()) for name, head in heads.items() if head is not None}
            if ROUTER in self.estimates and ROUTER not in answers:
                continue  # the router never learnt these labels: they are not a target
            name = column if column != "task_type" else "task" if "capability" in self.judged.labels else "category"
            right = {method: (best == labels)[rows].astype(np.float32) for method, best in answers.items()}
            yield from self._measured(f"{name}_accuracy", {m: metrics.mean(v) for m, v in right.items()}, rows=rows)
            outside = np.flatnonzero(labels == OUT_OF_SCOPE)
            if column == "domain" and len(outside):
                found = {m: (best == OUT_OF_SCOPE)[outside].astype(np.float32) for m, best in answers.items()}
                yield from self._measured("oos_recall", {m: metrics.mean(v) for m, v in found.items()}, rows=outside)

    # How they are put together

    def _measured(
        self,
        name: str,
        each: Mapping[str, Statistic],
        *,
        oracle: Statistic | None = None,
        cells: int = 0,
        rows: Any = None,
    ) -> Iterator[tuple[str, Metric]]:
        """The metric, where it applies to anybody."""
        groups = self.judged.groups if rows is None else self.judged.groups[rows]

        def value(statistic: Statistic) -> float:
            return metrics.measure(statistic, groups).value

        found = {method: value(statistic) for method, statistic in each.items() if method != ROUTER}
        found = {method: number for method, number in found.items() if math.isfinite(number)}
        router = None
        if ROUTER in each:
            router = metrics.measure(each[ROUTER], groups, resamples=self.resamples, seed=self.seed, cells=cells)
        if not found and (router is None or not math.isfinite(router.value)):
            return
        yield (
            name,
            Metric(
                router=None if router is None else router.value,
                baselines=found,
                interval=None if router is None else router.interval,
                oracle=None if oracle is None else value(oracle),
            ),
        )

    def _costs(self, name: str) -> Floats:
        """[tasks, agents of the pool] a method's estimate of dollars."""
        return _filled_costs(self.estimates[name], self.histories)[:, self.pool]

    def _remember(self, points: Mapping[str, Points], priced: _Priced) -> None:
        """Keep the curves for the report."""
        for name, each in points.items():
            cost, success = each.cost_usd.mean(axis=0, dtype=np.float64), each.success.mean(axis=0, dtype=np.float64)
            kept = hull(cost, success)
            self.curves[name] = Curve(cost_usd=cost[kept], success=success[kept])
        for column, place in enumerate(priced.columns):
            alone = priced.market.single(column)
            agent = self.judged.agents.agent_ids[self.pool[place]]
            self.singles[agent] = float(alone.cost_usd.mean()), float(alone.success.mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Priced:
    """The market of a set, and where its tasks and agents stand."""

    rows: npt.NDArray[np.intp]  # among the judged tasks
    columns: npt.NDArray[np.intp]  # among the pool
    market: Market


def _histories(judged: OutcomeSet, past: OutcomeSet | None) -> Histories:
    """What the judged agents did at the train tasks; nothing where no past is known."""
    if past is None:
        return Histories(tasks=TaskBatch.of_texts(()), outcomes=Outcomes.none(0, len(judged.agents)))
    return past.histories("train", agents=judged.agents)


def _filled_costs(estimates: Estimates, histories: Histories) -> Floats:
    """[tasks, agents] estimated dollars; where a method cannot tell, what the agent's attempts cost on average."""
    known = np.isfinite(histories.outcomes.cost_usd)
    total = np.where(known, histories.outcomes.cost_usd, 0.0).sum(axis=0)
    usual = np.divide(total, known.sum(axis=0), out=np.full(len(total), np.nan), where=known.any(axis=0))  # [agents]
    return np.where(np.isfinite(estimates.cost_usd), estimates.cost_usd, usual).astype(np.float32)


def _rate_within_budget(stage: Market, success: Floats, cost_usd: Floats) -> float:
    """The price of money with the most success at 60 % less than the best single agent costs."""
    rates = rates_for(cost_usd)
    points = stage.routed(success, cost_usd, rates)
    affordable = points.cost_usd.mean(axis=0) <= BUDGET * stage.single(stage.best).cost_usd.mean()
    if not affordable.any():
        return math.inf
    return float(rates[np.where(affordable, points.success.mean(axis=0), -1.0).argmax()])


def _head(capabilities: Mapping[str, Labelled], column: str, labels: set[str]) -> Labelled | None:
    """The head that knows all these labels of a column; None where there is none."""
    heads = (capabilities.get(name) for name in _HEADS.get(column, (column,)))
    return next((head for head in heads if head is not None and labels <= set(head.labels)), None)


def _less(share: Statistic) -> Statistic:
    """One minus a share."""
    return lambda weights: 1.0 - share(weights)


def _row_means(values: Floats) -> Floats:
    """[tasks] means over known cells, NaN where there are none."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=1)
    means: Floats = np.divide(
        total, known.sum(axis=1), out=np.full(len(values), np.nan, np.float32), where=known.any(axis=1)
    )
    return means


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

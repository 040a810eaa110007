"""Judges a router on outcome sets, beside the baselines, in one process and on one split.

For each set: what the agents did at its train tasks is their history, the baselines are fitted on the same train
tasks, everybody estimates the judged tasks, and every metric is taken of all of them. Labels are compared with, never
shown. The metrics, where they apply:

    success_accuracy, success_auc, within_agent_auc, brier, ece     estimated success against what happened
    unseen_success_accuracy, unseen_success_auc     the same for agents that training never saw
    after_attempt_accuracy, after_attempt_auc       the same when one agent's attempt at the task is already known
    routed_success                                  success of the agent with the highest estimate
    q60_share, aiq, usd_per_million_tokens, ...     cost against quality: see `flowray.routing.costing`
    category_, task_, subject_, capability_, intent_, domain_accuracy, oos_recall     text to label
    apgr, apgr_gsm8k, cpt50, cpt80                  RouteLLM's metrics, where there are two agents
    latency_median_ape, latency_r2                  seconds
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowray.errors import ConfigError
from flowray.routing import data, metrics
from flowray.routing.baselines import TARGETS
from flowray.routing.costing import Curve, try_costs
from flowray.routing.data import OutcomeSet
from flowray.routing.estimates import Estimator, Floats, Labelled
from flowray.routing.judge import ROUTER, Judge, Metric, Metrics
from flowray.routing.metrics import Reliability, Statistic
from flowray.routing.tradeoff import choose

OUT_OF_SCOPE = "oos"  # the label of a task that no capability fits
_HEADS = {"task_type": ("category", "task", "subject", "task_type")}  # that may answer for a column; else its name


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReport:
    """All that was measured on one set."""

    name: str
    split: str
    n_tasks: int
    n_agents: int  # of the pool
    best_single: str | None  # agent, chosen on train and val
    metrics: Mapping[str, Metric]
    curves: Mapping[str, Curve]  # method -> hull; empty without costs
    singles: Mapping[str, tuple[float, float]]  # agent -> its mean cost and success
    reliability: Mapping[str, Reliability]  # method -> bins
    notes: Sequence[str]  # what a reader must know to read the figures


def evaluate(
    router: Estimator | None,
    judged: OutcomeSet,
    *,
    past: OutcomeSet | None = None,
    split: str = "test",
    with_baselines: bool = True,
    resamples: int = 1000,
    seed: int = 0,
    history_tasks: int | None = None,
) -> SetReport:
    """Judge a router (None: the baselines alone) on one split of a set.

    Agents' histories and the baselines' training come from the train split of `past` (default: of the set itself), or
    with `history_tasks` from so many of its tasks, drawn with the seed.

    Raises:
        ConfigError: the set has no tasks in that split.
        MissingExtra: baselines are asked for and scikit-learn is not installed.
    """
    if split not in judged.splits:
        there = ", ".join(sorted(set(judged.splits)))
        raise ConfigError("split", f"set {judged.name!r} has no tasks in {split!r}", f"it has {there}")
    past = past if past is not None else judged if _has_past(judged) else None
    if past is not None and history_tasks is not None:
        past = _shortened(past, history_tasks, seed)
    judge = Judge(router, judged.split(split), past, with_baselines=with_baselines, resamples=resamples, seed=seed)
    trial = None
    families: list[Callable[[Judge], Metrics]] = [_labels]
    if len(judge.pool):
        trial = try_costs(judge)
        families += [_success, _unseen, _after_attempt, _routing, _calls, _latency]
    found = {name: metric for family in families for name, metric in family(judge)}
    return SetReport(
        name=judged.name,
        split=split,
        n_tasks=len(judge.judged),
        n_agents=len(judge.pool),
        best_single=None if judge.best is None else judge.agent_id(judge.best),
        metrics=found | dict(trial.metrics() if trial else ()),
        curves=trial.curves() if trial else {},
        singles=trial.singles() if trial else {},
        reliability={name: metrics.reliability(p, judge.success) for name, p in judge.probabilities.items()},
        notes=judge.notes,
    )


def evaluate_all(
    router: Estimator | None,
    directories: Sequence[Path | str],
    *,
    history: Path | None = None,
    split: str = "test",
    with_baselines: bool = True,
    resamples: int = 1000,
    seed: int = 0,
    history_tasks: int | None = None,
    started: Callable[[str], None] = lambda name: None,
) -> list[SetReport]:
    """Judge a router on every set in some directories that has this split; `started` hears of each.

    A set without train outcomes of its own takes histories, and agents that it does not describe, from the set of the
    same name below `history`.

    Raises:
        SchemaError: a directory holds no set, or a set breaks the schema.
        ConfigError: no set has the split.
    """
    reports = []
    splits: set[str] = set()
    for directory in data.find(directories):
        known = history / directory.name if history is not None else directory
        elsewhere = known.resolve() != directory and (known / "tasks.parquet").is_file()
        past = data.load(known) if elsewhere else None
        judged = data.load(directory, like=past)
        if _has_past(judged) or (past is not None and not _has_past(past)):
            past = None
        splits.update(judged.splits)
        if split in judged.splits:
            started(judged.name)
            reports.append(
                evaluate(
                    router,
                    judged,
                    past=past,
                    split=split,
                    with_baselines=with_baselines,
                    resamples=resamples,
                    seed=seed,
                    history_tasks=history_tasks,
                )
            )
    if not reports:
        raise ConfigError("split", f"no set has tasks in {split!r}", f"there are {', '.join(sorted(splits))}")
    return reports


def as_json(reports: Sequence[SetReport]) -> dict[str, Any]:
    """The document of `flowray router evaluate --json`; NaN is null."""

    def bounds(interval: tuple[float, float] | None) -> list[float | None] | None:
        return [_finite(bound) for bound in interval] if interval else None

    def plain(metric: Metric) -> dict[str, Any]:
        row: dict[str, Any] = {
            "router": _finite(metric.router),
            "baselines": {name: _finite(value) for name, value in metric.baselines.items()},
            "interval": bounds(metric.interval),
        }
        if metric.oracle is not None:
            row["oracle"] = _finite(metric.oracle)
        if metric.over_table is not None:
            over = metric.over_table
            row["over_table"] = {"difference": _finite(over.value), "interval": bounds(over.interval)}
        return row

    return {"sets": {report.name: {name: plain(m) for name, m in report.metrics.items()} for report in reports}}


def _shortened(past: OutcomeSet, n_tasks: int, seed: int) -> OutcomeSet:
    """With only so many of the train tasks, in their order."""
    train = np.array([split == "train" for split in past.splits])
    kept = np.random.default_rng(seed).permutation(np.flatnonzero(train))[:n_tasks]
    return past.take(np.sort(np.concatenate([kept, np.flatnonzero(~train)])))


def _has_past(known: OutcomeSet) -> bool:
    """Is there something to learn from?"""
    train = known.split("train")
    return len(train) > 0 and (not len(train.agents) or bool(train.outcomes.known.any()))


def _success(judge: Judge) -> Metrics:
    yield from _pairs(judge, judge.probabilities, judge.success)


def _unseen(judge: Judge) -> Metrics:
    unseen = ~judge.judged.seen[judge.pool]
    if not unseen.any():
        return
    probabilities = {name: p[:, unseen] for name, p in judge.probabilities.items()}
    for name, metric in _pairs(
        judge, probabilities, judge.success[:, unseen], only=("success_accuracy", "success_auc")
    ):
        yield f"unseen_{name}", metric


def _after_attempt(judge: Judge) -> Metrics:
    """One agent of the pool, drawn per task, tried before: what does its outcome tell of the others?"""
    router = judge.methods.get(ROUTER)
    if router is None or len(judge.pool) < 2:
        return
    outcomes = judge.judged.outcomes.success  # [tasks, all agents]
    rows = np.arange(len(outcomes))
    drawn = judge.pool[np.random.default_rng(judge.seed).integers(len(judge.pool), size=len(outcomes))]
    attempts = np.full(outcomes.shape, np.nan, np.float32)
    attempts[rows, drawn] = outcomes[rows, drawn]
    told = router.estimate(replace(judge.judged.tasks, attempts=attempts), judge.judged.agents, judge.histories)
    others = np.where(np.isfinite(attempts), np.float32(np.nan), outcomes)[:, judge.pool]
    probabilities = {**judge.probabilities, ROUTER: told.success[:, judge.pool]}  # the baselines cannot use it
    for name, metric in _pairs(judge, probabilities, others, only=("success_accuracy", "success_auc")):
        yield name.replace("success", "after_attempt"), metric


def _pairs(judge: Judge, probabilities: Mapping[str, Floats], success: Floats, only: Sequence[str] = ()) -> Metrics:
    """Metrics of probabilities against outcomes, both [tasks, agents]."""
    figures = {
        "success_accuracy": metrics.accuracy,
        "success_auc": metrics.auc,
        "within_agent_auc": metrics.within_agent_auc,
        "brier": metrics.brier,
        "ece": metrics.calibration_error,
    }
    for name in only or figures:
        each = {method: figures[name](p, success) for method, p in probabilities.items()}
        yield from judge.measured(name, each, cells=success.size if "auc" in name else 0)


def _routing(judge: Judge) -> Metrics:
    known = np.isfinite(judge.success)

    def of_chosen(success: Floats, cost_usd: Floats) -> Statistic:
        """What became of each task at the agent of the highest estimate among those that tried it."""
        chosen = choose(success, cost_usd, known, rate=0.0)
        return metrics.mean(np.take_along_axis(judge.success, chosen[:, None], axis=1)[:, 0])

    each = {name: of_chosen(p, judge.costs(name)) for name, p in judge.probabilities.items()}
    if judge.best is not None:
        each["best_single"] = metrics.mean(judge.success[:, judge.best])
    counts = known.sum(axis=1)
    drawn = np.where(known, judge.success, 0.0).sum(axis=1) / np.where(counts > 0, counts, np.nan)
    each["random_mixing"] = metrics.mean(drawn.astype(np.float32))
    oracle = of_chosen(np.nan_to_num(judge.success), np.zeros_like(judge.success))
    yield from judge.measured("routed_success", each, oracle=oracle)


def _calls(judge: Judge) -> Metrics:
    """How many calls must go to the strong one of two agents? Tasks known to be contaminated do not count."""
    if len(judge.pool) != 2 or judge.best is None:
        return
    strong, weak = judge.best, 1 - judge.best
    nothing = ("",) * len(judge.judged)
    benchmark = np.array(judge.judged.labels.get("benchmark", nothing), dtype=np.str_)
    clean = np.array(judge.judged.labels.get("contaminated", nothing), dtype=np.str_) != "true"
    both = np.isfinite(judge.success).all(axis=1) & clean
    gsm8k = benchmark == "gsm8k"
    for name, of_benchmark in (("apgr", ~gsm8k), ("apgr_gsm8k", gsm8k)):
        rows = np.flatnonzero(of_benchmark & both)
        given = judge.success[rows, strong], judge.success[rows, weak]
        if given[0].sum() <= given[1].sum():
            continue  # there is no gap to recover
        gains = {method: (p[:, strong] - p[:, weak])[rows] for method, p in judge.probabilities.items()}
        gains["random_mixing"] = np.zeros(len(rows), np.float32)
        each = {method: metrics.apgr(gain, *given) for method, gain in gains.items()}
        yield from judge.measured(name, each, rows=rows)
        for recovered in (0.5, 0.8) if name == "apgr" else ():
            shares = {m: metrics.call_curve(gain, *given).call_share(recovered) for m, gain in gains.items()}
            router = shares.pop(ROUTER, None)
            yield f"cpt{recovered * 100:.0f}", Metric(router=router, baselines=shares, interval=None)


def _latency(judge: Judge) -> Metrics:
    seconds = judge.judged.outcomes.latency_s[:, judge.pool]
    measured = np.isfinite(seconds) & (seconds > 0)
    if not measured.any():
        return
    actual = np.where(measured, seconds, np.float32(np.nan))
    logs = np.log(actual)
    spread = np.where(measured, (logs - np.nanmean(logs)) ** 2, 0.0).sum(axis=1, dtype=np.float32)
    errors: dict[str, Statistic] = {}
    explained: dict[str, Statistic] = {}
    for name, each in judge.estimates.items():
        expected = each.latency_s[:, judge.pool]
        if not (np.isfinite(expected[measured]).all() and (expected[measured] > 0).all()):
            continue
        errors[name] = metrics.median(np.abs(expected / actual - 1))
        missed = np.where(measured, (np.log(np.where(measured, expected, 1.0)) - logs) ** 2, 0.0)
        explained[name] = metrics.complement(metrics.ratio(missed.sum(axis=1, dtype=np.float32), spread))
    yield from judge.measured("latency_median_ape", errors, cells=actual.size)
    yield from judge.measured("latency_r2", explained)


def _labels(judge: Judge) -> Metrics:
    for column in TARGETS:
        labels = np.array(judge.judged.labels.get(column, ()), dtype=np.str_)
        rows = np.flatnonzero((labels != "") & (labels != OUT_OF_SCOPE))
        if not len(rows):
            continue
        heads = {
            method: _head(each.capabilities, column, set(labels[rows])) for method, each in judge.estimates.items()
        }
        answers = {method: np.array(found.best()) for method, (_, found) in heads.items() if found is not None}
        if ROUTER in judge.estimates and ROUTER not in answers:
            continue  # the router never learnt these labels: they are not a target
        name = heads.get(ROUTER, (column, None))[0]
        name = {"task_type": "task" if "capability" in judge.judged.labels else "category"}.get(name, name)
        right = {method: (best == labels)[rows].astype(np.float32) for method, best in answers.items()}
        yield from judge.measured(f"{name}_accuracy", {m: metrics.mean(v) for m, v in right.items()}, rows=rows)
        outside = np.flatnonzero(labels == OUT_OF_SCOPE)
        if column == "domain" and len(outside):
            found = {m: (best == OUT_OF_SCOPE)[outside].astype(np.float32) for m, best in answers.items()}
            yield from judge.measured("oos_recall", {m: metrics.mean(v) for m, v in found.items()}, rows=outside)


def _head(capabilities: Mapping[str, Labelled], column: str, labels: set[str]) -> tuple[str, Labelled | None]:
    """The head that knows all these labels of a column, with its name; None where there is none."""
    for name in _HEADS.get(column, (column,)):
        if name in capabilities and labels <= set(capabilities[name].labels):
            return name, capabilities[name]
    return column, None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

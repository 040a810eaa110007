"""How a router's estimates and choices did over time: accuracy, shares, money, regret, drift.

Time is cut into windows of equally many decisions, so that every point is about as sure as the others. What the
estimates promise of a candidate is `Decisions.expected`; what it earned is known of the chosen one alone.

Savings and regret are by the estimates: nobody knows what the others would have done (`flowray.routing.offpolicy`
says what can be known of that). So they are worth what the estimates are: look at the calibration first.

Drift: in each window a candidate's mean residual, reward less estimate, is divided by its standard error (the spread
within windows), z. Two sums watch it (CUSUM: Page, Biometrika 1954),

    up = max(0, up + z - slack)        down = max(0, down - z - slack)

and the first that passes the threshold raises the flag. With a slack of 0.5 and a threshold of 5 a shift by one
standard error is found after about 10 windows, and without a shift there is a false flag once in 465 windows
(Montgomery, Introduction to Statistical Quality Control, the table of run lengths of tabular CUSUMs): with 20 windows,
for 3 % of the candidates (simulated).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flowray.errors import ConfigError
from flowray.routing import metrics
from flowray.routing.decisions import Decisions, Flags, Numbers, Places
from flowray.routing.estimates import Floats
from flowray.routing.metrics import Measured, Reliability


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyticsConfig:
    """How an analysis is done."""

    windows: int = 20  # into which time is cut, at least 2
    slack: float = 0.5  # of the CUSUM, in standard errors: shifts below twice of it are let pass
    threshold: float = 5.0  # of the CUSUM, in standard errors
    resamples: int = 300  # bootstrap draws of tasks behind an interval
    seed: int = 0  # of the draws

    def __post_init__(self) -> None:
        if self.windows < 2:
            raise ConfigError("windows", f"must be at least 2, got {self.windows}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What changes over time: arrays [windows], NaN where nothing was known."""

    at: Numbers  # mean time of the decisions
    decisions: Numbers  # how many
    auc: Numbers  # of the chosen ones' estimates
    brier: Numbers
    expected: Numbers  # mean estimate of the chosen ones, where the reward is known
    reward: Numbers  # mean
    exploring: Numbers  # share of the decisions
    regret: Numbers  # mean of the highest expected reward less that of the chosen one
    cost_usd: Numbers  # mean per answer
    estimated_cost_usd: Numbers  # mean of the chosen ones' estimates
    dearest_cost_usd: Numbers  # mean of the most expensive candidates' estimates
    shares: Numbers  # [windows, candidates] of the decisions


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """The estimated bill of what was chosen beside that of another habit, where both are estimated."""

    decisions: int
    chosen_usd: float  # per decision
    instead_usd: float  # per decision
    saved_share: float  # 1 - chosen / instead; below 0 where more was spent; NaN where nothing is estimated
    expected: float  # reward of what was chosen less that of the other habit, over all decisions


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One candidate: what it got, and what came of it."""

    candidate: str
    offered: int  # decisions in which it could be chosen
    chosen: int
    explored: int  # of those, chosen to learn of it
    expected: float  # mean estimate where it was chosen and the reward is known
    reward: float  # mean
    cost_usd: float  # mean per answer, NaN where not known
    run_s: float  # mean per answer
    residuals: Numbers  # [windows] mean reward less estimate, NaN where it earned nothing known
    cusum: Numbers  # [windows] the larger of both sums, that of the worse below 0
    drift: str  # "better" or "worse" than estimated, "" without a flag
    drift_window: int  # at whose end the flag was raised, -1 without


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """Everything of one log."""

    versions: tuple[str, ...]  # of the routers
    decisions: int
    tasks: int
    known: int  # decisions whose reward is known
    auc: Measured
    brier: Measured
    calibration_error: Measured
    reliability: Reliability
    regret: float  # mean, as in `Series`
    regret_exploring: float  # the part of it that exploring decisions made
    exploring_share: float
    cost_usd_per_task: float  # mean of the tasks whose cost is known
    against_dearest: Saving  # always the most expensive candidate of each task
    single: str  # the candidate whose expected reward over all tasks is highest
    against_single: Saving  # always that one, where it was offered
    series: Series
    threshold: float  # of the CUSUM
    candidates: tuple[Share, ...]  # most often chosen first


def analyse(decisions: Decisions, config: AnalyticsConfig | None = None) -> Analysis:
    """Analyse a log. Costs a few passes over its matrices."""
    config = config or AnalyticsConfig()
    cuts = np.array_split(np.arange(len(decisions)), min(config.windows, len(decisions)))
    promised = decisions.expected()  # [rows, candidates]
    expected = decisions.of_chosen(promised)
    known = np.isfinite(decisions.rewards)
    p, r = expected[known, None].astype(np.float32), decisions.rewards[known, None].astype(np.float32)

    def measured(statistic: metrics.Statistic) -> Measured:
        return metrics.measure(statistic, decisions.groups[known], resamples=config.resamples, seed=config.seed)

    regrets = np.where(decisions.offered, promised, -np.inf).max(axis=1) - expected
    single = int(np.where(decisions.offered, promised, expected[:, None]).mean(axis=0).argmax())
    return Analysis(
        versions=tuple(sorted(set(decisions.versions))),
        decisions=len(decisions),
        tasks=int(decisions.groups.max()) + 1,
        known=int(known.sum()),
        auc=measured(metrics.auc(p, r)),
        brier=measured(metrics.brier(p, r)),
        calibration_error=measured(metrics.calibration_error(p, r)),
        reliability=metrics.reliability(p, r),
        regret=float(regrets.mean()),
        regret_exploring=float(np.where(decisions.explored, regrets, 0.0).mean()),
        exploring_share=float(decisions.explored.mean()),
        cost_usd_per_task=_mean(_per_task(decisions)),
        against_dearest=_saving(decisions, promised, _dearest(decisions)),
        single=decisions.candidates[single],
        against_single=_saving(decisions, promised, np.where(decisions.offered[:, single], single, decisions.chosen)),
        series=_series(decisions, cuts, expected, regrets),
        threshold=config.threshold,
        candidates=tuple(_shares(decisions, cuts, expected, config)),
    )


def _series(decisions: Decisions, cuts: list[Places], expected: Numbers, regrets: Numbers) -> Series:
    rows = np.arange(len(decisions))
    estimated = decisions.of_chosen(decisions.estimates.cost_usd)
    dearest = np.asarray(decisions.estimates.cost_usd[rows, _dearest(decisions)], np.float64)
    earned = np.where(np.isfinite(decisions.rewards), expected, np.nan)

    def each(values: Numbers) -> Numbers:
        return np.array([_mean(values[cut]) for cut in cuts])

    def ranked(cut: Places) -> float:
        cut = cut[np.isfinite(decisions.rewards[cut])]
        scores, truth = (values[cut, None].astype(np.float32) for values in (expected, decisions.rewards))
        return metrics.measure(metrics.auc(scores, truth), decisions.groups[cut]).value

    return Series(
        at=each(decisions.at),
        decisions=np.array([len(cut) for cut in cuts], np.float64),
        auc=np.array([ranked(cut) for cut in cuts]),
        brier=each((expected - decisions.rewards) ** 2),
        expected=each(earned),
        reward=each(decisions.rewards),
        exploring=each(decisions.explored.astype(np.float64)),
        regret=each(regrets),
        cost_usd=each(decisions.cost_usd),
        estimated_cost_usd=each(estimated),
        dearest_cost_usd=each(dearest),
        shares=np.stack(
            [np.bincount(decisions.chosen[cut], minlength=len(decisions.candidates)) / len(cut) for cut in cuts]
        ),
    )


def _shares(decisions: Decisions, cuts: list[Places], expected: Numbers, config: AnalyticsConfig) -> Iterator[Share]:
    window = np.repeat(np.arange(len(cuts)), [len(cut) for cut in cuts])
    counts = np.bincount(decisions.chosen, minlength=len(decisions.candidates))
    for column in np.argsort(-counts, kind="stable").tolist():
        mine = decisions.chosen == column
        earned = mine & np.isfinite(decisions.rewards)
        residuals, z = _residuals(decisions.rewards[earned] - expected[earned], window[earned], len(cuts))
        cusum = _cusum(z, config.slack)
        passed = np.flatnonzero(np.abs(cusum) > config.threshold)
        yield Share(
            candidate=decisions.candidates[column],
            offered=int(decisions.offered[:, column].sum()),
            chosen=int(counts[column]),
            explored=int((mine & decisions.explored).sum()),
            expected=_mean(expected[earned]),
            reward=_mean(decisions.rewards[earned]),
            cost_usd=_mean(decisions.cost_usd[mine]),
            run_s=_mean(decisions.run_s[mine]),
            residuals=residuals,
            cusum=cusum,
            drift=("better" if cusum[passed[0]] > 0 else "worse") if len(passed) else "",
            drift_window=int(passed[0]) if len(passed) else -1,
        )


def _residuals(values: Numbers, window: Places, windows: int) -> tuple[Numbers, Numbers]:
    """[windows] means of residuals, and the same in standard errors; NaN in windows without any."""
    counts = np.bincount(window, minlength=windows).astype(np.float64)
    sums = np.bincount(window, values, minlength=windows)
    means = np.divide(sums, counts, out=np.full(windows, np.nan), where=counts > 0)
    freedom = len(values) - int((counts > 0).sum())
    spread = np.sqrt(((values - means[window]) ** 2).sum() / freedom) if freedom > 0 else 0.0
    if spread == 0:  # nothing to measure a shift by
        return means, np.full(windows, np.nan)
    return means, means * np.sqrt(counts) / spread


def _cusum(z: Numbers, slack: float) -> Numbers:
    """[windows] the larger of the two sums, that of shifts downwards below 0; a window without z changes nothing."""
    up = down = 0.0
    sums = []
    for shift in np.nan_to_num(z, nan=0.0).tolist():
        up, down = max(0.0, up + shift - slack), max(0.0, down - shift - slack)
        sums.append(up if up >= down else -down)
    return np.array(sums)


def _dearest(decisions: Decisions) -> Places:
    """[rows] the column with the highest estimated cost; any of the offered where none is estimated."""
    cost = decisions.estimates.cost_usd
    known = np.where(np.isfinite(cost), cost, -1.0)
    return np.asarray(np.where(decisions.offered, known, -2.0).argmax(axis=1), np.intp)


def _saving(decisions: Decisions, promised: Floats, instead: Places) -> Saving:
    rows, cost = np.arange(len(decisions)), decisions.estimates.cost_usd
    mine, theirs = decisions.of_chosen(cost), np.asarray(cost[rows, instead], np.float64)
    both: Flags = np.isfinite(mine) & np.isfinite(theirs)
    bill, other = _mean(mine[both]), _mean(theirs[both])
    return Saving(
        decisions=int(both.sum()),
        chosen_usd=bill,
        instead_usd=other,
        saved_share=1.0 - bill / other if other > 0 else float("nan"),
        expected=_mean(decisions.of_chosen(promised) - promised[rows, instead]),
    )


def _per_task(decisions: Decisions) -> Numbers:
    """Recorded dollars of each task that has any."""
    known = np.isfinite(decisions.cost_usd)
    sums = np.bincount(decisions.groups[known], decisions.cost_usd[known])
    return np.asarray(sums[np.bincount(decisions.groups[known]) > 0], np.float64)


def _mean(values: Numbers) -> float:
    """Of what is known; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")

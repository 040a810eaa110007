"""How good estimates and choices are: accuracy, ranking, calibration, cost against quality, and how sure that is.

Every metric takes task weights [resamples, tasks] and returns one value per resample [resamples]: with weights of one
it is the metric, with the counts of a bootstrap draw it is one draw of it. So an interval costs a few matrix products
and no second implementation (Efron and Tibshirani 1993, chapter 6; tasks of one group are drawn together).

Sources: area under the ROC curve as the Mann-Whitney statistic, ties half; expected calibration error with 15 bins of
equal width (Guo et al., ICML 2017); hull, zero router and AIQ after RouterBench (arXiv 2403.12031); PGR, APGR and CPT
after RouteLLM (arXiv 2406.18665).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowray.routing.estimates import Floats

Values = npt.NDArray[np.float64]  # [resamples]
Flags = npt.NDArray[np.bool_]
Statistic = Callable[[Floats], Values]  # weights [resamples, tasks] -> [resamples]

BINS = 15
_CHUNK = 4_000_000  # cells of one block of resamples: 16 MB per array


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A metric with its bootstrap interval (None where none was asked for)."""

    value: float
    interval: tuple[float, float] | None = None


def measure(
    statistic: Statistic, groups: npt.NDArray[np.intp], *, resamples: int = 0, seed: int = 0, cells: int = 0
) -> Measured:
    """The statistic over all tasks, with the 95 % percentile interval of `resamples` draws of groups.

    There is no interval where more than 2.5 % of the draws have no value.

    `groups` [tasks] numbers the groups, `cells` is how many numbers the statistic looks at per resample (default:
    one per task): it bounds the memory.
    """
    value = float(statistic(np.ones((1, len(groups)), np.float32))[0])
    if not resamples or not len(groups):
        return Measured(value=value)
    numbers = np.unique(groups, return_inverse=True)[1]
    n_groups = int(numbers.max()) + 1
    rng = np.random.default_rng(seed)
    drawn: list[Values] = []
    step = max(1, _CHUNK // max(cells, len(groups)))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        picks = rng.integers(n_groups, size=(rows, n_groups)) + np.arange(rows)[:, None] * n_groups
        counts = np.bincount(picks.ravel(), minlength=rows * n_groups).reshape(rows, n_groups)
        drawn.append(statistic(counts[:, numbers].astype(np.float32)))
    draws = np.concatenate(drawn)
    if np.isnan(draws).mean() > 0.025:  # a bound would lie among draws that have no value
        return Measured(value=value)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Measured(value=value, interval=(float(low), float(high)))


def mean(values: Floats) -> Statistic:
    """The mean over tasks of one number each; NaN is left out."""
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0.0).astype(np.float32), known.astype(np.float32))


def ratio(top: Floats, bottom: Floats) -> Statistic:
    """The sum over tasks of `top` over that of `bottom`."""
    both = np.stack([top, bottom], axis=1)  # [tasks, 2]

    def statistic(weights: Floats) -> Values:
        sums = _sums(weights, both)
        return _divided(sums[:, 0], sums[:, 1])

    return statistic


def complement(statistic: Statistic) -> Statistic:
    """One minus a share."""
    return lambda weights: 1.0 - statistic(weights)


def difference(one: Statistic, other: Statistic) -> Statistic:
    """How much more one is than another, both of the same draws: its interval is that of a paired comparison."""
    return lambda weights: one(weights) - other(weights)


def accuracy(probability: Floats, success: Floats) -> Statistic:
    """Share of known cells [tasks, agents] where success is predicted by a probability of a half or more, or not."""
    known = np.isfinite(success)
    right = ((probability >= 0.5) == (success >= 0.5)) & known
    return ratio(right.sum(axis=1, dtype=np.float32), known.sum(axis=1, dtype=np.float32))


def brier(probability: Floats, success: Floats) -> Statistic:
    """Mean squared error of the probability over known cells [tasks, agents]."""
    known = np.isfinite(success)
    error = np.where(known, (probability - np.where(known, success, 0.0)) ** 2, 0.0)
    return ratio(error.sum(axis=1, dtype=np.float32), known.sum(axis=1, dtype=np.float32))


def calibration_error(probability: Floats, success: Floats) -> Statistic:
    """Expected calibration error: |mean probability - share of successes| per bin, weighted by the bin's size."""
    gap, count, _ = _binned(probability, success)

    def statistic(weights: Floats) -> Values:
        return _divided(np.abs(_sums(weights, gap)).sum(axis=1), _sums(weights, count).sum(axis=1))

    return statistic


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """What a reliability diagram shows, per bin of predicted probability; NaN in an empty bin."""

    predicted: Values  # [bins] mean probability
    observed: Values  # [bins] share of successes
    count: Values  # [bins] cells


def reliability(probability: Floats, success: Floats) -> Reliability:
    """The bins of the calibration error."""
    gap, count, predicted = (values.sum(axis=0, dtype=np.float64) for values in _binned(probability, success))
    return Reliability(predicted=_divided(predicted, count), observed=_divided(predicted - gap, count), count=count)


def auc(scores: Floats, success: Floats) -> Statistic:
    """Area under the ROC curve over all known cells [tasks, agents] together."""
    tasks, _ = np.nonzero(np.isfinite(success))
    known = np.isfinite(success)
    return _auc(scores[known], success[known] >= 0.5, tasks)


def within_agent_auc(scores: Floats, success: Floats) -> Statistic:
    """Mean over agents of the area under each one's ROC curve: does it rank tasks, or only agents?"""
    each = []
    for column in range(success.shape[1]):
        tasks = np.flatnonzero(np.isfinite(success[:, column]))
        truth = success[tasks, column] >= 0.5
        if truth.any() and not truth.all():  # else there is nothing to rank
            each.append(_auc(scores[tasks, column], truth, tasks))

    def statistic(weights: Floats) -> Values:
        if not each:
            return np.full(len(weights), np.nan)
        areas = np.stack([one(weights) for one in each])  # [agents, resamples]
        return _divided(np.nansum(areas, axis=0), np.isfinite(areas).sum(axis=0).astype(np.float64))

    return statistic


def median(values: Floats) -> Statistic:
    """The median over known cells [tasks, agents]."""
    tasks, _ = np.nonzero(np.isfinite(values))
    cells = values[np.isfinite(values)]
    order = np.argsort(cells, kind="stable")
    cells, tasks = cells[order], tasks[order]

    def statistic(weights: Floats) -> Values:
        if not len(cells):
            return np.full(len(weights), np.nan)
        below = weights[:, tasks].cumsum(axis=1, dtype=np.float64)
        middle = (below >= below[:, -1:] / 2).argmax(axis=1)  # [resamples]
        return np.asarray(cells[middle], dtype=np.float64)

    return statistic


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCurve:
    """How much of the gap between a weak and a strong agent is closed (PGR) when a share of calls go to the strong."""

    share: Values  # [points] of calls to the strong agent, 0..1 ascending
    recovered: Values  # [points] PGR there

    def call_share(self, recovered: float) -> float:
        """CPT: the least share of calls that recovers that much; NaN where none does."""
        reached = np.flatnonzero(self.recovered >= recovered)
        if not len(reached):
            return float("nan")
        i = int(reached[0])
        if i == 0:
            return float(self.share[0])
        rise = self.recovered[i] - self.recovered[i - 1]
        part = (recovered - self.recovered[i - 1]) / rise
        return float(self.share[i - 1] + part * (self.share[i] - self.share[i - 1]))


def call_curve(scores: Floats, strong: Floats, weak: Floats) -> CallCurve:
    """The curve for tasks sent to the strong agent in the order of `scores`, highest first; all arrays [tasks]."""
    share, recovered = _recovered(scores, strong, weak)(np.ones((1, len(scores)), np.float32))
    return CallCurve(share=share[0], recovered=recovered[0])


def apgr(scores: Floats, strong: Floats, weak: Floats) -> Statistic:
    """Average performance gap recovered: the area under the call curve. Random routing has 0.5."""
    curve = _recovered(scores, strong, weak)

    def statistic(weights: Floats) -> Values:
        share, recovered = curve(weights)
        return np.asarray(np.trapezoid(recovered, share, axis=1), dtype=np.float64)

    return statistic


def _recovered(scores: Floats, strong: Floats, weak: Floats) -> Callable[[Floats], tuple[Values, Values]]:
    """Shares and PGR [resamples, points]; tasks of equal score go together, so that a tie is a straight line."""
    order = np.argsort(-scores, kind="stable")
    starts = _runs(scores[order])
    gain = np.stack([np.ones_like(strong), strong - weak], axis=1)[order]  # [tasks, 2]

    def curve(weights: Floats) -> tuple[Values, Values]:
        parts = [_per_run(weights[:, order] * column, starts) for column in gain.T]
        calls, gained = (np.pad(part.cumsum(axis=1), ((0, 0), (1, 0))) for part in parts)
        return _divided(calls, calls[:, -1:]), _divided(gained, gained[:, -1:])

    return curve


def _auc(scores: Floats, truth: Flags, tasks: npt.NDArray[np.intp]) -> Statistic:
    """Mann-Whitney: the chance that a success scores above a failure. All arrays [cells]."""
    order = np.argsort(scores, kind="stable")
    starts, truth, tasks = _runs(scores[order]), truth[order], tasks[order]

    def statistic(weights: Floats) -> Values:
        if not len(truth):
            return np.full(len(weights), np.nan)
        each = weights[:, tasks]  # [resamples, cells]
        good = _per_run(each * truth, starts)  # [resamples, different scores]
        bad = _per_run(each * ~truth, starts)
        below = bad.cumsum(axis=1) - bad / 2
        return _divided((good * below).sum(axis=1), good.sum(axis=1) * bad.sum(axis=1))

    return statistic


def _runs(ordered: Floats) -> npt.NDArray[np.intp]:
    """Where each run of equal values starts."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])


def _per_run(values: Floats, starts: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """[resamples, runs] sums over each run of columns."""
    sums = values if len(starts) == values.shape[1] else np.add.reduceat(values, starts, axis=1)
    return sums.astype(np.float64)


def _binned(probability: Floats, success: Floats) -> tuple[Floats, Floats, Floats]:
    """Per task and bin [tasks, bins]: sums of probability - success, of cells, of probability."""
    tasks, agents = np.nonzero(np.isfinite(success))
    p, y = probability[tasks, agents], success[tasks, agents]
    cell = tasks * BINS + np.minimum((p * BINS).astype(np.intp), BINS - 1)
    shape, size = (len(success), BINS), len(success) * BINS
    sums = (np.bincount(cell, weights=w, minlength=size).reshape(shape) for w in (p - y, np.ones_like(p), p))
    gap, count, predicted = (values.astype(np.float32) for values in sums)
    return gap, count, predicted


def _sums(weights: Floats, values: Floats) -> npt.NDArray[np.float64]:
    """[resamples, columns] weighted sums over tasks."""
    return np.asarray(weights @ values, dtype=np.float64)


def _divided(top: npt.NDArray[np.float64], bottom: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """top / bottom, NaN where the bottom is 0: nothing was measured there."""
    top, bottom = np.broadcast_arrays(top, bottom)
    divided: npt.NDArray[np.float64] = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)
    return divided

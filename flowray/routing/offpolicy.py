"""What another policy would have earned, from recorded decisions alone: off-policy evaluation with known propensities.

A row has candidates x, the chosen one a, its propensity p and its reward r; the policy under test would have chosen a
with probability pi(a|x), so the row weighs w = pi(a|x) / p. Means over the n rows whose r is known:

    IPS     sum w r / n                                      (Horvitz and Thompson, JASA 1952)
    SNIPS   sum w r / sum w                                  (Swaminathan and Joachims, NeurIPS 2015)
    DR      sum [sum_b pi(b|x) m(x, b) + w (r - m(x, a))] / n     (Dudik, Langford and Li, ICML 2011)

m, the direct model, is what the router estimated before it knew r; a candidate without an estimate has the mean of its
others, or of everybody's. DR is unbiased whatever m is and varies less the better m is. For the policy in force all
weights are 1: IPS and SNIPS are the observed mean to the last digit, DR is as far from it as its model errs by chance.

Dollars and seconds are recorded of attempts that answered, and which do depends on who was chosen. So their means are
those of answers: what answers cost over how many there are, both weighted (IPS over IPS is SNIPS, so there is no other)
or both doubly robust, with the estimated success as the model of whether there is an answer.

A propensity below `clip` counts as `clip`, so that no row weighs more than 1 / clip; a weight is never cut below 1.
That biases the estimates, so its share is reported. What the policy under test would choose where the policy in force
never would is not in the weights at all: `unsupported_share` says how much that is.

Standard errors and 95 % intervals come from bootstrap draws of tasks: attempts at one task belong together. With few
rows of great weight they are too narrow, as what was not seen is not drawn either: the effective number of rows,
(sum w)^2 / sum w^2 (Kish 1965), tells. Rows whose end is not known (agent lost, task cancelled) are left out, as if
that had nothing to do with who was chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from flowray.errors import ConfigError
from flowray.routing.decisions import Decisions, Flags, Numbers
from flowray.routing.estimates import Estimates, Floats

ESTIMATORS = ("ips", "snips", "dr")
QUANTITIES = ("reward", "cost_usd", "run_s")
_CHUNK = 4_000_000  # numbers of one block of draws: 32 MB
_Sums = tuple[Numbers, Numbers]  # a mean as two columns [rows]: the sum of one over the sum of the other


@dataclass(frozen=True, slots=True, kw_only=True)
class OffPolicyConfig:
    """How an evaluation is done."""

    clip: float = 0.01  # propensities count as at least this much, in (0, 1]: no row weighs more than a hundred
    resamples: int = 1000  # bootstrap draws, at least 2
    seed: int = 0  # of the draws
    least_effective: float = 100.0  # effective rows below which a note warns of the intervals

    def __post_init__(self) -> None:
        if not 0 < self.clip <= 1:
            raise ConfigError("clip", f"must be above 0 and at most 1, got {self.clip:g}")
        if self.resamples < 2:
            raise ConfigError("resamples", f"must be at least 2, got {self.resamples}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A mean with how sure it is. NaN where nothing, or too little, was seen."""

    value: float
    error: float  # standard error
    interval: tuple[float, float]  # 95 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One quantity of the policy in force and of the one under test."""

    rows: int  # of which it is known
    effective_rows: float  # what these are worth for the policy under test
    observed: Figure  # of the policy in force
    estimates: Mapping[str, Figure]  # estimator -> of the policy under test; those that there are
    changes: Mapping[str, Figure]  # estimator -> less the observed one, on the same draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is known of a policy from decisions that another one took."""

    rows: int
    tasks: int
    clip: float
    clipped_share: float  # 0..1 of the rows whose weight was cut
    unsupported_share: float  # 0..1 of what the policy would choose, the policy in force never would
    mean_weight: float  # near 1 - unsupported_share, or the propensities are not what was chosen by
    quantities: Mapping[str, Quantity]  # by QUANTITIES; without those of which nothing is known
    notes: tuple[str, ...]  # what a reader must know


def evaluate(
    decisions: Decisions,
    probabilities: Numbers,
    *,
    estimates: Estimates | None = None,
    config: OffPolicyConfig | None = None,
) -> Evaluation:
    """Evaluate the policy that would have chosen with `probabilities` [rows, candidates].

    `estimates` [rows, candidates] are the direct model of DR, by default the recorded ones.

    Raises:
        ValueError: the probabilities are not of these decisions.
    """
    config = config or OffPolicyConfig()
    _check(decisions, probabilities)
    estimates = decisions.estimates if estimates is None else estimates
    pi = decisions.of_chosen(probabilities)
    propensity = decisions.of_chosen(decisions.propensities)
    weights = pi / np.maximum(propensity, np.minimum(config.clip, pi))
    models = {
        "reward": (decisions.rewards, decisions.expected(estimates)),
        "cost_usd": (decisions.cost_usd, estimates.cost_usd),
        "run_s": (decisions.run_s, estimates.latency_s),
    }
    means: dict[tuple[str, str], _Sums] = {}
    for name, (earned, model) in models.items():
        if np.isfinite(earned).any():
            each = _means(decisions, probabilities, weights, earned, model, estimates.success)
            means.update({(name, kind): sums for kind, sums in each})
    figures = _figures(decisions, means, config) if means else {}
    quantities = {
        name: _quantity(name, weights[np.isfinite(models[name][0])], figures)
        for name in QUANTITIES
        if (name, "observed") in means
    }
    unsupported = float(np.where(decisions.propensities > 0, 0.0, probabilities).sum() / len(decisions))
    clipped = float(((propensity < config.clip) & (pi > propensity)).mean())
    return Evaluation(
        rows=len(decisions),
        tasks=int(decisions.groups.max()) + 1,
        clip=config.clip,
        clipped_share=clipped,
        unsupported_share=unsupported,
        mean_weight=float(weights.mean()),
        quantities=quantities,
        notes=tuple(_notes(len(decisions), quantities, unsupported, clipped, float(weights.mean()), config)),
    )


def _check(decisions: Decisions, probabilities: Numbers) -> None:
    if probabilities.shape != decisions.offered.shape:
        raise ValueError(f"probabilities are {probabilities.shape}, not {decisions.offered.shape}")
    if (probabilities < 0).any() or (probabilities[~decisions.offered] > 0).any():
        raise ValueError("a probability is negative, or of a candidate that was not offered")
    if np.abs(probabilities.sum(axis=1) - 1).max() > 1e-6:
        raise ValueError("the probabilities of a row do not sum to 1")


def _means(
    decisions: Decisions,
    probabilities: Numbers,
    weights: Numbers,
    earned: Numbers,
    model: Numbers | Floats,
    success: Floats,
) -> Iterator[tuple[str, _Sums]]:
    """Every mean of one quantity, over the rows whose end is known and, of these, where the quantity is."""
    known = np.isfinite(earned)
    ended = known | np.isfinite(decisions.rewards)
    always = bool(known[ended].all())  # it is known of every end: then there is nothing to model about that
    n, k, w = ended.astype(np.float64), known.astype(np.float64), np.where(ended, weights, 0.0)
    r = np.where(known, earned, 0.0)
    yield "observed", (r, k)
    if (w * k).any():  # else IPS would say 0 for sure, where it knows nothing
        if always:
            yield "ips", (w * r, n)
        yield "snips", (w * r, w * k)
    filled = _filled(model, decisions.offered)
    answers = decisions.offered.astype(np.float64) if always else _filled(success, decisions.offered)
    if filled is not None and answers is not None:
        parts = ((filled * answers, r), (answers, k))
        top, bottom = (n * (probabilities * m).sum(axis=1) + w * (x - decisions.of_chosen(m)) for m, x in parts)
        yield "dr", (top, bottom)


def _filled(model: Numbers | Floats, offered: Flags) -> Numbers | None:
    """A model [rows, candidates] that has an estimate wherever a candidate was offered, 0 elsewhere; None without any.

    What is filled in are means of estimates, never of rewards: so DR stays unbiased.
    """
    known = offered & np.isfinite(model)
    if not known.any():
        return None
    values = np.where(known, model, 0.0).astype(np.float64)
    counts = known.sum(axis=0)  # [candidates]
    means = np.where(counts > 0, values.sum(axis=0) / np.maximum(counts, 1), values.sum() / counts.sum())
    return np.where(known, values, np.where(offered, means, 0.0))


def _figures(
    decisions: Decisions, means: Mapping[tuple[str, str], _Sums], config: OffPolicyConfig
) -> dict[tuple[str, str, bool], Figure]:
    """Every mean, and (True) how much it is above the observed one, all on the same draws of tasks."""
    n_tasks = int(decisions.groups.max()) + 1
    columns = [np.bincount(decisions.groups, part, minlength=n_tasks) for sums in means.values() for part in sums]
    sums = np.stack(columns, axis=1)  # [tasks, 2 x means]
    rng = np.random.default_rng(config.seed)
    drawn = [sums.sum(axis=0, keepdims=True)]  # the first draw is what was seen
    step = max(1, _CHUNK // n_tasks)
    for start in range(0, config.resamples, step):
        rows = min(step, config.resamples - start)
        picks = rng.integers(n_tasks, size=(rows, n_tasks)) + np.arange(rows)[:, None] * n_tasks
        counts = np.bincount(picks.ravel(), minlength=rows * n_tasks).reshape(rows, n_tasks)
        drawn.append(counts.astype(np.float64) @ sums)
    draws = np.concatenate(drawn)
    top, bottom = draws[:, 0::2], draws[:, 1::2]
    values = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
    each = {key: values[:, place] for place, key in enumerate(means)}
    return {
        (name, kind, change): _figure(column - each[name, "observed"] if change else column)
        for (name, kind), column in each.items()
        for change in (False, True)
    }


def _figure(draws: Numbers) -> Figure:
    """The first is the value, the others say how sure it is."""
    value, others = float(draws[0]), draws[1:]
    if np.isnan(others).mean() > 0.025:  # a bound would lie among draws without a value
        return Figure(value=value, error=float("nan"), interval=(float("nan"), float("nan")))
    low, high = np.nanquantile(others, [0.025, 0.975])
    return Figure(value=value, error=float(np.nanstd(others, ddof=1)), interval=(float(low), float(high)))


def _quantity(name: str, weights: Numbers, figures: Mapping[tuple[str, str, bool], Figure]) -> Quantity:
    there = [kind for kind in ESTIMATORS if (name, kind, False) in figures]
    squares = float((weights**2).sum())
    return Quantity(
        rows=len(weights),
        effective_rows=float(weights.sum()) ** 2 / squares if squares else 0.0,
        observed=figures[name, "observed", False],
        estimates={kind: figures[name, kind, False] for kind in there},
        changes={kind: figures[name, kind, True] for kind in there},
    )


def _notes(
    rows: int,
    quantities: Mapping[str, Quantity],
    unsupported: float,
    clipped: float,
    mean_weight: float,
    config: OffPolicyConfig,
) -> Iterator[str]:
    if unsupported > 0:
        yield (
            f"{_percent(unsupported)} of what this policy would choose had no chance of being chosen: IPS counts that "
            "as nothing earned, SNIPS leaves it out, DR believes the estimates there."
        )
    if clipped > 0:
        yield (
            f"{_percent(clipped)} of the decisions had a propensity below {config.clip:g} and count as if it were "
            f"{config.clip:g}: weights are {mean_weight:.2f} on average, not {1 - unsupported:.2f}, and biased by that."
        )
    if not quantities:
        yield "Of none of these decisions is it known what they earned."
    for name, quantity in quantities.items():
        if quantity.effective_rows < config.least_effective:
            yield (
                f"{name}: the {quantity.rows:,} known rows are worth {quantity.effective_rows:.0f} for this policy, "
                f"fewer than {config.least_effective:g}: do not lean on its intervals."
            )
        if quantity.rows < rows:
            yield f"{name} is known of {quantity.rows:,} of {rows:,} decisions."
        if "dr" not in quantity.estimates:
            yield f"{name} was never estimated, so there is no DR of it."


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "less than 0.1 %"

"""Which candidate gets a task, from estimates: what each is worth, which are as good as the best, and what chance adds.

A candidate is a class of agents: its agents run the same code, so what one of them does says what the others would.
The estimates come from a router (`RequestEstimates`); this is the choice, and it is pure arithmetic.

1. Value: expected success (or quality) in time, less dollars and seconds at the policy's prices. A task that names a
   `quality` asks otherwise: of those that reach this share of the best expected success, the cheapest.
2. The good: all whose value is within `good` of the best. Of two of them, drawn at random, the one that would be done
   sooner: loads are as old as the last answer, and the least of old loads is where everybody goes (Mitzenmacher 2001).
3. Chance: now and then one of the others, to learn of it. Each with the probability that it is better than the best,
   were both normal with half their deviations (probability matching, as Thompson sampling does, in closed form), all of
   them together with at most `explore`. So nothing is explored that is known well, and every propensity is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct, structs

from flowray.core.model import Estimate
from flowray.core.retry import Rng
from flowray.errors import ConfigError

_NEVER = 1e6  # times the remaining time: as good as never, and its power is a number
SHORTEST_S = 0.001  # what is done sooner is not better
_USUAL_S = 1.0  # a run, where nobody's is known


class RoutingPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What routing is asked to do, and what things are worth, in units of success: 0.01 is one task in a hundred."""

    enabled: bool = False  # ask a router where several classes of agents could take a task
    within_s: float = 0.05  # estimates later than this are not waited for
    shortlist: int = 16  # candidates asked about at most: those that succeeded most, and some others
    newcomers: int = 4  # of these, drawn at random among all others
    use_quality: float = 1.0  # 0..1 how far an expected quality counts instead of the expected success, where known
    usd: float = 0.0  # what a dollar less is worth
    second: float = 0.001  # what it is worth to be done a second sooner
    slowdown: float = 0.02  # and what it is worth to be done in half the time
    good: float = 0.02  # candidates within so much of the best are as good
    explore: float = 0.05  # share of the tasks, at most, that go to another than a good one, to learn of it
    tiers: dict[str, float] = {}  # tier -> what it is worth that one of its agents gets a task; may be negative
    short_of_memory: float = 0.1  # what it costs to give a task to agents whose nodes have no memory left
    roomy: float = 0.1  # share of free memory that is enough; below it costs grow in proportion
    curiosity: float = 0.5  # how many of an estimate's deviations count when it is asked whether another may be better
    sampled: float = 0.0625  # share of the tasks asked about while answers take longer than they bring; 1: always all
    keep_text: int = 4_000  # characters kept of each text that the router read, beside the outcome; 0: none

    def __post_init__(self) -> None:
        if not 0 < self.within_s <= 10:
            raise ConfigError("routing.within_s", f"must be above 0 and at most 10 seconds, got {self.within_s}")
        if not 2 <= self.shortlist <= 256:
            raise ConfigError("routing.shortlist", f"must be between 2 and 256, got {self.shortlist}")
        if not 0 <= self.newcomers < self.shortlist:
            raise ConfigError("routing.newcomers", f"must be less than the shortlist, got {self.newcomers}")
        if not 0 < self.roomy <= 1:
            raise ConfigError("routing.roomy", f"must be above 0 and at most 1, got {self.roomy}")
        if not 0 <= self.keep_text <= 1 << 20:
            raise ConfigError("routing.keep_text", f"must be between 0 and {1 << 20}, got {self.keep_text}")
        for name in ("use_quality", "explore", "good", "sampled"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"routing.{name}", f"must be between 0 and 1, got {getattr(self, name)}")
        for name in ("usd", "second", "slowdown", "short_of_memory", "curiosity"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"routing.{name}", f"must not be negative, got {getattr(self, name)}")
        for tier, worth in self.tiers.items():
            if not math.isfinite(worth):
                raise ConfigError("routing.tiers", f"{tier!r} is worth {worth}, which is no number")


WEIGHTS = ("use_quality", "usd", "second", "slowdown", "good", "explore")  # that a task may have of its own


def weighed(policy: RoutingPolicy, weights: Mapping[str, float]) -> RoutingPolicy:
    """The policy with a task's own weights.

    Raises:
        ConfigError: one of them is out of range.
    """
    return structs.replace(policy, **weights) if weights else policy


class Drawn(NamedTuple):
    """A choice among candidates, and all that it followed from."""

    place: int  # of the chosen one
    values: tuple[float, ...]
    propensities: tuple[float, ...]
    explored: bool
    confidence: float  # 0..1 that no other candidate is better than the best


def run_times(estimates: Sequence[Estimate]) -> list[float]:
    """Of each candidate the median of its run time; where that is not known, the geometric mean of the known ones."""
    found = [estimate.latency_s for estimate in estimates]
    if None not in found:
        return found  # type: ignore[return-value]
    logs = [math.log(max(run_s, SHORTEST_S)) for run_s in found if run_s is not None]
    usual_s = math.exp(sum(logs) / len(logs)) if logs else _USUAL_S
    return [usual_s if run_s is None else run_s for run_s in found]


def value_of(
    estimate: Estimate,
    run_s: float,
    wait_s: float,
    remaining_s: float | None,
    policy: RoutingPolicy,
    *,
    extra: float = 0.0,
    priced: bool = True,
) -> float:
    """What it is worth to give the task to this candidate, who begins after `wait_s` and takes `run_s` then.

    `extra` is what the policy adds whatever comes of it: its tier's worth, less what it costs to be short of memory.
    """
    worth = expected(estimate, policy)
    if remaining_s is not None:
        worth *= in_time(run_s, remaining_s - wait_s)
    if priced and estimate.cost_usd is not None:
        worth -= policy.usd * estimate.cost_usd
    done_s = run_s + wait_s
    return (
        worth
        + extra
        - policy.second * done_s
        - policy.slowdown * math.log2(done_s if done_s > SHORTEST_S else SHORTEST_S)
    )


def expected(estimate: Estimate, policy: RoutingPolicy) -> float:
    """Success, or quality as far as it counts."""
    if estimate.quality is None:
        return estimate.success
    return estimate.success + policy.use_quality * (estimate.quality - estimate.success)


def in_time(latency_s: float, remaining_s: float) -> float:
    """The probability that a run of this median ends within the time that remains.

    Run times are taken for log-logistic of shape 3: half of them end within 0.7 to 1.4 of the median.
    """
    if remaining_s <= 0:
        return 0.0
    times = min(latency_s / remaining_s, _NEVER)
    return 1.0 / (1.0 + times * times * times)


def draw(
    estimates: Sequence[Estimate],
    runs_s: Sequence[float],
    waits_s: Sequence[float],
    remaining_s: float | None,
    policy: RoutingPolicy,
    rng: Rng,
    *,
    extras: Sequence[float] = (),
    quality: float | None = None,
    max_cost_usd: float | None = None,
) -> Drawn:
    """Choose one of the candidates (at least one), each of which would begin after its wait, which is finite.

    `runs_s` are the run times that are expected (`run_times`), `extras` what is added to values (none: nothing);
    `quality` and `max_cost_usd` are what the task asks for
    (`flowray.core.model.Task`).
    """
    worth = [
        value_of(e, run_s, wait_s, remaining_s, policy, extra=extra, priced=quality is None)
        for e, run_s, wait_s, extra in zip(estimates, runs_s, waits_s, extras or [0.0] * len(waits_s), strict=True)
    ]
    values, tolerance = (worth, policy.good) if quality is None else _thrifty(quality, estimates, worth, policy)
    allowed = range(len(values)) if max_cost_usd is None else _affordable(max_cost_usd, estimates, values)
    best = max(allowed, key=values.__getitem__)
    highest, spread = values[best], estimates[best].deviation
    good: list[int] = []
    rivals: dict[int, float] = {}  # -> probability that it is better than the best
    confidence = 1.0
    for place in allowed:
        gap = highest - values[place]
        if gap <= tolerance:
            good.append(place)
        if place != best:
            confidence *= 1.0 - _chance_to_beat(gap, spread, estimates[place].deviation, 1.0)
            if gap > tolerance:
                rivals[place] = _chance_to_beat(gap, spread, estimates[place].deviation, policy.curiosity)
    mass = sum(rivals.values())
    share = min(policy.explore, mass)
    propensities = [0.0] * len(values)
    if mass > 0.0:
        for place, chance in rivals.items():
            propensities[place] = share * chance / mass
    for place, portion in _two_choices(good, runs_s, waits_s):
        propensities[place] = (1.0 - share) * portion
    place = _sample(propensities, rng)
    return Drawn(place, tuple(values), tuple(propensities), share > 0.0 and place in rivals, confidence)


def _thrifty(
    quality: float, estimates: Sequence[Estimate], worth: list[float], policy: RoutingPolicy
) -> tuple[list[float], float]:
    """Values where good enough is enough: by thrift among those that are, and below all of these for the others.

    `worth` is what each is worth whatever it costs.
    """
    known = [e.cost_usd for e in estimates if e.cost_usd is not None]
    dearest = max(known, default=0.0)
    if dearest <= 0:
        return worth, policy.good  # nobody's price is known: the best is as cheap as any
    least = quality * max(worth)
    thrift = [1.0 - (dearest if e.cost_usd is None else e.cost_usd) / dearest for e in estimates]
    above = max(1.0, *worth)  # what is good enough is worth more than whatever is not
    values = [above + saved if value >= least else value - 1.0 for saved, value in zip(thrift, worth, strict=True)]
    return values, 0.0


def _affordable(limit: float, estimates: Sequence[Estimate], values: Sequence[float]) -> list[int]:
    """The candidates within the task's money; where there are none, the cheapest: an accepted task is done."""
    every = range(len(estimates))
    within = [place for place in every if (estimates[place].cost_usd or 0.0) <= limit]
    return within or [min(every, key=lambda place: (estimates[place].cost_usd or 0.0, -values[place]))]


def _chance_to_beat(gap: float, one: float, other: float, factor: float) -> float:
    """The probability that a normal value is above another one that is greater by `gap` on average.

    Of the two deviations `factor` counts.
    """
    variance = factor * factor * (one * one + other * other)
    if variance <= 0.0:
        return 0.5 if gap <= 0.0 else 0.0
    return 0.5 * math.erfc(gap / math.sqrt(2.0 * variance))


def _two_choices(good: Sequence[int], runs_s: Sequence[float], waits_s: Sequence[float]) -> list[tuple[int, float]]:
    """With which probability each is taken when two are drawn and who is done sooner wins; of equals, either."""
    count = len(good)
    if count == 1:
        return [(good[0], 1.0)]
    ordered = sorted((runs_s[place] + waits_s[place], place) for place in good)
    if ordered[0][0] == ordered[-1][0]:
        return [(place, 1.0 / count) for place in good]
    portions: list[tuple[int, float]] = []
    at = 0
    while at < count:
        until = at
        while until < count and ordered[until][0] == ordered[at][0]:
            until += 1
        # Of n, the r-th best (from 0) beats n - 1 - r others; all n (n - 1) / 2 pairs are as likely.
        beaten = (2 * count - 1 - at - until) / 2  # on average from `at` to `until`
        portions += [(place, 2.0 * beaten / (count * (count - 1))) for _, place in ordered[at:until]]
        at = until
    return portions


def _sample(propensities: Sequence[float], rng: Rng) -> int:
    left = rng.random() * sum(propensities)
    last = 0
    for place, propensity in enumerate(propensities):
        if propensity > 0:
            last = place
            if left < propensity:
                return place
            left -= propensity
    return last  # rounding

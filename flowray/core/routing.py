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
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct

from flowray.core.model import Estimate
from flowray.core.retry import Rng
from flowray.errors import ConfigError

_NEVER = 1e6  # times the remaining time: as good as never, and its power is a number
_SHORTEST_S = 0.001  # what is done sooner is not better
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
    curiosity: float = 0.5  # how many of an estimate's deviations count when it is asked whether another may be better
    keep_text: int = 4_000  # characters kept of each text that the router read, beside the outcome; 0: none

    def __post_init__(self) -> None:
        if not 0 < self.within_s <= 10:
            raise ConfigError("routing.within_s", f"must be above 0 and at most 10 seconds, got {self.within_s}")
        if not 2 <= self.shortlist <= 256:
            raise ConfigError("routing.shortlist", f"must be between 2 and 256, got {self.shortlist}")
        if not 0 <= self.newcomers < self.shortlist:
            raise ConfigError("routing.newcomers", f"must be less than the shortlist, got {self.newcomers}")
        if not 0 <= self.keep_text <= 1 << 20:
            raise ConfigError("routing.keep_text", f"must be between 0 and {1 << 20}, got {self.keep_text}")
        for name in ("use_quality", "explore", "good"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"routing.{name}", f"must be between 0 and 1, got {getattr(self, name)}")
        for name in ("usd", "second", "slowdown", "curiosity"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"routing.{name}", f"must not be negative, got {getattr(self, name)}")


class Drawn(NamedTuple):
    """A choice among candidates, and all that it followed from."""

    place: int  # of the chosen one
    values: tuple[float, ...]
    propensities: tuple[float, ...]
    explored: bool
    confidence: float  # 0..1 that no other candidate is better than the best


def value_of(
    estimate: Estimate,
    wait_s: float,
    usual_s: float,
    remaining_s: float | None,
    policy: RoutingPolicy,
    *,
    priced: bool = True,
) -> float:
    """What it is worth to give the task to this candidate, who begins after `wait_s`, in units of success.

    `usual_s` stands for the run time where none is known.
    """
    latency_s = usual_s if estimate.latency_s is None else estimate.latency_s
    worth = expected(estimate, policy)
    if remaining_s is not None:
        worth *= in_time(latency_s, remaining_s - wait_s)
    if priced:
        worth -= policy.usd * (estimate.cost_usd or 0.0)
    done_s = latency_s + wait_s
    return worth - policy.second * done_s - policy.slowdown * math.log2(max(done_s, _SHORTEST_S))


def usual_run_s(estimates: Iterable[Estimate]) -> float:
    """The geometric mean of the run times that are known."""
    logs = [math.log(max(e.latency_s, _SHORTEST_S)) for e in estimates if e.latency_s is not None]
    return math.exp(sum(logs) / len(logs)) if logs else _USUAL_S


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
    waits_s: Sequence[float],
    remaining_s: float | None,
    policy: RoutingPolicy,
    rng: Rng,
    *,
    quality: float | None = None,
    max_cost_usd: float | None = None,
) -> Drawn:
    """Choose one of the candidates (at least one), each of which would begin after its wait, which is finite.

    `quality` and `max_cost_usd` are what the task asks for (`flowray.core.model.Task`).
    """
    usual_s = usual_run_s(estimates)
    if quality is None:
        values = [value_of(e, w, usual_s, remaining_s, policy) for e, w in zip(estimates, waits_s, strict=True)]
        tolerance = policy.good
    else:
        values, tolerance = _thrifty(quality, estimates, waits_s, usual_s, remaining_s, policy)
    allowed = _affordable(max_cost_usd, estimates, values)
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
            chance = _chance_to_beat(gap, spread, estimates[place].deviation, 1.0)
            confidence *= 1.0 - chance
            if gap > tolerance:
                rivals[place] = _chance_to_beat(gap, spread, estimates[place].deviation, policy.curiosity)
    mass = sum(rivals.values())
    share = min(policy.explore, mass)
    propensities = [0.0] * len(values)
    if mass > 0.0:
        for place, chance in rivals.items():
            propensities[place] = share * chance / mass
    done_s = [w + (usual_s if e.latency_s is None else e.latency_s) for e, w in zip(estimates, waits_s, strict=True)]
    for place, portion in _two_choices(good, done_s):
        propensities[place] = (1.0 - share) * portion
    place = _sample(propensities, rng)
    return Drawn(place, tuple(values), tuple(propensities), place in rivals and share > 0, confidence)


def _thrifty(
    quality: float,
    estimates: Sequence[Estimate],
    waits_s: Sequence[float],
    usual_s: float,
    remaining_s: float | None,
    policy: RoutingPolicy,
) -> tuple[list[float], float]:
    """Values where good enough is enough: by thrift among those that are, and below all of these for the others."""
    pairs = zip(estimates, waits_s, strict=True)
    worth = [value_of(e, w, usual_s, remaining_s, policy, priced=False) for e, w in pairs]
    known = [e.cost_usd for e in estimates if e.cost_usd is not None]
    dearest = max(known, default=0.0)
    if dearest <= 0:
        return worth, policy.good  # nobody's price is known: the best is as cheap as any
    least = quality * max(worth)
    thrift = [1.0 - (dearest if e.cost_usd is None else e.cost_usd) / dearest for e in estimates]
    values = [
        1.0 + saved if value >= least else value - 1.0 for saved, value in zip(thrift, worth, strict=True)
    ]  # worth is at most 1, so the two never meet
    return values, 0.0


def _affordable(limit: float | None, estimates: Sequence[Estimate], values: Sequence[float]) -> list[int]:
    """The candidates within the task's money; where there are none, the cheapest: an accepted task is done."""
    every = list(range(len(estimates)))
    if limit is None:
        return every
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


def _two_choices(good: Sequence[int], done_s: Sequence[float]) -> list[tuple[int, float]]:
    """With which probability each is taken when two are drawn and who is done sooner wins; of equals, either."""
    count = len(good)
    if count == 1:
        return [(good[0], 1.0)]
    ordered = sorted(good, key=done_s.__getitem__)
    portions: list[tuple[int, float]] = []
    at = 0
    while at < count:
        until = at
        while until < count and done_s[ordered[until]] == done_s[ordered[at]]:
            until += 1
        # Of n, the r-th best (from 0) beats n - 1 - r others; all n (n - 1) / 2 pairs are as likely.
        beaten = sum(count - 1 - rank for rank in range(at, until)) / (until - at)
        portions += [(place, 2.0 * beaten / (count * (count - 1))) for place in ordered[at:until]]
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

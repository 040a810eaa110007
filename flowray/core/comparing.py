"""Two routers asked about the same task: would they choose otherwise, and which of them does an outcome speak for?

The older one is what was in force first, the newer one what is to take its place; which of them answered the task is
another matter. A router's choice is taken for what the policy would do if nobody had to wait (`routing.draw`).

Of the task's chosen agent three things follow from its reward, 0..1:

- what each had said of it, and so by how much the newer one's squared error is less;
- what one choice would have earned more than the other, doubly robust: with m what the older one said, b and c the
  choices, a the agent that was chosen with propensity p, and r the reward,
      m(b) - m(c) + (1[a = b] - 1[a = c]) / p * (r - m(a)).
  It is unbiased where both b and c had a chance to be chosen; elsewhere nothing is said (Dudik, Langford and Li 2011);
- the reward itself, as one of the tasks that the one or the other answered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from flowray.core.model import Estimate, Receipt
from flowray.core.rollout import Seen
from flowray.core.routing import RoutingPolicy, draw, run_times


class Pair(Struct, frozen=True):
    """What both said of a task, and what they would choose."""

    by_newer: bool  # who answers it
    older: dict[str, Estimate]
    newer: dict[str, Estimate]
    older_choice: str
    newer_choice: str
    apart: float  # 0..1 total variation between the two policies


class _Lowest:
    """No randomness: only the propensities of a draw are wanted."""

    def random(self) -> float:
        return 0.0


def compare(older: Sequence[Estimate], newer: Sequence[Estimate], policy: RoutingPolicy, *, by_newer: bool) -> Pair:
    """Of the same candidates, at least one, in the same order."""
    before, after = chances(older, policy), chances(newer, policy)
    return Pair(
        by_newer=by_newer,
        older={each.candidate: each for each in older},
        newer={each.candidate: each for each in newer},
        older_choice=older[max(range(len(older)), key=before.__getitem__)].candidate,
        newer_choice=newer[max(range(len(newer)), key=after.__getitem__)].candidate,
        apart=min(1.0, 0.5 * sum(abs(one - other) for one, other in zip(before, after, strict=True))),
    )


def chances(estimates: Sequence[Estimate], policy: RoutingPolicy) -> tuple[float, ...]:
    """With which probability each would be chosen if nobody had to wait."""
    return draw(estimates, run_times(estimates), [0.0] * len(estimates), None, policy, _Lowest()).propensities


def seen(
    pair: Pair,
    agent: str,
    succeeded: bool,
    quality: float | None,
    receipt: Receipt | None,
    *,
    least_propensity: float,
    first: bool,
) -> Seen:
    """What came of an attempt of this class of agents, with the receipt of its choice where there is one."""
    reward = min(1.0, max(0.0, float(succeeded) if quality is None else quality))
    graded = quality is not None
    said_before, said_after = pair.older.get(agent), pair.newer.get(agent)
    error_saved = None
    if said_before is not None and said_after is not None:
        error_saved = (expected(said_before, graded) - reward) ** 2 - (expected(said_after, graded) - reward) ** 2
    gain = None
    if receipt is not None and not pair.by_newer:
        gain = _gain(pair, agent, reward, graded, receipt, least_propensity)
    return Seen(pair.by_newer, reward, error_saved, gain, pair.apart, first)


def expected(estimate: Estimate, graded: bool) -> float:
    """The quality, where one was reported and expected; else the success."""
    value = estimate.success if not graded or estimate.quality is None else estimate.quality
    return min(1.0, max(0.0, value))


def sound(estimates: Sequence[Estimate]) -> bool:
    """Are these numbers that a choice can be made from?"""
    return all(
        0.0 <= each.success <= 1.0
        and 0.0 <= each.deviation < math.inf
        and (each.quality is None or 0.0 <= each.quality <= 1.0)
        and (each.latency_s is None or 0.0 <= each.latency_s < math.inf)
        and (each.cost_usd is None or 0.0 <= each.cost_usd < math.inf)
        for each in estimates
    )


def _gain(pair: Pair, agent: str, reward: float, graded: bool, receipt: Receipt, least: float) -> float | None:
    if pair.older_choice == pair.newer_choice or not receipt.propensities or receipt.chosen != agent:
        return None
    names = [each.candidate for each in receipt.estimates]
    drawn = dict(zip(names, receipt.propensities, strict=True))
    if min(drawn.get(pair.older_choice, 0.0), drawn.get(pair.newer_choice, 0.0)) < least:
        return None
    believed = {name: expected(pair.older[name], graded) for name in (pair.newer_choice, pair.older_choice)}
    weight = ((agent == pair.newer_choice) - (agent == pair.older_choice)) / drawn[agent] if agent in believed else 0
    model = believed[pair.newer_choice] - believed[pair.older_choice]
    return model + (weight * (reward - believed[agent]) if weight else 0.0)

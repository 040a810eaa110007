"""Whether it pays to ask a router: what its answers brought lately, against the time that waiting for them took.

Asking is a step of reasoning that delays the deed, so it is worth the value that the better choice adds less that of
the time it takes (Russell and Wefald 1991, "Principles of metareasoning"). Both are known of every decision made, in
the policy's own units:

    gain = what was chosen is worth on average, less what a draw among the agents with slots would have been
    cost = what it costs to be done later by the time that the answer took

Where tasks take seconds the cost is nothing and every task is asked about. Where they take a millisecond and all agents
do them as well, most of them are done sooner than the answer is there: then only a share is asked about, from which is
learned on, and which says when asking pays again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from flowray.core.routing import SHORTEST_S, RoutingPolicy

SEEN = 128  # decisions before which asking is taken to pay
CLEARLY = 2.0  # times the gain that the cost must be
_WEIGHT = 1.0 / 64.0  # of the newest decision


class Worth:
    """Of the tasks of one lane. Mutable."""

    __slots__ = ("cost", "gain", "seen")

    def __init__(self) -> None:
        self.gain = 0.0  # moving averages, in units of success
        self.cost = 0.0
        self.seen = 0  # decisions

    def note(
        self,
        values: Sequence[float],
        propensities: Sequence[float],
        slots: Sequence[int],
        done_s: float,
        took_s: float,
        policy: RoutingPolicy,
    ) -> None:
        """One more decision: `values`, `propensities` and ready `slots` of the candidates, of which there is one.

        The chosen one is expected to be done after `done_s`; the answer took `took_s`.
        """
        chosen = drawn = places = 0.0
        for value, propensity, count in zip(values, propensities, slots, strict=True):
            chosen += propensity * value
            drawn += count * value
            places += count
        gain = chosen - drawn / places
        cost = policy.second * took_s + policy.slowdown * math.log2(1.0 + took_s / max(done_s, SHORTEST_S))
        weight = max(_WEIGHT, 1.0 / (self.seen + 1))
        self.gain += weight * (gain - self.gain)
        self.cost += weight * (cost - self.cost)
        self.seen += 1

    @property
    def pays(self) -> bool:
        """Is it worth to ask about every task?"""
        return self.seen < SEEN or self.cost <= CLEARLY * max(self.gain, 0.0)

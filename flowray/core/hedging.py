"""When to ask a second time without waiting any longer for the first: after what nearly all answers took.

J. Dean and L. Barroso, "The Tail at Scale", CACM 2013: a second question after the 95th percentile cuts the tail and
costs one question in twenty. That holds while few are slow. When everything is, further questions make it worse, so
they are paid from credits: each question earns a share of one, up to a bound.
"""

from __future__ import annotations

import math
from collections import deque

from msgspec import Struct

from flowray.errors import ConfigError


class HedgePolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long to wait before a further question, and how many of those there may be."""

    quantile: float = 0.95  # of the recent latencies, after which to ask again
    least_s: float = 0.005  # the wait is never below this
    most_s: float = 0.25  # and never above
    first_s: float = 0.05  # the wait until enough latencies are known
    known: int = 20  # latencies that are enough
    window: int = 256  # latencies that count as recent
    more: int = 2  # further questions at most: one may go to the very process that does not answer
    share: float = 0.1  # further questions for each first one, in the long run
    burst: float = 10.0  # further questions that can be saved up

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise ConfigError("hedge.quantile", f"must be between 0 and 1, got {self.quantile}")
        if not 0 < self.least_s <= self.first_s <= self.most_s:
            raise ConfigError("hedge.first_s", "wants 0 < least_s <= first_s <= most_s")
        if not 1 <= self.known <= self.window:
            raise ConfigError("hedge.known", f"must be between 1 and window, got {self.known}")
        if self.more < 0:
            raise ConfigError("hedge.more", f"must not be negative, got {self.more}")
        if not 0 <= self.share <= 1:
            raise ConfigError("hedge.share", f"must be between 0 and 1, got {self.share}")
        if self.burst < 0:
            raise ConfigError("hedge.burst", f"must not be negative, got {self.burst}")


class Credits:
    """What may be done beside the usual: each usual thing earns a share of one, and some can be saved up."""

    __slots__ = ("_burst", "_left", "_share")

    def __init__(self, share: float, burst: float) -> None:
        self._share, self._burst, self._left = share, burst, burst

    def earn(self) -> None:
        """A usual thing was done."""
        self._left = min(self._burst, self._left + self._share)

    @property
    def enough(self) -> bool:
        """Are there enough for one?"""
        return self._left >= 1.0

    def pay(self) -> None:
        """One was done. There must be enough."""
        self._left -= 1.0


class Hedging:
    """The waits and the credits of one caller."""

    def __init__(self, policy: HedgePolicy) -> None:
        self._policy = policy
        self._latencies_s: deque[float] = deque(maxlen=policy.window)
        self._credits = Credits(policy.share, policy.burst)

    def wait_s(self) -> float:
        """How long to wait for an answer before a further question."""
        policy = self._policy
        if len(self._latencies_s) < policy.known:
            return policy.first_s
        ordered = sorted(self._latencies_s)
        at = math.ceil(policy.quantile * len(ordered)) - 1
        return min(policy.most_s, max(policy.least_s, ordered[at]))

    def asked(self) -> None:
        """A first question was asked."""
        self._credits.earn()

    def may_hedge(self) -> bool:
        """May there be a further one? Then it is paid for."""
        if not self._credits.enough:
            return False
        self._credits.pay()
        return True

    def took(self, latency_s: float) -> None:
        """A question was answered, or given up for another's answer, after this long."""
        self._latencies_s.append(latency_s)

"""A test that may be looked at after every number: a bet that a mean is above a bound, and what it has won so far.

Whoever looks again and again at an ordinary test finds what he looks for: of tests at 5 % far more than 5 % are wrong
once. Here the evidence is wealth. One unit is put on "the mean is above `null`", and each number x, from -1 to 1,
multiplies it by

    1 + stake (x - null),    0 < stake <= 0.75 / (1 + null).

As long as no number has an expectation above `null`, given those before, the wealth is a supermartingale that begins
at 1: the probability that it ever reaches 1 / alpha is at most alpha (Ville 1939), whatever the distribution, however
often it is looked at, and whenever one stops. This is the test behind the always-valid confidence sequences of Howard,
Ramdas, McAuliffe and Sekhon ("Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of Statistics
49, 2021) in the form of Waudby-Smith and Ramdas ("Estimating means of bounded random variables by betting", JRSS B 86,
2024), which needs a third of the numbers that their closed empirical-Bernstein bound needs at effects of some points.

The best stake is about mean / variance, which nobody knows beforehand, so the unit is spread over eight stakes, each
half of the one before (method of mixtures): that costs at most a factor of 8 against the best of them.
"""

from __future__ import annotations

import math

from msgspec import Struct

from flowray.errors import InvariantBroken

STAKES = tuple(0.75 * 0.5**halvings for halvings in range(8))
_LARGEST = 600.0  # of a logarithm of wealth that is kept: more says nothing more, and its power is still a number


class Purse(Struct, frozen=True, array_like=True):
    """A bet as the journal keeps it."""

    count: int = 0
    total: float = 0.0  # of the numbers
    logs: tuple[float, ...] = ()  # of the wealth of each stake; () before the first number


class Bet:
    """One bet. It is settled by nobody: `wealth` says how it stands."""

    __slots__ = ("_count", "_logs", "_null", "_total")

    def __init__(self, null: float = 0.0, kept: Purse | None = None) -> None:
        """`null` is the bound, above -1 and below 1; `kept` goes on where an earlier one stopped."""
        if not -1.0 < null < 1.0:
            raise ValueError(f"null must be between -1 and 1, got {null!r}")
        kept = kept or Purse()
        self._null = null
        self._count = kept.count
        self._total = kept.total
        self._logs = list(kept.logs) if len(kept.logs) == len(STAKES) else [0.0] * len(STAKES)

    @property
    def count(self) -> int:
        """Numbers so far."""
        return self._count

    @property
    def mean(self) -> float:
        """Of the numbers; 0 of none."""
        return self._total / self._count if self._count else 0.0

    @property
    def log_wealth(self) -> float:
        """The natural logarithm of what one unit has become."""
        most = max(self._logs)
        return most + math.log(sum(math.exp(log - most) for log in self._logs) / len(self._logs))

    def add(self, value: float) -> None:
        """One more number, from -1 to 1."""
        if not -1.0 <= value <= 1.0:
            raise ValueError(f"wants a number from -1 to 1, got {value!r}")
        self._count += 1
        self._total += value
        gain, scale = value - self._null, 1.0 / (1.0 + self._null)
        for at, stake in enumerate(STAKES):
            self._logs[at] = min(self._logs[at] + math.log1p(stake * scale * gain), _LARGEST)

    def shown(self, alpha: float) -> bool:
        """Is the mean above the bound, at this level, whenever this is asked?"""
        return self.log_wealth >= -math.log(alpha)

    def keep(self) -> Purse:
        """For the journal."""
        return Purse(self._count, self._total, tuple(self._logs)) if self._count else Purse()

    def check(self) -> None:
        """Raise InvariantBroken where the state contradicts itself."""
        if self._count < 0 or abs(self._total) > self._count + 1e-6:
            raise InvariantBroken(f"{self._count} numbers from -1 to 1 that sum to {self._total}")
        if not all(math.isfinite(log) and log <= _LARGEST for log in self._logs):
            raise InvariantBroken(f"logarithms of wealth {self._logs}")

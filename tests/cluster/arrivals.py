"""When an open-loop client hands in its tasks: a Poisson process with bursts, whatever becomes of the tasks before.

What was due while a call did not return is handed in after it, and keeps the time at which it was due; latencies that
are measured from there leave out nobody who had to wait (Tene, "How NOT to Measure Latency", coordinated omission).
"""

from __future__ import annotations

import random

BURST = 20  # tasks at one moment
BURST_RATIO = 0.01  # of the moments at which anything comes
MEAN_TASKS = 1.0 + BURST_RATIO * (BURST - 1)  # at such a moment


class Arrivals:
    """The moments, drawn as they are asked for; `rate_per_s` tasks a second in the mean, the first after `began_at`."""

    def __init__(self, rate_per_s: float, began_at: float, rng: random.Random) -> None:
        if not rate_per_s > 0:
            raise ValueError(f"rate_per_s: {rate_per_s} tasks a second, and there must be some")
        self._moments_per_s = rate_per_s / MEAN_TASKS
        self._rng = rng
        self.next_at = began_at
        self._advance()

    def _advance(self) -> None:
        self.next_at += self._rng.expovariate(self._moments_per_s)

    def due(self, now: float, most: int) -> list[float]:
        """The times of the tasks that are due by now and were not given out, the oldest first: `most` of them at most,
        except that a burst stays whole."""
        times: list[float] = []
        while self.next_at <= now and len(times) < most:
            times += [self.next_at] * (BURST if self._rng.random() < BURST_RATIO else 1)
            self._advance()
        return times

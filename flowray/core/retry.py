"""When a failed attempt is tried again: exponential back-off with full jitter.

Full jitter (a uniform draw up to the exponential bound) spreads a burst of failures best for the least total delay:
M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from flowray.errors import ConfigError


class Rng(Protocol):
    """The randomness that the core is given (random.Random fits)."""

    def random(self) -> float:
        """Uniform in [0, 1)."""
        ...


class RetryPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often, and how soon, a task is tried again. `Task.max_attempts` bounds failures of the agent's own code."""

    backoff_s: float = 0.2  # bound of the first delay; doubles with each failure
    backoff_max_s: float = 30.0  # bound of every delay
    max_losses: int = 10  # attempts lost with their agent or returned, before the task is a dead letter
    poison_kills: int = 3  # agents that died while running it, before the task is held to be the killer

    def __post_init__(self) -> None:
        if self.backoff_s <= 0:
            raise ConfigError("retry.backoff_s", f"must be positive, got {self.backoff_s}")
        if self.backoff_max_s < self.backoff_s:
            raise ConfigError("retry.backoff_max_s", f"must be at least backoff_s, got {self.backoff_max_s}")
        if self.max_losses < 1:
            raise ConfigError("retry.max_losses", f"must be at least 1, got {self.max_losses}")
        if self.poison_kills < 1:
            raise ConfigError("retry.poison_kills", f"must be at least 1, got {self.poison_kills}")

    def delay_s(self, failures: int, rng: Rng) -> float:
        """How long to wait after the `failures`-th failure (from 1)."""
        bound = min(self.backoff_max_s, self.backoff_s * 2.0 ** min(failures - 1, 30))
        return rng.random() * bound

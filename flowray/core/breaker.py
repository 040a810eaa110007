"""A breaker: who does not answer is not asked any more, and one cheap question finds out when he answers again.

    closed ── failures in a row ▶ open ── its wait is over ▶ half_open ── probes answered ▶ closed
                                   ▲─────────── a probe failed ───────────────┘

M. Nygard, "Release It!", 2007; the two steps (ask whether you may, say how it went) and the generation are those of
sony/gobreaker. Each change of state begins a generation and every question carries the one in which it was let through,
so that an answer that comes late says nothing about a later state. The wait doubles each time that a probe fails.

Nothing here reads a clock: whoever asks says what time it is, in seconds of one monotonic time-line.
"""

from __future__ import annotations

from enum import Enum
from typing import NewType

from msgspec import Struct

from flowray.errors import ConfigError, InvalidTransition, InvariantBroken

Generation = NewType("Generation", int)


class BreakerState(str, Enum):
    CLOSED = "closed"  # questions go through
    OPEN = "open"  # none does
    HALF_OPEN = "half_open"  # a few go through, to find out


_B = BreakerState
BREAKER_TRANSITIONS: dict[tuple[BreakerState, str], BreakerState] = {
    (_B.CLOSED, "tripped"): _B.OPEN,  # too many failures in a row
    (_B.OPEN, "waited"): _B.HALF_OPEN,  # somebody asks and the wait is over
    (_B.HALF_OPEN, "tripped"): _B.OPEN,  # a probe failed
    (_B.HALF_OPEN, "mended"): _B.CLOSED,  # enough probes were answered
}


class BreakerPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When to stop asking, and when to try again."""

    failures: int = 5  # in a row, that open it
    wait_s: float = 1.0  # before the first probe; doubles with each probe that fails
    longest_wait_s: float = 30.0  # that this grows to
    probes: int = 1  # let through at once while half open, and answered before it closes

    def __post_init__(self) -> None:
        for name in ("failures", "probes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"breaker.{name}", f"must be at least 1, got {getattr(self, name)}")
        if self.wait_s <= 0:
            raise ConfigError("breaker.wait_s", f"must be positive, got {self.wait_s}")
        if self.longest_wait_s < self.wait_s:
            raise ConfigError("breaker.longest_wait_s", f"must be at least wait_s, got {self.longest_wait_s}")


class Breaker:
    """One breaker. Who was let through must say exactly once how it went: `succeeded`, `failed` or `withdrew`."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._state = BreakerState.CLOSED
        self._generation = 0
        self._failures = 0  # in a row, while closed
        self._probing = 0  # let through and not heard of, while half open
        self._answered = 0  # probes, while half open
        self._wait_s = policy.wait_s
        self._open_until = 0.0

    @property
    def state(self) -> BreakerState:
        """Open lasts until somebody asks after its wait: time alone changes nothing."""
        return self._state

    @property
    def open_until(self) -> float:
        """While open: from when on a probe is let through."""
        return self._open_until

    def may_ask(self, now: float) -> Generation | None:
        """Let a question through (what comes back goes into its report), or None."""
        if self._state is BreakerState.OPEN:
            if now < self._open_until:
                return None
            self._follow("waited")
        if self._state is BreakerState.HALF_OPEN:
            if self._probing + self._answered >= self._policy.probes:
                return None
            self._probing += 1
        return Generation(self._generation)

    def succeeded(self, asked: Generation) -> None:
        """It was answered."""
        if asked != self._generation:
            return
        self._failures = 0
        if self._state is BreakerState.HALF_OPEN:
            self._probing -= 1
            self._answered += 1
            if self._answered >= self._policy.probes:
                self._wait_s = self._policy.wait_s
                self._follow("mended")

    def failed(self, asked: Generation, now: float) -> None:
        """It was not answered, or not in time."""
        if asked != self._generation:
            return
        if self._state is BreakerState.HALF_OPEN:
            self._wait_s = min(self._policy.longest_wait_s, self._wait_s * 2)
        else:
            self._failures += 1
            if self._failures < self._policy.failures:
                return
        self._open_until = now + self._wait_s
        self._follow("tripped")

    def withdrew(self, asked: Generation) -> None:
        """Its asker lost interest, which says nothing."""
        if asked == self._generation and self._state is BreakerState.HALF_OPEN:
            self._probing -= 1

    def check(self) -> None:
        """Raise InvariantBroken where the state contradicts itself."""
        half_open = self._state is BreakerState.HALF_OPEN
        if not 0 <= self._probing <= (self._policy.probes if half_open else 0):
            raise InvariantBroken(f"{self._state.value} with {self._probing} probes under way")
        if not 0 <= self._failures < self._policy.failures:
            raise InvariantBroken(f"{self._state.value} after {self._failures} failures in a row")
        if not self._policy.wait_s <= self._wait_s <= self._policy.longest_wait_s:
            raise InvariantBroken(f"a wait of {self._wait_s} s")

    def _follow(self, arrow: str) -> None:
        try:
            self._state = BREAKER_TRANSITIONS[self._state, arrow]
        except KeyError:
            raise InvalidTransition(f"the breaker is {self._state.value}: no arrow {arrow!r}") from None
        self._generation += 1
        self._failures = self._probing = self._answered = 0

"""When the router is trained anew: on a schedule, after enough outcomes, or when agents were found to have changed.

A change that was found a moment ago is in few outcomes yet, so training waits for `after_drift` more. Nothing is begun
while a training or a trial goes on, or with fewer new outcomes than `least`; a training that failed is tried again
after a wait that doubles. Nothing here reads a clock: times are seconds of one monotonic time-line.
"""

from __future__ import annotations

from msgspec import Struct

from flowray.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda")  # that training can be told to compute on; auto: a GPU where there is one


class RetrainConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When and how the router in force is trained further on what its tasks came to."""

    enabled: bool = False  # train the router further on what its tasks came to
    every_s: float = 86_400.0  # at the latest, where there are new outcomes; 0: by outcomes and changes alone
    outcomes: int = 20_000  # new ones, after which it is time; 0: by time and changes alone
    least: int = 1_000  # new outcomes, below which nothing is begun
    after_drift: int = 500  # outcomes after an agent was found to have changed; 0: changes are no reason
    newest: int = 10_000  # tasks that are learned from
    held_out: float = 0.1  # share of these, the newest, that a candidate is judged on, and as many that it stops by
    epochs: int = 4  # over these tasks, at most
    deadline_s: float = 900.0  # after which weights that are not done are given up; the history is kept
    wait_s: float = 60.0  # after a failure, before the next attempt; doubles with each
    longest_wait_s: float = 3_600.0  # and no longer than this
    keep: int = 4  # candidates on disk, besides those in force or on trial
    device: str = "cpu"  # that the weights are trained on: cpu, cuda, or auto for a GPU where there is one
    seed: int = 0  # of every random draw

    def __post_init__(self) -> None:
        for name in ("every_s", "outcomes", "after_drift"):
            if getattr(self, name) < 0:
                raise ConfigError(f"retrain.{name}", f"must not be negative, got {getattr(self, name)}")
        for name in ("least", "epochs", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"retrain.{name}", f"must be at least 1, got {getattr(self, name)}")
        if not 100 <= self.newest <= 100_000:
            raise ConfigError("retrain.newest", f"must be between 100 and 100,000, got {self.newest}")
        if not 0 < self.held_out <= 0.3:
            raise ConfigError("retrain.held_out", f"must be above 0 and at most 0.3, got {self.held_out}")
        for name in ("deadline_s", "wait_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"retrain.{name}", f"must be positive, got {getattr(self, name)}")
        if self.device not in DEVICES:
            raise ConfigError("retrain.device", f"must be one of {', '.join(DEVICES)}, got {self.device!r}")
        if self.longest_wait_s < self.wait_s:
            raise ConfigError("retrain.longest_wait_s", f"must be at least wait_s, got {self.longest_wait_s}")


class Schedule:
    """When to train. Whoever asks says what time it is, and what was seen so far."""

    def __init__(self, config: RetrainConfig, now: float) -> None:
        self._config = config
        self._since = now  # the last training began, or this did
        self._outcomes = 0  # by then
        self._running = False
        self._not_before = 0.0
        self._wait_s = config.wait_s
        self._version = ""
        self._mark = 0  # of the change found last, of this version
        self._drifted_at: int | None = None  # outcomes when a change was found that nobody has learned from

    def due(self, now: float, outcomes: int, version: str = "", mark: int = 0) -> str:
        """Why it is time to train; "" where it is not.

        Args:
            now: what time it is.
            outcomes: that were learned from in this life of the coordinator.
            version: of the router in force.
            mark: tells the change that its posteriors found last from those before; 0 for none.
        """
        config = self._config
        if version != self._version:  # its posteriors begin anew, or are those of its trial
            self._version, self._mark = version, mark
        if mark > self._mark:
            self._mark = mark
            if self._drifted_at is None:
                self._drifted_at = outcomes
        new = outcomes - self._outcomes
        if not config.enabled or self._running or now < self._not_before or new < config.least:
            return ""
        if config.after_drift and self._drifted_at is not None and outcomes - self._drifted_at >= config.after_drift:
            return f"agents changed, {outcomes - self._drifted_at} outcomes ago"
        if config.outcomes and new >= config.outcomes:
            return f"{new} new outcomes"
        if config.every_s and now - self._since >= config.every_s:
            return f"{now - self._since:.0f} s since the last time, {new} new outcomes"
        return ""

    def began(self) -> None:
        """A training goes on."""
        self._running = True

    def ended(self, now: float, outcomes: int) -> None:
        """It came to its end; `outcomes` are those that there were when it began."""
        self._running = False
        self._since, self._outcomes, self._wait_s = now, outcomes, self._config.wait_s
        if self._drifted_at is not None and self._drifted_at <= outcomes:
            self._drifted_at = None

    def failed(self, now: float) -> float:
        """It did not; gives the seconds until the next attempt."""
        self._running = False
        waits_s, self._wait_s = self._wait_s, min(self._config.longest_wait_s, self._wait_s * 2)
        self._not_before = now + waits_s
        return waits_s

"""The simulated router: estimates of nothing, in time, late, twice, for some candidates only, or never."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from flowray.core.commands import RequestEstimates
from flowray.core.events import EstimatesFailed, EstimatesReady, VersionDecided
from flowray.core.model import Estimate, RouterPlace, RouterRecord
from flowray.core.rollout import ROLLOUT_TRANSITIONS, RolloutStage

if TYPE_CHECKING:
    from flowray.testing.coordinator import CoordinatorProcess

_IN_TIME, _LATE, _TWICE, _FAILED, _NEVER = range(5)
_OFTEN = (80, 6, 4, 6, 4)
_DECIDES = 0.02  # share of questions beside which something is decided about versions of the router


class SimulatedRouter:
    """One router of a world, whichever coordinator asks it."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(f"{seed}/router")
        self._versions = Random(f"{seed}/router versions")
        self._stage, self._trials = RolloutStage.IDLE, 0

    def ask(self, by: CoordinatorProcess, command: RequestEstimates) -> None:
        """Answer some time, or not at all."""
        rng, clock = self._rng, by.world.clock
        if self._versions.random() < _DECIDES:
            by.hear(VersionDecided(self._decided()))
        within_s = by.world.policy.routing.within_s
        kind = rng.choices(range(5), _OFTEN)[0]
        after_s = within_s * rng.random() * (0.5 if kind != _LATE else 4.0)
        if kind == _NEVER:
            return
        if kind == _FAILED:
            failed = EstimatesFailed((command.task_id,), "simulated")
            clock.at(clock.now + after_s, lambda: by.hear(failed))
            return
        known = [name for name in command.candidates if rng.random() < 0.95]
        estimates = tuple(self._estimate(name) for name in known)
        ready = EstimatesReady(((command.task_id, estimates),), "local", "simulated")
        for _ in range(2 if kind == _TWICE else 1):
            clock.at(clock.now + after_s, lambda: by.hear(ready))

    def _decided(self) -> RouterRecord:
        """Some step of some trial."""
        arrow, stage = self._versions.choice(
            [
                ("noted", self._stage),
                *((arrow, to) for (of, arrow), to in ROLLOUT_TRANSITIONS.items() if of is self._stage),
            ]
        )
        self._stage, self._trials = stage, self._trials + (arrow == "offered")
        return RouterRecord(
            at=0.0,
            arrow=arrow,
            stage=stage,
            live=RouterPlace("v0"),
            other=RouterPlace(f"v{self._trials}"),
            why="simulated",
        )

    def _estimate(self, name: str) -> Estimate:
        rng = self._rng
        known = rng.random() < 0.8
        return Estimate(
            name,
            rng.random(),
            rng.choice((0.0, 0.05, 0.3)),
            rng.random() if rng.random() < 0.3 else None,
            rng.lognormvariate(-2.0, 1.0) if known else None,
            rng.lognormvariate(-5.0, 1.0) if known else None,
        )

"""Has the router trained anew when it is time, and offers what comes of it for a trial. Knows nothing of Ray.

A training that fails costs no task: it is told on stderr and tried again after a wait (`flowray.core.retraining`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from flowray.core.retraining import RetrainConfig, Schedule
from flowray.core.rollout import RolloutStage
from flowray.errors import RouterRefused
from flowray.runtime.routing import RoutingDesk
from flowray.runtime.saying import say

if TYPE_CHECKING:
    from flowray.runtime.trainer import Trained, TrainOrder

LOOK_S = 15.0  # between two looks at whether it is time


class Retrainer:
    """Use only from the coordinator's event loop."""

    def __init__(
        self,
        config: RetrainConfig,
        desk: RoutingDesk,
        train: Callable[[TrainOrder], Awaitable[Trained]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`train` does it, elsewhere, and may take its time."""
        self._config, self._desk, self._train, self._clock = config, desk, train, clock
        self._schedule = Schedule(config, clock())

    async def run(self, look_s: float = LOOK_S) -> None:
        """Look now and then, for ever."""
        while True:
            await asyncio.sleep(look_s)
            await self.look()

    async def look(self) -> str:
        """Train if it is time, and offer what comes of it: the version on trial now, or "" where there is none new."""
        versions = self._desk.versions
        if versions is None:
            return ""
        outcomes = versions.learned
        why = self._schedule.due(self._clock(), outcomes, versions.place.version, versions.drifted)
        if not why or versions.stage is not RolloutStage.IDLE:
            return ""
        from flowray.runtime.trainer import TrainOrder

        place = versions.place
        in_use = (place.artifact, place.history, versions.configured.artifact, versions.configured.history)
        say(f"training on from {place.version}: {why}")
        self._schedule.began()
        try:
            trained = await self._train(TrainOrder(place.artifact, place.history, self._config, in_use))
        except Exception as error:  # noqa: BLE001 - a trainer that dies, or whatever is wrong with what it reads
            wait_s = self._schedule.failed(self._clock())
            say(f"no training, again in {wait_s:.0f} s: {type(error).__name__}: {error}")
            return ""
        except BaseException:
            self._schedule.failed(self._clock())
            raise
        self._schedule.ended(self._clock(), outcomes)
        if trained.nothing:
            say(f"no candidate: {trained.nothing}")
            return ""
        try:
            return await self._desk.offer(trained.artifact, trained.history)
        except RouterRefused as refused:  # somebody offered another one meanwhile
            say(f"the candidate was not tried: {refused}")
            return ""

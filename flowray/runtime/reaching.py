"""The way to a served router from one event loop: looked for until it is there, and again when nobody answers.

Serve comes and goes beside the runtime: it may not be there yet, be shut down, deployed again, or lose its replicas and
get new ones. What looks for it blocks, so it runs in a thread; who asks meanwhile hears at once that there is no way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from flowray.errors import NotConnected
from flowray.routing.config import AskingConfig
from flowray.routing.queries import Queries, RouterStatus
from flowray.runtime.saying import say
from flowray.runtime.scorers import Ask, Failed, Hedged, Scored

LOOK_S = 1.0  # between two looks while nothing is found, or what was found does not answer
STALE_LOOKS = 10  # in a row that find the same way while nobody answers on it: then it is laid anew


class Way(Ask, Protocol):
    """Leads to a served router (`flowray.runtime.serving.ServedRouter`)."""

    @property
    def ready(self) -> bool:
        """Is there a replica, or was there one?"""
        ...

    def statuses(self) -> tuple[RouterStatus, ...]:
        """What each replica says of itself. Blocks. Raises WaitTimeout."""
        ...

    def close(self) -> None:
        """Nobody asks here any more. Blocks."""
        ...


Find = Callable[[Way | None], Way]  # the way as it is now, which may be the one known; raises NotConnected. Blocks.


class Reach:
    """See the module. Use only from the event loop that it began on."""

    def __init__(self, find: Find, asking: AskingConfig) -> None:
        self._find = find
        self._asking = asking
        self._way: Way | None = None
        self._hedged: Hedged | None = None
        self._missing = "it was not looked for yet"
        self._doubt = asyncio.Event()  # somebody was not answered
        self._vain = 0  # looks in a row that changed nothing, with no answer in between
        self._looking: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Look for it from now on."""
        self._looking = asyncio.get_running_loop().create_task(self._keep())

    def end(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()

    async def score(self, queries: Queries, deadline_s: float) -> Scored | Failed:
        """What the router says within the deadline, or why it says nothing."""
        way, hedged = self._way, self._hedged
        if way is None or hedged is None:
            return Failed(kind="absent", detail=self._missing)
        if not way.ready:
            return Failed(kind="absent", detail="none of its replicas is ready yet")
        outcome = await hedged.score(queries, deadline_s)
        if isinstance(outcome, Scored):
            self._vain = 0
            self._doubt.clear()
        else:
            self._doubt.set()
        return outcome

    async def statuses(self) -> tuple[RouterStatus, ...]:
        """What each replica says of itself.

        Raises:
            NotConnected: nothing is served. WaitTimeout: some replica does not say.
        """
        if self._way is None:
            raise NotConnected(self._missing)
        return await asyncio.to_thread(self._way.statuses)

    async def _keep(self) -> None:
        while True:
            await self._look()
            if self._way is not None:
                await self._doubt.wait()
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        known = self._way
        self._vain += 1
        try:
            found = await asyncio.to_thread(self._find, None if self._vain > STALE_LOOKS else known)
        except NotConnected as error:
            self._take(None, str(error))
        except Exception as error:  # noqa: BLE001 - whatever Serve is up to, tasks go on without it
            self._take(None, f"{type(error).__name__}: {error}")
            say(f"the way to Serve: {self._missing}")
        else:
            if found is not known:
                self._take(found)
        if known is not None and self._way is not known:
            await asyncio.to_thread(known.close)

    def _take(self, way: Way | None, missing: str = "") -> None:
        self._way, self._missing, self._vain = way, missing, 0
        self._hedged = None if way is None else Hedged(way, self._asking)  # what is new was not tried yet
        self._doubt.clear()

"""Handing a batch over to flowray: nothing is left out, and nothing more is read while flowray does not take it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Generic, TypeVar

from flowray.bridges.backoff import Backoff
from flowray.bridges.config import BridgeLimits
from flowray.bridges.figures import Figures
from flowray.bridges.topics import Topics
from flowray.errors import FlowrayError, PayloadError

Mark = TypeVar("Mark")  # what the source knows the message by: an entry id, a delivery tag


class Arrival(Generic[Mark]):
    """A message from outside, decoded."""

    __slots__ = ("body", "mark", "message_id", "reason")

    def __init__(self, mark: Mark, message_id: str, body: bytes) -> None:
        self.mark, self.message_id, self.body = mark, message_id, body
        self.reason = ""  # why flowray can never take it


async def hand_over(
    topics: Topics,
    topic: str,
    batch: Sequence[Arrival[Mark]],
    limits: BridgeLimits,
    figures: Figures,
    gave_up: asyncio.Event,
) -> tuple[list[Arrival[Mark]], list[Arrival[Mark]]]:
    """Publish a batch in its order; returns (taken over, refused for good, with their `reason`).

    Publishes run side by side. What flowray does not take now is tried again until it does, with growing waits; so a
    message that was refused comes after those behind it. Only when `gave_up` is set (the bridge is stopping and has
    waited long enough) something may be missing from both lists: that is still the source's.

    Errors other than FlowrayError and OSError are bugs of somebody's and end the bridge.
    """
    taken: list[Arrival[Mark]] = []
    dead: list[Arrival[Mark]] = []
    waiting = list(batch)
    backoff = Backoff(limits.reconnect_min_s, limits.reconnect_max_s)
    while waiting:
        tasks = [
            asyncio.ensure_future(topics.publish(topic, arrival.body, message_id=arrival.message_id))
            for arrival in waiting
        ]
        try:
            await _all_or(tasks, gave_up)
        finally:
            for task in tasks:
                task.cancel()
        refused: list[Arrival[Mark]] = []
        for arrival, task in zip(waiting, tasks, strict=True):
            if not task.done() or task.cancelled():
                continue  # given up
            error = task.exception()
            if error is None:
                taken.append(arrival)
            elif isinstance(error, PayloadError):
                arrival.reason = str(error)
                dead.append(arrival)
            elif isinstance(error, (FlowrayError, OSError)):
                refused.append(arrival)
                figures.refused += 1
                figures.last_error = f"{topic}: {type(error).__name__}: {error}"
            else:
                raise error
        waiting = refused
        if gave_up.is_set() or (waiting and await backoff.wait(gave_up)):
            break
    return taken, dead


async def _all_or(tasks: Sequence[asyncio.Future[None]], gave_up: asyncio.Event) -> None:
    """Wait for all of the tasks, or for the event."""
    everything: asyncio.Future[object] = asyncio.ensure_future(asyncio.wait(tasks))
    end: asyncio.Future[object] = asyncio.ensure_future(gave_up.wait())
    try:
        await asyncio.wait({everything, end}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        end.cancel()
        everything.cancel()  # this stops the waiting only, not the tasks

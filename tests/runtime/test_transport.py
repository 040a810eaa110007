"""What carries messages: an agent's answers survive whatever becomes of coordinators."""

from __future__ import annotations

import asyncio

import pytest
from ray import exceptions as rex

from flowray.errors import StoreError
from flowray.runtime import messages
from flowray.runtime.messages import Finished, Report
from flowray.runtime.transport import ReportLink


class Coordinator:
    """Fails as it is told, call by call, then takes reports."""

    def __init__(self, failures: list[Exception]) -> None:
        self._failures = failures
        self.taken: list[Report] = []
        self.report = self  # so that `coordinator.report.remote(...)` arrives below

    async def remote(self, body: bytes) -> None:
        if self._failures:
            raise self._failures.pop(0)
        self.taken.append(messages.decode(body, Report))


@pytest.mark.parametrize(
    "failures",
    [
        [],
        [rex.ActorUnavailableError("it restarts", b"\0" * 16)] * 3,
        [rex.RayTaskError("report", "the journal's disk is full", StoreError("the journal's disk is full"))] * 3,
    ],
    ids=["at once", "after a restart", "after its journal was mended"],
)
async def test_an_answer_is_sent_until_it_is_acknowledged(failures: list[Exception]) -> None:
    waiting = [Finished("t", 1, 1, None, None, 0.0)]
    acknowledged = asyncio.Event()

    def forget(count: int) -> None:
        del waiting[:count]
        acknowledged.set()

    link = ReportLink(forget)
    coordinator = Coordinator(failures)
    link.attach(coordinator)
    running = asyncio.get_running_loop().create_task(link.run(lambda: Report("a", 1, waiting) if waiting else None))
    await asyncio.wait_for(acknowledged.wait(), 10)
    assert not waiting and [one.results[0].task_id for one in coordinator.taken] == ["t"]
    running.cancel()

"""A runtime that was not asked to stay goes when the driver that started it is gone.

A driver stops its runtime itself when it leaves the `with` block. One that is killed cannot, and its agents are
detached: on a shared cluster they would stay for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ray._private.state import jobs

_LOOK_EVERY_S = 5.0


async def leave_with_owner(owner_job: str, leave: Callable[[], Awaitable[None]]) -> None:
    """Call `leave` once Ray says that the job `owner_job` has ended. "" has no end."""
    if not owner_job:
        return
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        if has_ended(owner_job, await asyncio.to_thread(jobs)):
            await leave()
            return


def has_ended(job_id: str, table: list[dict[str, Any]]) -> bool:
    """Does Ray's job table say that this job is over? A job that the table has forgotten may be alive."""
    return any(job["JobID"] == job_id and bool(job.get("IsDead") or job.get("EndTime")) for job in table)

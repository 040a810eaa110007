"""Forgetting in time: outcomes, dead letters and payload files that are older than the configuration says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from flowray.config import RetentionConfig
from flowray.core.coordination import Coordination
from flowray.errors import StoreError
from flowray.store import PayloadStore, Store

_PAGE = 500


async def sweep_for_ever(
    config: RetentionConfig,
    core: Coordination,
    store: Store,
    payloads: Path,
    clock: Callable[[], float],
    on_store_failure: Callable[[StoreError], None],
) -> None:
    """Sweep now and then. Runs on the coordinator's event loop; the files are looked at in a thread."""

    def done(error: StoreError | None) -> None:
        if error is not None:
            on_store_failure(error)

    while True:
        await asyncio.sleep(config.sweep_every_s)
        now = clock()
        store.trim(now - config.outcomes_s, done, dead_letters_older_than_at=now - config.dead_letters_s)
        if payloads.is_dir():
            used = {
                payload.ref
                for entry in core.book.open.values()
                for payload in (entry.task.payload, *entry.steps.values())
                if payload is not None and payload.ref is not None
            }
            await asyncio.to_thread(_sweep_files, store, payloads, used, config.outcomes_s)


def _sweep_files(store: Store, payloads: Path, used: set[str], older_than_s: float) -> int:
    """Delete payload files that nothing refers to any more: how many.

    A result's file is as old as its outcome or younger, and the outcome is gone after `outcomes_s`. What open tasks
    and dead letters refer to is kept whatever its age. A day more than needed does no harm and forgives clocks.
    """
    after = ""
    while page := store.dead_letters(_PAGE, after):
        after = page[-1][0].id
        for task, outcome in page:
            used.update(p.ref for p in (task.payload, outcome.value) if p is not None and p.ref is not None)
    return PayloadStore(payloads).delete_unused(
        lambda ref: ref in used, older_than_s=older_than_s + 86_400.0, now_s=time.time()
    )

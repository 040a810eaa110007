"""Forgetting in time: outcomes, dead letters and payload files that are older than the configuration says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from flowray.config import RetentionConfig
from flowray.core.coordination import Coordination
from flowray.errors import StoreError
from flowray.store import PayloadStore, Store, StoreConfig

_PAGE = 500


class Swept(Protocol):
    """Where payloads are kept."""

    def delete_unused(self, keep: Callable[[str], bool], *, older_than_s: float, now_s: float) -> int:
        """See `store.PayloadStore`."""
        ...


async def sweep_for_ever(
    config: RetentionConfig,
    core: Coordination,
    store: Store,
    payloads: Callable[[], Swept | None],
    clock: Callable[[], float],
    on_store_failure: Callable[[StoreError], None],
) -> None:
    """Sweep now and then. Runs on the coordinator's event loop; the payloads are looked at in a thread.

    `payloads` gives where they are, None while there are none.
    """

    def done(error: StoreError | None) -> None:
        if error is not None:
            on_store_failure(error)

    while True:
        await asyncio.sleep(config.sweep_every_s)
        now = clock()
        store.trim(now - config.outcomes_s, done, dead_letters_older_than_at=now - config.dead_letters_s)
        if (place := payloads()) is not None:
            used = {
                payload.ref
                for entry in core.book.open.values()
                for payload in (entry.task.payload, *entry.steps.values())
                if payload is not None and payload.ref is not None
            }
            used.update(core.book.inboxes.references())
            await asyncio.to_thread(_sweep_payloads, store, place, used, config.outcomes_s)


def swept(config: StoreConfig, directory: Path) -> Callable[[], Swept | None]:
    """Where a runtime's payloads are: in its database, else in this directory, which is not there before the first."""
    if not config.url:
        return lambda: PayloadStore(directory) if directory.is_dir() else None
    from flowray.store.postgres_payloads import PostgresPayloads  # needs psycopg

    payloads = PostgresPayloads(config)
    return lambda: payloads


def _sweep_payloads(store: Store, payloads: Swept, used: set[str], older_than_s: float) -> int:
    """Delete payloads that nothing refers to any more: how many.

    A result's payload is as old as its outcome or younger, and the outcome is gone after `outcomes_s`. What open tasks
    and dead letters refer to is kept whatever its age. A day more than needed does no harm and forgives clocks.
    """
    after = ""
    while page := store.dead_letters(_PAGE, after):
        after = page[-1][0].id
        for task, outcome in page:
            used.update(p.ref for p in (task.payload, outcome.value) if p is not None and p.ref is not None)
    return payloads.delete_unused(lambda ref: ref in used, older_than_s=older_than_s + 86_400.0, now_s=time.time())

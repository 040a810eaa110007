"""From what the store has to a core that goes on. Knows no Ray."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from flowray.core.coordination import Coordination
from flowray.core.policy import CorePolicy
from flowray.errors import StoreError
from flowray.runtime.pump import time_line
from flowray.store import Store

_ROOM_BYTES = 4 << 20  # that a journal must be able to grow by, for a coordinator to begin


class Recovered(NamedTuple):
    """The core of a new epoch, and its clock."""

    core: Coordination
    clock: Callable[[], float]


def prepare_process() -> None:
    """Settings of a process whose event loop drives a journal's writer."""
    # The journal's writer is a thread: at the default of 5 ms the event loop would keep it waiting for the
    # interpreter longer than a sync takes (measured: append to done 41 ms under load, 5 ms with this).
    sys.setswitchinterval(0.0005)
    # What is loaded stays, and what a task makes is freed by its reference counts: at the defaults a tenth of this
    # process's time went into looking for cycles.
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


def recover(store: Store, *, life: str, policy: CorePolicy, seed: int | None) -> Recovered:
    """Begin an epoch with what the journal has. Raises StoreError, also when nothing more can be written there."""
    # On a full disk this process would otherwise let everybody in, fail at one of the first tasks, and end.
    store.require_room(_ROOM_BYTES)
    # Hundreds of thousands of objects are made and none is thrown away: looking for garbage takes a third of the time.
    gc.disable()
    try:
        earlier_life = store.owner()[1]
        recovery = store.begin_epoch(life)
        clock = time_line(recovery.last_at)
        core = Coordination.recover(
            epoch=recovery.epoch,
            rng=random.Random(seed),
            now=clock(),
            policy=policy,
            snapshot=recovery.snapshot,
            commands=recovery.commands,
            keep_agents=earlier_life == life,
        )
    finally:
        gc.enable()
        gc.freeze()  # nor is it looked through later
    if earlier_life != life:
        # That its agents are not wanted any more is no command: this makes it durable. After a crash in this life
        # nobody waits for a snapshot; the pump saves one when the commands since the last are many.
        saved: Future[StoreError | None] = Future()
        store.save_snapshot(core.snapshot(), saved.set_result)
        if (error := saved.result()) is not None:
            raise error
    return Recovered(core, clock)

"""The coordinator's engine: inbox, core, journal, commands. Knows neither Ray nor sockets.

One turn takes everything in the inbox, lets the core decide on each event, performs at once what need not wait, hands
the durable commands to the journal as one group, and performs the rest when that group is on disk. While it is being
written the next turn runs: groups grow with the load and an idle coordinator adds one sync to a task.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from flowray.core.commands import Command, DurableCommand
from flowray.core.coordination import Coordination
from flowray.core.events import Event, Ticked
from flowray.errors import StoreError
from flowray.store import Store

_TURN_EVENTS = 1024  # events in one turn: bounds how long the loop is held
_SNAPSHOT_AFTER = 50_000  # journalled commands at least between two snapshots


class Observer(Protocol):
    """Sees what was decided, in order. Must be quick and must not raise."""

    def __call__(self, command: Command) -> None: ...


class Pump:
    """Drives one Coordination. Use only from one event loop."""

    def __init__(
        self,
        core: Coordination,
        store: Store,
        perform: Callable[[Command], None],
        clock: Callable[[], float],
        on_store_failure: Callable[[StoreError], None],
        observers: Sequence[Observer] = (),
        answers: Callable[[], Sequence[Event]] = tuple,
    ) -> None:
        """`answers` gives what can be said at once to questions of the turn under way: a decision that has its answer
        in the same turn costs no second one, and no second group in the journal.
        """
        self.core = core
        self._store = store
        self._perform = perform
        self._clock = clock
        self._on_store_failure = on_store_failure
        self._observers = list(observers)
        self._answers = answers
        self._inbox: list[Event] = []
        self._barriers: list[Callable[[], object]] = []
        self._wake = asyncio.Event()
        self._stopping = False

    def put(self, event: Event) -> None:
        """Something happened."""
        if not self._inbox:  # with something in there, the next turn comes by itself
            self._wake.set()
        self._inbox.append(event)

    def synced(self) -> asyncio.Future[None]:
        """Resolves when everything put so far is on disk."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.when_synced(lambda: None if future.done() else future.set_result(None))
        return future

    def when_synced(self, call: Callable[[], object]) -> None:
        """Call once everything put so far is on disk."""
        self._barriers.append(call)
        self._wake.set()

    def stop(self) -> None:
        """End `run` after the turn under way."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Turn after turn until stopped."""
        while not self._stopping:
            await self._until_something()
            self._turn()
            await asyncio.sleep(0)  # let messages in between two turns

    async def _until_something(self) -> None:
        if not self._inbox and not self._barriers and not self._stopping:
            due = self.core.next_due()
            wait_s = None if due is None else max(0.0, due - self._clock())
            if wait_s is None or wait_s > 0:
                waker = None
                if wait_s is not None:
                    waker = asyncio.get_running_loop().call_later(wait_s, self._wake.set)
                await self._wake.wait()
                if waker is not None:
                    waker.cancel()
        self._wake.clear()

    def _turn(self) -> None:
        core = self.core
        events, self._inbox = self._inbox[:_TURN_EVENTS], self._inbox[_TURN_EVENTS:]
        whole = not self._inbox
        barriers: list[Callable[[], object]] = []
        if whole:
            barriers, self._barriers = self._barriers, []
        durable: list[DurableCommand] = []
        waiting: list[Command] = []
        for event in events:
            self._sort(core.handle(event, self._clock()), durable, waiting)
        for event in self._answers():
            self._sort(core.handle(event, self._clock()), durable, waiting)
        due = core.next_due()
        if due is not None and due <= self._clock():
            self._sort(core.handle(Ticked(), self._clock()), durable, waiting)
        if not durable and not waiting and not barriers:
            return
        loop = asyncio.get_running_loop()
        ended = core.admission.ended

        def done(error: StoreError | None) -> None:
            loop.call_soon_threadsafe(self._written, waiting, barriers, ended, error)

        try:
            self._store.append(durable, done)
        except StoreError as error:
            self._on_store_failure(error)
            return
        if self._store.commands_since_snapshot > max(_SNAPSHOT_AFTER, len(core.book.open)):
            self._store.save_snapshot(core.snapshot(), self._snapshot_saved)

    def _sort(self, commands: list[Command], durable: list[DurableCommand], waiting: list[Command]) -> None:
        observers = self._observers
        for command in commands:
            for observer in observers:
                observer(command)
            if command.durable:
                durable.append(command)  # type: ignore[arg-type]
            if command.waits:
                waiting.append(command)
            else:
                self._perform(command)

    def _written(
        self, waiting: list[Command], barriers: list[Callable[[], object]], ended: int, error: StoreError | None
    ) -> None:
        if error is not None:
            self._on_store_failure(error)
            return
        self.core.admission.on_disk(ended)
        for command in waiting:
            self._perform(command)
        for call in barriers:
            call()

    def _snapshot_saved(self, error: StoreError | None) -> None:
        if error is not None:
            self._on_store_failure(error)


def time_line(last_at: float) -> Callable[[], float]:
    """The coordinator's clock: UTC seconds at the start of this life, but never before `last_at`; monotonic since."""
    base = max(time.time(), last_at + 1e-6) - time.monotonic()
    return lambda: base + time.monotonic()

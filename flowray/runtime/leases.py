"""Ends an agent's exclusive attempts when its process has had no word from a coordinator for too long.

With `core.fence_all` it ends the others as well. These wait for no lease: what a coordinator starts, it may begin.

Whether such an attempt may run is decided by `core.fencing.Lease`; here a clock goes with it. Asking for a lease, and
hearing of one, is done on the process's loop. Watching it is done by a thread, because user code may block that loop.
What does not stop when it is told to is ended with its process: the next attempt begins when that must have happened.
(A process that is itself stopped, as by `kill -STOP`, notices when it goes on, and ends itself at once; `ctx.fence` is
for what it does until then.)
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

from flowray.core.fencing import STOP_S, Lease

FENCED = 73  # exit status of a process whose attempts did not stop
_GRACE_S = 0.8 * STOP_S  # from being told to stop until the process is ended

Tokens = frozenset[tuple[str, int, int]]  # (task, attempt, epoch)


class Fenceable(Protocol):
    """The exclusive attempts of an agent, or its ordinary ones. Any thread may ask."""

    def held(self) -> bool:
        """Are there some, begun or not?"""
        ...

    def stop(self) -> Tokens:
        """Tell those that have begun to stop; which."""
        ...

    def runs(self, tokens: Tokens) -> bool:
        """Does one of these still run?"""
        ...

    def release(self) -> None:
        """There is a lease: those that wait for it may begin. Called on the loop."""
        ...


class SelfFence:
    """What to do when, for one thread; told the time."""

    def __init__(self, lease: Lease, attempts: Fenceable, end: Callable[[], None]) -> None:
        """`end` ends the process."""
        self._lease = lease
        self._attempts = attempts
        self._end = end
        self._told: Tokens = frozenset()  # to stop
        self._end_at = 0.0

    def look(self, now: float) -> float | None:
        """Do what is due. When to look again; None when there is nothing to watch until there is a lease."""
        if self._told:
            if self._attempts.runs(self._told):
                if now < self._end_at:
                    return self._end_at
                self._end()
                return None
            self._told = frozenset()
        if self._lease.valid(now):
            return self._lease.until
        self._told = self._attempts.stop()
        # From the lease's end, not from now: this process may have been stopped, and only now goes on.
        self._end_at = self._lease.until + _GRACE_S
        if self._told and now >= self._end_at:
            self._end()
        return self._end_at if self._told else None


class LeaseKeeper:
    """The lease of one agent."""

    def __init__(
        self,
        lease_s: float,
        attempts: Fenceable,
        *,
        ask: Callable[[int], object],
        later: Callable[[float, Callable[[], None]], object],
        trusts: bool = False,
    ) -> None:
        """`ask` sends a request of this number, if there is somebody to send it to; both are called on the loop.

        `trusts`: what there is to do came from the coordinator just now, which counts as a lease.
        """
        self._lease = Lease(lease_s)
        self._attempts = attempts
        self._ask = ask
        self._later = later
        self._trusts = trusts
        self._renewing = False
        self._changed = threading.Condition()  # guards the lease; waited on by the thread that watches it
        self._watcher: threading.Thread | None = None

    def valid(self) -> bool:
        """May exclusive attempts run now? From any thread, whatever it has locked."""
        return self._lease.valid(time.monotonic())

    def need(self) -> None:
        """There is an attempt that needs a lease. On the loop."""
        with self._changed:
            if self._trusts:
                self._lease.heard(time.monotonic())
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, daemon=True, name="agent-lease")
                self._watcher.start()
        if not self._renewing:
            self._renewing = True
            self._renew()

    def renew_now(self) -> None:
        """There is a coordinator to ask (again). On the loop."""
        if self._renewing:
            self._request()

    def _renew(self) -> None:
        self._renewing = self._attempts.held()
        if self._renewing:
            self._request()
            self._later(self._lease.renew_every_s, self._renew)

    def _request(self) -> None:
        with self._changed:
            number = self._lease.ask(time.monotonic())
        self._ask(number)

    def granted(self, number: int) -> None:
        """A coordinator has answered. On the loop."""
        with self._changed:
            self._lease.granted(number)
            self._changed.notify()
        self._attempts.release()

    def _watch(self) -> None:
        fence = SelfFence(self._lease, self._attempts, _end_process)
        with self._changed:
            while True:
                now = time.monotonic()
                at = fence.look(now)
                if at is None and not self._attempts.held():
                    self._watcher = None
                    return
                self._changed.wait(self._lease.ttl_s if at is None else max(0.0, at - now))


def _end_process() -> None:
    text = "flowray: no word from a coordinator, and an attempt does not stop: this process ends"
    print(text, file=sys.stderr, flush=True)  # noqa: T201
    os._exit(FENCED)

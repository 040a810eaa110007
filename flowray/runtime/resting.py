"""Rest for the main thread of a Ray worker that has nothing to do there.

A Ray worker's main thread looks for signals every 10 ms (`CoreWorker::RunTaskExecutionLoop` of Ray 2.60), whether or
not there is anything to do. That is some 0.6 % of a core in each process: with 120 agents on two cores, a third of all
there is. The only other work of that thread is to begin calls that arrive over Ray, and once an agent is connected to
its coordinator none is expected: everything goes over the mesh.

So the thread is sent to sleep inside a signal handler of its own. Every second it is let out for a moment, and begins
whatever calls have arrived; `wake` lets it out at once. Ray's kill, its own signal handlers and the check that the
node's raylet still lives need no rest interrupted: they run elsewhere, or interrupt it themselves.

Python lets only the main thread set signal handlers, and nothing of an asyncio actor runs there. So it is the worker's
own start (`template/worker.py`) that prepares it, and a worker that Ray started in the stock way never rests.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from types import FrameType

_SIGNAL = signal.SIGRTMIN + 11
_REST_S = 1.0  # at a time: how long an unexpected call may wait
_LOOK_S = 0.03  # in between: three of Ray's looks


class MainThread:
    """The main thread of this process, of which there is one: `main_thread`."""

    def __init__(self) -> None:
        self._ident = 0  # 0: it cannot be sent to sleep
        self._awake = threading.Event()
        self._awake.set()
        self._asleep = False  # only in the main thread
        self._timer: asyncio.TimerHandle | None = None  # only on the loop of who sent it to rest

    def prepare(self) -> None:
        """Let it be sent to rest. Call it in the main thread; where nobody did, it never rests."""
        signal.signal(_SIGNAL, self._sleep)
        self._ident = threading.get_ident()

    def rest(self, loop: asyncio.AbstractEventLoop) -> None:
        """There is nothing to do until `wake`. Call both on this loop, which keeps the time meanwhile."""
        if self._ident and self._awake.is_set():
            self._awake.clear()
            self._send_to_sleep(loop)

    def wake(self) -> None:
        """A call may come at any moment."""
        self._awake.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send_to_sleep(self, loop: asyncio.AbstractEventLoop) -> None:
        signal.pthread_kill(self._ident, _SIGNAL)
        self._timer = loop.call_later(_REST_S, self._send_to_sleep, loop)

    def _sleep(self, _number: int, _frame: FrameType | None) -> None:
        if self._asleep:  # a late signal: it rests already
            return
        self._asleep = True
        try:
            self._awake.wait(_REST_S - _LOOK_S)
        finally:
            self._asleep = False


main_thread = MainThread()

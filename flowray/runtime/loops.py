"""An event loop in a thread of its own: the mesh runs on it, beside whatever the process does."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")
_END_S = 5.0


class LoopThread:
    """A running event loop. Daemonic: it never keeps a process from ending."""

    def __init__(self, name: str) -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, work: Callable[[], Coroutine[Any, Any, T]], timeout_s: float | None = None) -> T:
        """Run a coroutine function there and wait for its result. Not from the loop itself."""
        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(timeout_s)

    def soon(self, call: Callable[..., object], *arguments: Any) -> bool:
        """Call there, soon. False when the loop has ended."""
        try:
            self.loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            return False
        return True

    def end(self) -> None:
        """Cancel what runs there and end the loop."""
        if self.loop.is_closed() or threading.current_thread() is self._thread:
            return

        async def cancel_all() -> None:
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        with contextlib.suppress(TimeoutError):  # what does not let itself be cancelled ends with the process
            self.call(cancel_all, _END_S)
        self.soon(self.loop.stop)
        self._thread.join(_END_S)
        if not self._thread.is_alive():
            self.loop.close()

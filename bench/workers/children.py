"""Further processes of one side: `bench.workers.NAME` as a child that says when it is ready, and goes when we do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

_READY = "ready"
_STOP_S = 10.0


@contextlib.contextmanager
def children(module: str, settings: Sequence[Mapping[str, Any]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Start `bench.workers.<module>` once for each of the settings, wait until all are ready, and end them afterwards.

    Raises:
        RuntimeError: one ended before it was ready; why is on stderr.
    """
    started: list[subprocess.Popen[str]] = []
    try:
        for one in settings:
            command = [sys.executable, "-m", f"bench.workers.{module}", json.dumps(one)]
            started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for child in started:
            assert child.stdout is not None
            if child.stdout.readline().strip() != _READY:
                raise RuntimeError(f"{module} did not start: it ended with {child.wait(_STOP_S)}")
        yield started
    finally:
        for child in started:
            assert child.stdin is not None
            child.stdin.close()
        for child in started:
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def serve(work: Callable[[dict[str, Any], Callable[[], None]], Coroutine[Any, Any, None]]) -> None:
    """The child's side: run `work(settings, say_ready)` until the parent closes our stdin, or is no more."""
    import uvloop

    async def run() -> None:
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()

        def watch() -> None:
            sys.stdin.read()
            loop.call_soon_threadsafe(gone.set)

        threading.Thread(target=watch, daemon=True).start()
        working = asyncio.create_task(work(json.loads(sys.argv[1]), lambda: print(_READY, flush=True)))
        waiting = asyncio.create_task(gone.wait())
        done, _ = await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        for task in {working, waiting} - done:
            task.cancel()
        if working in done:
            working.result()

    uvloop.run(run())

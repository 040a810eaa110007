"""Grading many answers: by a function of the caller's, sync or async, or by an agent that is asked what they are worth.

Answers are graded as they come, `in_flight` of them at once. What goes wrong with one says nothing of the others: each
has its grade, or the error that says why it has none.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowray.agents import check_number
from flowray.errors import ConfigError, WaitTimeout
from flowray.runtime.handle import Handle, Handles

if TYPE_CHECKING:
    from flowray.runtime.runtime import Runtime

Grader = Callable[[Any], float | Awaitable[float]]  # of a task's value; 0..1

_MAX_BY = 200  # characters
_MAX_IN_FLIGHT = 1_024


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """What came of grading one task: a grade that is on disk, or the error that says why there is none."""

    task_id: str
    quality: float | None = None  # 0..1
    error: Exception | None = None


def check_grade(quality: object, by: object) -> tuple[float, str]:
    """A grade that can be recorded. Raises ConfigError, which names what is wrong."""
    number = check_number("quality", quality, 0.0, 1.0)
    if not isinstance(by, str) or len(by) > _MAX_BY or not by.isprintable():
        raise ConfigError("by", f"wants a str of at most {_MAX_BY} printable characters, got {by!r:.60}")
    return number, by


def grade_all(
    runtime: Runtime,
    handles: Iterable[Handle],
    grader: Grader | str,
    *,
    by: str = "",
    prompt: Callable[[Handle], str] | None = None,
    in_flight: int = 8,
    timeout_s: float | None = None,
) -> list[Graded]:
    """See `Runtime.grade_with`."""
    if not isinstance(grader, str) and not callable(grader):
        raise ConfigError("grader", f"wants a function of an answer, or the name of an agent class, got {grader!r:.60}")
    if isinstance(in_flight, bool) or not isinstance(in_flight, int) or not 1 <= in_flight <= _MAX_IN_FLIGHT:
        raise ConfigError("in_flight", f"must be a whole number from 1 to {_MAX_IN_FLIGHT}, got {in_flight!r}")
    named = grader if isinstance(grader, str) else getattr(grader, "__qualname__", type(grader).__name__)
    _, by = check_grade(0.0, by or str(named)[-_MAX_BY:])
    wanted = list(handles)
    with _Loop() as loop, ThreadPoolExecutor(in_flight, thread_name_prefix="grading") as threads:

        def one(handle: Handle) -> Graded:
            try:
                if isinstance(grader, str):
                    said = _judged(runtime, handle, grader, prompt, timeout_s)
                else:
                    said = loop.finished(grader(handle.result()))
                quality, _ = check_grade(said, by)
                runtime.grade(handle.task_id, quality, by=by)
            except Exception as error:  # noqa: BLE001 - the user's grader may raise anything; it is told, not lost
                return Graded(task_id=handle.task_id, error=error)
            return Graded(task_id=handle.task_id, quality=quality)

        found = {graded.task_id: graded for graded in _at_once(threads, one, _ended(wanted, timeout_s), in_flight)}
    late = WaitTimeout("no outcome to grade", timeout_s or 0.0)
    return [found.get(handle.task_id, Graded(task_id=handle.task_id, error=late)) for handle in wanted]


def _ended(handles: Sequence[Handle], timeout_s: float | None) -> Iterator[Handle]:
    """As they end; those that have not in time are left out."""
    try:
        yield from Handles(handles).as_completed(timeout_s)
    except WaitTimeout:
        return


def _at_once(
    threads: ThreadPoolExecutor, one: Callable[[Handle], Graded], handles: Iterator[Handle], in_flight: int
) -> Iterator[Graded]:
    under_way: set[Future[Graded]] = set()
    for handle in handles:
        under_way.add(threads.submit(one, handle))
        if len(under_way) >= in_flight:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            yield from (each.result() for each in done)
    yield from (each.result() for each in under_way)


def _judged(
    runtime: Runtime, handle: Handle, agent: str, prompt: Callable[[Handle], str] | None, timeout_s: float | None
) -> Any:
    """What an agent says an answer is worth."""
    answer = handle.result()
    asked = prompt(handle) if prompt is not None else runtime._asked(handle.task_id)
    judging = runtime.submit(
        prompt=asked, payload={"answer": answer}, agent=agent, labels={"grades": handle.task_id[:200]}
    )
    return judging.result(timeout_s)


class _Loop:
    """One event loop, in a thread of its own, for all that an async grader does. Begun when it is needed."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> _Loop:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def finished(self, said: Any) -> Any:
        """The value of what is awaitable, anything else as it is. Called on any thread but the loop's."""
        if not inspect.isawaitable(said):
            return said
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="grading-loop", daemon=True)
                self._thread.start()
        return asyncio.run_coroutine_threadsafe(_awaited(said), self._loop).result()


async def _awaited(said: Awaitable[Any]) -> Any:
    return await said

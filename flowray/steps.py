"""What an attempt can be known by outside, and its recorded steps, without any runtime.

    async def run(self, task, ctx):
        draft = await ctx.step("draft", self.write, task.prompt)        # not run again by a later attempt
        await ctx.step("send", self.send, draft, ctx.idempotency_key("send"))

A step's result is on disk before `ctx.step` returns it, and an attempt that comes later is given it instead of running
the function. Between the function's end and the record the process may die: then the next attempt runs it again. So a
side effect happens at least once; whoever can recognise `ctx.idempotency_key(...)`, or refuse a lower `ctx.fence` than
the highest seen, makes exactly one of it.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from flowray.core.fencing import fence_of, idempotency_key
from flowray.core.steps import MAX_NAME, MAX_STEPS
from flowray.errors import ConfigError, StepLimit


class Recorder(Protocol):
    """Where the results of one attempt's steps are kept. Made by a runtime; any thread may use it."""

    def __len__(self) -> int:
        """How many of this task are recorded, as far as is known here."""
        ...

    def __contains__(self, name: str) -> bool:
        """Is there a result of this step already?"""
        ...

    def load(self, name: str) -> Any:
        """The recorded result."""
        ...

    def load_beside(self, name: str) -> Coroutine[Any, Any, Any]:
        """The same on an event loop, which goes on meanwhile."""
        ...

    def record(self, name: str, value: Any) -> Any:
        """Record a result. Returns once it is on disk: it, or another attempt's that was recorded first.

        Raises:
            StaleAttempt: this attempt is not a current one any more; nothing was recorded.
            StepLimit, PayloadError: it is one too many, or cannot be kept.
        """
        ...

    def record_beside(self, name: str, value: Any) -> Coroutine[Any, Any, Any]:
        """The same on an event loop, which goes on meanwhile."""
        ...


class InMemory:
    """For contexts made by hand: results are kept as long as this object is."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.values)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def load(self, name: str) -> Any:
        return self.values[name]

    async def load_beside(self, name: str) -> Any:
        return self.values[name]

    def record(self, name: str, value: Any) -> Any:
        return self.values.setdefault(name, value)

    async def record_beside(self, name: str, value: Any) -> Any:
        return self.record(name, value)


class Steps:
    """The side effects of one attempt: its names outside, and the steps it has taken."""

    def __init__(self, task_id: str, attempt: int, epoch: int, recorder: Recorder) -> None:
        """`epoch` is that of the coordinator that started the attempt."""
        self._task_id = task_id
        self.fence = fence_of(epoch, attempt)
        self._recorder = recorder
        self._used: set[str] = set()  # names of this attempt's steps
        self._lock = threading.Lock()

    def idempotency_key(self, step: str) -> str:
        """See Context.idempotency_key."""
        if not isinstance(step, str):
            raise ConfigError("step", f"a name is wanted, a str, got {step!r}")
        return idempotency_key(self._task_id, step)

    def take(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See Context.step."""
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise ConfigError("step", f"{name!r} is no name of a step: 1 to {MAX_NAME} printable characters")
        if not callable(fn):
            raise ConfigError("step", f"{name!r} wants a function and its arguments, got {fn!r}", "ctx.step(name, fn)")
        with self._lock:
            if name in self._used:
                raise ConfigError(
                    "step",
                    f"this attempt has a step {name!r} already: each is recorded under its name",
                    f'give each its own name, as f"{name}-{{number}}" in a loop',
                )
            self._used.add(name)
        if asyncio._get_running_loop() is not None:
            return self._take_beside(name, fn, args, kwargs)
        try:
            if name in self._recorder:
                return self._recorder.load(name)
            self._check_room(name)
            value = fn(*args, **kwargs)
            if inspect.isawaitable(value):
                if inspect.iscoroutine(value):
                    value.close()
                raise ConfigError("step", f"the function of {name!r} is async and this code is not", "make run async")
            return self._recorder.record(name, value)
        except BaseException:
            self._release(name)
            raise

    async def _take_beside(
        self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            if name in self._recorder:
                return await self._recorder.load_beside(name)
            self._check_room(name)
            value = fn(*args, **kwargs)
            if inspect.isawaitable(value):
                value = await value
            return await self._recorder.record_beside(name, value)
        except BaseException:
            self._release(name)
            raise

    def _check_room(self, name: str) -> None:
        """Before the function runs: its result could not be kept."""
        if len(self._recorder) >= MAX_STEPS:
            raise StepLimit(name, f"the task has {len(self._recorder)} recorded steps, and {MAX_STEPS} is the most")

    def _release(self, name: str) -> None:
        """The step recorded nothing: it may be tried again."""
        with self._lock:
            self._used.discard(name)

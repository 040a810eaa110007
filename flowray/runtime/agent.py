"""The Ray actor that hosts one agent: the user's object, its attempts in order, and their answers in batches.

The event loop only passes messages. User code runs beside it: sync code in one thread for each slot, async code on a
loop of its own, so that neither can keep the host from answering. An answer is kept until a coordinator has
acknowledged it, whatever happens to coordinators in between.
"""

from __future__ import annotations

import asyncio
import collections
import importlib
import inspect
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle

from flowray.agents import AgentDescription, Context, check_runnable, describe, wants_context
from flowray.attempts import failure_of, task_for
from flowray.core.model import AgentSpec, Failure, Payload, Running
from flowray.runtime import messages
from flowray.runtime.messages import Begin, Begun, Cancel, Finished, Held, Report, Returned, Start
from flowray.runtime.payloads import PayloadDesk
from flowray.runtime.transport import ReportLink

STUCK_S = 0.1  # an attempt that takes longer makes its agent hand back what it holds beyond its slots
_REPORT_RESULTS = 1024  # in one report
_HOST = frozenset({__file__})  # whose frames are not the user's business


class Attempt:
    """One attempt in this process."""

    __slots__ = ("begun_at", "cancelled", "ctx", "start", "task")

    def __init__(self, start: Start) -> None:
        self.start = start
        self.begun_at = 0.0  # monotonic; 0.0 while it waits
        self.cancelled = False
        self.ctx: Context | None = None
        self.task: asyncio.Task[Any] | None = None  # of async code


class AgentActor:
    """The Ray actor: only doors. Ray wraps every method of an actor class for tracing, so the work is elsewhere."""

    def __init__(self) -> None:
        self._host = AgentHost()

    async def begin(self, body: bytes, coordinator: Any) -> bytes:
        """See AgentHost.begin."""
        return await self._host.begin(body, coordinator)

    async def deliver(self, body: bytes) -> None:
        """See AgentHost.deliver."""
        self._host.deliver(body)

    async def attend(self, epoch: int, coordinator: Any) -> bytes:
        """See AgentHost.attend."""
        return self._host.attend(epoch, coordinator)

    async def watch(self) -> None:
        """Never return: whoever waits for this learns at once when the process dies."""
        await asyncio.Event().wait()


class AgentHost:
    """One agent's process."""

    def __init__(self) -> None:
        self._attempts: dict[tuple[str, int, int], Attempt] = {}  # held: waiting or running, oldest first
        self._results: collections.deque[Finished | Returned] = collections.deque()  # not acknowledged yet
        self._in_report = 0  # of those, how many the report under way covers
        self._epoch = 0
        self._lock = threading.Lock()  # guards the three above
        self._inbox: queue.SimpleQueue[Attempt] = queue.SimpleQueue()
        self._begin: Begin | None = None
        self._begun: Begun | None = None
        self._desk: PayloadDesk | None = None
        self._run: Callable[..., Any] | None = None
        self._with_context = True
        self._description = AgentDescription()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link: ReportLink | None = None
        self._forever: list[Any] = []  # tasks that must not be collected

    # ── called by the coordinator ────────────────────────────────────────────────────────────────────────────────

    async def begin(self, body: bytes, coordinator: Any) -> bytes:
        """Construct the user's object. Called once; a failure is an answer, not an exception."""
        message = messages.decode(body, Begin)
        self._begin, self._epoch = message, message.epoch
        self._loop = asyncio.get_running_loop()
        self._desk = PayloadDesk(
            runtime=message.runtime,
            node_id=message.journal_node,
            directory=message.payloads,
            inline_bytes=message.inline_bytes,
            payload_bytes=message.payload_bytes,
        )
        failure = await asyncio.to_thread(self._construct, message.spec)
        context = ray.get_runtime_context()
        self._begun = Begun(context.get_node_id(), ray.util.get_node_ip_address(), os.getpid(), failure)
        if failure is None:
            self._link = ReportLink(self._acknowledged)
            self._link.attach(coordinator)
            self._forever.append(self._loop.create_task(self._link.run(self._pending)))
            self._forever.append(self._loop.create_task(self._hand_back_when_stuck()))
            self._start_workers(message.spec.slots)
        return messages.encode(self._begun)

    def deliver(self, body: bytes) -> None:
        """Take messages in. Those of an older epoch are refused; those known already are ignored."""
        for message in messages.decode(body, list[Start | Cancel]):
            if isinstance(message, Start):
                if message.epoch >= self._epoch:
                    self._take(message)
            elif message.by >= self._epoch:
                self._cancel(message)

    def attend(self, epoch: int, coordinator: Any) -> bytes:
        """A new epoch has begun: answer to it from now on, and say what is here."""
        assert self._begin is not None and self._begun is not None
        with self._lock:
            self._epoch = max(self._epoch, epoch)
            running = [Running(*token) for token in self._attempts]  # type: ignore[arg-type]
            results = list(self._results)
        if self._link is not None:
            self._link.attach(coordinator)
        return messages.encode(Held(self._begin.agent_id, self._begin.incarnation, self._begun, running, results))

    # ── the user's object ────────────────────────────────────────────────────────────────────────────────────────

    def _construct(self, spec: AgentSpec) -> Failure | None:
        try:
            target = load_target(spec)
            self._description = describe(target)
            made: Any = target(**spec.options) if inspect.isclass(target) else target
            self._run = made.run if inspect.isclass(target) else made
            self._with_context = wants_context(self._run)
        except Exception as error:  # noqa: BLE001 - the user's constructor may raise anything
            return failure_of(error, (), _HOST)
        return None

    def _start_workers(self, slots: int) -> None:
        run = self._run
        if inspect.iscoroutinefunction(run) or inspect.iscoroutinefunction(getattr(run, "__call__", None)):  # noqa: B004
            threading.Thread(target=self._work_async, args=(slots,), daemon=True, name="agent-loop").start()
        else:
            for number in range(slots):
                threading.Thread(target=self._work, daemon=True, name=f"agent-{number}").start()

    # ── attempts ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, message: Start) -> None:
        token = (message.task.id, message.attempt, message.epoch)
        with self._lock:
            if token in self._attempts:
                return
            attempt = self._attempts[token] = Attempt(message)
        self._inbox.put(attempt)

    def _cancel(self, message: Cancel) -> None:
        token = (message.task_id, message.attempt, message.epoch)
        with self._lock:
            attempt = self._attempts.get(token)
            if attempt is None:
                # Over already, or never arrived. The coordinator holds a slot for it until it hears so.
                self._results.append(Finished(*token, failure=Failure(kind="cancelled", message="not here")))
            else:
                attempt.cancelled = True
                if attempt.ctx is not None:
                    attempt.ctx.cancelled = True
        if attempt is None:
            self._wake_reporter()
        elif attempt.task is not None:
            attempt.task.get_loop().call_soon_threadsafe(attempt.task.cancel)

    def _work(self) -> None:
        """One slot of sync code."""
        while True:
            attempt = self._inbox.get()
            if not self._enter(attempt):
                continue
            value: Payload | None = None
            failure: Failure | None = None
            try:
                value = self._pack(self._call(attempt))
            except BaseException as error:  # noqa: BLE001 - user code, SystemExit included
                failure = failure_of(error, self._description.retry_on, _HOST)
            self._leave(attempt, value, failure)

    def _work_async(self, slots: int) -> None:
        """All slots of async code, on a loop of their own."""
        asyncio.run(self._work_on_loop(slots))

    async def _work_on_loop(self, slots: int) -> None:
        loop = asyncio.get_running_loop()
        free = asyncio.Semaphore(slots)
        running: set[asyncio.Task[Any]] = set()
        while True:
            await free.acquire()
            attempt = await loop.run_in_executor(None, self._inbox.get)
            if not self._enter(attempt):
                free.release()
                continue
            attempt.task = loop.create_task(self._one_async(attempt, free))
            running.add(attempt.task)
            attempt.task.add_done_callback(running.discard)
            if attempt.cancelled:
                attempt.task.cancel()

    async def _one_async(self, attempt: Attempt, free: asyncio.Semaphore) -> None:
        value: Payload | None = None
        failure: Failure | None = None
        try:
            value = self._pack(await self._call(attempt))
        except asyncio.CancelledError:
            failure = Failure(kind="cancelled", message="stopped")
        except BaseException as error:  # noqa: BLE001 - user code, SystemExit included
            failure = failure_of(error, self._description.retry_on, _HOST)
        self._leave(attempt, value, failure)
        free.release()

    def _call(self, attempt: Attempt) -> Any:
        assert self._begin is not None and self._desk is not None and self._run is not None
        given = attempt.start.task
        task = task_for(given, attempt.start.attempt, self._desk.unpack(given.payload))
        if not self._with_context:
            return self._run(task)
        attempt.ctx = Context(
            agent_id=self._begin.agent_id,
            tier=self._begin.spec.tier,
            attempt=attempt.start.attempt,
            remaining_s=attempt.start.remaining_s,
            cancelled=attempt.cancelled,
        )
        return self._run(task, attempt.ctx)

    def _pack(self, value: Any) -> Payload | None:
        assert self._desk is not None
        return self._desk.pack(value, "result")

    def _enter(self, attempt: Attempt) -> bool:
        """Begin an attempt, unless it was handed back or cancelled while it waited."""
        start = attempt.start
        token = (start.task.id, start.attempt, start.epoch)
        with self._lock:
            if token not in self._attempts:
                return False
            attempt.begun_at = time.monotonic()
            cancelled = attempt.cancelled
        if cancelled:
            self._leave(attempt, None, Failure(kind="cancelled", message="stopped before it began"))
        return not cancelled

    def _leave(self, attempt: Attempt, value: Payload | None, failure: Failure | None) -> None:
        start = attempt.start
        run_s = time.monotonic() - attempt.begun_at
        result = Finished(start.task.id, start.attempt, start.epoch, value, failure, run_s)
        with self._lock:
            del self._attempts[start.task.id, start.attempt, start.epoch]
            self._results.append(result)
            quiet = len(self._results) > self._in_report + 1  # the reporter has been woken already
        if not quiet:
            self._wake_reporter()

    def _wake_reporter(self) -> None:
        assert self._loop is not None and self._link is not None
        self._loop.call_soon_threadsafe(self._link.wake)

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _pending(self) -> Report | None:
        assert self._begin is not None
        with self._lock:
            if not self._results:
                self._in_report = 0
                return None
            batch = [self._results[i] for i in range(min(len(self._results), _REPORT_RESULTS))]
            self._in_report = len(batch)
        return Report(self._begin.agent_id, self._begin.incarnation, batch)

    def _acknowledged(self, count: int) -> None:
        with self._lock:
            for _ in range(count):
                self._results.popleft()
            self._in_report = 0

    async def _hand_back_when_stuck(self) -> None:
        """When an attempt turns out long, those waiting behind it go back to the coordinator, for other agents."""
        assert self._begin is not None
        slots = self._begin.spec.slots
        while True:
            await asyncio.sleep(STUCK_S / 2)
            with self._lock:
                if len(self._attempts) <= slots:
                    continue
                now = time.monotonic()
                running = [a for a in self._attempts.values() if a.begun_at]
                if len(running) < slots or any(now - a.begun_at < STUCK_S for a in running):
                    continue
                waiting = [token for token, a in self._attempts.items() if not a.begun_at]
                for token in waiting:
                    del self._attempts[token]
                    self._results.append(Returned(*token))
            if waiting:
                self._wake_reporter()


def load_target(spec: AgentSpec) -> Callable[..., Any]:
    """The user's class or function, by name or by value. Raises whatever importing it raises."""
    for path in spec.paths:
        if path not in sys.path:
            sys.path.append(path)
    target: Callable[..., Any]
    file = spec.target.rpartition(":")[0]
    if file.endswith(".py") and Path(file).is_file():
        from flowray import team  # only for teams that live in files

        target = team.load_target(spec.target, Path(), "use")
        if target.__module__.startswith(team.FILE_MODULE):  # no other process can import it by this name
            cloudpickle.register_pickle_by_value(sys.modules[target.__module__])
    elif spec.code:
        target = cloudpickle.loads(spec.code)
    else:
        module, _, name = spec.target.partition(":")
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        target = found
    check_runnable(target)
    return target

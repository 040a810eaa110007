"""One agent in its process: the user's object, its attempts in order, and their answers in batches.

Async code runs on the process's own event loop, the one that also carries its messages: no hand-over between threads.
Sync code runs in one thread for each slot. Either may block: what must work then (a new coordinator's questions, work
handed back) is done by another thread over Ray. An answer is kept until a coordinator has acknowledged it, whatever
happens to coordinators in between.
"""

from __future__ import annotations

import asyncio
import collections
import importlib
import inspect
import itertools
import queue
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from ray import cloudpickle

from flowray.agents import (
    AgentDescription,
    Context,
    Task,
    Voice,
    check_runnable,
    check_verifying,
    describe,
    verified_quality,
    wants_context,
)
from flowray.attempts import failure_of, failure_of_verify, task_for
from flowray.core.model import AgentSpec, Failure, Payload, Running
from flowray.runtime import emitting
from flowray.runtime.emitting import EmitDesk, Outlet, drain, drain_beside
from flowray.runtime.leases import LeaseKeeper, Tokens
from flowray.runtime.messages import (
    Begin,
    Cancel,
    Emit,
    Finished,
    Held,
    Refused,
    Renew,
    Report,
    Result,
    Returned,
    Start,
    Step,
)
from flowray.runtime.payloads import PayloadDesk
from flowray.runtime.recording import StepDesk, StepRecorder

STUCK_S = 0.1  # an attempt that takes longer makes its agent hand back what it holds beyond its slots
_TOGETHER_S = 0.0005  # how long a result waits for those of attempts that were waiting behind it
_REPORT_RESULTS = 1024  # in one report
_REPORT_BYTES = 2 << 20
_HOST = frozenset({__file__, emitting.__file__})  # whose frames are not the user's business


class Attempt:
    """One attempt in this process."""

    __slots__ = ("begun_at", "cancelled", "ctx", "outlet", "quality", "seen", "start", "task", "verifying")

    def __init__(self, start: Start) -> None:
        self.start = start
        self.begun_at = 0.0  # monotonic; 0.0 while it waits
        self.cancelled = False
        self.ctx: Context | None = None
        self.outlet: Outlet | None = None  # of those that have given out something
        self.task: asyncio.Task[Any] | None = None  # of async code
        self.seen: Task | None = None  # as the user's code was given it
        self.quality: float | None = None  # by its verifier
        self.verifying = False  # `run` has answered


class Surroundings(Protocol):
    """What an agent needs of its process."""

    loop: asyncio.AbstractEventLoop

    def soon(self, call: Callable[[], None]) -> None:
        """Call on the process's loop, from any thread."""
        ...

    def stir(self) -> None:
        """There is what may get stuck: `hand_back_when_stuck` and `overdue` want to be asked. From any thread."""
        ...

    def report(self, report: Report | Step | Emit | Renew) -> bool:
        """Send to the coordinator, from the loop. False when there is none to send to now."""
        ...

    def voice(self, agent_id: str) -> Voice:
        """How an agent speaks to others."""
        ...


class AgentHost:
    """One agent."""

    def __init__(self, message: Begin, around: Surroundings) -> None:
        self._begin = message
        self._around = around
        self._epoch = message.epoch
        self._attempts: dict[tuple[str, int, int], Attempt] = {}  # held: waiting or running, oldest first
        self._results: collections.deque[Result] = collections.deque()  # not acknowledged yet
        self._acknowledged = 0  # results are numbered from 1: up to this one they are on disk,
        self._sent = 0  # up to this one they have been sent
        self._flush_at = 0.0  # monotonic: when the loop was asked to send; 0.0 when it need not
        self._lock = threading.Lock()  # guards what is above
        self._inbox: queue.SimpleQueue[Attempt | None] = queue.SimpleQueue()  # of sync code
        self._waiting: collections.deque[Attempt] = collections.deque()  # of async code; only on the loop
        self._busy = 0  # async attempts under way; only on the loop
        self._desk = PayloadDesk(
            runtime=message.runtime,
            node_id=message.journal_node,
            directory=message.payloads,
            inline_bytes=message.inline_bytes,
            payload_bytes=message.payload_bytes,
        )
        self._unleased: list[Attempt] = []  # exclusive ones that may not begin yet; guarded by the lock
        self.fenced = tuple(Fenced(self, message, around, ordinary=ordinary) for ordinary in (False, True))
        self.steps = StepDesk(
            message.agent_id,
            message.incarnation,
            send=around.report,
            soon=around.soon,
            later=lambda delay_s, call: around.loop.call_later(delay_s, call),
        )
        self.emitting = EmitDesk(
            message.agent_id,
            message.incarnation,
            self._desk,
            send=around.report,
            soon=around.soon,
            later=lambda delay_s, call: around.loop.call_later(delay_s, call),
        )
        self._run: Callable[..., Any] = _nothing
        self.is_async = False
        self._with_context = True
        self._description = AgentDescription()
        self.on_message: Callable[..., Any] | None = None
        self._verify: Callable[[Task, Any], Any] | None = None
        self._voice: Voice | None = None

    # ── called on the process's loop ─────────────────────────────────────────────────────────────────────────────

    def take(self, message: Start) -> None:
        """Run an attempt when a slot is free. One of an older epoch is refused; a known one is ignored."""
        token = (message.task.id, message.attempt, message.epoch)
        with self._lock:
            if message.epoch < self._epoch or token in self._attempts:
                return
            attempt = self._attempts[token] = Attempt(message)
            crowded = len(self._attempts) > self._begin.spec.slots
        if crowded:
            self._around.stir()
        if message.task.exclusive:
            self.fenced[0].leases.need()
        elif self._begin.fence_all:
            self.fenced[1].leases.need()
        self._dispatch(attempt)

    def _dispatch(self, attempt: Attempt) -> None:
        if not self.is_async:
            self._inbox.put(attempt)
        elif self._busy < self._begin.spec.slots:
            self._begin_async(attempt)
        else:
            self._waiting.append(attempt)

    def cancel(self, message: Cancel) -> None:
        """Stop an attempt."""
        token = (message.task_id, message.attempt, message.epoch)
        with self._lock:
            if message.by < self._epoch:
                return
            attempt = self._attempts.get(token)
            if attempt is not None:
                attempt.cancelled = True
                if attempt.ctx is not None:
                    attempt.ctx.cancelled = True
        if attempt is None:
            # Over already, or never arrived. The coordinator holds a slot for it until it hears so.
            self._add(Finished(*token, failure=Failure(kind="cancelled", message="not here")))
        elif attempt.task is not None:
            attempt.task.cancel()
        elif attempt.outlet is not None:
            attempt.outlet.close()  # its thread may wait there
        elif attempt.start.task.exclusive:
            self.release()  # it need not wait for a lease in order to end

    def acknowledged(self, last: int) -> None:
        """Results up to this number are on disk."""
        with self._lock:
            for _ in range(min(last - self._acknowledged, len(self._results))):
                self._results.popleft()
            self._acknowledged = max(self._acknowledged, last)
            self._sent = max(self._sent, last)

    def send_again(self) -> None:
        """There is another coordinator: it has none of what was not acknowledged."""
        with self._lock:
            self._sent = self._acknowledged
        self.steps.send_again()
        self.emitting.send_again()

    def flush(self) -> None:
        """Send what has not been sent."""
        self.steps.flush()
        self.emitting.flush()
        while (report := self.pending()) is not None:
            if not self._around.report(report):
                return
            with self._lock:
                self._sent = max(self._sent, report.last)

    def pending(self) -> Report | None:
        """Results that have not been sent; from any thread."""
        with self._lock:
            self._flush_at = 0.0
            first = self._sent - self._acknowledged
            batch: list[Result] = []
            size = 0
            for result in itertools.islice(self._results, first, first + _REPORT_RESULTS):
                value = None if isinstance(result, Returned | Refused) else result.value
                size += 200 + (len(value.data) if value is not None and value.data else 0)
                if batch and size > _REPORT_BYTES:
                    break
                batch.append(result)
            if not batch:
                return None
            return Report(self._begin.agent_id, self._begin.incarnation, self._sent + len(batch), batch)

    def held(self, exclusive: bool) -> bool:
        """Are there attempts of exclusive tasks, or of others, begun or not? From any thread, as the next three."""
        with self._lock:
            return any(attempt.start.task.exclusive is exclusive for attempt in self._attempts.values())

    def stop(self, exclusive: bool) -> Tokens:
        """Tell those of them that have begun to stop; which."""
        with self._lock:
            begun = {t: a for t, a in self._attempts.items() if a.start.task.exclusive is exclusive and a.begun_at}
            for attempt in begun.values():
                attempt.cancelled = True
                if attempt.ctx is not None:
                    attempt.ctx.cancelled = True
        for attempt in begun.values():
            if attempt.outlet is not None:
                attempt.outlet.close()  # a thread that waits for the disk shall not wait on
        tasks = [attempt.task for attempt in begun.values() if attempt.task is not None]

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        if tasks:
            self._around.soon(cancel)
        return frozenset(begun)

    def runs(self, tokens: Tokens) -> bool:
        """Does one of these still run?"""
        with self._lock:
            return any(token in self._attempts for token in tokens)

    def release(self) -> None:
        """There may be a lease: those that wait for one are tried again. On the loop."""
        with self._lock:
            unleased, self._unleased = self._unleased, []
        for attempt in unleased:
            self._dispatch(attempt)

    # ── called from elsewhere ────────────────────────────────────────────────────────────────────────────────────

    def attend(self, epoch: int) -> Held:
        """A new epoch has begun: say what is here."""
        with self._lock:
            self._epoch = max(self._epoch, epoch)
            running = [Running(*token) for token in self._attempts]  # type: ignore[arg-type]
            results = list(self._results)
        return Held(
            self._begin.agent_id, self._begin.incarnation, running, results, self.on_message is not None, self.topics
        )

    @property
    def may_talk(self) -> bool:
        """Has it a context to speak by, or ears?"""
        return self._with_context or self.on_message is not None

    @property
    def topics(self) -> tuple[str, ...]:
        """That it wants to hear of."""
        return tuple(sorted(self._description.topics))

    @property
    def reentrant(self) -> bool:
        """May it handle several messages at once?"""
        return self._description.reentrant

    def hearing(self, voice: Voice, remaining_s: float | None) -> Context:
        """The context in which it handles a message."""
        return Context(agent_id=self._begin.agent_id, tier=self._begin.spec.tier, remaining_s=remaining_s, voice=voice)

    @property
    def may_get_stuck(self) -> bool:
        """Is there work behind what runs, or a result that was not sent?"""
        with self._lock:
            return len(self._attempts) > self._begin.spec.slots or self._flush_at > 0.0

    def overdue(self, now: float) -> bool:
        """Has the loop been asked to send, and did not for long? User code blocks it then."""
        with self._lock:
            return self._flush_at > 0.0 and now - self._flush_at > STUCK_S

    def hand_back_when_stuck(self) -> None:
        """When an attempt turns out long, those waiting behind it go back to the coordinator, for other agents."""
        slots = self._begin.spec.slots
        with self._lock:
            if len(self._attempts) <= slots:
                return
            now = time.monotonic()
            running = [a for a in self._attempts.values() if a.begun_at]
            if len(running) < slots or any(now - a.begun_at < STUCK_S for a in running):
                return
            waiting = [token for token, a in self._attempts.items() if not a.begun_at]
            for token in waiting:
                del self._attempts[token]
        for token in waiting:
            self._add(Returned(*token))

    def retire(self) -> None:
        """It is not wanted any more: what it runs is cancelled, and what it says is not heard."""
        for attempt in list(self._attempts.values()):
            attempt.cancelled = True
            if attempt.ctx is not None:
                attempt.ctx.cancelled = True
            if attempt.task is not None:
                attempt.task.cancel()
        self.steps.retire()
        self.emitting.retire()
        self.release()
        for _ in range(self._begin.spec.slots):
            self._inbox.put(None)

    def _add(self, result: Result) -> None:
        with self._lock:
            self._results.append(result)
            asked = self._flush_at > 0.0
            if not asked:
                self._flush_at = time.monotonic()
        if asked:
            return
        self._around.stir()
        if self._inbox.empty() and not self._waiting:
            self._around.soon(self.flush)
        else:
            # More of the same is waiting, and most likely as quick: their results go together.
            self._around.soon(self._flush_later)

    def _flush_later(self) -> None:
        self._around.loop.call_later(_TOGETHER_S, self.flush)

    # ── the user's object ────────────────────────────────────────────────────────────────────────────────────────

    def construct(self) -> Failure | None:
        """Load and construct it. A failure is an answer, not an exception."""
        spec = self._begin.spec
        try:
            target = load_target(spec)
            self._description = describe(target)
            self.emitting.ahead = self._description.ahead
            made: Any = target(**spec.options) if inspect.isclass(target) else target
            run = self._run = made.run if inspect.isclass(target) else made
            self._with_context = wants_context(run)
            self.on_message = getattr(made, "on_message", None) if inspect.isclass(target) else None
            check_verifying(target)
            self._verify = getattr(made, "verify", None) if inspect.isclass(target) else None
            called = (run, getattr(run, "__call__", None))  # noqa: B004
            kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
            self.is_async = any(kind(one) for kind in kinds for one in called)
        except Exception as error:  # noqa: BLE001 - the user's constructor may raise anything
            return failure_of(error, (), _HOST)
        if not self.is_async:
            for number in range(spec.slots):
                threading.Thread(target=self._work, daemon=True, name=f"agent-{number}").start()
        return None

    # ── attempts ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        """One slot of sync code."""
        while True:
            attempt = self._inbox.get()
            if attempt is None:
                return
            if not self._enter(attempt):
                continue
            value: Payload | None = None
            failure: Failure | None = None
            try:
                result = self._call(attempt, self._desk.unpack(attempt.start.task.payload))
                if inspect.isgenerator(result):  # what it yields are chunks
                    result = drain(result, self._outlet(attempt), lambda: attempt.cancelled)  # noqa: B023
                if attempt.outlet is not None:
                    attempt.outlet.finish()
                if self._is_to_verify(attempt):
                    attempt.quality = verified_quality(self._verified(attempt, result))
                    attempt.verifying = False
                value = self._desk.pack(result, "result")
            except BaseException as error:  # noqa: BLE001 - user code, SystemExit included
                failure = self._failure_of(attempt, error)
            self._leave(attempt, value, failure)

    def _begin_async(self, attempt: Attempt) -> None:
        if self._enter(attempt):
            self._busy += 1
            attempt.task = self._around.loop.create_task(self._one_async(attempt))

    async def _one_async(self, attempt: Attempt) -> None:
        value: Payload | None = None
        failure: Failure | None = None
        try:
            called = self._call(attempt, await self._desk.unpack_beside(attempt.start.task.payload))
            result = called if inspect.isasyncgen(called) else await called
            if inspect.isasyncgen(result):
                result = await drain_beside(result, self._outlet(attempt))
            if attempt.outlet is not None:
                await attempt.outlet.finish_beside()
            if self._is_to_verify(attempt):
                attempt.quality = verified_quality(await self._verified_beside(attempt, result))
                attempt.verifying = False
            value = await self._desk.pack_beside(result, "result")
        except asyncio.CancelledError:
            failure = Failure(kind="cancelled", message="stopped")
        except BaseException as error:  # noqa: BLE001 - user code, SystemExit included
            failure = self._failure_of(attempt, error)
        self._busy -= 1
        self._leave(attempt, value, failure)
        while self._waiting and self._busy < self._begin.spec.slots:
            self._begin_async(self._waiting.popleft())

    def _call(self, attempt: Attempt, payload: Any) -> Any:
        start = attempt.start
        task = attempt.seen = task_for(start.task, start.attempt, payload)
        if not self._with_context:
            return self._run(task)
        if self._voice is None:
            self._voice = self._around.voice(self._begin.agent_id)
        attempt.ctx = Context(
            agent_id=self._begin.agent_id,
            tier=self._begin.spec.tier,
            attempt=start.attempt,
            remaining_s=start.remaining_s,
            cancelled=attempt.cancelled,
            voice=self._voice,
            task_id=start.task.id,
            epoch=start.epoch,
            recorder=lambda: StepRecorder(start, self.steps, self._desk),
            emitter=lambda: self._outlet(attempt),
            cursor=self._cursor(start),
        )
        return self._run(task, attempt.ctx)

    def _cursor(self, start: Start) -> int:
        """The number of an attempt's first chunk."""
        return start.cursor if self._description.resumes else 0

    def _outlet(self, attempt: Attempt) -> Outlet:
        with self._lock:
            if attempt.outlet is None:
                attempt.outlet = self.emitting.open(attempt.start, self._cursor(attempt.start))
            return attempt.outlet

    def _is_to_verify(self, attempt: Attempt) -> bool:
        """Has the class a verifier, and did `run` not say itself what its answer is worth?"""
        attempt.verifying = self._verify is not None and (attempt.ctx is None or attempt.ctx.quality is None)
        return attempt.verifying

    def _verified(self, attempt: Attempt, answer: Any) -> Any:
        """What the verifier of sync code says. An async one runs on the loop, as all async code of this process."""
        assert self._verify is not None and attempt.seen is not None
        said = self._verify(attempt.seen, answer)
        if inspect.isawaitable(said):
            return asyncio.run_coroutine_threadsafe(_awaited(said), self._around.loop).result()
        return said

    async def _verified_beside(self, attempt: Attempt, answer: Any) -> Any:
        """What the verifier of async code says. A sync one may take its time, so it has a thread."""
        assert self._verify is not None and attempt.seen is not None
        if inspect.iscoroutinefunction(self._verify):
            return await self._verify(attempt.seen, answer)
        said = await asyncio.to_thread(self._verify, attempt.seen, answer)
        return await said if inspect.isawaitable(said) else said

    def _failure_of(self, attempt: Attempt, error: BaseException) -> Failure:
        failure = failure_of(error, self._description.retry_on, _HOST)
        return failure_of_verify(failure) if attempt.verifying else failure

    def _enter(self, attempt: Attempt) -> bool:
        """Begin an attempt, unless it was handed back or cancelled while it waited."""
        start = attempt.start
        token = (start.task.id, start.attempt, start.epoch)
        with self._lock:
            if token not in self._attempts:
                return False
            if start.task.exclusive and not attempt.cancelled and not self.fenced[0].leases.valid():
                self._unleased.append(attempt)
                return False
            attempt.begun_at = time.monotonic()
            cancelled = attempt.cancelled
        if cancelled:
            self._leave(attempt, None, Failure(kind="cancelled", message="stopped before it began"))
        return not cancelled

    def _leave(self, attempt: Attempt, value: Payload | None, failure: Failure | None) -> None:
        start, ctx = attempt.start, attempt.ctx
        if failure is not None and attempt.outlet is not None:
            attempt.outlet.close()
        result = Finished(
            start.task.id,
            start.attempt,
            start.epoch,
            value,
            failure,
            run_s=time.monotonic() - attempt.begun_at,
            quality=ctx.quality if ctx is not None and ctx.quality is not None else attempt.quality,
            cost_usd=ctx.cost_usd if ctx is not None else None,
            chunks=attempt.outlet.next if attempt.outlet is not None else self._cursor(start),
        )
        with self._lock:
            del self._attempts[start.task.id, start.attempt, start.epoch]
        self._add(result)


class Fenced:
    """The exclusive attempts of an agent, or its ordinary ones, and what ends them (`leases.Fenceable`)."""

    def __init__(self, host: AgentHost, begin: Begin, around: Surroundings, *, ordinary: bool) -> None:
        self._host = host
        self._exclusive = not ordinary
        self.leases = LeaseKeeper(
            begin.lease_s,
            self,
            ask=lambda number: around.report(Renew(begin.agent_id, begin.incarnation, number, ordinary)),
            later=lambda delay_s, call: around.loop.call_later(delay_s, call),
            trusts=ordinary,
        )

    def held(self) -> bool:
        """See `leases.Fenceable`."""
        return self._host.held(self._exclusive)

    def stop(self) -> Tokens:
        """See `leases.Fenceable`."""
        return self._host.stop(self._exclusive)

    def runs(self, tokens: Tokens) -> bool:
        """See `leases.Fenceable`."""
        return self._host.runs(tokens)

    def release(self) -> None:
        """See `leases.Fenceable`."""
        self._host.release()


async def _awaited(said: Awaitable[Any]) -> Any:
    return await said


def _nothing() -> None:
    """What runs before the user's object is there: nothing is given to it then."""


def preload(spec: AgentSpec) -> None:
    """Import what the class needs. What goes wrong shows when an agent is constructed, where it can be told."""
    try:
        load_target(spec)
    except Exception as error:  # noqa: BLE001 - the user's module may raise anything
        print(f"flowray: {spec.name} cannot be loaded: {error}", file=sys.stderr)  # noqa: T201


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

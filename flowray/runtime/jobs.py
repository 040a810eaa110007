"""Drive a job on a runtime: hand in what it asks for, give it what comes back, until nothing is left.

The driver holds a bounded number of open tasks and nothing of the finished ones; the job collects. Every task carries
an idempotency key made of the job's name, the request's key and a digest of what is asked, so a second run over the
same journal gets the recorded outcome of what is done and only runs the rest. A request that changed meanwhile has
another digest and is run again.
"""

from __future__ import annotations

import hashlib
import itertools
import pickle
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from flowray.core.model import Outcome
from flowray.core.states import TaskState
from flowray.errors import InvalidTask, TaskError, WaitTimeout
from flowray.jobs import Job, Report, Request, Result, failure_text
from flowray.runtime.recorded import Recorded

_LOOK_UP_S = 0.25  # how often a quiet driver tells its observer that time has passed (and can be interrupted)


class Handle(Protocol):
    """What the driver needs of a handle."""

    task_id: str

    def result(self, timeout_s: float | None = None) -> Any:
        """The value, or raises TaskError."""
        ...

    def outcome(self, timeout_s: float | None = None) -> Outcome:
        """The outcome, whatever it is."""
        ...

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        """Call it with the handle once the task has ended, in some thread."""
        ...


class Runner(Protocol):
    """What the driver needs of a runtime."""

    def submit_many(self, requests: Sequence[dict[str, Any]]) -> Sequence[Any]:
        """Handles of tasks, once all are accepted."""
        ...

    def replay(self, task_id: str) -> Any:
        """The handle of a dead letter's new try."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """Where a job stands. Sent after each result, and every quarter of a second without one."""

    done: int  # results so far, resumed ones included
    expected: int  # as far as the job knows
    resumed: int  # of those done, how many an earlier run had done
    failed: int
    open: int  # tasks handed in and not done
    elapsed_s: float
    result: Result | None = None  # the one that has just come
    outcome: Outcome | None = None  # and what the runtime says of its task


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """What became of a job."""

    report: Report
    done: int
    failed: int
    resumed: int
    first_result_s: float | None  # after the start, of the first task that this run did itself
    tasks_done_s: float
    report_s: float  # what writing the report took


@dataclass(slots=True)
class _Open:
    """A task handed in."""

    request: Request
    resumed: bool  # an earlier run has its outcome


@dataclass(slots=True)
class _Driver:
    """The state of one run. For one thread; callbacks only touch the queue."""

    rt: Runner
    job: Job
    name: str
    open_tasks: int
    batch_tasks: int
    recorded: Recorded | None
    retry_failed: bool
    on_event: Callable[[JobEvent], None] | None
    ended: queue.SimpleQueue[Handle] = field(default_factory=queue.SimpleQueue)
    open: dict[str, _Open] = field(default_factory=dict)  # by task id
    keys: set[str] = field(default_factory=set)
    follow_up: deque[Request] = field(default_factory=deque)
    more: bool = True  # may the job have first requests that were not handed in?
    done: int = 0
    failed: int = 0
    resumed: int = 0
    began_at: float = field(default_factory=time.monotonic)
    first_result_s: float | None = None

    def run(self) -> None:
        first = iter(self.job.begin())
        while self.more or self.follow_up or self.open:
            while self._may_hand_in():
                self._hand_in(self._next(first))
            self._take()

    def _may_hand_in(self) -> bool:
        """Is there enough room for a batch worth its message? What follows from results waits for no full batch."""
        room = self.open_tasks - len(self.open)
        if self.follow_up and self.ended.empty():
            return room > 0
        return bool(self.more or self.follow_up) and room >= max(1, min(self.batch_tasks, self.open_tasks // 2))

    def _next(self, first: Iterator[Request]) -> list[Request]:
        """The next batch: what follows from results goes first, so that what is begun gets finished."""
        room = min(self.batch_tasks, self.open_tasks - len(self.open))
        requests = [self.follow_up.popleft() for _ in range(min(room, len(self.follow_up)))]
        if self.more and len(requests) < room:
            fresh = list(itertools.islice(first, room - len(requests)))
            self.more = len(fresh) == room - len(requests)
            requests += fresh
        return requests

    def _hand_in(self, requests: list[Request]) -> None:
        if not requests:
            return
        for request in requests:
            if request.key in self.keys:
                raise InvalidTask("key", f"the job uses {request.key!r} for two requests")
            self.keys.add(request.key)
        wanted = [arguments(self.name, request) for request in requests]
        known = self.recorded.known([one["key"] for one in wanted]) if self.recorded is not None else set()
        for request, one, handle in zip(requests, wanted, self.rt.submit_many(wanted), strict=True):
            self.open[handle.task_id] = _Open(request, one["key"] in known)
            handle.add_done_callback(self.ended.put)

    def _take(self) -> None:
        """Wait for the next outcome and give it to the job."""
        if not self.open:
            return
        try:
            handle = self.ended.get(timeout=_LOOK_UP_S)
        except queue.Empty:
            self._tell(None, None)
            return
        one = self.open.pop(handle.task_id)
        outcome = handle.outcome(timeout_s=0.0)
        if outcome.state is not TaskState.SUCCEEDED and one.resumed and self.retry_failed:
            again = self.rt.replay(handle.task_id)
            self.open[again.task_id] = _Open(one.request, resumed=False)
            again.add_done_callback(self.ended.put)
            return
        result = as_result(one.request.key, handle, outcome)
        self.done += 1
        self.resumed += one.resumed
        self.failed += bool(result.error)
        if self.first_result_s is None and not one.resumed:
            self.first_result_s = time.monotonic() - self.began_at
        self.follow_up.extend(self.job.on_result(result))
        self._tell(result, outcome)

    def _tell(self, result: Result | None, outcome: Outcome | None) -> None:
        if self.on_event is not None:
            self.on_event(
                JobEvent(
                    done=self.done,
                    expected=self.job.expected(),
                    resumed=self.resumed,
                    failed=self.failed,
                    open=len(self.open),
                    elapsed_s=time.monotonic() - self.began_at,
                    result=result,
                    outcome=outcome,
                )
            )


def run_job(
    rt: Runner,
    job: Job,
    *,
    out: Path,
    name: str = "job",
    open_tasks: int = 2048,
    batch_tasks: int = 512,
    recorded: Recorded | None = None,
    retry_failed: bool = False,
    on_event: Callable[[JobEvent], None] | None = None,
    before_report: Callable[[], None] | None = None,
) -> JobRun:
    """Run a job to its end and let it write its report.

    A task that failed is a result with an error, not an exception: what it means is the job's business. `on_event`
    runs in this thread between results. With `recorded`, what an earlier run has done is counted as resumed; with
    `retry_failed`, what it recorded as failed is tried once more. `before_report` runs when all results are in.

    Raises:
        UnknownCapability: no agent of the team has what a request needs.
        InvalidTask: a request that can never be accepted, or a key used twice.
        CoordinatorUnavailable: the coordinator did not come back; a run over the same journal resumes.
    """
    driver = _Driver(rt, job, name, open_tasks, batch_tasks, recorded, retry_failed, on_event)
    driver.run()
    tasks_done_s = time.monotonic() - driver.began_at
    if before_report is not None:
        before_report()
    report = job.finish(out)
    return JobRun(
        report=report,
        done=driver.done,
        failed=driver.failed,
        resumed=driver.resumed,
        first_result_s=driver.first_result_s,
        tasks_done_s=tasks_done_s,
        report_s=time.monotonic() - driver.began_at - tasks_done_s,
    )


def arguments(name: str, request: Request) -> dict[str, Any]:
    """A request as the arguments of `submit`."""
    return {
        "prompt": request.prompt,
        "payload": request.payload,
        "needs": request.needs,
        "priority": request.priority,
        "deadline_s": request.deadline_s,
        "max_attempts": request.max_attempts,
        "labels": dict(request.labels),
        "key": _idempotency_key(name, request),
    }


def _idempotency_key(name: str, request: Request) -> str:
    """Readable where there is room: a task's key is bounded, a path need not be."""
    key = request.key if len(request.key) <= 400 else hashlib.sha256(request.key.encode()).hexdigest()
    return f"{name[:80]}:{digest(request)}:{key}"


def digest(request: Request) -> str:
    """Of everything that is asked. The same on every run for plain data; other objects are pickled, which may differ
    between runs and then costs a repetition, never a wrong result."""
    asked = (
        request.prompt,
        request.payload,
        sorted(request.needs),
        request.priority,
        request.deadline_s,
        request.max_attempts,
        dict(request.labels),
    )
    try:
        body = msgspec.msgpack.encode(asked, order="deterministic")
    except (TypeError, ValueError, OverflowError):
        body = pickle.dumps(asked, protocol=5)
    return hashlib.sha256(body).hexdigest()[:16]


def as_result(key: str, handle: Handle, outcome: Outcome) -> Result:
    """What a job is told of an ended task."""
    about: Mapping[str, Any] = {
        "key": key,
        "state": outcome.state.value,
        "agent_id": outcome.agent_id,
        "attempts": outcome.attempts,
        "run_s": outcome.run_s,
    }
    if outcome.state is TaskState.SUCCEEDED:
        try:
            return Result(value=handle.result(timeout_s=0.0), **about)
        except (TaskError, WaitTimeout) as error:  # recorded as succeeded, and yet its value cannot be had
            return Result(error=failure_text(type(error).__name__, str(error)), **about)
    failure = outcome.failure
    error_text = (
        failure_text(failure.type or failure.kind, failure.message) if failure is not None else "no reason given"
    )
    return Result(error=error_text, **about)

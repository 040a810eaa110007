"""Driving a job, against a runtime that lives in this process: batches, bounds, failures, resuming."""

from __future__ import annotations

import itertools
import queue
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flowray.core.model import Failure, Outcome, TaskId
from flowray.core.states import TaskState
from flowray.errors import CoordinatorUnavailable, InvalidTask, TaskFailed, UnknownCapability
from flowray.jobs import Report, Request, Result
from flowray.runtime.jobs import JobEvent, arguments, digest, run_job

Work = Callable[[dict[str, Any]], Any]
_numbers = itertools.count()  # task ids are unique over all runs


class FakeHandle:
    """A handle whose outcome comes when the runtime has it."""

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self._outcome: Outcome | None = None
        self._value: Any = None
        self._calls: list[Callable[[Any], None]] = []
        self._lock = threading.Lock()

    def resolve(self, outcome: Outcome, value: Any) -> None:
        with self._lock:
            self._outcome, self._value = outcome, value
            calls, self._calls = self._calls, []
        for call in calls:
            call(self)

    def outcome(self, timeout_s: float | None = None) -> Outcome:
        assert self._outcome is not None, "the driver asked before it was told"
        return self._outcome

    def result(self, timeout_s: float | None = None) -> Any:
        if self._outcome is None or self._outcome.state is not TaskState.SUCCEEDED:
            raise TaskFailed(self.task_id, "no value")
        return self._value

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        with self._lock:
            if self._outcome is None:
                self._calls.append(call)
                return
        call(self)


@dataclass
class FakeRuntime:
    """Runs tasks in threads of this process, in no particular order; knows tasks by their idempotency key."""

    work: Work
    threads: int = 3
    known: dict[str, FakeHandle] = field(default_factory=dict)  # what an earlier run left, too
    batches: list[int] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)  # keys of tasks that were run
    most_open: int = 0
    _open: int = 0

    def __post_init__(self) -> None:
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._handles: dict[str, tuple[FakeHandle, dict[str, Any]]] = {}
        for _ in range(self.threads):
            threading.Thread(target=self._run, daemon=True).start()

    def submit_many(self, requests: Sequence[dict[str, Any]]) -> list[FakeHandle]:
        self.batches.append(len(requests))
        return [self._submit(request) for request in requests]

    def replay(self, task_id: str) -> FakeHandle:
        _, request = self._handles[task_id]
        return self._submit({**request, "key": ""})

    def _submit(self, request: dict[str, Any]) -> FakeHandle:
        if request["key"] in self.known:
            return self.known[request["key"]]
        handle = FakeHandle(f"t{next(_numbers)}")
        self._handles[handle.task_id] = (handle, request)
        if request["key"]:
            self.known[request["key"]] = handle
        with self._lock:
            self._open += 1
            self.most_open = max(self.most_open, self._open)
        self._waiting.put((handle, request))
        return handle

    def _run(self) -> None:
        while True:
            handle, request = self._waiting.get()
            self.ran.append(request["key"])
            value, failure = None, None
            try:
                value = self.work(request)
            except ValueError as error:
                failure = Failure(kind="application", type=type(error).__name__, message=str(error))
            state = TaskState.SUCCEEDED if failure is None else TaskState.DEAD
            task_id = TaskId(handle.task_id)
            outcome = Outcome(task_id=task_id, state=state, failure=failure, agent_id="fake-0", attempts=1, run_s=0.1)
            with self._lock:
                self._open -= 1
            handle.resolve(outcome, value)


class Tree:
    """A job whose results lead to further requests: each node of a tree asks for its children."""

    def __init__(self, depth: int = 3, width: int = 3, order: random.Random | None = None) -> None:
        self.depth, self.width, self.order = depth, width, order
        self.results: dict[str, Result] = {}
        self.asked = 0

    def begin(self) -> Iterable[Request]:
        for n in range(self.width):
            yield self._ask(str(n))

    def on_result(self, result: Result) -> Iterable[Request]:
        assert result.key not in self.results, "one result for each request"
        self.results[result.key] = result
        if result.error or len(result.key) >= self.depth:
            return []
        return [self._ask(result.key + str(n)) for n in range(self.width)]

    def expected(self) -> int:
        return self.asked

    def finish(self, out: Path) -> Report:
        lines = [f"{key}={result.value}{result.error}" for key, result in sorted(self.results.items())]
        return Report(headline="\n".join(lines))

    def _ask(self, key: str) -> Request:
        self.asked += 1
        return Request(key=key, payload={"node": key})


@dataclass
class Memory:
    """Stands for Recorded: keys that an earlier run has outcomes for."""

    keys: set[str]

    def known(self, keys: Sequence[str]) -> set[str]:
        return self.keys.intersection(keys)


def double(request: dict[str, Any]) -> str:
    return str(request["payload"]["node"]) * 2


def fail_on(*nodes: str) -> Work:
    def work(request: dict[str, Any]) -> str:
        if request["payload"]["node"] in nodes:
            raise ValueError(f"not {request['payload']['node']}")
        return double(request)

    return work


def test_every_request_gets_one_result_and_what_follows_is_run(tmp_path: Path) -> None:
    job = Tree()
    done = run_job(FakeRuntime(double), job, out=tmp_path)
    assert (done.done, done.failed, done.resumed) == (39, 0, 0)
    assert sorted(job.results) == sorted(key for key in job.results if set(key) <= set("012"))
    assert job.results["012"].value == "012012"
    assert job.results["012"].agent_id == "fake-0"


def test_the_report_does_not_depend_on_the_order_of_results(tmp_path: Path) -> None:
    reports = {run_job(FakeRuntime(double, threads=n), Tree(), out=tmp_path).report.headline for n in (1, 2, 8)}
    assert len(reports) == 1


def test_a_failed_task_is_a_result_with_an_error(tmp_path: Path) -> None:
    job = Tree(depth=2)
    done = run_job(FakeRuntime(fail_on("1")), job, out=tmp_path)
    assert (done.done, done.failed) == (9, 1)
    assert job.results["1"].error == "ValueError: not 1"
    assert job.results["1"].state == "dead"


def test_an_empty_job_just_reports(tmp_path: Path) -> None:
    done = run_job(FakeRuntime(double), Tree(width=0), out=tmp_path)
    assert (done.done, done.report.headline, done.first_result_s) == (0, "", None)


@pytest.mark.parametrize(("open_tasks", "batch_tasks"), [(1, 512), (7, 3), (8, 8), (1000, 100)])
def test_no_more_tasks_are_open_than_allowed(tmp_path: Path, open_tasks: int, batch_tasks: int) -> None:
    rt = FakeRuntime(double)
    done = run_job(rt, Tree(depth=1, width=200), out=tmp_path, open_tasks=open_tasks, batch_tasks=batch_tasks)
    assert done.done == 200
    assert rt.most_open <= open_tasks
    assert max(rt.batches) <= batch_tasks


def test_first_requests_are_not_made_before_there_is_room(tmp_path: Path) -> None:
    """An input of a million rows must not be in memory at once."""
    made, done = [], []

    class Counting(Tree):
        def begin(self) -> Iterable[Request]:
            for request in super().begin():
                made.append(request.key)
                assert len(made) - len(done) <= 10
                yield request

        def on_result(self, result: Result) -> Iterable[Request]:
            done.append(result.key)
            return ()

    run_job(FakeRuntime(double), Counting(depth=1, width=100), out=tmp_path, open_tasks=10)
    assert len(made) == 100


def test_requests_travel_in_batches(tmp_path: Path) -> None:
    rt = FakeRuntime(double)
    run_job(rt, Tree(depth=1, width=1000), out=tmp_path, open_tasks=400, batch_tasks=100)
    assert len(rt.batches) <= 20


def test_a_key_used_twice_is_refused(tmp_path: Path) -> None:
    class Twice(Tree):
        def begin(self) -> Iterable[Request]:
            return [Request(key="a"), Request(key="a", prompt="other")]

    with pytest.raises(InvalidTask, match="'a' for two requests"):
        run_job(FakeRuntime(double), Twice(), out=tmp_path)


def test_a_second_run_gets_recorded_outcomes_and_runs_only_the_rest(tmp_path: Path) -> None:
    first = FakeRuntime(double)
    full = run_job(first, Tree(), out=tmp_path, name="n")
    half = dict(list(first.known.items())[:20])
    second = FakeRuntime(double, known=dict(half))
    done = run_job(second, Tree(), out=tmp_path, name="n", recorded=Memory(set(half)))  # type: ignore[arg-type]
    assert done.resumed == 20
    assert set(second.ran) == set(first.known) - set(half)
    assert done.report == full.report


def test_another_job_or_another_question_shares_no_outcome() -> None:
    request = Request(key="a", payload={"x": 1})
    keys = {
        arguments("n", request)["key"],
        arguments("m", request)["key"],
        arguments("n", Request(key="a", payload={"x": 2}))["key"],
        arguments("n", Request(key="b", payload={"x": 1}))["key"],
        arguments("n", Request(key="a", payload={"x": 1}, needs=("y",)))["key"],
        arguments("n", Request(key="a", payload={"x": 1}, labels={"sha256": "1"}))["key"],
    }
    assert len(keys) == 6


def test_the_order_of_a_payloads_fields_does_not_matter() -> None:
    assert digest(Request(key="", payload={"a": 1, "b": 2})) == digest(Request(key="", payload={"b": 2, "a": 1}))


def test_a_long_key_still_fits() -> None:
    long = [arguments("n" * 500, Request(key="x" * 1000 + end))["key"] for end in "ab"]
    assert len(set(long)) == 2
    assert all(len(key) <= 512 for key in long)


def test_objects_that_are_no_plain_data_have_a_digest_too() -> None:
    assert digest(Request(key="", payload={1, 2})) == digest(Request(key="", payload={1, 2}))
    assert digest(Request(key="", payload=complex(1, 2))) != digest(Request(key="", payload=complex(1, 3)))


def test_recorded_failures_are_tried_again_only_if_asked_for(tmp_path: Path) -> None:
    first = FakeRuntime(fail_on("1"))
    run_job(first, Tree(depth=1), out=tmp_path)
    recorded: Any = Memory(set(first.known))
    first.work = double  # mended
    again = run_job(first, Tree(depth=1), out=tmp_path, recorded=recorded)
    assert (again.failed, again.resumed) == (1, 3)
    mended = run_job(first, Tree(depth=1), out=tmp_path, recorded=recorded, retry_failed=True)
    assert (mended.failed, mended.done, mended.resumed) == (0, 3, 2)


def test_what_fails_again_when_tried_again_is_not_tried_for_ever(tmp_path: Path) -> None:
    rt = FakeRuntime(fail_on("1"))
    run_job(rt, Tree(depth=1), out=tmp_path)
    recorded: Any = Memory(set(rt.known))
    before = len(rt.ran)
    done = run_job(rt, Tree(depth=1), out=tmp_path, recorded=recorded, retry_failed=True)
    assert (done.failed, len(rt.ran) - before) == (1, 1)


def test_events_tell_where_the_job_stands(tmp_path: Path) -> None:
    events: list[JobEvent] = []
    run_job(FakeRuntime(fail_on("0")), Tree(depth=2), out=tmp_path, on_event=events.append)
    results = [event for event in events if event.result is not None]
    assert [event.done for event in results] == list(range(1, 10))
    assert (results[-1].open, results[-1].expected, results[-1].failed) == (0, 9, 1)
    assert all(event.done + event.open <= event.expected for event in events)


def test_a_quiet_driver_still_tells_the_time(tmp_path: Path) -> None:
    gate = threading.Event()
    ticks: list[JobEvent] = []

    def slow(request: dict[str, Any]) -> str:
        gate.wait(10)
        return "x"

    def on_event(event: JobEvent) -> None:
        ticks.append(event)
        gate.set()

    run_job(FakeRuntime(slow), Tree(depth=1, width=1), out=tmp_path, on_event=on_event)
    assert ticks[0].result is None
    assert ticks[-1].done == 1


@pytest.mark.parametrize(
    "error", [UnknownCapability("t", "nobody"), CoordinatorUnavailable("gone"), KeyboardInterrupt()]
)
def test_what_no_result_can_tell_ends_the_run(tmp_path: Path, error: BaseException) -> None:
    class Broken(FakeRuntime):
        def submit_many(self, requests: Sequence[dict[str, Any]]) -> list[FakeHandle]:
            raise error

    with pytest.raises(type(error)):
        run_job(Broken(double), Tree(), out=tmp_path)


def test_facts_can_be_noted_before_the_report(tmp_path: Path) -> None:
    job = Tree(depth=1)
    seen: list[int] = []
    run_job(FakeRuntime(double), job, out=tmp_path, before_report=lambda: seen.append(len(job.results)))
    assert seen == [3]

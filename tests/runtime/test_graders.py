"""Many answers graded at once: by functions, sync and async, and by agents. A runtime that only pretends, no Ray."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from flowray.core.model import Failure, Outcome, TaskId
from flowray.core.states import TaskState
from flowray.errors import ConfigError, TaskFailed, WaitTimeout
from flowray.runtime.graders import grade_all
from flowray.runtime.handle import Handle


class Pretended:
    """Answers are their tasks' ids; one called bad failed, one called open has no outcome."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.grades: dict[str, tuple[float, str]] = {}
        self.submitted: list[dict[str, Any]] = []

    def handle(self, task_id: str) -> Handle:
        made = Handle(self, task_id, self.condition)  # type: ignore[arg-type]
        if task_id != "open":
            bad = task_id == "bad"
            outcome = Outcome(
                task_id=TaskId(task_id),
                state=TaskState.DEAD if bad else TaskState.SUCCEEDED,
                failure=Failure(kind="application") if bad else None,
                labels={"answer": task_id},
            )
            made._resolve(outcome, None)
        return made

    def handles(self, *ids: str) -> list[Handle]:
        return [self.handle(task_id) for task_id in ids]

    def grade(self, task_id: str, quality: float, *, by: str = "") -> None:
        self.grades[task_id] = quality, by

    def submit(self, **arguments: Any) -> Handle:
        self.submitted.append(arguments)
        return self.handle("0.75")

    def _asked(self, task_id: str) -> str:
        return f"question of {task_id}"

    def _unpack(self, payload: Any) -> Any:
        return 0.75


def grade(rt: Pretended, handles: list[Handle], grader: Any, **more: Any):
    return grade_all(rt, handles, grader, **more)  # type: ignore[arg-type]


def test_each_has_its_grade_or_the_error_that_says_why_not() -> None:
    rt = Pretended()
    qualities = iter((0.5, 2.0, "good"))

    def judge(answer: float) -> Any:
        assert answer == 0.75
        return next(qualities)

    found = grade(rt, rt.handles("a", "b", "c", "bad", "d"), judge, in_flight=1)
    assert [one.task_id for one in found] == ["a", "b", "c", "bad", "d"]
    assert (found[0].quality, found[0].error) == (0.5, None)
    assert [type(one.error) for one in found[1:]] == [ConfigError, ConfigError, TaskFailed, StopIteration]
    assert rt.grades == {"a": (0.5, found[0].task_id and judge.__qualname__)}


def test_async_graders_share_one_loop_and_are_bounded() -> None:
    rt = Pretended()
    loops, at_once, most = set(), 0, 0

    async def judge(answer: float) -> float:
        nonlocal at_once, most
        loops.add(asyncio.get_running_loop())
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.002)
        at_once -= 1
        return 1.0

    found = grade(rt, rt.handles(*map(str, range(40))), judge, in_flight=4, by="me")
    assert {one.quality for one in found} == {1.0}
    assert len(loops) == 1 and 1 < most <= 4
    assert rt.grades["7"] == (1.0, "me")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("grading")]


def test_an_agent_gets_the_prompt_and_the_answer() -> None:
    rt = Pretended()
    [found] = grade(rt, rt.handles("a"), "judge")
    assert found.quality == 0.75 and rt.grades == {"a": (0.75, "judge")}
    grade(rt, rt.handles("a"), "judge", prompt=lambda handle: f"mine of {handle.task_id}")
    assert [one["prompt"] for one in rt.submitted] == ["question of a", "mine of a"]
    assert rt.submitted[0]["payload"] == {"answer": 0.75}
    assert (rt.submitted[0]["agent"], rt.submitted[0]["labels"]) == ("judge", {"grades": "a"})


def test_what_does_not_end_in_time_is_said_to_be_late_and_the_others_are_graded() -> None:
    rt = Pretended()
    found = grade(rt, rt.handles("a", "open", "b"), lambda answer: 1.0, timeout_s=0.05)
    assert [one.quality for one in found] == [1.0, None, 1.0]
    assert isinstance(found[1].error, WaitTimeout)


def test_what_ends_while_others_are_graded_is_graded() -> None:
    rt = Pretended()
    late = rt.handle("open")

    def judge(answer: float) -> float:
        late._callbacks and late._resolve(Outcome(task_id=TaskId("open"), state=TaskState.SUCCEEDED), None)[0](late)
        return 0.5

    deadline = time.monotonic() + 20
    found = grade(rt, [rt.handle("a"), late], judge, timeout_s=20)
    assert [one.quality for one in found] == [0.5, 0.5] and time.monotonic() < deadline


@pytest.mark.parametrize(
    ("grader", "more", "field"),
    [
        (3, {}, "grader"),
        (lambda answer: 1.0, {"in_flight": 0}, "in_flight"),
        (lambda answer: 1.0, {"in_flight": True}, "in_flight"),
        (lambda answer: 1.0, {"by": "a\nb"}, "by"),
    ],
)
def test_what_cannot_grade_is_refused_before_anything_is_done(grader: Any, more: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grade(Pretended(), [], grader, **more)
    assert caught.value.field == field

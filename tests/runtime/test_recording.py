"""An agent's steps on their way to coordinators that come, go, and have not found it yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flowray.core.model import Payload, Task, TaskId
from flowray.errors import StaleAttempt, StepLimit
from flowray.runtime.messages import Start, Step, StepAnswer
from flowray.runtime.recording import StepDesk

START = Start("a-0", Task(id=TaskId("t")), 2, 5)
VALUE = Payload(data=b"v", size_bytes=1)


class Loop:
    """A loop and a coordinator, by hand."""

    def __init__(self) -> None:
        self.reached = True
        self.sent: list[Step] = []
        self.due: list[Callable[[], Any]] = []
        self.desk = StepDesk(
            "a-0", 3, send=self.send, soon=lambda call: call(), later=lambda _, call: self.due.append(call)
        )

    def send(self, step: Step) -> bool:
        if self.reached:
            self.sent.append(step)
        return self.reached

    def answer(self, number: int, verdict: str, value: Payload | None = None, detail: str = "") -> None:
        self.desk.answered(StepAnswer("a-0", number, verdict, value, detail))


@pytest.fixture
def loop() -> Loop:
    return Loop()


def test_a_step_waits_for_its_answer(loop: Loop) -> None:
    number, answer = loop.desk.ask(START, "a", VALUE)
    assert loop.sent == [Step("a-0", 3, number, "t", 2, 5, "a", VALUE)] and not answer.done()
    loop.answer(number, "recorded")
    assert answer.result(0) == (False, None)


def test_another_record_stands(loop: Loop) -> None:
    number, answer = loop.desk.ask(START, "a", VALUE)
    loop.answer(number, "known", Payload(data=b"w", size_bytes=1))
    assert answer.result(0) == (True, Payload(data=b"w", size_bytes=1))


def test_what_was_not_answered_goes_to_the_next_coordinator(loop: Loop) -> None:
    first, one = loop.desk.ask(START, "a", VALUE)
    loop.answer(first, "recorded")
    loop.reached = False
    second, other = loop.desk.ask(START, "b", VALUE)
    third, _ = loop.desk.ask(START, "c", VALUE)
    loop.desk.forget(third)  # whoever waited was cancelled
    assert len(loop.sent) == 1
    loop.desk.send_again()
    loop.reached = True
    loop.desk.flush()
    loop.desk.flush()
    assert [step.name for step in loop.sent] == ["a", "b"]
    loop.desk.send_again()
    loop.desk.flush()
    assert [step.name for step in loop.sent] == ["a", "b", "b"]
    loop.answer(second, "recorded")
    loop.answer(second, "recorded")
    assert one.done() and other.done()


def test_a_coordinator_that_has_not_found_the_process_is_asked_again(loop: Loop) -> None:
    numbers = [loop.desk.ask(START, name, None)[0] for name in ("a", "b")]
    for number in numbers:
        loop.answer(number, "later")
    assert len(loop.due) == 1, "one timer for all"
    loop.due.pop()()
    assert [step.name for step in loop.sent] == ["a", "b", "a", "b"]
    loop.answer(numbers[0], "later")
    assert len(loop.due) == 1


def test_refusals_are_errors(loop: Loop) -> None:
    number, answer = loop.desk.ask(START, "a", VALUE)
    loop.answer(number, "stale")
    with pytest.raises(StaleAttempt, match="attempt 2 is not a current one of task t any more"):
        answer.result(0)
    number, answer = loop.desk.ask(START, "a", VALUE)
    loop.answer(number, "refused", detail="too many")
    with pytest.raises(StepLimit, match="too many"):
        answer.result(0)


def test_nothing_is_recorded_of_an_agent_that_is_not_wanted(loop: Loop) -> None:
    _, answer = loop.desk.ask(START, "a", VALUE)
    loop.desk.retire()
    with pytest.raises(StaleAttempt):
        answer.result(0)
    with pytest.raises(StaleAttempt):
        loop.desk.ask(START, "b", VALUE)


def test_giving_up_waiting_does_not_disturb_the_answer(loop: Loop) -> None:
    number, answer = loop.desk.ask(START, "a", VALUE)
    assert not answer.cancel()
    loop.answer(number, "recorded")
    assert answer.done()

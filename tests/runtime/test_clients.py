"""Who waits for what in the coordinator."""

from __future__ import annotations

from collections.abc import Callable

from shells import Line

from flowray.core.model import Outcome, TaskId
from flowray.core.states import TaskState
from flowray.runtime import clients as module
from flowray.runtime.clients import Client, Clients, Submission
from flowray.runtime.messages import Answer, Answers, Outcomes


def outcome(task_id: str) -> Outcome:
    return Outcome(task_id=TaskId(task_id), state=TaskState.SUCCEEDED)


class Hall:
    """Clients, and the turn of the loop they live in."""

    def __init__(self) -> None:
        self.stored: dict[str, Outcome] = {}
        self.stalled: list[Client] = []
        self._later: list[Callable[[], None]] = []
        self.clients = Clients(self._later.append, self.stalled.append, self._load)

    def _load(self, task_ids: list[str]) -> list[Outcome]:
        return [self.stored[task_id] for task_id in task_ids]

    def turn(self) -> None:
        later, self._later[:] = list(self._later), []
        for call in later:
            call()


def test_a_submission_is_answered_when_every_task_has_its_answer() -> None:
    hall, line = Hall(), Line()
    hall.clients.client("c", line)
    submission = Submission("c", 2, lambda answers: hall.clients.answered("c", 7, answers))
    hall.clients.expect(submission, 0, "a")
    hall.clients.expect(submission, 1, "b")
    hall.clients.answer("a", Answer("a"))
    assert line.sent == []
    hall.clients.answer("b", Answer("b", "queue_full", "no room", 1.0))
    assert line.sent == [Answers(7, [Answer("a"), Answer("b", "queue_full", "no room", 1.0)])]


def test_a_submitted_task_is_wanted_without_a_word() -> None:
    hall, line = Hall(), Line()
    hall.clients.client("c", line)
    hall.clients.expect(Submission("c", 1, lambda answers: None), 0, "a")
    hall.clients.answer("a", Answer("a"))
    hall.clients.resolved(outcome("a"))
    hall.turn()
    assert line.outcomes == ["a"]


def test_an_outcome_reaches_those_who_want_it_once() -> None:
    hall, first, second, other = Hall(), Line(), Line(), Line()
    for name, line in (("c", first), ("d", second), ("e", other)):
        hall.clients.client(name, line)
    for name in ("c", "c", "d"):
        hall.clients.want(name, "a")
    hall.clients.resolved(outcome("a"))
    hall.clients.resolved(outcome("a"))
    hall.turn()
    assert (first.outcomes, second.outcomes, other.outcomes) == (["a"], ["a"], [])


def test_what_comes_in_one_turn_goes_out_in_one_message() -> None:
    hall, line = Hall(), Line()
    hall.clients.client("c", line)
    for number in range(module._BATCH_OUTCOMES + 10):
        hall.clients.give("c", outcome(str(number)))
    hall.turn()
    assert [len(m.outcomes) for m in line.sent] == [module._BATCH_OUTCOMES, 10]


def test_tasks_that_nobody_knows_are_said_to_be_unknown() -> None:
    hall, line = Hall(), Line()
    hall.clients.client("c", line)
    hall.clients.unknown("c", ["x", "y"])
    hall.turn()
    assert line.sent == [Outcomes([], ["x", "y"])]


def test_a_client_without_room_gets_the_rest_when_it_has_some_and_memory_stays_bounded() -> None:
    hall, line = Hall(), Line(room=1)
    client = hall.clients.client("c", line)
    hall.clients.give("c", outcome("first"))
    hall.turn()
    many = [str(n) for n in range(module._MAX_OUTBOX + 5_000)]
    for task_id in many:
        hall.stored[task_id] = outcome(task_id)
        hall.clients.give("c", hall.stored[task_id])
    hall.turn()
    assert hall.stalled == [client]
    assert len(client.outbox) == module._MAX_OUTBOX, "the rest are ids only: the store has what they stand for"
    assert len(client.parked) == 5_000
    line.room = 1_000_000
    hall.clients.flush(client)
    assert line.outcomes == ["first", *many]
    hall.clients.give("c", outcome("last"))
    hall.turn()
    assert line.outcomes[-1] == "last"


def test_a_client_that_is_gone_is_forgotten_with_all_it_waited_for() -> None:
    hall, line, other = Hall(), Line(), Line()
    hall.clients.client("c", line)
    hall.clients.client("d", other)
    for name in ("c", "d"):
        hall.clients.want(name, "a")
    hall.clients.want("c", "b")
    hall.clients.forget("c")
    hall.clients.resolved(outcome("a"))
    hall.clients.resolved(outcome("b"))
    hall.turn()
    assert (line.sent, other.outcomes) == ([], ["a"])
    assert hall.clients.names() == ["d"]
    assert not hall.clients._interest

"""Who waits for what in the coordinator."""

from __future__ import annotations

import asyncio

from flowray.core.model import Outcome, TaskId
from flowray.core.states import TaskState
from flowray.runtime import clients as module
from flowray.runtime.clients import Clients, Submission
from flowray.runtime.messages import Answer


def outcome(task_id: str) -> Outcome:
    return Outcome(task_id=TaskId(task_id), state=TaskState.SUCCEEDED)


async def test_a_submission_is_done_when_every_task_has_its_answer() -> None:
    clients = Clients()
    submission = Submission("c", 2)
    clients.expect(submission, 0, "a")
    clients.expect(submission, 1, "b")
    clients.answer("a", Answer("a"))
    assert not submission.done.done()
    clients.answer("b", Answer("b", "queue_full", "no room", 1.0))
    await asyncio.wait_for(submission.done, 1)
    assert [a.reason for a in submission.answers if a is not None] == ["", "queue_full"]


async def test_an_outcome_reaches_those_who_want_it_once() -> None:
    clients = Clients()
    clients.want("c", "a")
    clients.want("c", "a")
    clients.resolved(outcome("a"))
    collected = await clients.collect("c", 0, 0.01, [])
    assert [o.task_id for o in collected.outcomes] == ["a"]
    again = await clients.collect("c", collected.number, 0.01, [])
    assert again.outcomes == []


async def test_a_batch_that_was_not_acknowledged_is_sent_again() -> None:
    clients = Clients()
    clients.give("c", outcome("a"))
    first = await clients.collect("c", 0, 0.01, [])
    second = await clients.collect("c", 0, 0.01, [])
    assert second.outcomes == first.outcomes
    assert second.number == first.number


async def test_a_waiting_collect_returns_as_soon_as_an_outcome_arrives() -> None:
    clients = Clients()
    clients.want("c", "a")
    waiting = asyncio.create_task(clients.collect("c", 0, 30.0, []))
    await asyncio.sleep(0)
    clients.resolved(outcome("a"))
    collected = await asyncio.wait_for(waiting, 5)
    assert [o.task_id for o in collected.outcomes] == ["a"]


async def test_a_client_that_does_not_keep_up_is_forgotten_and_can_see_it() -> None:
    clients = Clients()
    first = await clients.collect("c", 0, 0.0, [])
    for number in range(module._MAX_OUTBOX + 1):
        clients.give("c", outcome(str(number)))
    after = await clients.collect("c", first.number, 0.0, [])
    assert after.desk != first.desk
    assert after.outcomes == []


async def test_batches_are_bounded() -> None:
    clients = Clients()
    for number in range(module._BATCH_OUTCOMES + 10):
        clients.give("c", outcome(str(number)))
    first = await clients.collect("c", 0, 0.0, [])
    assert len(first.outcomes) == module._BATCH_OUTCOMES
    second = await clients.collect("c", first.number, 0.0, [])
    assert len(second.outcomes) == 10

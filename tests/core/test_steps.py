"""Recorded steps in the core: the first record of a running attempt stands, and nobody else's counts."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.core.book import Book
from flowray.core.commands import AnswerStep, RecordStep, StartAttempt
from flowray.core.coordination import Coordination
from flowray.core.events import AgentsAdded, StepFinished
from flowray.core.fencing import fence_of, idempotency_key
from flowray.core.model import AgentId, Payload, Snapshot, TaskId
from flowray.core.steps import INLINE_BYTES, MAX_NAME, MAX_STEPS
from flowray.errors import InvalidTransition

from .builders import Team, at_work, kinds, spec


def payload(text: str) -> Payload:
    return Payload(data=text.encode(), size_bytes=len(text))


def step(team: Team, agent: str, name: str, value: Any = "v", attempt: int = 1, **fields: Any) -> AnswerStep:
    value = payload(value) if isinstance(value, str) else value
    token = (TaskId("t"), attempt, fields.pop("epoch", team.core.epoch))
    incarnation = fields.pop("incarnation", team.incarnation(agent))
    commands = team.tell(StepFinished(*token, AgentId(agent), incarnation, name, value, 7))
    answer = commands[-1]
    assert isinstance(answer, AnswerStep) and answer.number == 7 and answer.waits
    assert kinds(commands[:-1]) == (["RecordStep"] if answer.verdict == "recorded" else [])
    return answer


@pytest.fixture
def team() -> Team:
    return at_work()


def test_a_step_is_recorded_once_and_the_first_stands(team: Team) -> None:
    assert step(team, "writer-0", "a", "first").verdict == "recorded"
    again = step(team, "writer-0", "a", "second")
    assert (again.verdict, again.value) == ("known", payload("first"))
    assert team.core.book.open[TaskId("t")].steps == {"a": payload("first")}


def test_what_is_recorded_outlives_attempts_and_coordinators(team: Team) -> None:
    step(team, "writer-0", "a")
    step(team, "writer-0", "nothing", None)
    team.lose("writer-0")
    team.up("writer-1")
    assert team.core.book.open[TaskId("t")].attempt == 2
    assert step(team, "writer-1", "b", attempt=2).verdict == "recorded"
    kept = {"a": payload("v"), "nothing": None, "b": payload("v")}
    snapshot = msgspec.msgpack.decode(msgspec.msgpack.encode(team.core.snapshot()), type=Snapshot)
    from_snapshot = Coordination.recover(epoch=2, rng=Random(0), now=0.0, snapshot=snapshot)
    team.restart()
    for core in (team.core, from_snapshot):
        assert core.book.open[TaskId("t")].steps == kept
        core.check()
    team.up("writer-1", ("t", 2, 1))
    assert step(team, "writer-1", "c", attempt=2, epoch=1).verdict == "recorded", "an adopted attempt goes on"


@pytest.mark.parametrize("what", ["attempt", "epoch", "incarnation", "agent"])
def test_only_the_running_attempt_records(team: Team, what: str) -> None:
    wrong: dict[str, Any] = {"attempt": {"attempt": 2}, "epoch": {"epoch": 0}, "incarnation": {"incarnation": 2}}.get(
        what, {}
    )
    assert step(team, "writer-1" if what == "agent" else "writer-0", "a", **wrong).verdict == "stale"
    assert not team.core.book.open[TaskId("t")].steps


def test_a_zombies_step_is_refused(team: Team) -> None:
    team.lose("writer-0")
    assert step(team, "writer-0", "a", incarnation=1).verdict == "stale", "its task waits"
    team.up("writer-1")
    assert step(team, "writer-0", "a", incarnation=1).verdict == "stale", "its task runs elsewhere"
    team.answer("writer-1", "t", attempt=2)
    assert step(team, "writer-1", "a", attempt=2).verdict == "stale", "its task has ended"


def test_bounds_say_what_is_wrong(team: Team) -> None:
    for number in range(MAX_STEPS):
        assert step(team, "writer-0", f"s{number}").verdict == "recorded"
    full = step(team, "writer-0", "one more")
    assert full.verdict == "refused" and "256 recorded steps" in full.detail
    assert step(team, "writer-0", "s0").verdict == "known"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("", "v", "0 characters"), ("x" * (MAX_NAME + 1), "v", "201 characters"), ("a", "x" * (INLINE_BYTES + 1), "4097")],
)
def test_what_cannot_be_a_step_is_refused(team: Team, name: str, value: str, said: str) -> None:
    refused = step(team, "writer-0", name, value)
    assert refused.verdict == "refused" and said in refused.detail


def test_steps_count_as_what_is_held_until_the_task_ends(team: Team) -> None:
    before = team.core.admission.open_bytes
    step(team, "writer-0", "a", "x" * 1000)
    assert team.core.admission.open_bytes > before + 1000
    team.restart()
    assert team.core.admission.open_bytes > before + 1000
    team.up("writer-0", ("t", 1, 1))
    team.answer("writer-0", "t", epoch=1)
    assert team.core.admission.open_bytes == 0


def test_the_book_takes_no_second_record() -> None:
    team = Team()
    team.tell(AgentsAdded(spec()))
    team.up("writer-0")
    team.submit("t")
    step(team, "writer-0", "a")
    book = Book()
    for command in team.journal:
        book.apply(command)
    with pytest.raises(InvalidTransition, match="step 'a' comes late"):
        book.apply(RecordStep(TaskId("t"), 1, 1, "a", 0.0))


# ── fences and keys ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_attempt_of_an_older_epoch_than_the_last_is_not_adopted() -> None:
    """Its fence is lower than one that the world may have seen already, so it could do nothing there."""
    team = Team()
    team.tell(AgentsAdded(spec(count=2)))
    team.up("writer-1")
    team.submit("t")
    team.lose("writer-1")  # attempts 2 and 3 went to writer-0, which is lost with the journal's tail
    for epoch in (2, 3):
        team.restart()
        if epoch == 2:
            team.tick(team.now)
            team.up("writer-1")
            assert fence(team) == fence_of(2, 2)
            team.lose("writer-1")
    commands = team.up("writer-0", ("t", 3, 1))
    assert not [c for c in commands if isinstance(c, StartAttempt) and c.reason == "adopted"]
    team.answer("writer-0", "t", attempt=3, epoch=1)
    assert fence(team) == fence_of(3, 3)


def fence(team: Team) -> int:
    started = [c for c in team.journal if isinstance(c, StartAttempt)]
    return fence_of(started[-1].epoch, started[-1].attempt)


@given(st.lists(st.tuples(st.integers(1, 2**20), st.integers(1, 2**32 - 1)), min_size=2, max_size=20))
def test_fences_order_as_epochs_and_attempts_do(attempts: list[tuple[int, int]]) -> None:
    assert [fence_of(*each) for each in sorted(attempts)] == sorted(fence_of(*each) for each in attempts)
    assert len({fence_of(*each) for each in attempts}) == len(set(attempts))


TEXTS = st.text(max_size=20)


@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_keys_are_of_one_task_and_one_step(task: str, name: str, other_task: str, other: str) -> None:
    key = idempotency_key(task, name)
    assert len(key) == 43 and set(key) <= set("0123456789abcdefghijklmnopqrstuvwxyz-")
    assert (key == idempotency_key(other_task, other)) == ((task, name) == (other_task, other))

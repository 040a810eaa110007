"""The book: what recovery stands on."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowray.core.book import STORY_LINES, Book, is_running
from flowray.core.commands import AcceptTask, DurableCommand, RequeueTask, StartAttempt
from flowray.core.model import Choice, Snapshot
from flowray.errors import InvalidTransition

from .builders import Team, failure, task

CHOICE = Choice("only_one", 1)


def lived() -> Team:
    """A team that has seen most of what can happen."""
    team = Team()
    team.ready(2, capabilities=("read",))
    team.submit("done", needs=("read",))
    team.submit("retried", deadline_s=100.0)
    team.submit("waiting", priority=3)
    for name in ("writer-0", "writer-1"):
        entry = team.core.book.open["retried"]
        if entry.agent_id == name:
            team.answer(name, "retried", failure=failure())
        else:
            team.answer(name, "done")
    team.submit("moved")
    team.lose("writer-0")
    team.tick(0.0)
    return team


def test_journal_and_live_book_agree():
    team = lived()
    rebuilt = Book()
    for command in team.journal:
        rebuilt.apply(command)
    assert rebuilt.snapshot(0.0) == team.core.book.snapshot(0.0)


@given(st.integers(0, 60))
@settings(deadline=None, max_examples=30)
def test_a_snapshot_taken_anywhere_and_the_rest_of_the_journal_give_the_same(at):
    team = lived()
    at = min(at, len(team.journal))
    first = Book()
    for command in team.journal[:at]:
        first.apply(command)
    coded = msgspec.msgpack.decode(msgspec.msgpack.encode(first.snapshot(1.0)), type=Snapshot)
    second = Book()
    second.restore(coded)
    assert second.snapshot(1.0) == first.snapshot(1.0)
    rest = msgspec.msgpack.decode(msgspec.msgpack.encode(team.journal[at:]), type=list[DurableCommand])
    for command in rest:
        second.apply(command)
    assert second.snapshot(0.0) == team.core.book.snapshot(0.0)


def test_an_impossible_command_is_refused():
    book = Book()
    book.apply(AcceptTask(task(), 0.0, 0))
    book.apply(StartAttempt("t", 1, 1, "writer-0", 1, 0.0, "first", CHOICE))
    with pytest.raises(InvalidTransition, match="task t is running: no arrow 'started'"):
        book.apply(StartAttempt("t", 2, 1, "writer-1", 1, 0.0, "failover", CHOICE))


def test_a_long_story_loses_its_middle():
    book = Book()
    book.apply(AcceptTask(task(), 0.0, 0))
    for number in range(1, 200):
        book.apply(StartAttempt("t", number, 1, "writer-0", 1, float(number), "failover", CHOICE))
        book.apply(RequeueTask("t", number, float(number), "requeued", failure(), "losses"))
    story = book.open["t"].story
    assert len(story) == STORY_LINES
    assert story[0].what == "accepted"
    assert (story[-1].what, story[-1].attempt) == ("requeued", 199)
    assert len(book.open["t"].choices) == STORY_LINES


def test_what_uses_up_which_bound():
    book = Book()
    book.apply(AcceptTask(task(), 0.0, 0))
    for number, (arrow, counts) in enumerate([("requeued", "kills"), ("requeued", "losses"), ("requeued", "")], 1):
        book.apply(StartAttempt("t", number, 1, "writer-0", 1, 0.0, "first", CHOICE))
        book.apply(RequeueTask("t", number, 0.0, arrow, None, counts))
    entry = book.open["t"]
    assert (entry.failures, entry.losses, entry.kills) == (0, 2, 1)


def test_running_is_what_an_agent_has_and_nothing_else():
    book = Book()
    book.apply(AcceptTask(task("one", idempotent=True), 0.0, 0))
    entry = book.open["one"]
    assert not is_running(entry, 0, 0)  # as an attempt that never was: it waits
    book.apply(StartAttempt("one", 1, 7, "writer-0", 1, 1.0, "first", CHOICE))
    assert is_running(entry, 1, 7)
    assert not is_running(entry, 1, 6)
    assert not is_running(entry, 2, 7)
    book.apply(StartAttempt("one", 2, 7, "writer-1", 1, 2.0, "hedge", CHOICE, beside=True))
    assert is_running(entry, 1, 7)
    assert is_running(entry, 2, 7)
    assert not is_running(entry, 2, 6)
    book.apply(RequeueTask("one", 1, 3.0, "outlived", None, counts="losses"))
    assert not is_running(entry, 1, 7)
    assert is_running(entry, 2, 7)
    book.apply(RequeueTask("one", 2, 4.0, "requeued", None, counts="losses"))
    assert not is_running(entry, 2, 7)

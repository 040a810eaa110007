"""Chunks in the core: each stands once, a later attempt is held to what stands, and readers are told of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.core.book import Book
from flowray.core.commands import AnswerChunks, CancelAttempt, Command, RecordChunks, RequeueTask, ResolveTask
from flowray.core.coordination import Coordination
from flowray.core.events import AgentsAdded, ChunksMade
from flowray.core.model import AgentId, Choice, Snapshot, TaskId
from flowray.core.policy import CorePolicy
from flowray.core.streaming import DIGEST_BYTES, Stream, StreamingPolicy, fit, standing
from flowray.errors import ConfigError, InvalidTransition

from .builders import Team, at_work, failure, kinds, spec

T = TaskId("t")


def digests(text: str) -> bytes:
    """One digest for each letter."""
    return b"".join(letter.encode().rjust(DIGEST_BYTES) for letter in text)


def emit(team: Team, agent: str, first: int, text: str, attempt: int = 1, epoch: int | None = None) -> list[Command]:
    """A batch of one-letter chunks; the answer is the last command."""
    token = (T, attempt, team.core.epoch if epoch is None else epoch)
    event = ChunksMade(*token, AgentId(agent), team.incarnation(agent), first, digests(text), text.encode(), 7)
    commands = team.tell(event)
    answer = commands[-1]
    assert isinstance(answer, AnswerChunks) and answer.number == 7 and answer.waits
    return commands


def verdict(commands: Sequence[Command]) -> str:
    answer = commands[-1]
    assert isinstance(answer, AnswerChunks)
    return answer.verdict


def stands(team: Team) -> str:
    stream = team.core.book.open[T].stream
    return bytes(stream.digests).decode().replace(" ", "") if stream is not None else ""


@pytest.fixture
def team() -> Team:
    return at_work()


def test_a_chunk_is_recorded_once_and_shown_when_it_is_on_disk(team: Team) -> None:
    commands = emit(team, "writer-0", 0, "ab")
    assert kinds(commands) == ["RecordChunks", "AnswerChunks"] and all(command.waits for command in commands)
    assert kinds(emit(team, "writer-0", 0, "ab")) == ["AnswerChunks"], "a batch that comes twice"
    [record, _] = emit(team, "writer-0", 1, "bcd")
    assert isinstance(record, RecordChunks)
    assert (record.first, record.skip, record.digests, record.restarts) == (2, 1, digests("cd"), 0)
    assert stands(team) == "abcd"


def test_what_stands_outlives_attempts_and_coordinators(team: Team) -> None:
    emit(team, "writer-0", 0, "abc")
    team.lose("writer-0")
    team.up("writer-1")
    emit(team, "writer-1", 0, "abx", attempt=2)
    snapshot = msgspec.msgpack.decode(msgspec.msgpack.encode(team.core.snapshot()), type=Snapshot)
    from_snapshot = Coordination.recover(epoch=2, rng=Random(0), now=0.0, snapshot=snapshot)
    before = team.core.snapshot()
    team.restart()
    assert team.core.snapshot() == before == from_snapshot.snapshot()
    from_snapshot.check()
    assert stands(team) == "abx"
    team.up("writer-1", ("t", 2, 1))
    assert verdict(emit(team, "writer-1", 3, "y", attempt=2, epoch=1)) == "recorded", "an adopted attempt goes on"


def test_a_later_attempt_that_gives_the_same_goes_on_where_the_other_was(team: Team) -> None:
    emit(team, "writer-0", 0, "abc")
    team.lose("writer-0")
    team.up("writer-1")
    assert kinds(emit(team, "writer-1", 0, "ab", attempt=2)) == ["AnswerChunks"]
    [record, _] = emit(team, "writer-1", 2, "cd", attempt=2)
    assert isinstance(record, RecordChunks) and (record.first, record.skip, record.restarts) == (3, 1, 0)
    assert stands(team) == "abcd"


def test_a_later_attempt_that_differs_withdraws_the_rest(team: Team) -> None:
    emit(team, "writer-0", 0, "abc")
    team.lose("writer-0")
    team.up("writer-1")
    [record, _] = emit(team, "writer-1", 0, "ax", attempt=2)
    assert isinstance(record, RecordChunks)
    assert (record.first, record.skip, record.digests, record.restarts) == (1, 1, digests("x"), 1)
    assert stands(team) == "ax"
    assert team.core.book.open[T].story[-1].what == "restarted"
    emit(team, "writer-1", 2, "y", attempt=2)
    outcome = next(c.outcome for c in team.answer("writer-1", "t", 2, chunks=3) if isinstance(c, ResolveTask))
    assert (outcome.chunks, outcome.restarts) == (3, (1,))


def test_what_the_answering_attempt_did_not_give_is_withdrawn(team: Team) -> None:
    emit(team, "writer-0", 0, "abc")
    team.lose("writer-0")
    team.up("writer-1")
    emit(team, "writer-1", 0, "ab", attempt=2)
    commands = team.answer("writer-1", "t", 2, chunks=2)
    record, resolve = [c for c in commands if isinstance(c, RecordChunks | ResolveTask)]
    assert isinstance(record, RecordChunks) and (record.first, record.digests, record.restarts) == (2, b"", 1)
    assert isinstance(resolve, ResolveTask) and (resolve.outcome.chunks, resolve.outcome.restarts) == (2, (2,))


def test_a_failed_attempt_withdraws_nothing(team: Team) -> None:
    emit(team, "writer-0", 0, "abc")
    commands = team.answer("writer-0", "t", failure=failure(retryable=False))
    outcome = next(c.outcome for c in commands if isinstance(c, ResolveTask))
    assert (outcome.chunks, outcome.restarts) == (3, ())


def test_a_resumed_attempt_goes_on_after_what_stands(team: Team) -> None:
    emit(team, "writer-0", 0, "abc")
    team.lose("writer-0")
    team.up("writer-1")
    assert verdict(emit(team, "writer-1", 3, "d", attempt=2)) == "recorded"
    assert stands(team) == "abcd"


def test_only_the_running_attempt_adds(team: Team) -> None:
    emit(team, "writer-0", 0, "a")
    for wrong in ({"attempt": 2}, {"epoch": 0}):
        assert verdict(emit(team, "writer-0", 1, "b", **wrong)) == "stale"
    assert verdict(emit(team, "writer-1", 1, "b")) == "stale"
    team.lose("writer-0")
    assert verdict(emit(team, "writer-0", 1, "b")) == "stale"
    assert stands(team) == "a"


# ── two attempts at once ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pair() -> Team:
    """Attempt 1 on writer-0, and attempt 2 beside it on writer-1."""
    team = Team()
    team.ready(2)
    team.answer("writer-0", "warm") if team.submit("warm") else None
    for agent in team.core.registry.agents():
        agent.agent_class.service_s = 0.1
    team.submit("t", idempotent=True)
    team.tick(team.now + 5.0)
    entry = team.core.book.open[T]
    assert entry.extra is not None, "it is hedged"
    return team


def at(team: Team, attempt: int) -> str:
    return team.core.book.open[T].numbered(attempt).agent_id


def test_two_that_give_the_same_both_go_on(pair: Team) -> None:
    one, other = at(pair, 1), at(pair, 2)
    emit(pair, one, 0, "ab", 1)
    emit(pair, other, 0, "abc", 2)
    emit(pair, one, 2, "cd", 1)
    assert stands(pair) == "abcd" and len(pair.core.book.open[T].running()) == 2


@pytest.mark.parametrize("leader", [1, 2])
def test_of_two_the_one_that_leads_goes_on_and_the_other_is_stopped(pair: Team, leader: int) -> None:
    other = 3 - leader
    emit(pair, at(pair, leader), 0, "ab", leader)
    agent = at(pair, other)
    commands = emit(pair, agent, 0, "ax", other)
    assert verdict(commands) == "stale"
    [stop] = [c for c in commands if isinstance(c, CancelAttempt)]
    [over] = [c for c in commands if isinstance(c, RequeueTask)]
    assert stop.agent_id == agent and (over.arrow, over.counts, over.attempt) == ("outlived", "", other)
    assert over.failure is not None and over.failure.kind == "diverged"
    assert stands(pair) == "ab" and [h.attempt for h in pair.core.book.open[T].running()] == [leader]


def test_when_the_leader_is_lost_the_other_may_withdraw(pair: Team) -> None:
    emit(pair, at(pair, 1), 0, "ab", 1)
    pair.lose(at(pair, 1))
    [record, _] = emit(pair, at(pair, 2), 0, "x", 2)
    assert isinstance(record, RecordChunks) and (record.first, record.restarts) == (0, 1)


def test_of_two_one_that_withdraws_what_an_earlier_attempt_gave_goes_on_alone() -> None:
    """The other one gave the same as that, and would answer with what does not stand any more."""
    team = Team()
    team.tell(AgentsAdded(spec(count=3)))
    team.up("writer-0")
    team.submit("t", idempotent=True)
    emit(team, "writer-0", 0, "abcd")
    team.lose("writer-0")
    team.up("writer-1")
    team.up("writer-2")
    agent = team.core.registry.agent(AgentId("writer-2"))
    assert agent is not None
    entry = team.core.book.open[T]
    team.core.attempts.start_on(entry, agent, Choice("copy", 1), "copy", beside=True)
    team.core._out.clear()
    assert verdict(emit(team, "writer-1", 0, "abcd", attempt=2)) == "recorded"
    commands = emit(team, "writer-2", 0, "abx", attempt=3)
    assert kinds(commands) == ["RecordChunks", "CancelAttempt", "RequeueTask", "AnswerChunks"]
    assert verdict(commands) == "recorded" and stands(team) == "abx"
    assert [held.attempt for held in entry.running()] == [3]
    assert verdict(emit(team, "writer-1", 4, "e", attempt=2)) == "stale"


def test_an_attempt_that_went_on_from_withdrawn_chunks_is_stopped(team: Team) -> None:
    """Alone, so that the task is tried again; it counts as lost, so that this comes to an end."""
    emit(team, "writer-0", 0, "ab")
    team.lose("writer-0")
    team.up("writer-1")
    commands = emit(team, "writer-1", 5, "x", attempt=2)
    [over] = [c for c in commands if isinstance(c, RequeueTask)]
    assert (over.arrow, over.counts) == ("requeued", "losses") and verdict(commands) == "stale"


def test_a_task_that_gives_out_chunks_is_not_hedged() -> None:
    team = Team()
    team.ready(2)
    for agent in team.core.registry.agents():
        agent.agent_class.service_s = 0.1
    team.submit("t", idempotent=True)
    emit(team, team.core.book.open[T].agent_id, 0, "a")
    team.tick(60.0)
    assert team.core.book.open[T].extra is None


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("bounds", "said"),
    [({"max_chunks": 3}, "max_chunks"), ({"max_bytes": 3}, "max_bytes"), ({"max_open_bytes": 3}, "max_open_bytes")],
)
def test_what_exceeds_a_bound_is_refused_and_nothing_is_recorded(bounds: dict[str, int], said: str) -> None:
    team = Team(CorePolicy(streaming=StreamingPolicy(**bounds)))
    team.ready()
    team.submit("t")
    assert verdict(emit(team, "writer-0", 0, "abc")) == "recorded"
    assert verdict(emit(team, "writer-0", 0, "abc")) == "recorded", "what stands needs no room"
    commands = emit(team, "writer-0", 3, "d")
    answer = commands[-1]
    assert kinds(commands) == ["AnswerChunks"] and isinstance(answer, AnswerChunks)
    assert answer.verdict == "refused" and said in answer.detail and stands(team) == "abc"


def test_withdrawn_chunks_count_towards_the_bounds() -> None:
    team = Team(CorePolicy(streaming=StreamingPolicy(max_chunks=4)))
    team.ready()
    team.submit("t")
    emit(team, "writer-0", 0, "abc")
    team.answer("writer-0", "t", failure=failure())
    team.tick(team.now + 60.0)
    assert verdict(emit(team, "writer-0", 0, "xy", attempt=2)) == "refused"


def test_what_a_task_held_is_free_when_it_ends(team: Team) -> None:
    emit(team, "writer-0", 0, "abc")
    assert team.core.streaming.open_bytes == 3 and team.core.admission.open_bytes > 512 + 24
    team.answer("writer-0", "t", chunks=3)
    assert team.core.streaming.open_bytes == 0 == team.core.admission.open_bytes


def test_bounds_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"streaming\.max_chunks"):
        StreamingPolicy(max_chunks=0)


# ── the parts ────────────────────────────────────────────────────────────────────────────────────────────────────


@given(old=st.text("ab", max_size=6), first=st.integers(0, 8), new=st.text("ab", max_size=6))
def test_fit_says_where_a_batch_differs(old: str, first: int, new: str) -> None:
    stream = Stream()
    stream.add(0, digests(old), 0, 1, 1)
    found = fit(stream, first, digests(new))
    if first > len(old):
        assert found.gap
        return
    same = 0
    while same < min(len(new), len(old) - first) and new[same] == old[first + same]:
        same += 1
    assert (found.at, found.skip, found.gap) == (first + same, same, False)
    assert found.differs == (same < min(len(new), len(old) - first))


@given(st.lists(st.tuples(st.integers(0, 9), st.text("ab", max_size=4)), max_size=8))
def test_readers_learn_of_every_restart_whenever_they_look(batches: list[tuple[int, str]]) -> None:
    """Whoever has read something, cut to what is said to stand, has the beginning of what stands now."""
    stream, seen = Stream(), [("", 0)]
    now = ""
    for first, text in batches:
        at = min(first, len(now))
        now = now[:at] + text
        stream.add(at, digests(text), 0, 1, 1)
        seen.append((now, len(stream.restarts)))
    for text, restarts in seen:
        for length in range(len(text) + 1):
            kept = standing(stream.restarts, restarts, length)
            assert now.startswith(text[:kept]) and kept <= length


def test_a_book_takes_no_chunk_of_a_task_that_does_not_run(team: Team) -> None:
    emit(team, "writer-0", 0, "ab")
    gap = RecordChunks(T, 1, 1, 3, 0.0, 0, digests("x"))
    with pytest.raises(InvalidTransition, match="chunk 3 of task t"):
        team.core.book.apply(gap)
    book = Book()
    for command in team.journal:
        book.apply(command)
    book.apply(RequeueTask(T, 1, 0.0, "requeued"))
    with pytest.raises(InvalidTransition, match="queued"):
        book.apply(RecordChunks(T, 1, 1, 2, 0.0, 0, digests("x")))

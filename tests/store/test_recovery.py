from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowray.core.commands import AcceptTask, AddAgents, DurableCommand, RequeueTask, StartAgent, StartAttempt, WakeTask
from flowray.core.model import AgentId, AgentSpec, Choice, Failure, Payload, Snapshot, Task, TaskId
from flowray.errors import StoreError

from .builders import Answers, resolve, snapshot
from .places import Place, SqlitePlace

ids = st.text(max_size=20).map(TaskId)
agents = st.sampled_from(["a-0", "b-1"]).map(AgentId)
at = st.floats(min_value=0, max_value=1e9)
small = st.integers(min_value=0, max_value=2**40)
failures = st.builds(Failure, kind=st.just("application"), message=st.text(), retryable=st.booleans())
payloads = st.none() | st.builds(Payload, data=st.binary(max_size=300), size_bytes=small)
tasks = st.builds(Task, id=ids, prompt=st.text(), payload=payloads, priority=st.integers(-5, 5), key=st.text())
choices = st.builds(Choice, st.just("first"), small, st.lists(st.tuples(st.text(), at), max_size=3).map(tuple))
commands: st.SearchStrategy[DurableCommand] = st.one_of(
    st.builds(AcceptTask, tasks, at, small),
    st.builds(StartAttempt, ids, small, small, agents, small, at, st.just("first"), choices, st.none() | at),
    st.builds(RequeueTask, ids, small, at, st.just("failed"), st.none() | failures, st.just("failures"), at),
    st.builds(WakeTask, ids, at),
    st.builds(AddAgents, st.builds(AgentSpec, name=st.text(), tier=st.text(), code=st.binary(max_size=50)), at),
    st.builds(StartAgent, agents, small, st.text(), at),
)
Step = list[DurableCommand] | int | str
steps: st.SearchStrategy[list[Step]] = st.lists(
    st.lists(commands, max_size=6) | st.integers(0, 600) | st.just("restart"), max_size=8
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=steps)
def test_recovery_returns_exactly_what_was_acknowledged_after_the_snapshot(tmp_path: Path, plan: list[Step]) -> None:
    carry_out(SqlitePlace(tmp_path), plan)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=steps)
def test_the_same_in_postgresql(postgres_place: Place, plan: list[Step]) -> None:
    carry_out(postgres_place, plan)


def carry_out(place: Place, plan: list[Step]) -> None:
    """A number saves a snapshot of so many tasks; "restart" closes and recovers."""
    saved: Snapshot | None = None
    tail: list[DurableCommand] = []
    fresh = place.another()
    store = fresh.opened(group_commands=4)
    answers = Answers()
    asked, epoch = 0, 1
    for step in [*plan, "restart"]:
        if isinstance(step, list):
            store.append(step, answers)
            tail += step
        elif isinstance(step, int):
            saved, tail = snapshot(*range(step)), []
            store.save_snapshot(saved, answers)
        else:
            store.close()
            store = fresh.open()
            recovery = store.begin_epoch("next")
            epoch += 1
            assert (recovery.epoch, recovery.snapshot, recovery.commands) == (epoch, saved, tail)
            continue
        asked += 1
    store.close()
    assert answers.errors == [None] * asked
    report = fresh.verify()
    assert report.ok, report.problems
    assert (report.epoch, report.commands) == (epoch, len(tail))


def test_verify_needs_a_journal(place: Place) -> None:
    with pytest.raises(StoreError, match="no journal"):
        place.verify()


def test_verify_beside_a_running_coordinator_sees_one_sound_moment(place: Place) -> None:
    store = place.opened()
    answers = Answers()
    for number in range(200):
        store.append([resolve(number)], answers)
        if number % 50 == 0:
            assert place.verify().problems == ()
    answers.wait(200)
    assert place.verify().outcomes == 200
    store.close()


def test_verify_checks_the_count_of_outcomes(place: Place) -> None:
    store = place.opened()
    answers = Answers()
    store.append([resolve(1), resolve(2)], answers)
    answers.wait()
    store.close()
    place.change("DELETE FROM outcomes WHERE task_id = 't-000001'")
    assert "there should be outcomes" in place.verify().problems[0]

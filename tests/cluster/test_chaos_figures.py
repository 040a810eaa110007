"""What a chaos run finds in its histories, by histories that are written by hand."""

from __future__ import annotations

from typing import Any

import pytest
from chaos_run import Fault, latencies, measure


def task(number: int, due: float, accepted: float, ended: float | None, *, again: float | None = None) -> list[Any]:
    """The writer's records of one task; `again` is when it asked for it once more, its first call having failed."""
    name, key = f"t{number}", f"k{number}"
    said = {"client": "writer", "f": "submit", "key": key}
    records = [{**said, "at": due, "op": 10 * number, "type": "invoke", "due": due}]
    if again is not None:
        records.append({**said, "at": again, "op": 10 * number, "type": "info"})
        records.append({**said, "at": again, "op": 10 * number + 1, "type": "invoke", "due": due})
    records.append({**said, "at": accepted, "op": 10 * number + 1, "type": "ok", "task": name})
    if ended is not None:
        records.append({"client": "writer", "f": "read", "type": "ok", "at": ended, "task": name, "op": 5})
    return records


def test_latencies_go_from_when_a_task_was_due_to_its_outcome() -> None:
    faults = [Fault("agent", [], 2.0, 0.0), Fault("agent", [], 4.0, 0.0), Fault("agent", [], 100.0, 0.0)]
    history = [
        *task(1, 0.0, 0.1, 1.0),  # before any fault
        *task(2, 1.75, 1.8, 2.5),  # open at the first
        *task(3, 3.0, 3.9, 4.5, again=3.5),  # between them, long before the second
        *task(5, 3.75, 3.8, 4.25),  # open at the second
        *task(4, 10.0, 10.1, None),
    ]
    rate, found = latencies(faults, history)
    assert rate == pytest.approx(5 / 10.0)
    assert found == {"p50": 0.75, "p99": 1.5, "max": 1.5}
    assert [fault.slowest_s for fault in faults] == [1.5, 0.5, None]


def test_of_others_tasks_and_of_tasks_kept_open_there_are_none() -> None:
    kept_open = [{key: value for key, value in one.items() if key != "due"} for one in task(1, 0.0, 0.1, 1.0)]
    visitor = [{**one, "client": "visitor"} for one in task(2, 0.0, 0.1, 1.0)]
    assert latencies([], [*kept_open, *visitor]) == (None, {})


def test_work_is_useful_again_when_an_agent_has_begun_with_what_was_interrupted() -> None:
    fault = Fault("agent", ["a-0"], at=50.0, at_utc=1000.0)
    story = [
        [999.0, "accepted", 0, "", ""],
        [999.9, "started", 1, "a-0", "first"],
        [1000.02, "requeued", 1, "a-0", "a-0 was lost: its process died"],
        [1000.03, "started", 2, "a-1", "failover"],
    ]
    lost = {"story": story, "attempts": 2, "resolved_at": 1000.08, "value": {"began": 50.04}}
    other = {"story": story[:2], "attempts": 1, "resolved_at": 1000.01, "value": {"began": 49.9}}
    read = {"client": "writer", "f": "read", "type": "ok", "op": 1}
    history = [{**read, "at": 50.01, "outcome": other}, {**read, "at": 50.1, "outcome": lost}]
    assert measure([fault], history) == 1
    assert fault.useful_s == fault.again_s == pytest.approx(0.04)
    assert fault.first_s == pytest.approx(0.1) and fault.rerun == 1

    coordinator = Fault("coordinator", ["4711"], at=50.0, at_utc=1000.0)
    measure([coordinator], history)
    assert coordinator.again_s is None and coordinator.useful_s == coordinator.first_s == pytest.approx(0.01)

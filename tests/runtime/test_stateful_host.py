"""One process of a stateful agent, without any: what it does with what a coordinator tells it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import flowray as fr
from flowray.core.commands import ActivateSeat, DeliverInput, DemandSnapshot, RestoreState, ToSeat
from flowray.core.model import AgentId, AgentSpec, Payload, StatefulSpec, StateSnapshot, Task, TaskId
from flowray.runtime.messages import Begin, Held, Output, Refused, Report, Result, Snapshotted
from flowray.runtime.stateful import StatefulHost, message_of

SEAT = AgentId("ledger-0")
WAIT_S = 10.0


class Ledger:
    def __init__(self) -> None:
        self.total = 0

    def apply(self, task: fr.Task) -> int:
        if task.payload is None:
            raise ValueError("nothing to add")
        self.total += task.payload
        return self.total

    def snapshot(self) -> Any:
        if self.total == 13:
            raise ValueError("unlucky")
        return self.total

    def restore(self, state: Any) -> None:
        if state == "odd":
            raise ValueError("not my state")
        self.total = state


class Process:
    """A process's loop and its link to the coordinator, by hand."""

    def __init__(self, standby_of: str = "") -> None:
        self.loop: Any = self
        self.reports: list[Report] = []
        self.reached = True
        self._said = threading.Condition()
        spec = AgentSpec(
            name="ledger" + (".standby" if standby_of else ""),
            tier="primary",
            target=f"{__name__}:Ledger",
            stateful=StatefulSpec(of=standby_of),
        )
        begin = Begin(f"{spec.name}-0", 1, 1, spec, 1 << 16, 1 << 20, "r", "n", "/nowhere")
        self.host = StatefulHost(begin, self)
        assert self.host.construct() is None

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        call()

    def soon(self, call: Callable[[], None]) -> None:
        call()

    def stir(self) -> None:
        """Nobody looks for what is stuck here."""

    def report(self, report: Any) -> bool:
        with self._said:
            if self.reached:
                self.reports.append(report)
                self._said.notify_all()
        return self.reached

    def voice(self, agent_id: str) -> Any:
        raise AssertionError("it has no voice")

    def tell(self, *commands: ToSeat) -> None:
        for command in commands:
            self.host.tell(message_of(command))

    def results(self, count: int) -> list[Result]:
        """So many results, once they are here."""
        with self._said:
            there = self._said.wait_for(lambda: len(self._all()) >= count, WAIT_S)
        assert there and len(self._all()) == count, self._all()
        return self._all()

    def _all(self) -> list[Result]:
        return [result for report in self.reports for result in report.results]

    def settled(self) -> None:
        """Everything told so far has been done: a snapshot is the last of it."""
        self.tell(DemandSnapshot(SEAT, 1, self.host.attend(1).received))
        self.results(1)
        self.reports.clear()


def restore(seq: int = 0, value: Any = None) -> RestoreState:
    kept = StateSnapshot(seq, "d", Payload(data=msgspec.msgpack.encode(value))) if seq else None
    return RestoreState(SEAT, 1, kept)


def given(seq: int, number: int | None, *, after: int | None = None, answered: int = 0) -> DeliverInput:
    payload = None if number is None else Payload(data=msgspec.msgpack.encode(number))
    task = Task(id=TaskId(f"t{seq}"), payload=payload)
    return DeliverInput(SEAT, 1, seq, seq - 1 if after is None else after, task, 1.0, answered)


def activate(term: int = 1) -> ActivateSeat:
    return ActivateSeat(SEAT, 1, term)


def outputs(results: list[Result]) -> list[tuple[int, int, Any]]:
    """(number, term, value) of each."""
    return [
        (one.seq, one.term, msgspec.msgpack.decode(one.value.data) if one.value and one.value.data else None)
        for one in results
        if isinstance(one, Output)
    ]


def test_the_active_process_answers() -> None:
    process = Process()
    process.tell(restore(), activate(), given(1, 5), given(2, 7))
    assert outputs(process.results(2)) == [(1, 1, 5), (2, 1, 12)]


def test_what_apply_raises_is_the_answer() -> None:
    process = Process()
    process.tell(restore(), activate(), given(1, None), given(2, 7))
    failed, done = process.results(2)
    assert isinstance(failed, Output) and failed.failure is not None and failed.failure.type == "ValueError"
    assert "stateful.py" not in failed.failure.traceback.replace("test_stateful.py", "")
    assert outputs([done]) == [(2, 1, 7)]


def test_a_repeat_changes_nothing() -> None:
    process = Process()
    process.tell(restore(), activate(), given(1, 5), given(1, 5), restore(), given(2, 7), activate())
    assert outputs(process.results(2)) == [(1, 1, 5), (2, 1, 12)]


def test_a_standby_answers_when_it_takes_over() -> None:
    process = Process("ledger")
    process.tell(restore(), given(1, 5), given(2, 7), given(3, 1, answered=1))
    process.settled()
    assert process.reports == []
    process.tell(activate(2))
    assert outputs(process.results(2)) == [(2, 2, 12), (3, 2, 13)]
    process.tell(given(4, 1))
    assert outputs(process.results(3))[-1] == (4, 2, 14)


def test_a_restored_process_goes_on_from_there() -> None:
    process = Process()
    process.tell(restore(4, 100), activate(), given(5, 1))
    assert outputs(process.results(1)) == [(5, 1, 101)]


def test_what_was_left_out_leaves_a_gap_in_the_numbers() -> None:
    process = Process()
    process.tell(restore(), activate(), given(1, 5), given(4, 7, after=1))
    assert outputs(process.results(2)) == [(1, 1, 5), (4, 1, 12)]


def test_replayed_inputs_that_have_their_outcome_are_not_answered_again() -> None:
    process = Process()
    process.tell(restore(), activate(3), given(1, 5, answered=1), given(2, 7, answered=1))
    assert outputs(process.results(1)) == [(2, 3, 12)]


def test_snapshots_of_both_have_one_digest_and_the_active_one_gives_the_state() -> None:
    found = []
    for process, term in ((Process(), 1), (Process("ledger"), 0)):
        process.tell(restore(), *([activate()] if term else []), given(1, 5), DemandSnapshot(SEAT, 1, 1))
        taken = process.results(1 + term)[-1]
        assert isinstance(taken, Snapshotted) and (taken.seq, taken.term) == (1, term)
        assert (taken.value is not None) == bool(term)
        found.append(taken.digest)
    assert found[0] == found[1] != ""


def test_a_snapshot_that_fails_is_said() -> None:
    process = Process()
    process.tell(restore(), activate(), given(1, 13), DemandSnapshot(SEAT, 1, 1), given(2, 1))
    _, taken, after = process.results(3)
    assert isinstance(taken, Snapshotted) and taken.failure is not None and "unlucky" in taken.failure.message
    assert outputs([after]) == [(2, 1, 14)]


def test_a_demand_that_comes_late_is_not_answered() -> None:
    process = Process()
    process.tell(restore(), activate(), given(1, 5), given(2, 5), DemandSnapshot(SEAT, 1, 1), given(3, 1))
    assert len(outputs(process.results(3))) == 3


def test_a_state_that_cannot_be_restored_is_said_and_nothing_is_applied() -> None:
    process = Process()
    process.tell(restore(4, "odd"), activate(), given(5, 1))
    (refused,) = process.results(1)
    assert isinstance(refused, Refused) and "not my state" in refused.failure.message


def test_a_new_coordinator_hears_what_is_here_and_what_was_not_acknowledged() -> None:
    process = Process()
    process.tell(restore(), activate(2), given(1, 5), given(2, 7))
    process.results(2)
    process.host.acknowledged(1)
    held = process.host.attend(2)
    assert isinstance(held, Held) and (held.received, held.term) == (2, 2)
    assert outputs(held.results) == [(2, 2, 12)]
    process.reports.clear()
    process.host.send_again()
    process.host.flush()
    assert outputs(process.results(1)) == [(2, 2, 12)]


def test_a_gap_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Exception):
        pass

    def leave(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr("os._exit", leave)
    process = Process()
    process.tell(restore(), given(1, 5))
    with pytest.raises(Ended):
        process.tell(given(3, 7))

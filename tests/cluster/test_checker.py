"""The outside checker must be able to fail: good histories pass, and each way of being wrong is seen."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from checker import Record, Verdict, check, read_history


class History:
    """Builds histories; time and operation numbers go up by themselves."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._ops = count()
        self._clock: Iterator[int] = count()

    def put(self, client: str, op: int, kind: str, f: str, **more: Any) -> None:
        self.records.append({"at": float(next(self._clock)), "client": client, "op": op, "type": kind, "f": f, **more})

    def submit(self, key: str, task: str | None, *, kind: str = "ok", client: str = "c") -> None:
        op = next(self._ops)
        self.put(client, op, "invoke", "submit", key=key, expect=f"answer of {key}")
        self.put(client, op, kind, "submit", key=key, task=task)

    def read(self, task: str, key: str, *, client: str = "c", by: int = 1, state: str = "succeeded") -> int:
        op = next(self._ops)
        self.put(client, op, "invoke", "read", task=task)
        self.see(op, task, key, client=client, by=by, state=state)
        return op

    def see(self, op: int, task: str, key: str, *, client: str = "c", by: int = 1, state: str = "succeeded") -> None:
        outcome: dict[str, Any] = {"state": state}
        if state == "succeeded":
            outcome["value"] = {"of": key, "answer": f"answer of {key}", "by": by}
        self.put(client, op, "ok", "read", task=task, outcome=outcome)

    def verdict(self) -> Verdict:
        return check(self.records)


def test_a_good_history_passes() -> None:
    history = History()
    history.submit("a", None, kind="info")
    history.submit("a", "t1")
    history.submit("b", "t2")
    history.submit("a", "t1", client="d")
    history.read("t1", "a")
    history.read("t1", "a", client="d")
    history.read("t2", "b", state="dead")
    verdict = history.verdict()
    assert verdict.good, verdict
    assert (verdict.accepted, verdict.unknown, verdict.reads, verdict.readers) == (2, 0, 3, 2)
    assert verdict.states == {"dead": 1, "succeeded": 1}


def test_an_accepted_task_without_an_outcome_is_lost() -> None:
    history = History()
    history.submit("a", "t1")
    history.submit("b", "t2")
    history.read("t1", "a")
    verdict = history.verdict()
    assert not verdict.good
    assert len(verdict.lost) == 1 and "t2" in verdict.lost[0]


def test_an_outcome_that_a_later_reader_does_not_find_is_lost() -> None:
    history = History()
    history.submit("a", "t1")
    history.read("t1", "a")
    history.put("d", 7, "invoke", "read", task="t1")
    history.put("d", 7, "fail", "read", task="t1", error="no task has the id t1")
    assert len(history.verdict().lost) == 1


def test_a_submit_whose_end_nobody_learned_is_not_lost() -> None:
    history = History()
    history.submit("a", None, kind="info")
    verdict = history.verdict()
    assert verdict.good and verdict.unknown == 1 and verdict.accepted == 0


def test_a_refused_submit_is_not_lost() -> None:
    history = History()
    history.submit("a", None, kind="fail")
    assert history.verdict().good


def test_readers_that_see_different_outcomes_are_two_outcomes() -> None:
    history = History()
    history.submit("a", "t1")
    history.read("t1", "a", by=1)
    history.read("t1", "a", by=2, client="d")  # the same answer, made by another execution
    verdict = history.verdict()
    assert len(verdict.twice) == 1 and not verdict.foreign


def test_a_state_that_changes_is_two_outcomes() -> None:
    history = History()
    history.submit("a", "t1")
    history.read("t1", "a", state="expired")
    history.read("t1", "a")
    assert len(history.verdict().twice) == 1


def test_an_outcome_delivered_twice_for_one_wait_shows() -> None:
    history = History()
    history.submit("a", "t1")
    op = history.read("t1", "a")
    history.see(op, "t1", "a")
    assert len(history.verdict().twice) == 1


def test_the_value_of_another_task_shows() -> None:
    history = History()
    history.submit("a", "t1")
    history.submit("b", "t2")
    history.read("t1", "b")
    history.read("t2", "b")
    verdict = history.verdict()
    assert len(verdict.foreign) == 1 and "t1" in verdict.foreign[0]


def test_a_wrong_answer_for_the_right_key_shows() -> None:
    history = History()
    history.submit("a", "t1")
    op = history.read("t1", "a")
    history.records = [
        {**r, "outcome": {"state": "succeeded", "value": {"of": "a", "answer": "wrong"}}} if r["op"] == op else r
        for r in history.records
    ]
    assert len(history.verdict().foreign) == 1


def test_a_value_that_is_missing_shows() -> None:
    history = History()
    history.submit("a", "t1")
    op = 99
    history.put("c", op, "invoke", "read", task="t1")
    history.put("c", op, "ok", "read", task="t1", outcome={"state": "succeeded", "value": None})
    assert len(history.verdict().foreign) == 1


def test_a_key_with_two_tasks_shows() -> None:
    history = History()
    history.submit("a", "t1")
    history.submit("a", "t2")
    history.read("t1", "a")
    history.read("t2", "a")
    assert len(history.verdict().split) == 1


def test_a_task_with_two_keys_shows() -> None:
    history = History()
    history.submit("a", "t1")
    history.submit("b", "t1")
    history.read("t1", "a")
    assert len(history.verdict().split) == 1


def test_an_outcome_that_is_no_end_shows() -> None:
    history = History()
    history.submit("a", "t1")
    history.read("t1", "a", state="running")
    assert history.verdict().impossible


def test_an_outcome_of_a_task_that_nobody_submitted_shows() -> None:
    history = History()
    history.read("t1", "a")
    assert history.verdict().impossible


def test_an_answer_before_its_question_shows() -> None:
    history = History()
    history.read("t1", "a")
    history.submit("a", "t1")
    assert history.verdict().impossible


def test_an_end_without_a_beginning_shows() -> None:
    history = History()
    history.put("c", 5, "ok", "submit", key="a", task="t1")
    history.read("t1", "a")
    assert any("without having begun" in one for one in history.verdict().impossible)


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text('{"at": 2.0, "n": 1}\n{"at": 1.0, "n": 2}\n{"at": 3.0, "n')
    assert [r["n"] for r in read_history(file)] == [2, 1]

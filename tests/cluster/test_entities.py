"""The checker of entities finds what it is there to find."""

from __future__ import annotations

from typing import Any

from entities import check_entities


def history(applied: list[int], *, given: int = 3, said: dict[int, int] | None = None) -> list[dict[str, Any]]:
    """Inputs 0, 1, ... of one entity, all acknowledged and answered; and what its state has in the end."""
    records: list[dict[str, Any]] = []

    def note(op: int, kind: str, f: str, **more: Any) -> None:
        records.append({"at": float(len(records)), "client": "c", "op": op, "type": kind, "f": f, **more})

    for number in range(given):
        key, task = f"e/{number}", f"t{number}"
        value = {"of": key, "answer": number, "position": (said or {}).get(number, number + 1)}
        note(2 * number, "invoke", "submit", key=key, expect=number)
        note(2 * number, "ok", "submit", key=key, task=task)
        note(2 * number + 1, "invoke", "read", task=task)
        note(2 * number + 1, "ok", "read", task=task, outcome={"state": "succeeded", "value": value})
    note(100, "invoke", "state", entity="e")
    note(100, "ok", "state", entity="e", applied=applied)
    return records


def test_all_once_and_in_order_is_good() -> None:
    verdict = check_entities(history([0, 1, 2]))
    assert verdict.good and verdict.accepted == 3


def test_an_acknowledged_input_that_the_state_lacks_is_lost() -> None:
    assert len(check_entities(history([0, 1])).lost) == 1


def test_an_input_that_the_state_has_twice_shows() -> None:
    assert any("applied 2 times" in one for one in check_entities(history([0, 1, 1, 2])).twice)


def test_another_order_shows() -> None:
    assert len(check_entities(history([0, 2, 1])).disordered) == 1


def test_an_output_of_a_state_that_nobody_has_any_more_shows() -> None:
    verdict = check_entities(history([0, 1, 2], said={2: 4}))
    assert verdict.twice and not verdict.lost and not verdict.good


def test_an_input_that_nobody_gave_is_impossible() -> None:
    assert check_entities(history([0, 1, 2, 7])).impossible


def test_an_input_of_unknown_end_may_be_there_or_not() -> None:
    for applied in ([0, 1, 2], [0, 1]):
        records = [r for r in history(applied) if r.get("task") != "t2"]
        records.append({"at": 99.0, "client": "c", "op": 4, "type": "info", "f": "submit", "key": "e/2"})
        verdict = check_entities(sorted(records, key=lambda r: r["at"]))
        assert verdict.good, verdict


def test_an_entity_without_a_state_in_the_end_is_lost() -> None:
    assert check_entities([r for r in history([]) if r["f"] != "state"]).lost

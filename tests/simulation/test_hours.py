"""The page on what was simulated says what its ledger says."""

from __future__ import annotations

from flowray.testing.swarm import SOMETIMES

from .hours import describe

LINE = {
    "commit": "abc",
    "first": 0,
    "seeds": 10,
    "virtual_s": 7200.0,
    "cpu_s": 36.0,
    "events": 100,
    "steps": 900,
    "tasks": 50,
    "faults": {"Crash": 4},
    "sometimes": {SOMETIMES[0]: 12},
    "violations": [],
    "invariants": {},
}


def test_each_commit_has_a_row_and_so_has_the_whole():
    second = {**LINE, "commit": "def", "first": 10, "virtual_s": 3600.0, "violations": [17], "faults": {"Drop": 8}}
    page = describe([LINE, LINE | {"first": 20}, second])
    assert "| `abc` | 20 (0 to 29) | 4.0 | 0.02 | 100 | 200 | 8 | none |" in page
    assert "| `def` | 10 (10 to 19) | 1.0 | 0.01 | 50 | 100 | 8 | 17 |" in page
    assert "| all | 30 (0 to 29) | 5.0 | 0.03 | 150 | 300 | 16 | 17 |" in page
    assert "holds 30 tasks, 60 events" in page
    assert "| Drop | 8 | 1.6 |" in page


def test_points_that_were_hardly_come_by_are_counted():
    page = describe([LINE])
    assert f"{len(SOMETIMES)} points, {len(SOMETIMES) - 1} of them less than 10 times." in page
    assert page.rstrip().endswith(f"| {SOMETIMES[0]} | 12 |")

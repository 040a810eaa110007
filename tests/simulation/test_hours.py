"""What was simulated: the page says what its ledger says, and of each commit there is one line, of no seed two."""

from __future__ import annotations

from typing import Any

from flowray.testing.swarm import SOMETIMES
from flowray.testing.totals import read_ledger

from .hours import KEPT, TABLE, describe, merged

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


def line(commit: str, first: int) -> dict[str, Any]:
    return LINE | {"commit": commit, "first": first, "seeds": 256}


def test_slices_of_one_commit_are_one_line() -> None:
    found = merged([line("b", 512) | {"violations": [600]}, line("a", 0), line("a", 256)])
    assert [(one["commit"], one["first"], one["seeds"]) for one in found] == [("a", 0, 512), ("b", 512, 256)]
    assert found[0]["faults"] == {"Crash": 8} and found[0]["virtual_s"] == 14400.0
    assert found[1]["violations"] == [600]


def test_seeds_that_are_kept_already_do_not_count_again() -> None:
    kept = merged([line("a", 0), line("a", 256)])
    assert merged([*kept, line("a", 0), line("a", 256), line("a", 512)]) == merged([*kept, line("a", 512)])


def test_the_page_is_made_from_what_is_kept() -> None:
    assert describe(read_ledger(KEPT)) == TABLE.read_text()

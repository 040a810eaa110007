"""The sums of long runs: one line for each commit, and no seed twice."""

from __future__ import annotations

from typing import Any

from flowray.testing.totals import read_ledger

from .hours import KEPT, TABLE, describe, merged


def line(commit: str, first: int, seeds: int = 256, violations: tuple[int, ...] = ()) -> dict[str, Any]:
    sums = {"virtual_s": 3600.0, "cpu_s": 1.0, "tasks": 10, "events": 100}
    return {
        "commit": commit,
        "first": first,
        "seeds": seeds,
        **sums,
        "faults": {"Crash": 2},
        "sometimes": {"held back": 1},
        "violations": list(violations),
    }


def test_slices_of_one_commit_are_one_line() -> None:
    found = merged([line("b", 512, violations=(600,)), line("a", 0), line("a", 256)])
    assert [(one["commit"], one["first"], one["seeds"]) for one in found] == [("a", 0, 512), ("b", 512, 256)]
    assert found[0]["faults"] == {"Crash": 4} and found[0]["virtual_s"] == 7200.0
    assert found[1]["violations"] == [600]


def test_seeds_that_are_kept_already_do_not_count_again() -> None:
    kept = merged([line("a", 0), line("a", 256)])
    assert merged([*kept, line("a", 0), line("a", 256), line("a", 512)]) == merged([*kept, line("a", 512)])


def test_the_page_is_made_from_what_is_kept() -> None:
    assert describe(read_ledger(KEPT)) == TABLE.read_text()

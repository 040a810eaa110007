"""Figures of several runs in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chaos_summary import joined, main, table


def run(*faults: tuple[str, float | None], lost: int = 0, failed: int = 0) -> dict[str, Any]:
    found = [{"fault": name, "useful_s": useful_s, "failed": failed} for name, useful_s in faults]
    return {"verdict": {"lost": ["x"] * lost, "twice": []}, "faults": found}


def test_faults_are_counted_over_all_runs_and_times_joined() -> None:
    runs = [run(("gcs_kill", 0.1), ("partition", 4.0)), run(("gcs_kill", 0.3), lost=1, failed=2)]
    runs.append({"watched_s": 30, "zombies": {"exclusive": [{"zombie_s": 9.5}, {"zombie_s": 9.1}]}})
    cut, store = joined(runs)["faults"]
    assert store == {
        "fault": "gcs_kill",
        "n": 2,
        "lost": 1,
        "twice": 0,
        "failed": 2,
        "p50_s": 0.1,
        "p99_s": 0.3,
        "max_s": 0.3,
    }
    assert (cut["n"], cut["lost"], cut["zombie_s"], cut["zombie_n"]) == (1, 0, {"exclusive": 9.5}, {"exclusive": 2})


def test_a_fault_after_which_nothing_was_interrupted_has_no_times() -> None:
    (row,) = joined([run(("keeper_kill", None))])["faults"]
    assert row["p50_s"] is None
    assert table({"faults": [row]}).splitlines()[1].split() == ["keeper_kill", "1", "0", "0", "0", "-", "-", "-"]


@pytest.mark.parametrize(("lost", "status"), [(0, 0), (1, 1)])
def test_the_exit_status_says_whether_something_was_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: int, status: int
) -> None:
    (tmp_path / "one.json").write_text(json.dumps(run(("head_kill", 9.0), lost=lost)))
    assert main(tmp_path) == status
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["faults"][0]["lost"] == lost


def test_inputs_out_of_order_are_counted_where_there_are_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = run(("stateful_kill", 0.1))
    one["verdict"]["disordered"] = ["e1: input 3 was applied after input 4"]
    (tmp_path / "one.json").write_text(json.dumps(one))
    assert main(tmp_path) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["faults"][0]["disordered"] == 1


def test_nothing_found_is_no_success(tmp_path: Path) -> None:
    assert main(tmp_path) == 1

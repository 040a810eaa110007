"""Stateful agents on three nodes under load, their processes and nodes killed: of every entity each acknowledged input
is applied once and in order.

Short by default; --chaos-full for the counts of `make chaos`. FLOWRAY_STATEFUL_JSON names the file for the figures.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from account_run import FULL, Plan, run
from chaos_run import chosen_seed

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.mark.timeout(900)
def test_no_kill_loses_an_acknowledged_input_or_applies_it_twice(
    request: pytest.FixtureRequest, tmp_path: Path, say: Callable[[str], None]
) -> None:
    plan = FULL if request.config.getoption("--chaos-full") else Plan()
    report = run(replace(plan, seed=chosen_seed()), say)
    report.write(Path(os.environ.get("FLOWRAY_STATEFUL_JSON") or tmp_path / "stateful.json"))

    assert report.verdict.good, report.verdict
    assert set(report.verdict.states) == {"succeeded"}
    assert len(report.faults) >= plan.kills + plan.nodes

"""Agents, coordinators, a node and a keeper are killed while Ray itself loses one call in twenty of every kind.

FLOWRAY_CALLS_JSON names the file for the figures, FLOWRAY_CHAOS_SEED another seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from chaos_run import Plan, chosen_seed
from weather_run import run_with_lost_calls

QUIET = Plan(agents=0, hung=0, coordinators=0, stopped=0, nodes=0, both=0, cuts_s=(), stores_s=(), heads=0)

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.chaos]


@pytest.mark.timeout(600)
def test_calls_that_ray_loses_lose_no_task(tmp_path: Path, say: Callable[[str], None]) -> None:
    plan = replace(QUIET, agents=4, coordinators=3, nodes=1, keepers=1, seed=chosen_seed())
    report = run_with_lost_calls(plan, say)
    path = Path(os.environ.get("FLOWRAY_CALLS_JSON") or tmp_path / "calls.json")
    report.write(path)
    say(f"figures in {path}")

    assert report.verdict.good, report.verdict
    assert report.verdict.accepted > plan.open
    assert len(report.faults) == plan.agents + plan.coordinators + plan.nodes + plan.keepers
    assert not report.asked.get("wrong")

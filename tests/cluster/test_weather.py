"""Slow, late and lossy cables, a busy machine, slow and failing disks, no memory, clocks that are put, two faults at
once: nothing accepted is lost, nothing ends twice, and who is only slow is not taken for dead.

Short by default; `make chaos` (--chaos-full) does each several times and for longer. FLOWRAY_WEATHER_JSON names the
file for the figures, FLOWRAY_CHAOS_SEED another seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos_run import KINDS, Plan, chosen_seed, full
from weather_run import LONG, Weather, run, weather_missing

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.mark.timeout(1500)
def test_no_weather_loses_an_accepted_task_or_gives_it_two_outcomes(
    request: pytest.FixtureRequest, tmp_path: Path, say: Callable[[str], None]
) -> None:
    if missing := weather_missing():
        pytest.skip(missing)
    long = request.config.getoption("--chaos-full")
    plan = full(chosen_seed()) if long else Plan(seed=chosen_seed())
    report = run(plan, LONG if long else Weather(), say)
    path = Path(os.environ.get("FLOWRAY_WEATHER_JSON") or tmp_path / "weather.json")
    report.write(path)
    say(f"figures in {path}")

    assert report.verdict.good, report.verdict
    assert report.verdict.accepted > plan.open
    assert {fault.kind for fault in report.faults} < set(KINDS) and len({fault.kind for fault in report.faults}) == 8
    only_slow = [fault for fault in report.faults if fault.kind in ("busy", "slow disk")]
    assert not any(fault.victims for fault in only_slow), "who is only slow is not taken for dead"
    assert not any(fault.failed for fault in only_slow)
    assert report.asked.get("answered") and not report.asked.get("wrong")
    accepted, missing_here = map(int, report.visitor.split())
    assert accepted and not missing_here

"""kill -9 and SIGSTOP of agents and coordinators, kill -9 of nodes, of the control store and of the whole head node of
a real cluster, and cables pulled out: nothing accepted is lost, nothing ends twice, whether the client is inside the
cluster or beside a node that is cut off.

Short by default, with 1,000 tasks open; `make chaos` (--chaos-full) kills as often as the promise says, under an
open-loop load of six tenths of what the agents can do (every second seed: with 1,000 tasks open). FLOWRAY_CHAOS_JSON
names the file for the figures, FLOWRAY_CHAOS_SEED another seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos_run import Plan, chosen_seed, full, run

# What a process may grow by while its peers are cut off. The bounds are wider (a link holds up to 32 MiB for each
# peer); with this load a queue that nobody empties would show.
GROWTH_MB = 64

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.mark.timeout(1500)
def test_no_kill_loses_an_accepted_task_or_gives_it_two_outcomes(
    request: pytest.FixtureRequest, tmp_path: Path, say: Callable[[str], None]
) -> None:
    seed = chosen_seed()
    plan = full(seed) if request.config.getoption("--chaos-full") else Plan(seed=seed)
    report = run(plan, say)
    path = Path(os.environ.get("FLOWRAY_CHAOS_JSON") or tmp_path / "chaos.json")
    report.write(path)
    say(f"figures in {path}")

    assert report.verdict.good, report.verdict
    assert report.verdict.accepted > plan.open
    assert report.verdict.readers >= 3
    wanted = plan.agents + plan.hung + plan.coordinators + plan.stopped + plan.nodes + plan.both + plan.heads
    wanted += plan.keepers + len(plan.cuts_s) + len(plan.one_way_s) + len(plan.stores_s)
    assert len(report.faults) == wanted
    assert not sum(fault.failed for fault in report.faults if fault.kind == "store"), "nobody notices that it is gone"
    assert report.asked.get("answered") and not report.asked.get("wrong")
    accepted, missing = map(int, report.visitor.split())
    assert accepted and not missing
    cuts = [fault for fault in report.faults if fault.kind in ("cut", "one way")]
    assert all(most - before < GROWTH_MB for fault in cuts for before, most in fault.resident_mb.values())
    if plan.rate_per_s:
        assert report.offered_per_s == pytest.approx(plan.rate_per_s, rel=0.15), "the load waits for nobody"
    else:
        assert all(fault.open >= 0.9 * plan.open for fault in report.faults)

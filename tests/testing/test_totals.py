"""Sums over seeds, and the ledger of a run that is ended and goes on."""

from __future__ import annotations

import json

from flowray.testing.__main__ import main
from flowray.testing.faults import Crash, Delay, Drop, Duplicate, Hang, Slow, SlowDisk
from flowray.testing.simulation import Simulation
from flowray.testing.swarm import run_seed
from flowray.testing.tally import faults_struck
from flowray.testing.totals import Ledger, Totals, read_ledger, sums


def totals(*seeds: int) -> Totals:
    found = Totals(seeds[0])
    for seed in seeds:
        found.add(run_seed(seed))
    return found


def test_a_summary_says_what_an_hour_holds():
    summary = totals(1, 2).summary(wall_s=2.0)
    hours = summary["virtual_hours"]
    assert summary["tasks"] > 20
    assert abs(summary["per_virtual_hour"]["tasks"] - summary["tasks"] / hours) < 0.1 * summary["tasks"] / hours
    assert summary["per_virtual_hour"]["faults"] > 0
    assert sum(summary["faults"].values()) > 0
    assert summary["events_per_s"] == round(summary["events"] / 2.0)


def test_faults_are_counted_when_they_strike_and_only_then():
    struck = [Drop(ratio=0.1), Duplicate(ratio=0.1), Delay(max_s=0.1), Slow(factor=2.0, share=1.0)]
    struck += [SlowDisk(sync_s=0.01), Crash(share=0.5, at_s=5.0), Hang(share=0.25, at_s=6.0)]
    for faults in ([], struck):
        with Simulation(seed=3, agents=4, faults=faults) as simulation:
            simulation.map(range(20))
            simulation.run_for(10.0)
            counts = faults_struck(simulation.world)
        assert sorted(counts) == sorted(type(fault).__name__ for fault in faults)
    assert (counts["Crash"], counts["Hang"]) == (2, 1)


def test_a_run_that_was_ended_goes_on_from_its_ledger(tmp_path, capsys):
    path = tmp_path / "deep" / "ledger.jsonl"
    for seeds in (3, 5, 5):  # the last one finds nothing to do
        assert main(["--seeds", str(seeds), "--start", "1", "--jobs", "1", "--ledger", str(path)]) == 0
    said = capsys.readouterr().out
    assert "3 seeds from 1" in said
    assert "2 seeds from 4" in said
    assert "0 seeds from 6" in said
    lines = read_ledger(path)
    assert [(line["first"], line["seeds"]) for line in lines] == [(1, 3), (4, 2)]
    assert sums(lines, "sometimes") == totals(1, 2, 3, 4, 5).sometimes
    assert Ledger(path).next_seed(0) == 6
    assert all(line["commit"] for line in lines)


def test_hours_in_the_ledger_count(tmp_path, capsys):
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps({"first": 0, "seeds": 4, "virtual_s": 7200.0}) + "\n")
    assert main(["--hours", "1.5", "--jobs", "1", "--ledger", str(path)]) == 0
    assert "0 seeds from 4" in capsys.readouterr().out

"""The whole system under random faults: a sample of seeds at each run, and the proof that the sample has teeth."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from flowray.testing.__main__ import main
from flowray.testing.swarm import SOMETIMES, draw_options, run_seed

from .mutants import MUTANTS, RARE, hunt_all

SEEDS = 120
QUICK = 40  # seeds within which most mutants are found


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, SEEDS, 20))
def test_every_invariant_holds(start):
    for seed in range(start, start + 20):
        report = run_seed(seed)
        assert not report.violation, (
            f"{report.violation}\n{report.options}\n  replay: python -m flowray.testing --seed {seed} --trace"
        )


@pytest.mark.slow
def test_a_seed_is_the_same_in_every_process():
    code = (
        "import json; from flowray.testing.swarm import run_seed; "
        "print(json.dumps([run_seed(seed).digest for seed in range(40, 55)]))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        ).stdout
        for hash_seed in ("1", "2")
    ]
    first, second = (json.loads(run) for run in runs)
    assert first == second
    assert len(set(first)) == len(first)


def test_checking_and_tracing_do_not_change_a_run():
    assert run_seed(3).digest == run_seed(3, trace=True, thorough=True).digest


def test_options_differ_from_seed_to_seed():
    described = {draw_options(seed).describe() for seed in range(20)}
    assert len(described) == 20


@pytest.mark.slow
def test_the_swarm_gets_everywhere():
    seen: set[str] = set()
    for seed in range(1000, 1300):
        seen.update(run_seed(seed).sometimes)
        if seen.issuperset(SOMETIMES):
            return
    assert sorted(set(SOMETIMES) - seen) == []


@pytest.mark.slow
def test_planted_bugs_are_found():
    """The kill table with a small budget; `python tests/simulation/mutants.py` makes the whole one."""
    names = [name for name in MUTANTS if name not in RARE]
    survived = [one.name for one in hunt_all(names, budget=QUICK) if not one.seeds]
    assert survived == []


def test_the_command_says_what_it_ran(capsys):
    assert main(["--seeds", "3", "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert "3 seeds from 0" in out
    assert "0 violations" in out
    assert main(["--seeds", "2", "--jobs", "1", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["seeds"], summary["violations"]) == (2, [])
    assert main(["--seed", "1", "--trace"]) == 0
    assert "coordinator starts" in capsys.readouterr().out

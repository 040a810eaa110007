"""Agents that change while a router's past does not: what the online layer loses when nothing changes, and wins back.

Figures are of recorded outcomes of the public sets, which lie beside a checkout in ../shared/data; what each one is,
exactly, says `bench.workers.shift_streams`. Repeats are seeds: another team, order of tasks and luck each time.
`shift_recovery_ratio` is the mean over the sets of `recovered(200)` with the way of exploring that is recommended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.measure import Found, Measurement, Plan, SideFailed, say
from bench.processes import ROOT, run_worker

DATA = ROOT.parent / "shared" / "data"
SETS = ("llmrouter_mix", "bfcl_agents", "mmlu_pro_matrix")
RECOMMENDED = "rivals_half"
EXPLORING = (
    "greedy",
    "uniform_1",
    "uniform_2",
    "uniform_5",
    "inverse_gap_100",
    "inverse_gap_300",
    "inverse_gap_1000",
    "inverse_gap_3000",
    "thompson_half",
    "thompson_1",
    "rivals_half",
    "rivals_1",
)
_UNITS = {
    "recovery_ratio": "share",
    "recovered": "share",
    "stable_gain": "success",
    "stable_loss": "nats",
    "stable_explored": "ratio",
    "stable_alarms": "alarms",
    "false_alarms": "alarms",
    "first_alarm": "outcomes",
    "seconds_recovered": "share",
}


class Shift:
    """See the module. The goal: nothing lost while nothing changes, 0.9 of the gap within 200 outcomes of each kind."""

    name = "shift"
    description = (
        "the online layer over the shipped router: what it loses in a stable world, and recovers after a shift"
    )
    peers: tuple[str, ...] = ()

    def run(self, plan: Plan) -> Found:
        if not DATA.is_dir():
            raise SideFailed(f"the public sets are not in {DATA}")
        settings: dict[str, Any] = {
            "data": str(DATA),
            "router": str(ROOT / "models" / "router" / "v1"),
            "sets": SETS[:1] if plan.quick else SETS,
            "split": "test",
            "exploring": ("greedy", RECOMMENDED) if plan.quick else EXPLORING,
            "at": (0, 25) if plan.quick else (0, 25, 50, 100, 200),
            "seeds": plan.repeats or (1 if plan.quick else 5),
        }
        say("reading the sets, and what the router says of them")
        found = run_worker("shift_streams", settings, timeout_s=3_600)
        names, ways, last = settings["sets"], settings["exploring"], f"recovered_{settings['at'][-1]}"
        figures = {"recovery_ratio": _mean([found[f"{last}_{name}_{RECOMMENDED}"] for name in names])}
        for way in ways:
            for key in (*(f"recovered_{at}" for at in settings["at"]), "stable_gain", "stable_loss", "stable_explored"):
                figures[f"{key}_{way}"] = _mean([found[f"{key}_{name}_{way}"] for name in names])
        figures |= {key: values for key, values in found.items() if key.endswith(f"_{RECOMMENDED}") or "seconds" in key}
        return Found(
            measurements=[
                Measurement(metric=f"shift_{key}", unit=_unit(key), flowray=values)
                for key, values in figures.items()
                if values
            ],
            settings=settings,
        )


def _mean(of_sets: Sequence[Sequence[float]]) -> list[float]:
    """The mean over sets, for each seed."""
    return [sum(each) / len(each) for each in zip(*of_sets, strict=True)]


def _unit(key: str) -> str:
    return next(unit for name, unit in _UNITS.items() if key.startswith(name))

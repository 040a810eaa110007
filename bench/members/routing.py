"""Routing in the hot path: what a decision takes, and what the runtime pays for deciding by estimates.

All sides run the same tasks on the same agents, four classes of them. One has the shipped router and asks it where that
pays (`flowray.core.worth`), one asks it about each task, and one draws an agent as it does without a router. Decisions
are timed where all tasks are asked about. The public sets, where they lie beside the checkout, are replayed through a
whole runtime (`bench.workers.flowray_replayed`), and what second attempts at once would have been worth there is
computed (`bench.workers.acting_replayed`). Who waits how long where agents differ in speed is measured under a virtual
clock, with the same core and router (`bench.workers.routed_alone`), and in three turns with real agents ten times as
fast (`bench.workers.routed_real`). What hedges do for the tail is measured under a virtual clock, too
(`bench.workers.hedged_alone`).
What it is to ask Ray Serve, and what it costs when Serve dies, hangs or changes its version, is measured with one
replica (`bench.workers.flowray_served`).
"""

from __future__ import annotations

from typing import Any

from bench.measure import FLOWRAY, Found, Measurement, Plan, alternate, compared
from bench.processes import ROOT
from bench.sides import Side, turns_of, versions
from flowray.core.routing import RoutingPolicy

AGENTS = 24
IN_FLIGHT = 1_000
WORDS = 30  # of a task's text: what a sentence or two has
RATE_PER_S = 1_000
ARTIFACT = "models/router/v1"
HEURISTIC = "heuristic"
ALWAYS = "always"  # asks, whatever it brings
_TIMEOUT_S = 400.0
_UNITS = {
    "tasks_per_s": "tasks/s",
    "coordinator_us_per_task": "us/task",
    "driver_us_per_task": "us/task",
    "agents_us_per_task": "us/task",
}
_OF_ROUTER = {"decision_p50_ms": "ms", "decision_p99_ms": "ms", "unrouted_ratio": "ratio"}
DATA = ROOT.parent / "shared" / "data"
REPLAYED = ("bfcl_agents", "llmrouter_mix", "mmlu_pro_matrix")  # sets
THRIFT = 0.95  # share of the best expected success that the first of two choices must have
REAL = {"artifact": ARTIFACT, "scale": 10.0, "seed": 0}
SERVED = {"agents": 8, "words": WORDS, "rate_per_s": 200, "artifact": ARTIFACT}
SERVED_UNITS = {"ms": "ms", "share": "share", "tasks": "tasks"}  # by a metric's last word
ALONE = {"tasks": 3_000, "seeds": 5}  # under the virtual clock
HEDGED = {"tasks": 4_000, "seeds": 5, "load": 0.5}  # under the virtual clock, too
SIDES = {
    FLOWRAY: Side("flowray_routed", {"routed": True, "sampled": RoutingPolicy().sampled}),
    ALWAYS: Side("flowray_routed", {"routed": True, "sampled": 1.0}),
    HEURISTIC: Side("flowray_routed", {"routed": False, "sampled": 1.0}),
}


class Routing:
    """See the module."""

    name = "routing"
    description = f"tasks on {AGENTS} agents of four classes, chosen by the router or without: throughput, decisions"
    peers = (ALWAYS, HEURISTIC)

    def run(self, plan: Plan) -> Found:
        length: dict[str, Any] = {
            "agents": AGENTS,
            "in_flight": IN_FLIGHT,
            "words": WORDS,
            "rate_per_s": RATE_PER_S,
            "artifact": ARTIFACT,
        }
        length |= {"warm_s": 1, "measure_s": 3} if plan.quick else {"warm_s": 3, "measure_s": 10}
        turns = alternate(turns_of(SIDES, plan, length, _TIMEOUT_S), plan.repeats or (1 if plan.quick else 3))
        routed, always = turns.figures.get(FLOWRAY, []), turns.figures.get(ALWAYS, [])
        measurements = list(compared(turns.figures, _UNITS))
        for metric, unit in _OF_ROUTER.items():
            if always:
                measurements.append(Measurement(metric=metric, unit=unit, flowray=[each[metric] for each in always]))
        if routed:
            share = [each["asked_ratio"] for each in routed]
            measurements.append(Measurement(metric="asked_ratio", unit="ratio", flowray=share))
        for metric, side in (("tasks_per_s_routed_ratio", routed), ("tasks_per_s_always_ratio", always)):
            pairs = list(zip(side, turns.figures.get(HEURISTIC, []), strict=False))
            if pairs:
                ratios = [ours["tasks_per_s"] / theirs["tasks_per_s"] for ours, theirs in pairs]
                measurements.append(Measurement(metric=metric, unit="ratio", flowray=ratios))
        if plan.wants(FLOWRAY):
            alone = Side("routed_alone", ALONE).turn({}, _TIMEOUT_S)
            measurements += [
                Measurement(metric=metric, unit="ratio", flowray=[value]) for metric, value in alone.items()
            ]
            measurements += _replayed(plan)
            length_real = {"tasks": 400, "turns": 1} if plan.quick else {"tasks": 1_900, "turns": 3}
            real = Side("routed_real", REAL).turn(length_real, 2 * _TIMEOUT_S)
            measurements += [
                Measurement(metric=metric, unit=metric.rpartition("_")[2], flowray=[value])
                for metric, value in real.items()
            ]
            through = Side("flowray_served", SERVED).turn({"seconds": 3 if plan.quick else 15}, _TIMEOUT_S)
            measurements += [
                Measurement(metric=metric, unit=SERVED_UNITS[metric.rpartition("_")[2]], flowray=[value])
                for metric, value in through.items()
            ]
            measurements += _acted(plan)
            measurements += _hedged()
        return Found(
            measurements=measurements,
            absent=turns.absent,
            settings=length,
            versions=versions(SIDES, turns.figures),
        )


def _acted(plan: Plan) -> list[Measurement]:
    """What second attempts are worth on each set; copies have dollars and seconds recorded on some."""
    sets = [str(DATA / name) for name in (REPLAYED[:1] if plan.quick else REPLAYED[:2]) if (DATA / name).is_dir()]
    if not sets:
        return []
    settings = {"artifact": ARTIFACT, "sets": sets, "split": "test", "quality": THRIFT}
    found = Side("acting_replayed", settings).turn({}, 2 * _TIMEOUT_S)
    return [Measurement(metric=metric, unit="ratio", flowray=[value]) for metric, value in found.items()]


def _hedged() -> list[Measurement]:
    """What hedges bring where agents get stuck, and what they cost where tasks are long."""
    found = {
        blame: Side("hedged_alone", {**HEDGED, "blame": blame}).turn({}, _TIMEOUT_S) for blame in ("agent", "task")
    }
    return [
        Measurement(metric=f"{metric}_{blame}", unit="ratio", flowray=[value])
        for blame, figures in found.items()
        for metric, value in figures.items()
    ]


def _replayed(plan: Plan) -> list[Measurement]:
    """Each figure of each set, and of all sets the mean."""
    sets = [name for name in (REPLAYED[:1] if plan.quick else REPLAYED) if (DATA / name).is_dir()]
    found: dict[str, dict[str, float]] = {}
    for name in sets:
        settings = {"artifact": ARTIFACT, "data": str(DATA / name), "split": "test", "quality": THRIFT}
        found[name] = Side("flowray_replayed", settings).turn({}, _TIMEOUT_S)
    metrics = dict.fromkeys(metric for figures in found.values() for metric in figures)
    measurements = []
    for metric in metrics:
        values = {name: figures[metric] for name, figures in found.items()}
        unit = "ratio" if metric.endswith("cost_ratio") else "share" if metric.endswith("ratio") else "success"
        mean = sum(values.values()) / len(values)
        measurements.append(Measurement(metric=metric, unit=unit, flowray=[mean]))
        measurements += [
            Measurement(metric=f"{metric}_{name}", unit=unit, flowray=[value]) for name, value in values.items()
        ]
    return measurements

"""Who waits how long where agents differ in speed and load comes in bursts: whole runtimes, real seconds.

The load, the agents' speeds and the luck of each task are those of `routed_alone`, `scale` times as fast. One runtime
asks the shipped router, which tells the two kinds of task apart by their texts and learns the rest from run times; the
other draws two agents and takes the less busy one. Both get the same tasks at the same times, one after the other.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import flowray as fr
from bench.measure import percentile
from bench.workers.common import main
from bench.workers.flowray_routed import until_loaded
from bench.workers.routed_alone import AGENTS, SPEEDS, arrivals
from flowray.core.states import TaskState

_BEAT_S = 0.002
_TEXTS = {
    "short": "who sang the song number {n} in the film that won the award last year",
    "long": "Tom buys {n} apples at 2 dollars each and sells half of them for 3 dollars each. How much has he left?",
}


def work(settings: dict[str, Any]) -> dict[str, float]:
    took_s = {routed: run(routed, settings) for routed in (True, False)}
    figures = {"p99_vs_p2c_real_ratio": percentile(took_s[True], 0.99) / percentile(took_s[False], 0.99)}
    for side, values in (("routed", took_s[True]), ("p2c", took_s[False])):
        figures[f"real_{side}_p50_ms"] = percentile(values, 0.50) * 1e3
        figures[f"real_{side}_p99_ms"] = percentile(values, 0.99) * 1e3
    return figures


def run(routed: bool, settings: dict[str, Any]) -> list[float]:
    """Seconds from each task's acceptance to its outcome; the first fifth, in which the router learns, is left out."""
    overrides = {
        "ray.agent_output": False,
        "core.routing.enabled": routed,
        "router.artifact": str(Path(settings["artifact"]).resolve()) if routed else "",
        "tiers.secondary.agents": AGENTS * len(SPEEDS),
        "tiers.secondary.agents_per_actor": AGENTS,
    }
    with fr.Runtime.start(overrides=overrides) as rt:
        for name, (short_s, long_s) in SPEEDS.items():
            options = {"short_s": short_s / settings["scale"], "long_s": long_s / settings["scale"]}
            rt.agents.add("bench.workers.sleeper:Sleeper", name=name, count=AGENTS, slots=1, options=options)
        rt.wait_ready(timeout_s=180, agents=AGENTS * len(SPEEDS))
        if routed:
            until_loaded(rt)
        coming = [
            (at / settings["scale"], {"kind": kind, "factor": str(factor)}, _TEXTS[kind].format(n=number))
            for number, (at, _, kind, factor) in enumerate(arrivals(settings["tasks"], settings["seed"]))
        ]
        handles: list[fr.Handle] = []
        began_at = time.perf_counter()
        while len(handles) < len(coming):
            passed_s, first = time.perf_counter() - began_at, len(handles)
            due = [each for each in coming[first : first + 64] if each[0] <= passed_s]
            if due:
                handles += rt.submit_many(
                    [{"prompt": text, "labels": labels, "needs": {"work"}} for _, labels, text in due]
                )
            time.sleep(_BEAT_S)
        outcomes = [handle.outcome(timeout_s=120) for handle in handles]
    failed = sum(outcome.state is not TaskState.SUCCEEDED for outcome in outcomes)
    if failed:
        raise RuntimeError(f"{failed} of {len(outcomes)} tasks did not succeed")
    return [outcome.resolved_at - outcome.accepted_at for outcome in outcomes[len(outcomes) // 5 :]]


if __name__ == "__main__":
    main(work)

"""Who waits how long where agents differ in speed and load comes in bursts: whole runtimes, real seconds.

The load, the agents' speeds and the luck of each task are those of `routed_alone`, `scale` times as fast. One runtime
asks the shipped router, which tells the two kinds of task apart by their texts and learns the rest from run times; one
draws two agents and takes the less busy one; and for one the driver says which class gets each task: that with the
fewest tasks that have not ended, as far as it has heard (`routed_alone` says more of both). All get the same tasks at
the same times, one side after the other, `turns` times with other arrivals. Ratios are medians over turns.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import flowray as fr
from bench.measure import percentile
from bench.workers.common import main
from bench.workers.flowray_routed import until_loaded
from bench.workers.routed_alone import AGENTS, LEAST_LOADED, P2C, ROUTED, SIDES, SPEEDS, Loads, Waited, arrivals
from flowray.core.states import TaskState

_BEAT_S = 0.002
_TEXTS = {
    "short": "who sang the song number {n} in the film that won the award last year",
    "long": "Tom buys {n} apples at 2 dollars each and sells half of them for 3 dollars each. How much has he left?",
}


def work(settings: dict[str, Any]) -> dict[str, float]:
    turns: list[dict[str, Waited]] = []
    for turn in range(settings["turns"]):
        order = SIDES[turn % len(SIDES) :] + SIDES[: turn % len(SIDES)]  # nobody is always the first
        turns.append({side: run(side, settings, settings["seed"] + turn) for side in order})
    figures: dict[str, float] = {}
    for other in (P2C, LEAST_LOADED):
        ratios = [percentile(turn[ROUTED].took_s, 0.99) / percentile(turn[other].took_s, 0.99) for turn in turns]
        figures[f"p99_vs_{other}_real_ratio"] = percentile(ratios, 0.5)
        figures[f"p99_vs_{other}_real_worst_ratio"] = max(ratios)
    for side in SIDES:
        for share, name in ((0.50, "p50"), (0.99, "p99")):
            figures[f"real_{side}_{name}_ms"] = (
                percentile([percentile(turn[side].took_s, share) for turn in turns], 0.5) * 1e3
            )
        figures[f"real_{side}_success_ratio"] = sum(turn[side].succeeded for turn in turns) / len(turns)
    return figures


def run(side: str, settings: dict[str, Any], seed: int) -> Waited:
    """One side, once."""
    routed = side == ROUTED
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
            for number, (at, _, kind, factor) in enumerate(arrivals(settings["tasks"], seed))
        ]
        handles: list[fr.Handle] = []
        loads, ended = Loads(SPEEDS, seed), SimpleQueue[str]()
        began_at = time.perf_counter()
        while len(handles) < len(coming):
            passed_s, first = time.perf_counter() - began_at, len(handles)
            due = [each for each in coming[first : first + 64] if each[0] <= passed_s]
            while not ended.empty():
                loads.ended(ended.get())
            if due:
                chosen = [loads.took() if side == LEAST_LOADED else "" for _ in due]
                new = rt.submit_many(
                    [
                        {"prompt": text, "labels": labels, "needs": {"work"}, "agent": agent}
                        for (_, labels, text), agent in zip(due, chosen, strict=True)
                    ]
                )
                handles += new
                for handle, agent in zip(new, chosen, strict=True):
                    if agent:
                        handle.add_done_callback(partial(_put, ended, agent))
            time.sleep(_BEAT_S)
        outcomes = [handle.outcome(timeout_s=120) for handle in handles]
    took_s = [outcome.resolved_at - outcome.accepted_at for outcome in outcomes[len(outcomes) // 5 :]]
    return Waited(took_s, sum(outcome.state is TaskState.SUCCEEDED for outcome in outcomes) / len(outcomes))


def _put(ended: SimpleQueue[str], agent: str, _: fr.Handle) -> None:
    ended.put(agent)


if __name__ == "__main__":
    main(work)

"""Tasks with a text through a runtime whose router chooses among classes of agents, or the same without a router.

The agents do nothing, so what is left is the runtime's own cost. How long a decision takes is what the coordinator
wrote into each receipt: from asking its router to having the estimates, with all that waits before and beside it.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import flowray as fr
from bench.measure import percentile
from bench.workers.common import Moment, between, main
from bench.workers.flowray_tasks import Load
from flowray.core.model import Outcome

CLASSES = ("writer", "coder", "reader", "counter")
_LOADED_S = 120.0
_BEAT_S = 0.002  # tasks of an open loop go in so often
_WORDS = """
    please write summarise find explain compare list translate check the a this report table function invoice letter
    number of with for and into short clear French Python sorted sum mean error date name customer street city order
    price each all first last between before after quickly carefully 12 2026 3.5 ( ) , . ? if then else return
    """.split()  # noqa: SIM905 - eighty lines of quotes are not easier to read


def work(settings: dict[str, Any]) -> dict[str, float]:
    overrides = {
        "ray.agent_output": False,
        "core.routing.enabled": settings["routed"],
        "core.routing.sampled": settings["sampled"],
        "router.artifact": str(Path(settings["artifact"]).resolve()) if settings["routed"] else "",
    }
    with fr.Runtime.start(overrides=overrides) as rt:
        each = settings["agents"] // len(CLASSES)
        for name in CLASSES:
            rt.agents.add("bench.workers.noop:Noop", name=name, count=each)
        rt.wait_ready(timeout_s=180, agents=each * len(CLASSES))
        texts = Texts(settings["words"])
        if settings["routed"]:
            until_loaded(rt)
        status = rt.status()
        agents = [agent.pid for agent in status.agents]
        groups = {"coordinator": [status.pid], "driver": [os.getpid()], "agents": agents}
        load = Load(rt, settings["in_flight"], texts=texts)
        load.run_until(time.perf_counter() + settings["warm_s"])
        start = Moment.now(load.done, groups)
        load.run_until(time.perf_counter() + settings["measure_s"])
        figures = between(start, Moment.now(load.done, groups))
        load.drain()
        if settings["routed"]:
            handles = rt.map(texts.take(2 * settings["in_flight"]), needs={"noop"})
            figures["asked_ratio"] = 1.0 - unrouted([handle.outcome(timeout_s=120) for handle in handles])
            outcomes = at_a_rate(rt, texts, settings["rate_per_s"], settings["measure_s"])
            figures |= decisions(outcomes)
    return figures


class Texts:
    """Prompts of so many words, no two alike, the same in every run."""

    def __init__(self, words: int) -> None:
        self._rng, self._words = random.Random(0), words

    def take(self, count: int) -> list[str]:
        return [" ".join(self._rng.choices(_WORDS, k=self._words)) for _ in range(count)]


def until_loaded(rt: fr.Runtime) -> None:
    """Wait until the router is loaded."""
    until = time.perf_counter() + _LOADED_S
    while not rt.status().router:
        if time.perf_counter() > until:
            raise RuntimeError(f"no router after {_LOADED_S:.0f} s: {rt.status().router_failed}")
        time.sleep(0.2)


def at_a_rate(rt: fr.Runtime, texts: Texts, rate_per_s: float, seconds: float) -> list[Outcome]:
    """The outcomes of tasks that come by the clock; those of the first tenth, which warm up, are left out."""
    outcomes = by_the_clock(rt, texts, rate_per_s, seconds)
    return outcomes[len(outcomes) // 10 :]


def by_the_clock(rt: fr.Runtime, texts: Texts, rate_per_s: float, seconds: float) -> list[Outcome]:
    """The outcomes of so many tasks a second, in the order in which they came.

    What is due goes in at once, and the next when that is accepted: tasks come as many at a time as a sync lasts.
    """
    handles: list[fr.Handle] = []
    began_at = time.perf_counter()
    while (passed_s := time.perf_counter() - began_at) < seconds:
        due = int(passed_s * rate_per_s) - len(handles)
        if due > 0:
            handles += rt.map(texts.take(due), needs={"noop"})
        time.sleep(_BEAT_S)
    return [handle.outcome(timeout_s=120) for handle in handles]


def decisions(outcomes: list[Outcome]) -> dict[str, float]:
    """How long decisions took, and how many were made without the router."""
    first = [outcome.choices[0] for outcome in outcomes]
    took_ms = [choice.receipt.took_s * 1e3 for choice in first if choice.receipt is not None]
    return {
        "decision_p50_ms": percentile(took_ms, 0.50),
        "decision_p99_ms": percentile(took_ms, 0.99),
        "unrouted_ratio": unrouted(outcomes),
    }


def unrouted(outcomes: list[Outcome]) -> float:
    """The share of tasks whose agent was chosen without the router."""
    return sum(outcome.choices[0].receipt is None for outcome in outcomes) / len(outcomes)


if __name__ == "__main__":
    main(work)

"""Tasks through a runtime that asks a router behind Ray Serve, while its only replica is killed, hangs, or changes.

One replica answers, so whatever happens to it happens to all of Serve. How long a decision took is what the coordinator
wrote into each receipt; what a fault adds is told by whole tasks, from acceptance to outcome: the 99th percentile of
those that came in the seconds after it, less that of the seconds before any fault.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flowray as fr
from bench.measure import percentile
from bench.workers.common import main
from bench.workers.flowray_routed import CLASSES, Texts, at_a_rate, by_the_clock
from flowray.core.model import Outcome
from flowray.core.states import TaskState
from flowray.routing import artifacts
from flowray.routing.config import ServingConfig

_BEGUN_S = 1.0  # of tasks before a fault
_SERVED_S = 90.0  # for Serve to answer again


def work(settings: dict[str, Any]) -> dict[str, float]:
    artifact = str(Path(settings["artifact"]).resolve())
    overrides = {
        "ray.agent_output": False,
        "core.routing.enabled": True,
        "core.routing.sampled": 1.0,  # tasks that take nothing would not be worth a question
        "router.artifact": artifact,
        "router.through": "serve",
    }
    with tempfile.TemporaryDirectory() as directory, fr.Runtime.start(overrides=overrides) as rt:
        from flowray.runtime.serving import deploy_router, undeploy

        each = settings["agents"] // len(CLASSES)
        for name in CLASSES:
            rt.agents.add("bench.workers.noop:Noop", name=name, count=each)
        rt.wait_ready(timeout_s=180)
        served = deploy_router(_serving(artifact))
        try:
            run = _Run(rt, settings)
            run.until_served()
            figures = run.quiet()
            (pid,) = (one.pid for one in served.statuses())
            figures |= run.faulty("kill", lambda: os.kill(pid, signal.SIGKILL))
            run.until_served()
            (pid,) = (one.pid for one in served.statuses())
            try:
                figures |= run.faulty("hang", lambda: os.kill(pid, signal.SIGSTOP))
            finally:
                os.kill(pid, signal.SIGCONT)
            run.until_served()
            other = _again(artifact, Path(directory) / "again")
            figures |= run.faulty("change", lambda: deploy_router(_serving(other)))
        finally:
            undeploy()
    return figures


class _Run:
    """Tasks at a rate, for some seconds each time."""

    def __init__(self, rt: fr.Runtime, settings: dict[str, Any]) -> None:
        self._rt, self._texts = rt, Texts(settings["words"])
        self._rate, self._seconds = settings["rate_per_s"], settings["seconds"]
        self._usual_ms = 0.0

    def until_served(self) -> None:
        """Until ten tasks in a row are decided through Serve."""
        until, served = time.perf_counter() + _SERVED_S, 0
        while served < 10:
            if time.perf_counter() > until:
                raise RuntimeError(f"Serve does not answer after {_SERVED_S:.0f} s")
            handle = self._rt.submit(self._texts.take(1)[0], needs={"noop"})
            served = served + 1 if _path(handle.outcome(timeout_s=60)) == "serve" else 0

    def quiet(self) -> dict[str, float]:
        """Nothing happens."""
        outcomes = at_a_rate(self._rt, self._texts, self._rate, self._seconds)
        self._usual_ms = percentile([_took_ms(outcome) for outcome in outcomes], 0.99)
        receipts = [outcome.choices[0].receipt for outcome in outcomes]
        through = [r.took_s * 1e3 for r in receipts if r is not None and r.path == "serve"]
        return {
            "serve_decision_p50_ms": percentile(through, 0.50),
            "serve_decision_p99_ms": percentile(through, 0.99),
            "serve_share": len(through) / len(outcomes),
            "serve_task_p99_ms": self._usual_ms,
        }

    def faulty(self, name: str, fault: Callable[[], object]) -> dict[str, float]:
        """Something happens to Serve a second after the tasks have begun to come."""
        at = 0.0

        def happen() -> None:
            nonlocal at
            at = time.time()
            fault()

        timer = threading.Timer(_BEGUN_S, happen)
        timer.start()
        outcomes = by_the_clock(self._rt, self._texts, self._rate, _BEGUN_S + self._seconds)
        timer.join()
        took_ms = [_took_ms(outcome) for outcome in outcomes if outcome.accepted_at >= at]
        before = [_path(outcome) for outcome in outcomes if outcome.accepted_at < at]
        after = [_path(outcome) for outcome in outcomes if outcome.accepted_at >= at]
        return {
            f"serve_{name}_failed_tasks": sum(outcome.state is not TaskState.SUCCEEDED for outcome in outcomes),
            f"serve_{name}_added_p99_ms": max(0.0, percentile(took_ms, 0.99) - self._usual_ms),
            # A fault of what was not asked anyway would say nothing.
            f"serve_{name}_before_share": before.count("serve") / len(before),
            f"serve_{name}_share": after.count("serve") / len(after),
        }


def _path(outcome: Outcome) -> str:
    receipt = outcome.choices[0].receipt if outcome.choices else None
    return receipt.path if receipt is not None else ""


def _took_ms(outcome: Outcome) -> float:
    return (outcome.resolved_at - outcome.accepted_at) * 1e3


def _serving(router: str) -> ServingConfig:
    return ServingConfig(router=router, max_replicas=1, num_cpus=0.01, precision="float32")


def _again(router: str, directory: Path) -> str:
    """The same weights as another version."""
    found = artifacts.load(router)
    header = {name: value for name, value in found.header.items() if name not in ("format", "features_version")}
    artifacts.save(directory, found.arrays, {**header, "note": "the same again"})
    return str(directory)


if __name__ == "__main__":
    main(work)

"""What becomes of candidates for the router's place: bad ones, one that is no better, and a better one.

Figures are of recorded outcomes of a public set; what the candidates are, exactly, says `bench.workers.rollouts`.
Repeats are seeds: another team, order of tasks and luck each time. `rollout_bad_candidate_caught` is the share of the
bad ones that are not promoted, `rollout_bad_candidate_affected_share` the share of tasks, from its offer to its end,
that the worst of them answered.
"""

from __future__ import annotations

from bench.measure import Found, Measurement, Plan, SideFailed, say
from bench.processes import ROOT, run_worker

DATA = ROOT.parent / "shared" / "data"
CANDIDATES = ("shuffled", "optimist", "noisy", "same", "better")
_UNITS = {"tasks": "tasks"}


class Rollouts:
    """See the module. The goal: a bad candidate is caught with at most 0.01 of the tasks affected."""

    name = "rollout"
    description = "candidates for the router's place in shadow and as canaries: who is caught, and what that costs"
    peers: tuple[str, ...] = ()

    def run(self, plan: Plan) -> Found:
        if not DATA.is_dir():
            raise SideFailed(f"the public sets are not in {DATA}")
        settings = {
            "data": str(DATA),
            "router": str(ROOT / "models" / "router" / "v1"),
            "set": "llmrouter_mix",
            "candidates": CANDIDATES[:3] if plan.quick else CANDIDATES,
            "most": 60_000 if plan.quick else 250_000,
            "seeds": plan.repeats or (1 if plan.quick else 5),
        }
        say("reading the set, and what the router says of it")
        found = run_worker("rollouts", settings, timeout_s=3_600)
        return Found(
            measurements=[
                Measurement(metric=f"rollout_{key}", unit=_UNITS.get(key.partition("_")[0], "share"), flowray=values)
                for key, values in found.items()
                if values
            ],
            settings=settings,
        )

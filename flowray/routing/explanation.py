"""Why a router prefers an agent for one task, in words and numbers.

The estimates are the router's own. The reasons beside them are what a person can check: what kind of task it takes this
to be, how the agent did at past tasks of that kind (each counted by its probability of being one), and what it costs
beside the first choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from flowray.errors import InvalidTask
from flowray.routing.estimates import AgentBatch, Estimates, Estimator, Floats, Histories, TaskBatch

_KIND_IS_CLEAR = 0.5  # probability below which a task is called of no known kind
_LITTLE = 0.3  # confidence below which that is said


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One agent for the task."""

    agent_id: str
    success: float
    quality: float
    latency_s: float | None  # None where nothing is known
    cost_usd: float | None
    confidence: float | None
    alike: float  # expected number of past attempts at tasks of this kind
    success_alike: float | None  # share of those that succeeded
    attempts: int  # past attempts at anything
    success_overall: float | None
    reasons: tuple[str, ...]  # sentences


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a router makes of a task."""

    kinds: Mapping[str, tuple[tuple[str, float], ...]]  # head -> its likeliest labels with probabilities
    kind: str | None  # the label that records are counted by, None where none is likely
    candidates: tuple[Candidate, ...]  # best first

    def as_text(self) -> str:
        """Lines for a person."""
        lines = ["This looks like:"]
        for head, labels in self.kinds.items():
            lines.append(f"  {head:<12}" + ", ".join(f"{label} {p:.0%}" for label, p in labels))
        for place, each in enumerate(self.candidates, start=1):
            facts = [f"success {each.success:.0%}"]
            facts += [f"quality {each.quality:.2f}"] if abs(each.quality - each.success) > 0.005 else []
            facts += [f"{each.latency_s:.1f} s"] if each.latency_s is not None else []
            facts += [f"${each.cost_usd:.2g}"] if each.cost_usd is not None else []
            lines += [f"{place}. {each.agent_id}: {', '.join(facts)}", *(f"   {reason}" for reason in each.reasons)]
        return "\n".join(lines)


def explain(router: Estimator, task: TaskBatch, agents: AgentBatch, histories: Histories, top: int = 5) -> Explanation:
    """The agents with the highest estimated success at one task, and why.

    Raises:
        InvalidTask: not exactly one task, or no agents.
    """
    if len(task) != 1:
        raise InvalidTask("task", f"wants one task, got {len(task)}")
    if not len(agents):
        raise InvalidTask("agents", "there are none to choose from")
    estimates = router.estimate(task, agents, histories)
    kinds = {
        head: tuple(
            (labelled.labels[i], float(labelled.probabilities[0, i]))
            for i in np.argsort(-labelled.probabilities[0], kind="stable")[:3]
        )
        for head, labelled in estimates.capabilities.items()
    }
    head = max(kinds, key=lambda head: kinds[head][0][1], default=None)
    kind = kinds[head][0][0] if head is not None and kinds[head][0][1] >= _KIND_IS_CLEAR else None
    alike = np.zeros(len(histories.tasks), np.float32)  # [past tasks] probability of being of this kind
    if head is not None and kind is not None and len(histories.tasks):
        past = router.estimate(histories.tasks, agents, histories).capabilities[head]
        alike = past.probabilities[:, past.labels.index(kind)]
    order = np.argsort(-estimates.success[0], kind="stable")[:top].tolist()
    candidates = tuple(_candidate(agent, order[0], agents, estimates, histories, alike, kind) for agent in order)
    return Explanation(kinds=kinds, kind=kind, candidates=candidates)


def _candidate(
    agent: int,
    best: int,
    agents: AgentBatch,
    estimates: Estimates,
    histories: Histories,
    alike: Floats,
    kind: str | None,
) -> Candidate:
    known = histories.outcomes.known[:, agent]
    ended = histories.outcomes.success[known, agent]
    weights = alike[known]
    count = float(weights.sum())
    made = Candidate(
        agent_id=agents.agent_ids[agent],
        success=float(estimates.success[0, agent]),
        quality=float(estimates.quality[0, agent]),
        latency_s=_known(estimates.latency_s[0, agent]),
        cost_usd=_known(estimates.cost_usd[0, agent]),
        confidence=_known(estimates.confidence[0, agent]),
        alike=count,
        success_alike=float(weights @ ended) / count if count >= 0.5 else None,
        attempts=int(known.sum()),
        success_overall=float(ended.mean()) if known.any() else None,
        reasons=(),
    )
    reasons = (_record(made, kind), _beside(agent, best, estimates), _doubt(made))
    return replace(made, reasons=tuple(filter(None, reasons)))


def _record(made: Candidate, kind: str | None) -> str:
    if made.success_overall is None:
        return "It has no past here: judged by its description, its price and what agents usually do."
    overall = f"{made.success_overall:.0%} of its {made.attempts:,} past tasks succeeded"
    if kind is None:
        return f"{overall}; this one is of no kind that is known."
    if made.success_alike is None:
        return f"{overall}, none of them like this one ({kind})."
    return (
        f"{made.success_alike:.0%} of about {made.alike:,.0f} past tasks like this one ({kind}) succeeded; {overall}."
    )


def _beside(agent: int, best: int, estimates: Estimates) -> str:
    if agent == best:
        return ""
    points = 100 * float(estimates.success[0, best] - estimates.success[0, agent])
    cost, of_best = float(estimates.cost_usd[0, agent]), float(estimates.cost_usd[0, best])
    text = f"{points:.1f} points below the first"
    if math.isfinite(cost) and math.isfinite(of_best) and of_best > 0:
        text += f", at {cost / of_best:.0%} of its cost"
    return text + "."


def _doubt(made: Candidate) -> str:
    return "Little is known of such a pair." if made.confidence is not None and made.confidence < _LITTLE else ""


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

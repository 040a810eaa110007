"""Agents' records per capability: how often, how well, how soon and at what cost.

A past task belongs to capability k with weight w[task, k] (the probability that a text classifier gives it; one-hot
where labels are hard). An agent's record in k is then the sum over its past attempts of w times (1, success, quality,
log seconds, dollars): expected counts and sums, from which rates follow. Older attempts may count less: the i-th newest
attempt of an agent counts decay**i.

A rate is shrunk towards what is known with more certainty, as in empirical Bayes: an agent's success in a capability
towards its success overall, and that towards the success of all agents,

    rate[a, k] = (success[a, k] + strength * prior[a]) / (count[a, k] + strength).

Training must not look at a record that contains the outcome to be predicted: `without` takes it out again
(leave-one-out), exactly and without a second pass over the past.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from flowray.routing.estimates import Floats, Outcomes

Sums = npt.NDArray[np.float64]  # float32 would lose leave-one-out to rounding after 10,000 attempts


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryTable:
    """Sums over past attempts, for each agent and capability: [..., agents, capabilities] each."""

    count: Sums  # attempts that ended in success or failure
    success: Sums
    quality: Sums
    latency_count: Sums  # attempts whose seconds are known
    log_latency: Sums  # natural logarithm of seconds
    cost_count: Sums  # attempts whose dollars are known
    cost_usd: Sums

    @classmethod
    def of(cls, weights: Floats, outcomes: Outcomes, *, decay: float = 1.0) -> HistoryTable:
        """The table of past tasks with `weights` [tasks, capabilities], oldest first."""
        seen = _seen(outcomes, discounts(outcomes.known, decay))
        return cls(**{field: values.T @ weights.astype(np.float64) for field, values in seen.items()})

    @classmethod
    def empty(cls, n_agents: int, n_capabilities: int) -> HistoryTable:
        """Nobody did anything yet."""
        return cls(**{f.name: np.zeros((n_agents, n_capabilities)) for f in fields(cls)})

    def without(self, weights: Floats, outcomes: Outcomes, discount: Floats | None = None) -> HistoryTable:
        """One table per task, each as if that task had never been: [tasks, agents, capabilities].

        `discount` [tasks, agents] is what the attempts count for, from `discounts`, where the table decays.
        """
        seen = _seen(outcomes, np.ones_like(outcomes.success) if discount is None else discount)
        return HistoryTable(
            **{
                field: np.maximum(getattr(self, field) - values[:, :, None] * weights[:, None, :], _LEAST[field])
                for field, values in seen.items()
            }
        )

    def updated(self, weights: Floats, outcomes: Outcomes, *, decay: float = 1.0) -> HistoryTable:
        """With newer tasks added, oldest first: the same as a table of all tasks together."""
        newer = HistoryTable.of(weights, outcomes, decay=decay)
        aged = decay ** outcomes.known.sum(axis=0)[:, None]  # [agents, 1]
        return HistoryTable(**{f.name: getattr(self, f.name) * aged + getattr(newer, f.name) for f in fields(self)})

    def success_rates(self, strength: float, agent_strength: float = 1.0) -> Sums:
        """Shrunk success of each agent in each capability, in (0, 1) for positive strengths."""
        return _shrunk(self.success, self.count, strength, agent_strength, nothing_known=0.5)

    def quality_rates(self, strength: float, agent_strength: float = 1.0) -> Sums:
        """Shrunk quality of each agent in each capability."""
        return _shrunk(self.quality, self.count, strength, agent_strength, nothing_known=0.5)

    def latencies_s(self, strength: float, agent_strength: float = 1.0) -> Sums:
        """Shrunk geometric mean of seconds; NaN where no agent's seconds are known."""
        return np.exp(_shrunk(self.log_latency, self.latency_count, strength, agent_strength, nothing_known=np.nan))

    def costs_usd(self, strength: float) -> Sums:
        """Shrunk mean of dollars; NaN for an agent whose dollars are not known: others' prices say nothing of its."""
        return _shrunk(self.cost_usd, self.cost_count, strength, 0.0, nothing_known=np.nan)

    def agent_success_rates(self, agent_strength: float = 1.0) -> Sums:
        """Shrunk success of each agent overall: [..., agents]."""
        return _overall(self.success, self.count, agent_strength, nothing_known=0.5)


def discounts(known: npt.NDArray[np.bool_], decay: float) -> Floats:
    """[tasks, agents] what each attempt counts for: decay to the power of how many newer ones its agent made.

    Raises:
        ValueError: the decay is not in (0, 1].
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay is a factor above 0 and at most 1, got {decay!r}")
    newer = known[::-1].cumsum(axis=0)[::-1] - 1  # [tasks, agents], -1 below the last attempt
    return np.where(known, float(decay) ** np.maximum(newer, 0), 0.0).astype(np.float32)


_LEAST = {  # what a sum cannot fall below: rounding must not make a count negative
    "count": 0.0,
    "success": 0.0,
    "quality": 0.0,
    "latency_count": 0.0,
    "log_latency": -np.inf,
    "cost_count": 0.0,
    "cost_usd": 0.0,
}


def _seen(outcomes: Outcomes, discount: Floats) -> dict[str, Sums]:
    """What each attempt adds to the sums: [tasks, agents] per field, 0 where it is not known."""
    timed = outcomes.known & (outcomes.latency_s > 0)
    priced = outcomes.known & np.isfinite(outcomes.cost_usd)
    log_latency = np.log(np.where(timed, outcomes.latency_s, 1.0))
    values = {
        "count": outcomes.known.astype(np.float64),
        "success": np.where(outcomes.known, outcomes.success, 0.0),
        "quality": np.where(outcomes.known, outcomes.quality, 0.0),
        "latency_count": timed.astype(np.float64),
        "log_latency": log_latency,
        "cost_count": priced.astype(np.float64),
        "cost_usd": np.where(priced, outcomes.cost_usd, 0.0),
    }
    return {field: value.astype(np.float64) * discount for field, value in values.items()}


def _overall(sums: Sums, counts: Sums, strength: float, nothing_known: float) -> Sums:
    """[..., agents] means over capabilities, shrunk towards the mean of all agents."""
    total, count = sums.sum(axis=-1), counts.sum(axis=-1)
    everyone = count.sum(axis=-1, keepdims=True)
    mean = np.divide(
        total.sum(axis=-1, keepdims=True), everyone, out=np.full_like(everyone, nothing_known), where=everyone > 0
    )
    bottom = count + strength
    shrunk: Sums = np.divide(total + strength * mean, bottom, out=np.full_like(bottom, np.nan), where=bottom > 0)
    return shrunk


def _shrunk(sums: Sums, counts: Sums, strength: float, agent_strength: float, nothing_known: float) -> Sums:
    prior = _overall(sums, counts, agent_strength, nothing_known)[..., None]
    bottom = counts + strength
    known = (bottom > 0) & np.isfinite(prior)
    shrunk: Sums = np.where(known, (sums + strength * np.nan_to_num(prior)) / np.where(known, bottom, 1.0), prior)
    return shrunk

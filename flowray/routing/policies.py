"""Policies to hold against the one in force: from what is known of some decisions to probabilities of choosing.

Estimates are an argument of their own: those of the receipts, or what another router says of the same tasks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import structs

from flowray.core.model import Estimate
from flowray.core.routing import RoutingPolicy, draw, run_times
from flowray.errors import ConfigError
from flowray.routing.asked import known
from flowray.routing.decisions import Decisions, Flags, Numbers, Places
from flowray.routing.estimates import Estimates

Policy = Callable[[Decisions, Estimates], Numbers]  # -> [rows, candidates], rows sum to 1, 0 where not offered


def in_force(decisions: Decisions, estimates: Estimates) -> Numbers:
    """What chose these: the recorded propensities."""
    return decisions.propensities


def greedy(decisions: Decisions, estimates: Estimates) -> Numbers:
    """The highest estimated success; of equals the first by name."""
    success = np.where(decisions.offered, np.nan_to_num(estimates.success, nan=-np.inf), -np.inf)
    return _certain(success.argmax(axis=1), decisions.offered)


def cheapest(quality: float) -> Policy:
    """The least estimated cost among those with this share of the best one's estimated success.

    This is what a task's `quality` asks for. One whose cost is not known is taken only where no cost is known; of
    equals the most successful.
    """

    def policy(decisions: Decisions, estimates: Estimates) -> Numbers:
        success = np.where(decisions.offered, np.nan_to_num(estimates.success, nan=-np.inf), -np.inf)
        enough = success >= quality * success.max(axis=1, keepdims=True)
        cost = np.where(enough, np.nan_to_num(estimates.cost_usd, nan=np.inf), np.inf)
        least = enough & (cost == cost.min(axis=1, keepdims=True))
        return _certain(np.where(least, success, -np.inf).argmax(axis=1), decisions.offered)

    return policy


def always(name: str) -> Policy:
    """One candidate; where it was not offered, the policy in force chooses.

    Raises (the policy, when asked):
        ConfigError: it was never offered.
    """

    def policy(decisions: Decisions, estimates: Estimates) -> Numbers:
        if name not in decisions.candidates:
            known = ", ".join(decisions.candidates)
            raise ConfigError("policy", f"no task had a candidate {name!r}", f"there were {known}")
        column = decisions.candidates.index(name)
        one = _certain(np.full(len(decisions), column, np.intp), decisions.offered)
        return np.where(decisions.offered[:, column, None], one, decisions.propensities)

    return policy


def routed(rules: RoutingPolicy | None = None, deviations: Numbers | None = None) -> Policy:
    """What a coordinator with these rules chooses, with the probabilities that it draws with.

    It is told what the one in force was told beside the estimates: how long each candidate would have waited, the
    task's deadline, and what the task asks for. `deviations` [rows, candidates] go with the estimates: by default those
    recorded.

    Raises (the policy, when asked):
        ConfigError: a receipt does not say how long candidates would have waited.
    """
    policy = rules or RoutingPolicy()

    def choose(decisions: Decisions, estimates: Estimates) -> Numbers:
        unknown = decisions.table.column("waits_s").null_count
        if unknown:
            problem = f"{unknown:,} receipts do not say how long candidates would have waited"
            raise ConfigError("policy", problem, "leave these out, or say greedy")
        probabilities = np.zeros(decisions.offered.shape, np.float64)
        spread = decisions.deviations if deviations is None else deviations
        told = (
            decisions.table.column(name).to_pylist()
            for name in ("waits_s", "extras", "weights", "remaining_s", "thrift", "max_cost_usd")
        )
        for row, (waits_s, extras, weights, remaining_s, thrift, limit) in enumerate(zip(*told, strict=True)):
            columns = np.flatnonzero(decisions.offered[row])
            candidates = [_estimate(decisions, estimates, spread, row, column) for column in columns.tolist()]
            drawn = draw(
                candidates,
                run_times(candidates),
                waits_s,
                remaining_s,
                structs.replace(policy, **dict(weights)) if weights else policy,
                _NO_CHANCE,
                extras=extras or (),
                quality=thrift,
                max_cost_usd=limit,
            )
            probabilities[row, columns] = drawn.propensities
        return probabilities

    return choose


def named(text: str, rules: RoutingPolicy | None = None, deviations: Numbers | None = None) -> Policy:
    """The policy of `greedy`, `cheapest:0.95`, `always:NAME`, `in_force`, or `routed`, for which the others are.

    Raises:
        ConfigError: it is none of these.
    """
    kind, _, detail = text.partition(":")
    if text in ("greedy", "in_force"):
        return greedy if text == "greedy" else in_force
    if text == "routed":
        return routed(rules, deviations)
    if kind == "always" and detail:
        return always(detail)
    if kind == "cheapest":
        try:
            quality = float(detail)
        except ValueError:
            quality = -1.0
        if not 0 <= quality <= 1:
            raise ConfigError("policy", f"cheapest wants a share from 0 to 1, got {detail!r}", "say cheapest:0.95")
        return cheapest(quality)
    raise ConfigError("policy", f"there is no {text!r}", "say greedy, cheapest:0.95, always:NAME, in_force or routed")


class _NoChance:
    """For a draw of which only the probabilities are wanted."""

    def random(self) -> float:
        return 0.0


_NO_CHANCE = _NoChance()


def _estimate(decisions: Decisions, estimates: Estimates, deviations: Numbers, row: int, column: int) -> Estimate:
    """As the core has it. Estimates are kept as float32, and come from such numbers: nothing is lost on the way."""
    quality, latency_s, cost_usd = (
        known(float(values[row, column])) for values in (estimates.quality, estimates.latency_s, estimates.cost_usd)
    )
    success, deviation = float(estimates.success[row, column]), float(deviations[row, column])
    return Estimate(decisions.candidates[column], success, deviation, quality, latency_s, cost_usd)


def _certain(columns: Places, offered: Flags) -> Numbers:
    """Probabilities of choices without chance."""
    probabilities = np.zeros(offered.shape, np.float64)
    probabilities[np.arange(len(columns)), columns] = 1.0
    return probabilities

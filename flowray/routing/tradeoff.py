"""Cost against quality: what choosing agents by estimates gives at each price of money.

A router that values a dollar at `rate` successes takes for each task the agent with the highest

    estimated success - rate * estimated cost.

Rate 0 asks for quality alone, an infinite rate for the cheapest agent; the rates between give a curve of operating
points. Two points can be mixed at random, task by task, so what a method can reach is the upper hull of its points.
The hull of the single agents is the zero router of RouterBench (arXiv 2403.12031): random mixing, which knows nothing
of the task. A method is worth something where its hull is above that one.

    quality at a budget   success on the hull at a given cost (q60: at 60 % less than the best single agent costs)
    AIQ                   mean success under the hull from the cheapest agent's cost to the best single agent's
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowray.routing.estimates import Floats
from flowray.routing.metrics import Statistic, Values

KEPT = 0.985  # of the best single agent's success, at which dollars per million tokens are compared
BUDGET = 0.4  # of the best single agent's cost: 60 % less


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """The operating points of one method: what happened to each task at each of them."""

    success: Floats  # [tasks, points]
    cost_usd: Floats  # [tasks, points]
    tokens: Floats  # [tasks, points], NaN where nobody counted them

    def at(self, point: int) -> Points:
        """One of the points."""
        return Points(**{name: getattr(self, name)[:, point : point + 1] for name in ("success", "cost_usd", "tokens")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """Tasks and the agents that cost routing chooses from, with what each would have given and cost."""

    success: Floats  # [tasks, agents], NaN where the outcome is unknown: such an agent cannot be chosen there
    cost_usd: Floats  # [tasks, agents], finite where success is
    tokens: Floats  # [tasks, agents]
    best: int  # column of the best single agent, chosen on earlier tasks
    cheapest: int  # column of the agent that costs least on these tasks

    def singles(self) -> Points:
        """Each agent alone, as one point: their hull is the zero router."""
        return Points(success=self.success, cost_usd=self.cost_usd, tokens=self.tokens)

    def single(self, agent: int) -> Points:
        """One agent alone."""
        return self.singles().at(agent)

    def oracle(self) -> Points:
        """Knowing all outcomes: at every price of money the best choice there was."""
        return self.swept(np.nan_to_num(self.success), np.nan_to_num(self.cost_usd))

    def routed(self, success: Floats, cost_usd: Floats, rates: Values) -> Points:
        """The points of choosing by estimates [tasks, agents], finite, at each rate."""
        may = np.isfinite(self.success)
        chosen = np.stack([choose(success, cost_usd, may, rate) for rate in rates], axis=1)  # [tasks, points]
        return Points(
            success=np.take_along_axis(self.success, chosen, axis=1),
            cost_usd=np.take_along_axis(self.cost_usd, chosen, axis=1),
            tokens=np.take_along_axis(self.tokens, chosen, axis=1),
        )

    def swept(self, success: Floats, cost_usd: Floats) -> Points:
        """The points of a method over all rates, and of always taking the cheapest agent, which is open to anybody."""
        swept, cheapest = self.routed(success, cost_usd, rates_for(cost_usd)), self.single(self.cheapest)
        return Points(
            **{
                name: np.hstack([getattr(swept, name), getattr(cheapest, name)])
                for name in ("success", "cost_usd", "tokens")
            }
        )


def market(success: Floats, cost_usd: Floats, tokens: Floats, best: int) -> Market:
    """Outcomes as a market. An attempt whose cost is not known costs what its agent costs on average.

    Raises:
        ValueError: an agent without any known cost is among them.
    """
    known = np.isfinite(success)
    priced = known & np.isfinite(cost_usd)
    if not priced.any(axis=0).all():
        raise ValueError("an agent without any known cost cannot be in a market")
    usual = np.nansum(np.where(priced, cost_usd, np.nan), axis=0) / priced.sum(axis=0)  # [agents]
    filled = np.where(priced, cost_usd, np.where(known, usual, np.nan)).astype(np.float32)
    return Market(success=success, cost_usd=filled, tokens=tokens, best=best, cheapest=int(usual.argmin()))


def rates_for(cost_usd: Floats, points: int = 80) -> Values:
    """Rates from 0 to infinity, in steps that matter at these costs: [points] ascending."""
    costs = cost_usd[np.isfinite(cost_usd) & (cost_usd > 0)]
    if not len(costs):
        return np.array([0.0, np.inf])
    low, high = 1e-3 / float(costs.max()), 10.0 / float(costs.min())
    return np.concatenate([[0.0], np.geomspace(low, high, points - 2), [np.inf]])


def choose(success: Floats, cost_usd: Floats, may: npt.NDArray[np.bool_], rate: float) -> npt.NDArray[np.intp]:
    """[tasks] the agent to take at a price of money, of those that `may` be taken.

    The cheaper one of two equally good agents, the better one of two equally cheap ones.
    """
    cost_usd = np.nan_to_num(cost_usd)
    if np.isinf(rate):
        first, second = -cost_usd, success
    else:
        first, second = success - rate * cost_usd, -cost_usd
    first = np.where(may, first, -np.inf)
    tied = may & (first == first.max(axis=1, keepdims=True))
    return np.asarray(np.where(tied, second, -np.inf).argmax(axis=1), dtype=np.intp)


def hull(cost: Values, success: Values) -> npt.NDArray[np.intp]:
    """The points of the upper hull that rises with cost, cheapest first (Andrew's monotone chain)."""
    kept: list[int] = []
    for i in np.lexsort((-success, cost)).tolist():
        if kept and success[i] <= success[kept[-1]]:
            continue  # dearer and no better
        while len(kept) > 1 and _below(cost, success, kept[-2], kept[-1], i):
            kept.pop()
        kept.append(i)
    return np.array(kept, dtype=np.intp)


def quality_share(points: Points, single: Points, budget: float = BUDGET) -> Statistic:
    """Success at a share of the single agent's cost, as a share of its success (1.0: nothing lost).

    NaN where nothing is that cheap.
    """

    def share(cost: Values, success: Values, tokens: Values, other: Values) -> float:
        kept = hull(cost, success)
        if cost[kept[0]] > budget * other[1] or not other[0]:
            return float("nan")
        return float(np.interp(budget * other[1], cost[kept], success[kept]) / other[0])

    return _on_means(points, single, share)


def quality_area(points: Points, single: Points, cheapest: Points) -> Statistic:
    """AIQ, in units of success."""

    def area(cost: Values, success: Values, tokens: Values, other: Values) -> float:
        kept = hull(cost, success)
        low, high = other[4], other[1]
        if high <= low:
            return float(np.interp(high, cost[kept], success[kept]))
        corners = cost[kept][(cost[kept] > low) & (cost[kept] < high)]
        grid = np.concatenate([[low], corners, [high]])
        return float(np.trapezoid(np.interp(grid, cost[kept], success[kept]), grid) / (high - low))

    return _on_means(points, single, area, cheapest)


def dollars_per_million_tokens(points: Points, single: Points, kept_share: float = KEPT) -> Statistic:
    """Dollars per million tokens at the cheapest mix that keeps that share of the single agent's success.

    NaN where the method does not reach it. Tasks whose tokens are unknown count in neither dollars nor tokens.
    """

    def price(cost: Values, success: Values, tokens: Values, other: Values) -> float:
        kept = hull(cost, success)
        wanted = kept_share * other[0]
        after = int(np.searchsorted(success[kept], wanted))  # success ascends along the hull
        if after == len(kept):
            return float("nan")
        if after == 0:
            return float(1e6 * cost[kept[0]] / tokens[kept[0]])
        low, high = kept[after - 1], kept[after]
        part = (wanted - success[low]) / (success[high] - success[low])
        spent, used = (values[low] + part * (values[high] - values[low]) for values in (cost, tokens))
        return float(1e6 * spent / used)

    counted = np.isfinite(points.tokens)
    known = Points(
        success=points.success,
        cost_usd=np.where(counted, points.cost_usd, np.float32(0.0)),
        tokens=np.where(counted, points.tokens, np.float32(0.0)),
    )
    return _on_means(known, single, price)


def _on_means(
    points: Points,
    single: Points,
    figure: Callable[[Values, Values, Values, Values], float],
    cheapest: Points | None = None,
) -> Statistic:
    """A figure of (cost, success, tokens per point; success, cost, ... of what it is compared to), per resample."""
    arrays = [points.success, points.cost_usd, np.nan_to_num(points.tokens), *_columns(single)]
    arrays += _columns(cheapest) if cheapest is not None else []
    n_points = points.success.shape[1]
    table = np.concatenate(arrays, axis=1)  # [tasks, 3 * points + 3 or 6]

    def statistic(weights: Floats) -> Values:
        total = weights.sum(axis=1, dtype=np.float64, keepdims=True)
        means = (weights @ table).astype(np.float64) / total
        success, cost, tokens, other = np.split(means, [n_points, 2 * n_points, 3 * n_points], axis=1)
        rows = zip(cost, success, tokens, other, strict=True)
        return np.array([figure(*row) for row in rows], dtype=np.float64)

    return statistic


def _columns(points: Points) -> list[Floats]:
    return [points.success, points.cost_usd, np.nan_to_num(points.tokens)]


def _below(cost: Values, success: Values, left: int, middle: int, right: int) -> bool:
    """Is the middle point on or below the line from left to right?"""
    rise = (success[right] - success[left]) * (cost[middle] - cost[left])
    return bool((success[middle] - success[left]) * (cost[right] - cost[left]) <= rise)

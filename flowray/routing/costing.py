"""What everybody's choices cost on one set: the metrics and curves of cost against quality.

    q60_share                   success at 60 % less than the best single agent costs, as a share of its success
    aiq                         mean success under the hull (see `flowray.routing.tradeoff`)
    usd_per_million_tokens      at the cheapest mix that keeps 98.5 % of the best single agent's success
    q60_share_fixed, cost_cut_fixed     the price of money chosen on val, then applied: success and money saved

The first three read the best operating point off the judged tasks' own hull, as the literature does; the last two do
not, and are what a user gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from flowray.routing import metrics
from flowray.routing.estimates import Floats
from flowray.routing.judge import Judge, Metrics, Places, filled_costs
from flowray.routing.metrics import Statistic, Values
from flowray.routing.tradeoff import (
    BUDGET,
    Market,
    Points,
    dollars_per_million_tokens,
    hull,
    market,
    quality_area,
    quality_share,
    rates_for,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Operating points of one method, cheapest first."""

    cost_usd: Values  # mean per task
    success: Values


class Trial:
    """The choices of everybody among the agents of one set whose cost is known. Made by `try_costs`."""

    def __init__(self, judge: Judge, rows: Places, columns: Places, stage: Market) -> None:
        self._judge = judge
        self._rows = rows  # among the judged tasks: those that every priced agent tried
        self._columns = columns  # among the pool: the priced agents
        self._market = stage
        self._points = {name: stage.swept(*each) for name, each in self._choosers().items()}
        self._points["random_mixing"] = stage.singles()
        self._oracle = stage.oracle()

    def metrics(self) -> Metrics:
        """The metrics, by name."""
        stage = self._market
        single, cheapest = stage.single(stage.best), stage.single(stage.cheapest)

        def every(name: str, figure: Callable[[Points], Statistic], **more: Points) -> Metrics:
            each = {method: figure(points) for method, points in (self._points | more).items()}
            yield from self._judge.measured(name, each, oracle=figure(self._oracle), rows=self._rows)

        yield from every("q60_share", partial(quality_share, single=single))
        yield from every("aiq", partial(quality_area, single=single, cheapest=cheapest))
        if np.isfinite(stage.tokens).any():
            yield from every(
                "usd_per_million_tokens", partial(dollars_per_million_tokens, single=single), best_single=single
            )
        yield from self._with_fixed_rate()

    def curves(self) -> dict[str, Curve]:
        """The hull of every method, of random mixing and of the oracle."""
        curves = {}
        for name, points in {**self._points, "oracle": self._oracle}.items():
            cost = points.cost_usd.mean(axis=0, dtype=np.float64)
            success = points.success.mean(axis=0, dtype=np.float64)
            kept = hull(cost, success)
            curves[name] = Curve(cost_usd=cost[kept], success=success[kept])
        return curves

    def singles(self) -> dict[str, tuple[float, float]]:
        """Mean cost and success of each agent alone."""
        points = self._market.singles()
        cost, success = points.cost_usd.mean(axis=0), points.success.mean(axis=0)
        ids = [self._judge.agent_id(place) for place in self._columns]
        return {agent: (float(c), float(s)) for agent, c, s in zip(ids, cost, success, strict=True)}

    def _choosers(self) -> dict[str, tuple[Floats, Floats]]:
        """Who can choose among the priced agents, with estimates of success and dollars [tasks, agents]."""
        cells = np.ix_(self._rows, self._columns)
        each = {name: (p[cells], self._judge.costs(name)[cells]) for name, p in self._judge.probabilities.items()}
        return {name: (p, costs) for name, (p, costs) in each.items() if np.isfinite(costs).all()}

    def _with_fixed_rate(self) -> Metrics:
        """The price of money chosen on val, where val lies in the past of this set."""
        judge = self._judge
        val = judge.past.split("val") if judge.past is not None else None
        if val is None or not len(val) or set(judge.judged.splits) == {"val"}:
            return
        agents = judge.pool[self._columns]
        then = val.histories("val", agents=judge.judged.agents).outcomes.take(slice(None), agents)
        tried = then.known.all(axis=1)
        if not np.isfinite(then.cost_usd[tried]).any(axis=0).all():
            return
        stage = market(then.success[tried], then.cost_usd[tried], then.tokens[tried], self._market.best)
        single = self._market.single(self._market.best)
        shares: dict[str, Statistic] = {}
        cuts: dict[str, Statistic] = {}
        for name, (success, cost_usd) in self._choosers().items():
            estimates = judge.methods[name].estimate(val.tasks, judge.judged.agents, judge.histories)
            costs_then = filled_costs(estimates, judge.judged.agents, judge.histories)[tried][:, agents]
            rate = _rate_within_budget(stage, estimates.success[tried][:, agents], costs_then)
            now = self._market.routed(success, cost_usd, np.array([rate]))
            shares[name] = metrics.ratio(now.success[:, 0], single.success[:, 0])
            cuts[name] = metrics.complement(metrics.ratio(now.cost_usd[:, 0], single.cost_usd[:, 0]))
        yield from judge.measured("q60_share_fixed", shares, rows=self._rows)
        yield from judge.measured("cost_cut_fixed", cuts, rows=self._rows)


def try_costs(judge: Judge) -> Trial | None:
    """A trial, None where costs, a best single agent or a second priced agent are missing."""
    outcomes = judge.judged.outcomes.take(slice(None), judge.pool)
    columns = np.flatnonzero((np.isfinite(outcomes.cost_usd) & outcomes.known).any(axis=0))
    if judge.best is None or judge.best not in columns or len(columns) < 2:
        return None
    rows = np.flatnonzero(outcomes.known[:, columns].all(axis=1))
    if len(rows) < len(judge.judged):
        judge.notes.append(f"Cost figures are of the {len(rows)} tasks that every priced agent tried.")
    if not len(rows):
        return None
    tried = outcomes.take(rows, columns)
    best = int(np.flatnonzero(columns == judge.best)[0])
    return Trial(judge, rows, columns, market(tried.success, tried.cost_usd, tried.tokens, best))


def _rate_within_budget(stage: Market, success: Floats, cost_usd: Floats) -> float:
    """The price of money with the most success at 60 % less than the best single agent costs."""
    rates = rates_for(cost_usd)
    points = stage.routed(success, cost_usd, rates)
    affordable = points.cost_usd.mean(axis=0) <= BUDGET * stage.single(stage.best).cost_usd.mean()
    if not affordable.any():
        return math.inf
    return float(rates[np.where(affordable, points.success.mean(axis=0), -1.0).argmax()])

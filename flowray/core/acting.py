"""What follows from how sure a choice is: one attempt, a second one beside it, or the task's fallback.

A router says what it expects of each class of agents, and how sure it is that nobody is better than the best.

- **One attempt** is the rule. When it runs much longer than was expected, a second one starts on another agent (hedge):
  the tail of the run times is mostly bad luck, and the same bad luck seldom strikes twice (J. Dean and L. Barroso, "The
  Tail at Scale", CACM 2013).
- **Two at once** (copy), of different classes, where the one that was chosen may well fail and a second adds enough:
  with p1 and p2 for the two, p2 (1 - p1) if their failures were independent. They are not: what one class cannot do is
  hard for the others, too, and half of that is left (`apart`). Its price is taken off. It helps where failures are
  seen: an exception, or an answer reported to be worth less than the task's `least_quality`. The first good answer
  wins. It buys time: a second attempt after the first has failed, which needs nothing of this, mends as much for less.
- **The fallback** where nobody is expected to do it in time, and for the last attempt after the others' failed.

Two attempts run only of tasks that their caller called idempotent (never of exclusive ones), on two agents, never more
than two. A second attempt takes a slot that is free at that moment and never waits for one (a hedge is looked at again
after twice the time). It is not started where the failure of both would be one more than `max_attempts` allows. Both
kinds are paid from credits, which the starts of such tasks earn: when everything is slow or unsure, further attempts
would only add load.

All of this is pure; `flowray.core.attempts` and `placing` ask and do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from msgspec import Struct, structs

from flowray.core.hedging import Credits
from flowray.core.model import Choice, Estimate, Receipt, Task
from flowray.core.naming import class_of
from flowray.core.queueing import Lane
from flowray.core.registry import Agent, AgentClass
from flowray.core.retry import Rng
from flowray.core.routing import RoutingPolicy, expected, in_time, run_times
from flowray.errors import ConfigError


class ActingPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a second attempt runs beside the first, and when the fallback is asked. Chances are 0..1."""

    hedge_factor: float = 3.0  # a second attempt after so many times the run time that was expected
    hedge_least_s: float = 0.05  # and never before
    hedge_share: float = 0.1  # hedges for each start of an idempotent task, in the long run; 0 for none
    hedge_burst: float = 10.0  # hedges that can be saved up
    unsure: float = 1.0  # two at once only where the router is less sure than this that nobody is better; 0 for never
    apart: float = 0.5  # how far failures of two classes are independent, see above
    copy_gain: float = 0.05  # two at once where the second adds so much expected success at least, less its price
    copy_share: float = 0.5  # copies for each start of an idempotent task, in the long run; 0 for none
    copy_burst: float = 10.0  # copies that can be saved up
    lost: float = 0.1  # where nobody is expected to succeed with this chance, the fallback gets the task; 0 for never

    def __post_init__(self) -> None:
        for name in ("hedge_share", "unsure", "apart", "copy_gain", "copy_share", "lost"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"acting.{name}", f"must be between 0 and 1, got {getattr(self, name)}")
        for name in ("hedge_least_s", "hedge_burst", "copy_burst"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"acting.{name}", f"must not be negative, got {getattr(self, name)}")
        if not 1 <= self.hedge_factor < math.inf:
            raise ConfigError("acting.hedge_factor", f"must be at least 1, got {self.hedge_factor}")


class Second(NamedTuple):
    """A second attempt: on this agent, and why."""

    agent: Agent
    choice: Choice


class Acting:
    """The policy, and the credits left. These are not durable: a new coordinator begins with a full burst."""

    __slots__ = ("_copies", "_hedges", "_policy", "_routing")

    def __init__(self, policy: ActingPolicy, routing: RoutingPolicy) -> None:
        self._policy = policy
        self._routing = routing
        self._hedges = Credits(policy.hedge_share, policy.hedge_burst if policy.hedge_share else 0.0)
        self._copies = Credits(policy.copy_share, policy.copy_burst if policy.copy_share else 0.0)

    def started(self) -> None:
        """A task was started that may have a second attempt."""
        self._hedges.earn()
        self._copies.earn()

    # ── a second attempt ─────────────────────────────────────────────────────────────────────────────────────────

    def hedge_after_s(self, receipt: Receipt | None, one: AgentClass) -> float | None:
        """How long an attempt of this class may run before a second one starts; None where nobody knows."""
        usual_s = _latency_s(receipt, one.spec.name)
        if usual_s is None and one.service_s >= 0:
            usual_s = one.service_s
        policy = self._policy
        if usual_s is None or not policy.hedge_share:
            return None
        return max(policy.hedge_least_s, policy.hedge_factor * usual_s)

    def hedge(self, lane: Lane, receipt: Receipt | None, busy: str, tried: set[str], rng: Rng) -> Second | None:
        """Who hedges an attempt that runs on the agent `busy`; None where nobody is free, or it cannot be paid.

        The best other class of the estimates, but for those that failed at this task; else any capable agent.
        """
        if not self._hedges.enough:
            return None
        found: Agent | None = None
        for name in _by_success(receipt, self._routing, but={class_of(busy), *tried}):
            one = lane.by_name.get(name)
            if one is not None and one.free:
                found = _free_agent(one, busy, rng)
                break
        if found is None:
            found = _anybody(lane, busy, rng)
        if found is None:
            return None
        self._hedges.pay()
        return Second(found, _choice("hedge", found, receipt))

    def copy(
        self, lane: Lane, receipt: Receipt | None, busy: str, tried: set[str], remaining_s: float | None, rng: Rng
    ) -> Second | None:
        """Who runs the task at the same time as the agent `busy`, which has just been given it; None for nobody."""
        policy = self._policy
        if receipt is None or receipt.confidence >= policy.unsure or not self._copies.enough:
            return None
        best: tuple[float, AgentClass] | None = None
        for name, gain in gains(receipt, class_of(busy), remaining_s, policy, self._routing).items():
            one = lane.by_name.get(name)
            if name in tried or one is None or not one.free or gain < policy.copy_gain:
                continue
            if best is None or gain > best[0]:
                best = gain, one
        found = None if best is None else _free_agent(best[1], busy, rng)
        if found is None:
            return None
        self._copies.pay()
        return Second(found, _choice("copy", found, receipt))

    # ── the fallback ─────────────────────────────────────────────────────────────────────────────────────────────

    def is_lost(self, expectations: Iterable[tuple[Estimate, float]], remaining_s: float | None) -> bool:
        """Is none of the candidates, each with its wait, expected to do it in time?"""
        pairs = list(expectations)
        runs_s = run_times([estimate for estimate, _ in pairs])
        chances = [
            _chance(estimate, run_s, wait_s, remaining_s, self._routing)
            for (estimate, wait_s), run_s in zip(pairs, runs_s, strict=True)
        ]
        return max(chances, default=1.0) < self._policy.lost


def gains(
    receipt: Receipt, chosen: str, remaining_s: float | None, policy: ActingPolicy, routing: RoutingPolicy
) -> dict[str, float]:
    """What each other candidate would add to the chosen one's expected success, less its price; {} if nobody knows."""
    chances = {
        each.candidate: _chance(each, run_s, 0.0, remaining_s, routing)
        for each, run_s in zip(receipt.estimates, run_times(receipt.estimates), strict=True)
    }
    if chosen not in chances:
        return {}
    left = policy.apart * (1.0 - chances[chosen])
    return {
        each.candidate: chances[each.candidate] * left - routing.usd * (each.cost_usd or 0.0)
        for each in receipt.estimates
        if each.candidate != chosen
    }


def may_join(task: Task, failures: int) -> bool:
    """May a second attempt of the task run beside the first? Both might fail, and count."""
    return task.idempotent and not task.exclusive and failures + 2 <= task.max_attempts


def is_last(task: Task, failures: int) -> bool:
    """Is the next attempt the last one, after others have failed?"""
    return failures > 0 and failures + 1 >= task.max_attempts


def _chance(
    estimate: Estimate, run_s: float, wait_s: float, remaining_s: float | None, routing: RoutingPolicy
) -> float:
    chance = expected(estimate, routing)
    return chance if remaining_s is None else chance * in_time(run_s, remaining_s - wait_s)


def _latency_s(receipt: Receipt | None, name: str) -> float | None:
    if receipt is None:
        return None
    return next((each.latency_s for each in receipt.estimates if each.candidate == name), None)


def _by_success(receipt: Receipt | None, routing: RoutingPolicy, but: set[str]) -> Iterator[str]:
    if receipt is not None:
        ranked = sorted(receipt.estimates, key=lambda each: -expected(each, routing))
        yield from (each.candidate for each in ranked if each.candidate not in but)


def _choice(policy: str, agent: Agent, receipt: Receipt | None) -> Choice:
    """Chance had no part in it, so its receipt has no propensities."""
    name = agent.agent_class.spec.name
    known = receipt is not None and any(each.candidate == name for each in receipt.estimates)
    if receipt is None or not known:
        return Choice(policy, 1, ((agent.id, agent.load),))
    mine = structs.replace(receipt, chosen=name, propensities=(), explored=False, wait_s=0.0)
    return Choice(policy, len(receipt.estimates), ((agent.id, agent.load),), mine)


def _free_agent(one: AgentClass, busy: str, rng: Rng) -> Agent | None:
    """One of the class with an idle slot, but not the one that is at it already."""
    count = len(one.free)
    if not count:
        return None
    place = int(rng.random() * count)
    found = one.free[place]
    if found.id != busy:
        return found
    return one.free[(place + 1) % count] if count > 1 else None


def _anybody(lane: Lane, busy: str, rng: Rng) -> Agent | None:
    """Any capable agent with an idle slot, but not the one that is at it already: at most one class has only that."""
    count = len(lane.free)
    place = int(rng.random() * count) if count else 0
    for step in range(min(count, 2)):
        found = _free_agent(lane.free[(place + step) % count], busy, rng)
        if found is not None:
            return found
    return None

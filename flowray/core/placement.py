"""Which agent gets a task.

Two agents with room are drawn at random and the less loaded one is taken. Two choices instead of one bring the
longest queue from O(log n / log log n) to O(log log n), and unlike picking the minimum they do not send everything to
the same agent when the loads known are stale: M. Mitzenmacher, "The Power of Two Choices in Randomized Load
Balancing", IEEE TPDS 12(10), 2001.

Agents that answer within microseconds would idle for a message's round trip between two tasks. So an agent whose tasks
are short may hold some more than its slots: about `prefetch_s` worth of work, never more. Long tasks are never
prefetched, and an agent that gets stuck hands back what it has not begun (`AttemptReturned`).
"""

from __future__ import annotations

from msgspec import Struct

from flowray.core.model import Choice
from flowray.core.ordered import IndexedSet
from flowray.core.queueing import Lane
from flowray.core.registry import Agent, AgentClass
from flowray.core.retry import Rng
from flowray.errors import ConfigError


class PlacementPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much work may be sent to an agent ahead of time."""

    prefetch_s: float = 0.01  # work an agent may hold beyond its slots, by its own average run time; 0 for none
    max_prefetch: int = 64  # and never more attempts than this

    def __post_init__(self) -> None:
        if self.prefetch_s < 0:
            raise ConfigError("placement.prefetch_s", f"must not be negative, got {self.prefetch_s}")
        if self.max_prefetch < 0:
            raise ConfigError("placement.max_prefetch", f"must not be negative, got {self.max_prefetch}")


def choose_agent(lane: Lane, rng: Rng) -> tuple[Agent, Choice] | None:
    """The agent for the next task of a lane, and why; None when no capable agent has room."""
    if lane.free:
        return _two_choices(lane.free, False, rng)
    if lane.spare:
        return _two_choices(lane.spare, True, rng)
    return None


def _two_choices(classes: IndexedSet[AgentClass], prefetch: bool, rng: Rng) -> tuple[Agent, Choice]:
    """Draw two, take the one with less load (of equals, the one drawn first)."""
    first, candidates = _draw(classes, prefetch, rng)
    if candidates == 1:
        return first, Choice("only_one", 1, ((first.id, first.load),))
    second, _ = _draw(classes, prefetch, rng)
    if second is first:  # drawn twice: its neighbour is as random as any other
        second = _neighbour(classes, prefetch, first)
    load_1, load_2 = first.load, second.load
    if prefetch:  # among busy agents it is the work ahead that counts, not its number of tasks
        load_1, load_2 = load_1 * first.service_s, load_2 * second.service_s
    policy = "prefetch" if prefetch else "power_of_two"
    chosen = second if load_2 < load_1 else first
    return chosen, Choice(policy, candidates, ((first.id, first.load), (second.id, second.load)))


def _room(one: AgentClass, prefetch: bool) -> IndexedSet[Agent]:
    return one.spare if prefetch else one.free


def _draw(classes: IndexedSet[AgentClass], prefetch: bool, rng: Rng) -> tuple[Agent, int]:
    """One agent with room, uniformly; and how many there are.

    With many classes the class is drawn first, which favours agents of small classes: they have room, so no task
    waits longer for it, and the cost stays flat.
    """
    if len(classes) > 8:
        one = classes[int(rng.random() * len(classes))]
        room = _room(one, prefetch)
        return room[int(rng.random() * len(room))], len(classes)
    total = 0
    for one in classes:
        total += len(_room(one, prefetch))
    index = int(rng.random() * total)
    for one in classes:
        room = _room(one, prefetch)
        if index < len(room):
            return room[index], total
        index -= len(room)
    raise AssertionError("a class without room is listed as having some")


def _neighbour(classes: IndexedSet[AgentClass], prefetch: bool, agent: Agent) -> Agent:
    """Some other agent with room than this one; itself if there is no other."""
    for one in classes:
        for other in _room(one, prefetch):
            if other is not agent:
                return other
    return agent

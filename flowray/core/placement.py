"""Which agent gets a task.

Two agents with room are drawn at random and the less loaded one is taken. Two choices instead of one bring the
longest queue from O(log n / log log n) to O(log log n), and unlike picking the minimum they do not send everything to
the same agent when the loads known are stale: M. Mitzenmacher, "The Power of Two Choices in Randomized Load
Balancing", IEEE TPDS 12(10), 2001.

Agents that answer within microseconds would idle for a message's round trip between two tasks. So an agent whose tasks
are short may hold some more than its slots: about `prefetch_s` worth of work, never more. Long tasks are never
prefetched, and an agent that gets stuck hands back what it has not begun (`AttemptReturned`).

A message costs about as much as many such tasks take to run. So the tasks that arrive within a moment of one another
go together to the agent that got the first of them, up to `batch_s` of work by its average: a task waits that long at
most, and the processes at both ends of the message have much less to do. And where that agent has nothing to do when
the next one comes, it gets it: its process is awake, which makes more of a difference than who else is idle.

For the same reason such tasks stay with few agents while there are many: with the `recent` last ones that got some,
two of them drawn as above, as long as these have room. Sixteen agents do more tasks of half a millisecond than any
coordinator hands out, and a hundred processes that each wake for a few of them take the processors' time for waking
(120 agents on two cores: half as many tasks per second).
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
    batch_s: float = 0.0005  # work that may go to one agent together, by its own average run time; 0 for none
    batch_within_s: float = 0.001  # what arrives within this time of one another counts as together
    recent: int = 16  # agents that tasks shorter than `batch_s` stay with while these have room; 0 for all

    def __post_init__(self) -> None:
        if self.prefetch_s < 0:
            raise ConfigError("placement.prefetch_s", f"must not be negative, got {self.prefetch_s}")
        if self.max_prefetch < 0:
            raise ConfigError("placement.max_prefetch", f"must not be negative, got {self.max_prefetch}")
        for name in ("batch_s", "batch_within_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"placement.{name}", f"must not be negative, got {getattr(self, name)}")
        if not 0 <= self.recent <= 1000:
            raise ConfigError("placement.recent", f"must be between 0 and 1000, got {self.recent}")


def choose_agent(lane: Lane, policy: PlacementPolicy, now: float, rng: Rng) -> tuple[Agent, Choice] | None:
    """The agent for the next task of a lane, and why; None when no capable agent has room."""
    last = lane.last_chosen
    if last is not None and _may_batch(last, policy):
        if not last.held:  # it has just done such a task, and its processor's caches still hold what that needs
            lane.last_chosen_at = now
            return last, Choice("same", 1, ((last.id, last.load),))
        if now < lane.last_chosen_at + policy.batch_within_s:
            return last, Choice("batch", 1, ((last.id, last.load),))
    found = _recent(lane.recent, policy, rng) if lane.recent else None
    if found is not None and (len(lane.recent) == policy.recent or _may_batch(found[0], policy)):
        lane.last_chosen, lane.last_chosen_at = found[0], now
        return found
    if lane.free:
        found = _two_choices(lane.free, False, rng)
    elif lane.spare:
        found = _two_choices(lane.spare, True, rng)
    else:
        return None
    chosen = found[0]
    lane.last_chosen, lane.last_chosen_at = chosen, now
    if _is_quick(chosen, policy) and policy.recent and chosen not in lane.recent:
        if len(lane.recent) >= policy.recent:
            del lane.recent[0]
        lane.recent.append(chosen)
    return found


def _is_quick(agent: Agent, policy: PlacementPolicy) -> bool:
    return 0 <= agent.service_s < policy.batch_s


def _has_room(agent: Agent) -> bool:
    return agent.room != ""


def _may_batch(agent: Agent, policy: PlacementPolicy) -> bool:
    return _is_quick(agent, policy) and agent.held * agent.service_s < policy.batch_s and _has_room(agent)


def _recent(recent: list[Agent], policy: PlacementPolicy, rng: Rng) -> tuple[Agent, Choice] | None:
    """Two of the agents that got such tasks lately, the less loaded one; None when none of them has room.

    Who has no room, or is not quick any more, is left out from then on: another takes its place.
    """
    while recent:
        first = recent[int(rng.random() * len(recent))]
        second = recent[int(rng.random() * len(recent))]
        usable = True
        for one in (first, second):
            if not (_has_room(one) and _is_quick(one, policy)):
                usable = False
                if one in recent:
                    recent.remove(one)
        if usable:
            load_1, load_2 = first.load, second.load
            chosen = second if load_2 < load_1 else first
            considered = ((first.id, load_1),) if first is second else ((first.id, load_1), (second.id, load_2))
            return chosen, Choice("recent", len(recent), considered)
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

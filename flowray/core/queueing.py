"""Waiting tasks, in lanes: one for each combination of needs, so that no task is looked at twice.

A lane is a heap ordered by (priority, age). An agent that becomes free takes the best head among the lanes it can
serve; a task that arrives looks only at the agent classes of its lane. Neither cost grows with the tasks waiting.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple

from flowray.core.model import Task, TaskId
from flowray.core.ordered import IndexedSet
from flowray.core.worth import Worth

if TYPE_CHECKING:
    from flowray.core.registry import Agent, AgentClass

MAX_IDLE_LANES = 1024  # empty lanes kept for the next task with the same needs


class LaneKey(NamedTuple):
    """What decides which agents may run a task."""

    tier: str
    agent: str
    needs: tuple[str, ...]


class Lane:
    """Tasks with the same needs."""

    __slots__ = (
        "_heap",
        "_waiting",
        "bound",
        "by_name",
        "classes",
        "free",
        "key",
        "last_chosen",
        "last_chosen_at",
        "questions",
        "ranking",
        "recent",
        "spare",
        "waiting",
        "worth",
    )

    def __init__(self, key: LaneKey) -> None:
        self.key = key
        self.classes: list[AgentClass] = []  # that can serve this lane
        self.free: IndexedSet[AgentClass] = IndexedSet()  # of those, the ones with an idle slot
        self.spare: IndexedSet[AgentClass] = IndexedSet()  # of those, the ones with room to prefetch
        self.last_chosen: Agent | None = None  # the agent drawn last for a task of this lane,
        self.last_chosen_at = 0.0  # and when
        self.recent: list[Agent] = []  # that got its quick tasks lately, and have room
        self.by_name: dict[str, AgentClass] = {}  # the same by name
        self.waiting: dict[str, Lane] = {}  # class -> where its tasks wait for that class alone, or did lately
        self.bound: IndexedSet[Lane] = IndexedSet()  # these lanes, as far as somebody waits there, or did lately
        self.ranking: list[AgentClass] = []  # its classes of best standing, when they were last ranked,
        self.questions = 0  # and how often a router was asked since the lane is there
        self.worth = Worth()  # of asking a router about its tasks
        self._heap: list[tuple[int, int, TaskId]] = []  # (-priority, seq, task)
        self._waiting: dict[TaskId, int] = {}  # -> seq of its valid heap entry

    @property
    def hopeless(self) -> bool:
        """Will none of its classes ever take an attempt again?"""
        for one in self.classes:  # noqa: SIM110 - asked for every task, and a generator costs more than this
            if not one.hopeless:
                return False
        return True

    def push(self, task: Task, seq: int) -> None:
        """A task waits; `seq` is its age (smaller is older)."""
        self._waiting[task.id] = seq
        heapq.heappush(self._heap, (-task.priority, seq, task.id))
        if len(self._heap) > 2 * len(self._waiting) + 64:
            self._heap = [e for e in self._heap if self._waiting.get(e[2]) == e[1]]
            heapq.heapify(self._heap)

    def remove(self, task_id: TaskId) -> None:
        """A task no longer waits (cancelled, expired)."""
        self._waiting.pop(task_id, None)

    def head(self) -> tuple[int, int, TaskId] | None:
        """The best waiting task as (-priority, seq, id)."""
        heap = self._heap
        while heap:
            if self._waiting.get(heap[0][2]) == heap[0][1]:
                return heap[0]
            heapq.heappop(heap)
        return None

    def pop(self) -> TaskId:
        """Remove and return the head. There must be one (call `head` first)."""
        _, _, task_id = heapq.heappop(self._heap)
        del self._waiting[task_id]
        return task_id

    def ids(self) -> list[TaskId]:
        """All waiting tasks, in no particular order."""
        return list(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, task_id: TaskId) -> bool:
        return task_id in self._waiting


class Queue:
    """All lanes."""

    __slots__ = ("_lanes",)

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, str, tuple[str, ...]], Lane] = {}  # by LaneKey, or what equals it

    def lane(self, task: Task, classes: list[AgentClass]) -> Lane:
        """The lane of a task; made, and joined to the classes that can serve it, when it is new."""
        key = LaneKey(task.tier, task.agent, task.needs)
        lane = self._lanes.get(key)
        if lane is None:
            if len(self._lanes) >= MAX_IDLE_LANES:
                self._drop_idle()
            lane = self._lanes[key] = Lane(key)
            for one in classes:
                if one.serves(key):
                    one.join(lane)
        return lane

    def bound(self, lane: Lane, one: AgentClass) -> Lane:
        """The lane of tasks with the same needs that shall go to agents of this class."""
        found = lane.waiting.get(one.spec.name)
        if found is None:
            key = LaneKey(lane.key.tier, one.spec.name, lane.key.needs)
            found = self._lanes.get(key)
            if found is None:
                if len(self._lanes) >= MAX_IDLE_LANES:
                    self._drop_idle()
                found = self._lanes[key] = Lane(key)
                one.join(found)
            lane.waiting[one.spec.name] = found
        return found

    def of(self, one: AgentClass) -> Lane:
        """The lane of what goes to this class whatever it needs: tasks whose fallback it is."""
        key = LaneKey("", one.spec.name, ())
        found = self._lanes.get(key)
        if found is None:
            if len(self._lanes) >= MAX_IDLE_LANES:
                self._drop_idle()
            found = self._lanes[key] = Lane(key)
            one.join(found)
        return found

    def find(self, task: Task) -> Lane | None:
        """The lane of a task, if it exists."""
        return self._lanes.get((task.tier, task.agent, task.needs))

    def join(self, one: AgentClass) -> None:
        """A new agent class: join it to the lanes it can serve."""
        for lane in self._lanes.values():
            if one.serves(lane.key):
                one.join(lane)

    def _drop_idle(self) -> None:
        for key, lane in list(self._lanes.items()):
            if not len(lane):
                for one in lane.classes:
                    one.lanes.remove(lane)
                del self._lanes[key]
        kept = set(self._lanes.values())
        for lane in kept:
            for name, bound in [each for each in lane.waiting.items() if each[1] not in kept]:
                del lane.waiting[name]
                lane.bound.discard(bound)

    @property
    def waiting(self) -> int:
        """Tasks waiting in all lanes."""
        return sum(len(lane) for lane in self._lanes.values())

    def holding(self, task_id: TaskId) -> int:
        """How many lanes have this task: one or none, or something is wrong."""
        return len([lane for lane in self._lanes.values() if task_id in lane._waiting])

    def in_vain(self) -> Lane | None:
        """A lane where tasks wait beside an idle agent that could do them, which is wrong."""
        vain = [lane for lane in self._lanes.values() if lane._waiting and lane.free]
        return vain[0] if vain else None

    def lanes(self) -> list[Lane]:
        """All lanes, oldest first."""
        return list(self._lanes.values())

"""The agents: classes of them, their states, what each is doing, and when a lost one is started again."""

from __future__ import annotations

from msgspec import Struct

from flowray.core.model import AgentId, AgentSpec, Failure, TaskId
from flowray.core.ordered import IndexedSet
from flowray.core.queueing import Lane, LaneKey
from flowray.core.states import AgentState, next_agent_state
from flowray.errors import ConfigError

_SERVICE_WEIGHT = 0.2  # of the newest run time in an agent's moving average
_STANDING_WEIGHT = 0.05  # of the newest attempt in its class's standing


class RestartPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How lost agents come back. The first loss in a while is made good at once, further ones are spaced out."""

    window_s: float = 60.0  # losses further apart than this do not add up
    delay_s: float = 0.5  # after the second loss within the window; doubles with each further one
    delay_max_s: float = 30.0  # and never waits longer than this
    max_start_failures: int = 3  # failed starts in a row (constructor raised), before the agent counts as broken
    max_crashes: int = 8  # processes in a row that ended before they had done anything: the same

    def __post_init__(self) -> None:
        for name in ("window_s", "delay_s", "delay_max_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"restart.{name}", f"must be positive, got {getattr(self, name)}")
        for name in ("max_start_failures", "max_crashes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"restart.{name}", f"must be at least 1, got {getattr(self, name)}")

    def wait_s(self, losses: int) -> float:
        """Delay before the start that follows the `losses`-th loss within the window."""
        return 0.0 if losses <= 1 else min(self.delay_max_s, self.delay_s * 2.0 ** min(losses - 2, 30))


MAX_OVER = 256  # attempts of earlier coordinators that one agent is remembered to be done with


class Agent:
    """One agent over all its incarnations. Mutable; private to the core."""

    __slots__ = (
        "agent_class",
        "counted_held",
        "counted_slots",
        "crashes",
        "failure",
        "free_memory",
        "id",
        "incarnation",
        "last_lost_at",
        "losses",
        "node",
        "outstanding",
        "over",
        "prefetch",
        "resolved",
        "room",
        "service_s",
        "slots",
        "start_failures",
        "state",
        "stopping",
    )

    def __init__(self, agent_id: AgentId, agent_class: AgentClass) -> None:
        self.id = agent_id
        self.agent_class = agent_class
        self.slots = agent_class.spec.slots
        self.state = AgentState.WAITING
        self.incarnation = 0  # of the process asked for last; 0 before the first
        self.outstanding: dict[TaskId, int] = {}  # current attempts it holds, oldest first
        # (task, attempt, epoch) told to stop that still hold a slot -> when
        self.stopping: dict[tuple[TaskId, int, int], float] = {}
        # (task, attempt, epoch) of earlier coordinators that it is done with: a report from before may name them still
        self.over: dict[tuple[TaskId, int, int], None] = {}
        self.counted_held = 0  # of what it holds, what its class has counted
        self.counted_slots = 0  # and of its slots
        self.room = ""  # free | spare: where `AgentClass.update` has put it; "" nowhere
        self.prefetch = 0  # attempts it may hold beyond its slots
        self.service_s = -1.0  # moving average of its run times; negative before the first
        self.losses = 0  # within the restart window
        self.last_lost_at = float("-inf")
        self.start_failures = 0  # in a row
        # processes that died of themselves, in a row; when the last one did; attempts it had finished by then
        self.crashes: tuple[int, float, int] = (0, 0.0, 0)
        self.resolved = 0  # attempts it finished, ever
        self.failure: Failure | None = None  # why it last failed to start
        self.free_memory = 1.0  # 0..1 of its node's, as far as anybody said
        self.node = ""  # where its newest process is, or was

    def is_over(self, token: tuple[TaskId, int, int]) -> None:
        """It is done with an attempt that an earlier coordinator started, and of which nothing is known here."""
        self.over[token] = None
        if len(self.over) > MAX_OVER:
            del self.over[next(iter(self.over))]

    @property
    def held(self) -> int:
        """Attempts that occupy it, wanted or not."""
        return len(self.outstanding) + len(self.stopping)

    @property
    def load(self) -> float:
        """Attempts held per slot."""
        return self.held / self.slots

    def observe(self, run_s: float, prefetch_s: float, max_prefetch: int) -> None:
        """Learn from one run time; see PlacementPolicy for what prefetch is for."""
        old = self.service_s
        self.service_s = run_s if old < 0 else old + _SERVICE_WEIGHT * (run_s - old)
        if self.service_s * max_prefetch <= prefetch_s:
            self.prefetch = max_prefetch if prefetch_s > 0 else 0
        else:
            self.prefetch = int(prefetch_s / self.service_s)
        old = self.agent_class.service_s
        self.agent_class.service_s = run_s if old < 0 else old + _SERVICE_WEIGHT * (run_s - old)


class AgentClass:
    """The live side of one AgentSpec: its agents, and which of them have room."""

    __slots__ = (
        "agents",
        "capabilities",
        "free",
        "free_memory",
        "held",
        "lanes",
        "ready_slots",
        "service_s",
        "spare",
        "spec",
        "standing",
    )

    def __init__(self, spec: AgentSpec) -> None:
        self.spec = spec
        self.capabilities = frozenset(spec.capabilities)
        self.agents: list[Agent] = []
        self.free: IndexedSet[Agent] = IndexedSet()  # ready, with an idle slot
        self.spare: IndexedSet[Agent] = IndexedSet()  # ready, slots taken, with room to prefetch
        self.lanes: list[Lane] = []  # that it serves
        self.ready_slots = 0  # of its agents that take attempts
        self.held = 0  # attempts that these hold
        self.service_s = -1.0  # moving average of its agents' run times; negative before the first
        self.free_memory = 1.0  # 0..1 of their nodes', on average over its agents
        self.standing = 0.5  # 0..1 moving average of what came of its attempts

    def serves(self, key: LaneKey) -> bool:
        """May its agents run the tasks of such a lane?"""
        if self.spec.stateful is not None:
            return False  # their tasks have numbers, and go to one of them
        return (
            (not key.tier or key.tier == self.spec.tier)
            and (not key.agent or key.agent == self.spec.name)
            and self.capabilities.issuperset(key.needs)
        )

    def join(self, lane: Lane) -> None:
        """Serve a lane from now on."""
        lane.classes.append(self)
        lane.by_name[self.spec.name] = self
        self.lanes.append(lane)
        if self.free:
            lane.free.add(self)
        if self.spare:
            lane.spare.add(self)

    def update(self, agent: Agent) -> None:
        """Put the agent where its state and load say; tell the lanes when the class gains or loses room."""
        held, slots = len(agent.outstanding) + len(agent.stopping), agent.slots
        room = ""
        if agent.state is AgentState.READY:
            self.held += held - agent.counted_held
            self.ready_slots += slots - agent.counted_slots
            agent.counted_held, agent.counted_slots = held, slots
            if held < slots:
                room = "free"
            elif held < slots + agent.prefetch:
                room = "spare"
        else:
            self.held -= agent.counted_held
            self.ready_slots -= agent.counted_slots
            agent.counted_held = agent.counted_slots = 0
        if room != agent.room:
            self._move(agent, room)

    def _move(self, agent: Agent, room: str) -> None:
        was, agent.room = agent.room, room
        if was == "free":
            self.free.discard(agent)
            if not self.free:
                for lane in self.lanes:
                    lane.free.discard(self)
        elif was == "spare":
            self.spare.discard(agent)
            if not self.spare:
                for lane in self.lanes:
                    lane.spare.discard(self)
        if room == "free":
            self.free.add(agent)
            if len(self.free) == 1:
                for lane in self.lanes:
                    lane.free.add(self)
        elif room == "spare":
            self.spare.add(agent)
            if len(self.spare) == 1:
                for lane in self.lanes:
                    lane.spare.add(self)

    def graded(self, grade: float) -> None:
        """One more attempt of its agents is over, and was worth so much (0..1)."""
        self.standing += _STANDING_WEIGHT * (grade - self.standing)

    def memory_told(self) -> None:
        """Some of its agents' nodes have more or less memory free."""
        self.free_memory = sum(agent.free_memory for agent in self.agents) / max(1, len(self.agents))

    def wait_s(self, waiting: int, usual_s: float) -> float:
        """How long a task would wait for one of its agents, behind `waiting` others, by their average run time.

        Before the first run `usual_s` stands for that. Infinite while none of its agents takes attempts.
        """
        if self.free and not waiting:
            return 0.0
        ahead = self.held + waiting + 1 - self.ready_slots
        if not self.ready_slots:
            return float("inf")
        return max(ahead, 1) * (self.service_s if self.service_s >= 0 else usual_s) / self.ready_slots

    @property
    def hopeless(self) -> bool:
        """Will none of its agents ever take an attempt again?"""
        for agent in self.agents:  # asked for every task: the first one answers, mostly
            if agent.state is not AgentState.BROKEN and agent.state is not AgentState.STOPPED:
                return False
        return True


class Registry:
    """All agent classes and agents, by name and id."""

    __slots__ = ("_agents", "_classes", "_policy")

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._classes: dict[str, AgentClass] = {}
        self._agents: dict[AgentId, Agent] = {}

    def add(self, spec: AgentSpec) -> tuple[AgentClass, list[Agent], list[Agent]]:
        """Make the class have `spec.count` agents. Returns the class, the new agents, those not wanted any more."""
        one = self._classes.get(spec.name)
        if one is None:
            one = self._classes[spec.name] = AgentClass(spec)
        one.spec = spec
        known = {a.id for a in one.agents}
        added = []
        for number in range(spec.count):
            agent_id = AgentId(f"{spec.name}-{number}")
            if agent_id not in known:
                agent = Agent(agent_id, one)
                one.agents.append(agent)
                self._agents[agent_id] = agent
                added.append(agent)
        wanted = {f"{spec.name}-{number}" for number in range(spec.count)}
        surplus = [a for a in one.agents if a.id not in wanted]
        return one, added, surplus

    def forget(self, agent: Agent) -> None:
        """A stopped agent leaves the books."""
        agent.agent_class.agents.remove(agent)
        del self._agents[agent.id]

    def named(self, name: str) -> AgentClass | None:
        """The class of this name."""
        return self._classes.get(name)

    def agent(self, agent_id: AgentId) -> Agent | None:
        """The agent of this id."""
        return self._agents.get(agent_id)

    def move(self, agent: Agent, arrow: str) -> None:
        """Follow an arrow of the agent's state table."""
        agent.state = next_agent_state(agent.state, arrow, agent.id)

    def lost(self, agent: Agent, now: float) -> float:
        """Count a loss; when the agent shall be started again."""
        if now - agent.last_lost_at > self._policy.window_s:
            agent.losses = 0
        agent.losses += 1
        agent.last_lost_at = now
        return now + self._policy.wait_s(agent.losses)

    def start_failed(self, agent: Agent, failure: Failure) -> bool:
        """Count a failed start; True when there were too many in a row."""
        agent.start_failures += 1
        agent.failure = failure
        return agent.start_failures >= self._policy.max_start_failures

    def broken(self, name: str) -> list[Agent]:
        """The agents of a class that do not start."""
        return [a for a in self._classes[name].agents if a.state is AgentState.BROKEN]

    def classes(self) -> list[AgentClass]:
        """All classes, in the order of their first appearance."""
        return list(self._classes.values())

    def agents(self) -> list[Agent]:
        """All agents, in the order of their first appearance."""
        return list(self._agents.values())

    def specs(self) -> tuple[AgentSpec, ...]:
        """All specs."""
        return tuple(c.spec for c in self._classes.values())

    def capabilities(self) -> list[str]:
        """Every capability that some class has, sorted."""
        return sorted({c for one in self._classes.values() for c in one.capabilities})

"""What can happen: everything the core is told. Late, duplicate and reordered events are normal and harmless."""

from __future__ import annotations

from msgspec import Struct

from flowray.core.model import AgentId, AgentSpec, Estimate, Failure, Payload, RouterRecord, Running, Task, TaskId


class TaskSubmitted(Struct, frozen=True, gc=False):
    """A caller hands in a task. Answered by AcceptTask, KnownTask or RefuseTask."""

    task: Task


class CancelRequested(Struct, frozen=True, gc=False):
    """A caller no longer wants a task. Answered by AnswerCancel."""

    task_id: TaskId


class AttemptFinished(Struct, frozen=True, gc=False):
    """An agent ran an attempt to its end. Exactly one of `value` and `failure` is set."""

    task_id: TaskId
    attempt: int
    epoch: int  # of the coordinator that started the attempt
    agent_id: AgentId
    value: Payload | None = None
    failure: Failure | None = None
    run_s: float = 0.0  # as the agent measured it
    quality: float | None = None  # 0..1, where the agent reported one
    cost_usd: float | None = None  # where the agent reported it
    chunks: int = 0  # that the attempt gave out, those included that it went on from; all of them recorded


class StepFinished(Struct, frozen=True, gc=False):
    """An agent asks to record the result of a step of a running attempt. Answered by AnswerStep."""

    task_id: TaskId
    attempt: int
    epoch: int  # of the coordinator that started the attempt
    agent_id: AgentId
    incarnation: int
    name: str
    value: Payload | None = None
    number: int = 0  # of this request, for whoever asks; its answer has the same


class ChunksMade(Struct, frozen=True, gc=False):
    """An agent gives out chunks of a running attempt. Answered by AnswerChunks."""

    task_id: TaskId
    attempt: int
    epoch: int  # of the coordinator that started the attempt
    agent_id: AgentId
    incarnation: int
    first: int  # number of the first one
    digests: bytes  # one for each, see `flowray.core.streaming`
    body: bytes
    number: int = 0  # of this batch, for whoever asks; its answer has the same


class EstimatesReady(Struct, frozen=True, gc=False):
    """What was asked for by RequestEstimates. Whoever was not answered for is not a candidate."""

    answers: tuple[tuple[TaskId, tuple[Estimate, ...]], ...]
    path: str  # who made them: local | serve
    version: str  # of the router
    detail: str = ""  # why another did not, who should have


class EstimatesFailed(Struct, frozen=True, gc=False):
    """There will be no estimates for these tasks."""

    task_ids: tuple[TaskId, ...]
    reason: str


class GradeGiven(Struct, frozen=True, gc=False):
    """Somebody says what the answer of a task is worth. The shell has looked whether the task ended with one."""

    task_id: TaskId
    quality: float  # 0..1
    by: str = ""


class AttemptReturned(Struct, frozen=True, gc=False):
    """An agent hands back an attempt that it has not begun (it is stuck on another, or leaving)."""

    task_id: TaskId
    attempt: int
    epoch: int
    agent_id: AgentId


class AgentsAdded(Struct, frozen=True, gc=False):
    """The team shall have these agents. A spec of a known name replaces its count."""

    spec: AgentSpec


class AgentReady(Struct, frozen=True, gc=False):
    """An agent's process is up and takes attempts; `running` is what it holds (after a coordinator restart)."""

    agent_id: AgentId
    incarnation: int
    running: tuple[Running, ...] = ()
    received: int = -1  # of a stateful agent: number of the last input that it has; -1 without a state
    term: int = 0  # of a stateful agent: the one it was activated for; 0 for none
    node: str = ""  # where it is: Ray's id; "" where nobody knows


class OutputGiven(Struct, frozen=True, gc=False):
    """An active process of a stateful agent applied an input. Exactly one of `value` and `failure` is set, or none."""

    agent_id: AgentId  # the seat
    incarnation: int
    term: int
    seq: int
    task_id: TaskId
    value: Payload | None = None
    failure: Failure | None = None
    run_s: float = 0.0  # as the process measured it


class SnapshotMade(Struct, frozen=True, gc=False):
    """A process says what its state is right after an input."""

    agent_id: AgentId  # the seat
    incarnation: int
    term: int  # 0 by a standby
    seq: int
    digest: str = ""
    value: Payload | None = None  # by an active process
    failure: Failure | None = None  # the class's `snapshot` raised, or made what cannot be encoded


class StateRefused(Struct, frozen=True, gc=False):
    """A process cannot have the state that it was told to restore, or an input that it was given."""

    agent_id: AgentId  # the seat
    incarnation: int
    failure: Failure


class AgentLost(Struct, frozen=True, gc=False):
    """An agent's process is gone."""

    agent_id: AgentId
    incarnation: int
    cause: str = ""
    certain: bool = True  # seen dead; not where it can only not be reached (a node declared dead) or was told to end
    created: bool = True  # there was a process: not where none could be had


class AgentStartFailed(Struct, frozen=True, gc=False):
    """An agent could not be started: its constructor raised, or its class could not be loaded."""

    agent_id: AgentId
    incarnation: int
    failure: Failure


class VersionDecided(Struct, frozen=True, gc=False):
    """Another version of the router is in force, or on trial, or its trial is over."""

    record: RouterRecord  # its time is when the core hears of it


class MemoryTold(Struct, frozen=True, gc=False):
    """How much memory is free on the node where some agents are."""

    free: float  # 0..1 of the node's memory
    agent_ids: tuple[AgentId, ...]


class AgentsDrained(Struct, frozen=True, gc=False):
    """Somebody wants these agents to leave their processes, of these incarnations, without anything failing."""

    agents: tuple[tuple[AgentId, int], ...]


class NodeDrained(Struct, frozen=True, gc=False):
    """Somebody wants a node without agents, or (not `drained`) takes that back."""

    node: str  # Ray's id
    drained: bool = True


class Ticked(Struct, frozen=True, gc=False):
    """Time has passed. Whatever is due by `now` happens."""


Event = (
    TaskSubmitted
    | CancelRequested
    | AttemptFinished
    | AttemptReturned
    | GradeGiven
    | StepFinished
    | ChunksMade
    | EstimatesReady
    | EstimatesFailed
    | AgentsAdded
    | AgentReady
    | OutputGiven
    | SnapshotMade
    | StateRefused
    | AgentLost
    | AgentStartFailed
    | MemoryTold
    | VersionDecided
    | AgentsDrained
    | NodeDrained
    | Ticked
)

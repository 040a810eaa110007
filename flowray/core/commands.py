"""What the core asks for. Each command is also a record: those marked `durable` are the journal.

Recovery folds the durable commands back in (`Coordination.recover`): they are decisions already taken, so replaying
them needs neither the randomness nor the version of the code that took them.

`waits` marks what must not happen before the command, and all before it, is on disk. StartAttempt does not wait:
an attempt of a task whose acceptance is then lost was never promised to anyone. StartAgent does: were it lost, the
next coordinator would give the same incarnation to a second process.
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct

from flowray.core.model import (
    AgentId,
    AgentSpec,
    Asked,
    Choice,
    Failure,
    Outcome,
    Payload,
    RouterRecord,
    StateSnapshot,
    Task,
    TaskId,
)
from flowray.core.states import TaskState


class AcceptTask(Struct, frozen=True, tag="accept", omit_defaults=True, gc=False):
    """The task is ours from now on. Tell its caller, once on disk."""

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = True
    task: Task
    at: float
    seq: int


class KnownTask(Struct, frozen=True, tag="known", gc=False):
    """A repeat: the caller gets the handle of the task accepted earlier."""

    durable: ClassVar[bool] = False
    waits: ClassVar[bool] = True
    submitted_id: TaskId
    task_id: TaskId  # the earlier one; equal to submitted_id when the same submit came twice


class RefuseTask(Struct, frozen=True, tag="refuse", gc=False):
    """Not accepted; nothing is stored."""

    durable: ClassVar[bool] = False
    waits: ClassVar[bool] = False
    task_id: TaskId
    reason: str  # queue_full | unknown_capability | conflict
    detail: str
    retry_after_s: float | None = None


class RequestEstimates(Struct, frozen=True, tag="estimates", gc=False):
    """Ask the router about this task. Answered by EstimatesReady or EstimatesFailed; late answers change nothing.

    The shell may gather several of these and ask once.
    """

    durable: ClassVar[bool] = False
    waits: ClassVar[bool] = False
    task_id: TaskId
    candidates: tuple[str, ...]  # names of agent classes, sorted
    tried: tuple[tuple[str, float], ...] = ()  # (agent class, 0 or 1) what came of earlier attempts at this very task


class StartAttempt(Struct, frozen=True, tag="start", omit_defaults=True, gc=False):
    """Send the task to this agent. The shell finds the task itself by `Coordination.task(task_id)`."""

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = False
    task_id: TaskId
    attempt: int
    epoch: int
    agent_id: AgentId
    incarnation: int
    at: float
    reason: str  # first | retry | failover | adopted | hedge | copy
    choice: Choice
    remaining_s: float | None = None  # of the task's deadline
    beside: bool = False  # another attempt of the task is running and goes on


class RequeueTask(Struct, frozen=True, tag="requeue", omit_defaults=True, gc=False):
    """The attempt is over without an outcome; the task waits again, until `not_before` if it must back off.

    Where another attempt of it is running (`outlived`), that one goes on instead, and nothing waits.
    """

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = False
    task_id: TaskId
    attempt: int
    at: float
    arrow: str  # requeued | failed | outlived | held_back (see states)
    failure: Failure | None = None
    counts: str = ""  # which bound it uses up: failures | losses | kills | ""
    not_before: float = 0.0
    quality: float | None = None  # of an answer that was not enough, as its agent reported it,
    cost_usd: float | None = None  # and what it cost
    run_s: float = 0.0  # and took


class WakeTask(Struct, frozen=True, tag="wake", gc=False):
    """A back-off is over."""

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = False
    task_id: TaskId
    at: float


class ResolveTask(Struct, frozen=True, tag="resolve", omit_defaults=True, gc=False):
    """The one outcome. Record it, then show it to whoever waits."""

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = True
    outcome: Outcome
    task: Task | None = None  # set for dead letters, which can be replayed
    asked: Asked | None = None  # set for tasks that a router had a word in


class GradeTask(Struct, frozen=True, tag="grade", omit_defaults=True, gc=False):
    """What the answer of a task that has ended turned out to be worth. Of several the newest counts."""

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = True
    task_id: TaskId
    quality: float  # 0..1
    at: float
    by: str = ""


class RecordStep(Struct, frozen=True, tag="step", omit_defaults=True, gc=False):
    """A step of a running attempt has this result, for good: later attempts are given it."""

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = False
    task_id: TaskId
    attempt: int
    epoch: int
    name: str
    at: float
    value: Payload | None = None


class AnswerStep(Struct, frozen=True, tag="answer_step", omit_defaults=True, gc=False):
    """Tell the agent what became of its step, once what is recorded is on disk."""

    durable: ClassVar[bool] = False
    waits: ClassVar[bool] = True
    task_id: TaskId
    attempt: int
    epoch: int
    agent_id: AgentId
    incarnation: int
    name: str
    verdict: str  # recorded | known (an earlier record stands, `value`) | stale (not a running attempt) | refused
    value: Payload | None = None
    detail: str = ""  # why it was refused
    number: int = 0  # of the request


class RecordChunks(Struct, frozen=True, tag="chunks", omit_defaults=True, gc=False):
    """Chunks of a running attempt stand from now on, from `first` on. Once on disk, show them to whoever reads.

    What stood there before is withdrawn: where it did, this is a restart. Without chunks it is nothing else.
    """

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = True
    task_id: TaskId
    attempt: int
    epoch: int
    first: int
    at: float
    restarts: int = 0  # of the task's stream so far, this one included
    digests: bytes = b""  # one for each chunk
    size_bytes: int = 0  # of the body
    skip: int = 0  # chunks at the beginning of the body that are none of these
    body: bytes = b""  # the chunks (`flowray.chunks`); the store keeps them apart from its journal


class AnswerChunks(Struct, frozen=True, tag="answer_chunks", gc=False):
    """Tell the agent what became of a batch of chunks, once what is recorded is on disk."""

    durable: ClassVar[bool] = False
    waits: ClassVar[bool] = True
    task_id: TaskId
    attempt: int
    epoch: int
    agent_id: AgentId
    incarnation: int
    number: int  # of the batch
    verdict: str  # recorded (by this attempt or, the same, by an earlier one) | stale (not a running attempt) | refused
    detail: str = ""  # why it was refused


class CancelAttempt(Struct, frozen=True, tag="cancel_attempt", gc=False):
    """Tell the agent to stop this attempt; its answer no longer matters, but must come, to free the slot."""

    durable: ClassVar[bool] = False
    waits: ClassVar[bool] = False
    task_id: TaskId
    attempt: int
    agent_id: AgentId
    incarnation: int
    epoch: int  # of the coordinator that started the attempt


class AnswerCancel(Struct, frozen=True, tag="answer_cancel", gc=False):
    """Tell whoever asked for the cancel what became of it.

    None: no open task has this id. RUNNING: it is an input with a number, which is applied whatever happens.
    """

    durable: ClassVar[bool] = False
    waits: ClassVar[bool] = True
    task_id: TaskId
    state: TaskState | None


class AddAgents(Struct, frozen=True, tag="add_agents", gc=False):
    """The team has these agents from now on."""

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = True
    spec: AgentSpec
    at: float


class StartAgent(Struct, frozen=True, tag="start_agent", gc=False):
    """Start one agent's process."""

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = True
    agent_id: AgentId
    incarnation: int
    spec_name: str
    at: float


class MarkNode(Struct, frozen=True, tag="mark_node", gc=False):
    """A node shall have no agents any more, or may have some again."""

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = False
    node: str  # Ray's id
    drained: bool
    at: float


class RecordVersion(Struct, frozen=True, tag="router_version", gc=False):
    """Which version of the router is in force from now on, and why.

    The shell has done so by then: if this is lost, the next coordinator goes on with the version before.
    """

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = False
    record: RouterRecord

    @property
    def at(self) -> float:
        """When it was decided."""
        return self.record.at


class LogInput(Struct, frozen=True, tag="log_input", gc=False):
    """The task has a number among the inputs of a stateful agent: whoever has the state applies it."""

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = False
    task_id: TaskId
    agent_id: AgentId  # the instance
    seq: int
    at: float


class Promote(Struct, frozen=True, tag="promote", omit_defaults=True, gc=False):
    """From now on the outputs of this process count, and of no other. Begins a term of the instance."""

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = False
    agent_id: AgentId  # the instance
    term: int
    seat: AgentId  # the agent whose process it is
    seat_incarnation: int
    at: float
    why: str = ""


class KeepSnapshot(Struct, frozen=True, tag="keep_snapshot", gc=False):
    """The state after an input, instead of that input and all before it."""

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = False
    agent_id: AgentId  # the instance
    term: int
    snapshot: StateSnapshot
    at: float


class SkipInput(Struct, frozen=True, tag="skip_input", gc=False):
    """An input that nobody's state has is never applied: its task ended otherwise.

    Ends the term: no output counts before the next promotion.
    """

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = False
    agent_id: AgentId  # the instance
    seq: int
    at: float
    barred: dict[str, int] = {}  # agent -> its incarnation that may have applied it: that process's state is not used


class RecordMismatch(Struct, frozen=True, tag="mismatch", gc=False):
    """A standby had another state than the active process after the same inputs."""

    durable: ClassVar[bool] = True
    waits: ClassVar[bool] = False
    agent_id: AgentId  # the instance
    seat: AgentId  # the standby's
    seq: int
    at: float


class RestoreState(Struct, frozen=True, tag="restore_state", gc=False):
    """Have a process take this state over; None: the one that it was made with."""

    durable: ClassVar[bool] = False
    waits: ClassVar[bool] = True
    agent_id: AgentId  # the seat
    incarnation: int
    snapshot: StateSnapshot | None


class ActivateSeat(Struct, frozen=True, tag="activate", gc=False):
    """Tell a process that its outputs count."""

    durable: ClassVar[bool] = False
    waits: ClassVar[bool] = True
    agent_id: AgentId  # the seat
    incarnation: int
    term: int


class DeliverInput(Struct, frozen=True, tag="deliver", gc=False):
    """Give an input to a process, once its number is on disk."""

    durable: ClassVar[bool] = False
    waits: ClassVar[bool] = True
    agent_id: AgentId  # the seat
    incarnation: int
    seq: int
    after: int  # the number that it follows; 0 or that of a snapshot for the first
    task: Task
    at: float  # when it was given its number
    answered: int  # outputs up to this number need not be kept any more: their outcomes are on disk


class DemandSnapshot(Struct, frozen=True, tag="demand_snapshot", gc=False):
    """Have a process say what its state is right after an input."""

    durable: ClassVar[bool] = False
    waits: ClassVar[bool] = True
    agent_id: AgentId  # the seat
    incarnation: int
    seq: int


class StopAgent(Struct, frozen=True, tag="stop_agent", gc=False):
    """End one agent's process: it hangs, is not wanted any more, or belongs to an earlier incarnation."""

    durable: ClassVar[bool] = False
    waits: ClassVar[bool] = False
    agent_id: AgentId
    incarnation: int
    reason: str


Command = (
    AcceptTask
    | RequestEstimates
    | KnownTask
    | RefuseTask
    | StartAttempt
    | RequeueTask
    | WakeTask
    | ResolveTask
    | GradeTask
    | RecordStep
    | AnswerStep
    | RecordChunks
    | AnswerChunks
    | CancelAttempt
    | AnswerCancel
    | AddAgents
    | StartAgent
    | StopAgent
    | RecordVersion
    | MarkNode
    | LogInput
    | Promote
    | KeepSnapshot
    | SkipInput
    | RecordMismatch
    | RestoreState
    | ActivateSeat
    | DeliverInput
    | DemandSnapshot
)

DurableCommand = (
    AcceptTask
    | StartAttempt
    | RequeueTask
    | WakeTask
    | ResolveTask
    | AddAgents
    | StartAgent
    | GradeTask
    | RecordVersion
    | MarkNode
    | RecordStep
    | RecordChunks
    | LogInput
    | Promote
    | KeepSnapshot
    | SkipInput
    | RecordMismatch
)

ToSeat = RestoreState | ActivateSeat | DeliverInput | DemandSnapshot

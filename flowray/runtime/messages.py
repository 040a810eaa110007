"""What processes say to one another: plain structs, as msgpack. How they travel is `transport`'s business alone."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from flowray.core.model import AgentSpec, Failure, Outcome, Payload, Running, Task
from flowray.mesh.identities import Credentials
from flowray.mesh.lanes import TalkLimits
from flowray.mesh.topics import Changes

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def encode(message: Any) -> bytes:
    """Any message of this module, or a list of one kind."""
    return _encoder.encode(message)


def decode(body: bytes, kind: type[T]) -> T:
    """The message back. Raises msgspec.DecodeError when the bytes are something else."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    decoded: T = decoder.decode(body)
    return decoded


# ── driver and coordinator ───────────────────────────────────────────────────────────────────────────────────────────


class Submit(Struct, frozen=True, array_like=True, tag="submit", gc=False):
    """Tasks to accept; answered by one Answer for each, in order, once the accepted ones are on disk."""

    number: int  # of this request; its answer has the same
    tasks: list[Task]
    again: bool = False  # sent before, without an answer


class Answer(Struct, frozen=True, array_like=True, gc=False):
    """What became of one submitted task."""

    task_id: str  # the task to wait for: an earlier one's, when this was a repeat
    reason: str = ""  # "" accepted; else queue_full | unknown_capability | conflict
    detail: str = ""
    retry_after_s: float | None = None


class Answers(Struct, frozen=True, array_like=True, tag="answers", gc=False):
    """The answer to a Submit."""

    number: int
    answers: list[Answer]


class Want(Struct, frozen=True, array_like=True, tag="want", gc=False):
    """Send the outcomes of these tasks too (those of what this client submits come by themselves)."""

    task_ids: list[str]


class Outcomes(Struct, frozen=True, array_like=True, tag="outcomes", gc=False):
    """What this client waits for, as it becomes known. Each at least once."""

    outcomes: list[Outcome]
    unknown: list[str] = []  # of those wanted: no task has this id


class Question(Struct, frozen=True, array_like=True, tag="question", gc=False):
    """Anything else asked of the coordinator."""

    what: str  # see questions.py
    task_id: str = ""
    limit: int = 100
    after: str = ""
    spec: AgentSpec | None = None
    agent_id: str = ""
    number: int = 0  # of this request; its answer has the same
    quality: float | None = None  # of a grade,
    by: str = ""  # and who or what gives it
    artifact: str = ""  # directory of a router, as the coordinator sees it,
    history: str = ""  # and of a set of outcomes
    first: int = 0  # number of the first chunk wanted,
    restarts: int | None = None  # and how many restarts there were when those before it were read; None: none was
    agents: list[tuple[str, int]] = []  # to be drained: agents, and the incarnations that are meant
    node: str = ""  # the same of a node: Ray's id


class Reply(Struct, frozen=True, array_like=True, tag="reply", gc=False):
    """The answer to a Question: `body` is the view asked for, encoded; or `error` says why not."""

    body: bytes = b""
    error: str = ""  # name of the class in flowray.errors
    detail: str = ""
    number: int = 0


class Introduction(Struct, frozen=True, array_like=True, gc=False):
    """What a coordinator says of itself."""

    config: bytes
    node_id: str  # Ray's id of its node
    journal: str  # its directory there
    host: str = ""  # of its node, as other nodes know it
    credentials: Credentials | None = None  # for a client of its machine, where there are other nodes
    payloads: str = ""  # tells the payload directory from any other, for a client that may see it
    bulk_port: int = 0  # where a client outside sends large payloads


class Admission(Struct, frozen=True, array_like=True, gc=False):
    """For a client on another node than the coordinator: where to go, and what to show there."""

    address: str  # host:port
    credentials: Credentials


class Farewell(Struct, frozen=True, array_like=True, tag="farewell", gc=False):
    """The coordinator leaves for good."""

    reason: str


# ── coordinator and agent ────────────────────────────────────────────────────────────────────────────────────────────


class Door(Struct, frozen=True, array_like=True, gc=False):
    """Where the coordinator is to be reached, and what to show there."""

    instance: str  # of its process in the mesh
    node_id: str  # Ray's id of its node
    path: str  # its socket on that node
    token: str  # the secret that the processes of this runtime share
    host: str = ""  # of that node,
    port: int = 0  # and the port for processes of other nodes; 0 while there are none

    def __repr__(self) -> str:
        return f"Door({self.path!r})"


class Prepare(Struct, frozen=True, array_like=True, gc=False):
    """The first message to a process."""

    process: str  # its name in the mesh
    runtime: str  # name of the runtime
    door: Door  # of the coordinator
    spec: AgentSpec  # of the class it will host
    place: tuple[str, int]  # placement group and bundle: kept for a later coordinator
    talk: TalkLimits
    agents: int  # that it will host, one after another
    credentials: Credentials | None = None  # for a process on another node than the coordinator's


class Prepared(Struct, frozen=True, array_like=True, gc=False):
    """The process is up and connected."""

    node_id: str
    address: str
    pid: int


class Begin(Struct, frozen=True, array_like=True, gc=False):
    """Host this agent."""

    agent_id: str
    incarnation: int
    epoch: int
    spec: AgentSpec
    inline_bytes: int
    payload_bytes: int
    runtime: str  # name of the runtime
    journal_node: str  # Ray's id of the node that keeps large payloads
    payloads: str  # their directory there
    lease_s: float = 10.0  # how long exclusive attempts may run after the coordinator's last word
    fence_all: bool = False  # and the others no longer either


class Begun(Struct, frozen=True, array_like=True, gc=False):
    """The agent is there, or why not."""

    failure: Failure | None = None
    hears: bool = False  # has it an `on_message`?
    topics: tuple[str, ...] = ()  # that it wants to hear of


class Start(Struct, frozen=True, array_like=True, tag="start", gc=False):
    """Run this attempt."""

    agent_id: str
    task: Task
    attempt: int
    epoch: int
    remaining_s: float | None = None
    steps: dict[str, Payload | None] = {}  # recorded by earlier attempts
    cursor: int = 0  # chunks that these gave out, and stand


class Step(Struct, frozen=True, array_like=True, tag="step", gc=False):
    """Record this step of a running attempt."""

    agent_id: str
    incarnation: int
    number: int  # of this request; its answer has the same
    task_id: str
    attempt: int
    epoch: int
    name: str
    value: Payload | None = None


class StepAnswer(Struct, frozen=True, array_like=True, tag="step_answer", gc=False):
    """What became of a step; what is recorded is on disk."""

    agent_id: str
    number: int
    verdict: str  # recorded | known | stale | refused (see core.commands.AnswerStep) | later (ask again in a moment)
    value: Payload | None = None
    detail: str = ""


class Emit(Struct, frozen=True, array_like=True, tag="emit", gc=False):
    """Record these chunks of a running attempt, and show them."""

    agent_id: str
    incarnation: int
    number: int  # of this batch; its answer has the same
    task_id: str
    attempt: int
    epoch: int
    first: int  # number of the first chunk
    digests: bytes
    body: bytes  # see `flowray.chunks`
    paced: bool = False  # it waits for readers, and wants to hear of them


class Emitted(Struct, frozen=True, array_like=True, tag="emitted", gc=False):
    """What became of a batch of chunks; what is recorded is on disk."""

    agent_id: str
    number: int
    verdict: str  # recorded | stale | refused (see core.commands.AnswerChunks) | later (ask again in a moment)
    detail: str = ""
    read: int = 0  # chunks that the foremost reader has


class Read(Struct, frozen=True, array_like=True, tag="read", gc=False):
    """The foremost reader of a task has so many chunks."""

    agent_id: str
    task_id: str
    seq: int


class Page(Struct, frozen=True, array_like=True, gc=False):
    """Chunks of a task for one reader: the answer to the question "chunks". They are on disk."""

    seq: int  # number of the first one
    restarts: int  # of the task's stream by now
    withdrawn: bool = False  # some that the reader has do not stand any more: those from `seq` on
    rows: list[tuple[int, int, bytes]] = []  # (chunks to skip, chunks that follow, body) in order
    state: str = ""  # of a task that has ended, when there are no chunks after these


class Renew(Struct, frozen=True, array_like=True, tag="renew", gc=False):
    """May this agent's exclusive attempts go on?"""

    agent_id: str
    incarnation: int
    number: int  # of this request; its answer has the same
    ordinary: bool = False  # or may those that are not exclusive?


class Leased(Struct, frozen=True, array_like=True, tag="leased", gc=False):
    """They may. There is no other answer."""

    agent_id: str
    number: int
    ordinary: bool = False


class Cancel(Struct, frozen=True, array_like=True, tag="cancel", gc=False):
    """Stop this attempt; say so when it is over."""

    agent_id: str
    task_id: str
    attempt: int
    epoch: int  # of the coordinator that started it
    by: int  # epoch of the coordinator that says this


class Finished(Struct, frozen=True, array_like=True, tag="finished", gc=False):
    """An attempt is over."""

    task_id: str
    attempt: int
    epoch: int
    value: Payload | None = None
    failure: Failure | None = None
    run_s: float = 0.0
    quality: float | None = None  # 0..1, where the agent reported one
    cost_usd: float | None = None  # where the agent reported it
    chunks: int = 0  # that it gave out, those included that it went on from


class Returned(Struct, frozen=True, array_like=True, tag="returned", gc=False):
    """An attempt was not begun and is handed back."""

    task_id: str
    attempt: int
    epoch: int


class Restore(Struct, frozen=True, array_like=True, tag="restore", gc=False):
    """Of a stateful agent: this is the state after input `seq`; 0: the one it was made with."""

    agent_id: str
    seq: int
    value: Payload | None = None


class Activate(Struct, frozen=True, array_like=True, tag="activate", gc=False):
    """Its outputs count, in this term."""

    agent_id: str
    term: int


class Input(Struct, frozen=True, array_like=True, tag="input", gc=False):
    """Apply this input."""

    agent_id: str
    seq: int
    after: int  # number of the input before it; 0 for the first
    task: Task
    at: float  # when it was given its number, UTC in seconds
    answered: int  # outcomes of inputs up to this number are on disk


class TakeSnapshot(Struct, frozen=True, array_like=True, tag="take_snapshot", gc=False):
    """Say what the state is after this input."""

    agent_id: str
    seq: int


class Output(Struct, frozen=True, array_like=True, tag="output", gc=False):
    """What applying an input came to."""

    seq: int
    term: int  # of its process
    task_id: str
    value: Payload | None = None
    failure: Failure | None = None
    run_s: float = 0.0


class Snapshotted(Struct, frozen=True, array_like=True, tag="snapshotted", gc=False):
    """The state after an input, or why there is none."""

    seq: int
    term: int  # 0 by a standby
    digest: str = ""
    value: Payload | None = None  # by an active process
    failure: Failure | None = None


class Refused(Struct, frozen=True, array_like=True, tag="refused", gc=False):
    """The process cannot have the state that it should have."""

    failure: Failure


Result = Finished | Returned | Output | Snapshotted | Refused


class Retire(Struct, frozen=True, array_like=True, tag="retire", gc=False):
    """This agent is not wanted any more; its process goes on for others."""

    agent_id: str


class Acknowledge(Struct, frozen=True, array_like=True, tag="acknowledge", gc=False):
    """The agent's results up to this number are on disk."""

    agent_id: str
    last: int


class Renewed(Struct, frozen=True, array_like=True, tag="renewed", gc=False):
    """A process's new certificate; connections that are open go on with the old one."""

    credentials: Credentials


class Report(Struct, frozen=True, array_like=True, tag="report", gc=False):
    """What an agent did since its last report."""

    agent_id: str
    incarnation: int
    last: int  # number of the last of these results, counted from 1 in the agent's life
    results: list[Result]


class Held(Struct, frozen=True, array_like=True, gc=False):
    """What an agent holds, for a coordinator that just began its epoch."""

    agent_id: str
    incarnation: int
    running: list[Running]  # begun or waiting in its process
    results: list[Result]  # over, and not acknowledged by any coordinator
    hears: bool = False
    topics: tuple[str, ...] = ()
    received: int = -1  # of a stateful agent: its last input; -1 without a state
    term: int = 0  # of a stateful agent: for which it is the active process


class Found(Struct, frozen=True, array_like=True, gc=False):
    """What a process says to a new coordinator."""

    made: Prepared | None = None
    spec_name: str = ""
    place: tuple[str, int] = ("", 0)
    held: list[Held] = []
    warm: bool = False  # nobody has ever asked it to begin an agent


# ── for agents and drivers that talk to one another ──────────────────────────────────────────────────────────────────


class Learn(Struct, frozen=True, array_like=True, tag="learn", gc=False):
    """Tell this process of every change of the directory, from the one that it has."""

    epoch: int
    version: int


class Reach(Struct, frozen=True, array_like=True, tag="reach", gc=False):
    """Where is this process?"""

    process: str


class Listen(Struct, frozen=True, array_like=True, tag="listen", gc=False):
    """Another process wants to dial this one."""


class Listening(Struct, frozen=True, array_like=True, tag="listening", gc=False):
    """Where this process can be dialled."""

    node: str  # that the path is on
    path: str
    host: str = ""
    port: int = 0  # 0: not from other nodes


class Reached(Struct, frozen=True, array_like=True, tag="reached", gc=False):
    """The answer to Reach: where the process is, or the reason why nobody can say."""

    process: str
    node: str = ""
    path: str = ""
    host: str = ""
    port: int = 0
    reason: str = ""


class Subscribe(Struct, frozen=True, array_like=True, tag="subscribe", gc=False):
    """A driver hears what is sent to this name, and what is published to these topics."""

    agent_id: str
    topics: list[str] = []
    gone: bool = False  # it does so no more


class Told(Struct, frozen=True, array_like=True, tag="told", gc=False):
    """What has changed in the directory."""

    changes: Changes


class Lost(Struct, frozen=True, array_like=True, tag="lost", gc=False):
    """This process is gone: whoever waits for it waits in vain."""

    process: str
    reason: str


ToCoordinator = Submit | Want | Question | Report | Step | Emit | Renew | Learn | Reach | Listening | Subscribe
ToClient = Renewed | Answers | Outcomes | Reply | Farewell | Listen | Reached | Told | Lost
ToSeat = Restore | Activate | Input | TakeSnapshot  # of a stateful agent
ToHost = Start | Cancel | Acknowledge | StepAnswer | Emitted | Read | Leased | Retire | ToSeat  # of one agent
ToAgent = ToHost | Renewed | Listen | Reached | Told | Lost

decode_to_coordinator = msgspec.msgpack.Decoder(ToCoordinator).decode
decode_to_client = msgspec.msgpack.Decoder(ToClient).decode
decode_to_agent = msgspec.msgpack.Decoder(ToAgent).decode

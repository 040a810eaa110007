"""What processes say to one another: plain structs, as msgpack. How they travel is `transport`'s business alone."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from flowray.core.model import AgentSpec, Failure, Outcome, Payload, Running, Task

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


class Submit(Struct, frozen=True, array_like=True):
    """Tasks to accept; answered by one Answer for each, in order, once the accepted ones are on disk."""

    client_id: str
    tasks: list[Task]
    again: bool = False  # sent before, without an answer


class Answer(Struct, frozen=True, array_like=True):
    """What became of one submitted task."""

    task_id: str  # the task to wait for: an earlier one's, when this was a repeat
    reason: str = ""  # "" accepted; else queue_full | unknown_capability | conflict
    detail: str = ""
    retry_after_s: float | None = None


class Collect(Struct, frozen=True, array_like=True):
    """Wait for outcomes. One outstanding call for each client."""

    client_id: str
    seen: int  # number of the last batch taken in: what came before may be forgotten
    want: list[str] = []  # tasks to wait for from now on (those submitted by this client are known already)
    wait_s: float = 0.0  # how long to hold the call when there is nothing


class Collected(Struct, frozen=True, array_like=True):
    """Outcomes, each at least once."""

    number: int  # of this batch; 0 when nothing came
    desk: str  # changes when the coordinator has forgotten what this client waits for
    outcomes: list[Outcome] = []
    unknown: list[str] = []  # of `want`: no task has this id


class Question(Struct, frozen=True, array_like=True):
    """Anything else asked of the coordinator."""

    what: str  # status | story | cancel | dead_letters | replay | purge | add_agents | agents | outcome | figures
    task_id: str = ""
    limit: int = 100
    after: str = ""
    spec: AgentSpec | None = None
    agent_id: str = ""


class Reply(Struct, frozen=True, array_like=True):
    """The answer to a Question: `body` is the view asked for, encoded; or `error` says why not."""

    body: bytes = b""
    error: str = ""  # unknown_task | config | ...
    detail: str = ""


# ── coordinator and agent ────────────────────────────────────────────────────────────────────────────────────────────


class Begin(Struct, frozen=True, array_like=True):
    """The first message to an agent's process."""

    agent_id: str
    incarnation: int
    epoch: int
    spec: AgentSpec
    inline_bytes: int
    payload_bytes: int
    runtime: str  # name of the runtime
    journal_node: str  # Ray's id of the node that keeps large payloads
    payloads: str  # their directory there


class Begun(Struct, frozen=True, array_like=True):
    """The agent is up, or why not."""

    node_id: str
    address: str
    pid: int
    failure: Failure | None = None


class Start(Struct, frozen=True, array_like=True, tag="start"):
    """Run this attempt."""

    task: Task
    attempt: int
    epoch: int
    remaining_s: float | None = None


class Cancel(Struct, frozen=True, array_like=True, tag="cancel"):
    """Stop this attempt; say so when it is over."""

    task_id: str
    attempt: int
    epoch: int  # of the coordinator that started it
    by: int  # epoch of the coordinator that says this


class Finished(Struct, frozen=True, array_like=True, tag="finished"):
    """An attempt is over."""

    task_id: str
    attempt: int
    epoch: int
    value: Payload | None = None
    failure: Failure | None = None
    run_s: float = 0.0


class Returned(Struct, frozen=True, array_like=True, tag="returned"):
    """An attempt was not begun and is handed back."""

    task_id: str
    attempt: int
    epoch: int


class Report(Struct, frozen=True, array_like=True):
    """What an agent did since its last report."""

    agent_id: str
    incarnation: int
    results: list[Finished | Returned]


class Held(Struct, frozen=True, array_like=True):
    """What an agent holds, for a coordinator that just began its epoch."""

    agent_id: str
    incarnation: int
    begun: Begun
    running: list[Running]  # begun or waiting in its process
    results: list[Finished | Returned]  # over, and not acknowledged by any coordinator

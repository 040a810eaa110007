"""What happened, twice: as a digest that two equal runs share, and, when asked for, as lines that a person reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from flowray.core.commands import (
    AcceptTask,
    ActivateSeat,
    AddAgents,
    AnswerCancel,
    AnswerChunks,
    AnswerStep,
    CancelAttempt,
    Command,
    DeliverInput,
    DemandSnapshot,
    GradeTask,
    KeepSnapshot,
    KnownTask,
    LogInput,
    MarkNode,
    Promote,
    RecordChunks,
    RecordMismatch,
    RecordStep,
    RecordVersion,
    RefuseTask,
    RequestEstimates,
    RequeueTask,
    ResolveTask,
    RestoreState,
    SkipInput,
    StartAgent,
    StartAttempt,
    StopAgent,
    WakeTask,
)
from flowray.core.events import (
    AgentLost,
    AgentReady,
    AgentsAdded,
    AgentsDrained,
    AgentStartFailed,
    AttemptFinished,
    AttemptReturned,
    CancelRequested,
    ChunksMade,
    EstimatesFailed,
    EstimatesReady,
    Event,
    GradeGiven,
    NodeDrained,
    OutputGiven,
    SnapshotMade,
    StateRefused,
    StepFinished,
    TaskSubmitted,
    VersionDecided,
)
from flowray.core.model import Failure, RouterRecord
from flowray.core.streaming import DIGEST_BYTES
from flowray.testing.clock import VirtualClock

_encode_into = msgspec.msgpack.Encoder().encode_into
_BUFFER = 1 << 16  # bytes that are digested together


class Trace:
    """Collects one run."""

    def __init__(self, clock: VirtualClock, *, keep: bool) -> None:
        self.lines: list[str] = []
        self.events = 0
        self._clock = clock
        self._keep = keep
        self._digest = hashlib.blake2b(digest_size=16)
        self._undigested = bytearray()

    @property
    def digest(self) -> str:
        """Equal for equal runs."""
        self._update()
        return self._digest.hexdigest()

    def line(self, text: str) -> None:
        """Something outside the core."""
        self._undigested += text.encode()
        if self._keep:
            self.lines.append(f"{self._clock.now:10.4f}       {text}")

    def step(self, epoch: int, event: Event, commands: Sequence[Command]) -> None:
        """One event and what the core made of it."""
        self.events += 1
        _encode_into((self._clock.now, epoch, type(event).__name__, event, commands), self._undigested, -1)
        if len(self._undigested) > _BUFFER:
            self._update()
        if self._keep:
            self.lines.append(f"{self._clock.now:10.4f}  e{epoch:<3} {event_text(event)}")
            self.lines.extend(f"{'':18}-> {command_text(command)}" for command in commands)

    def _update(self) -> None:
        self._digest.update(self._undigested)
        self._undigested.clear()


def event_text(event: Event) -> str:
    """One event, for people."""
    if isinstance(event, TaskSubmitted):
        return f"submitted {event.task.id}"
    if isinstance(event, CancelRequested):
        return f"cancel requested {event.task_id}"
    if isinstance(event, AttemptFinished):
        how = f"failed: {_failure(event.failure)}" if event.failure is not None else "answered"
        return f"{event.agent_id} {how} {event.task_id} attempt {event.attempt} of epoch {event.epoch}"
    if isinstance(event, AttemptReturned):
        return f"{event.agent_id} hands back {event.task_id} attempt {event.attempt}"
    if isinstance(event, StepFinished):
        return f"{event.agent_id} took step {event.name} of {event.task_id} attempt {event.attempt}"
    if isinstance(event, ChunksMade):
        number = len(event.digests) // DIGEST_BYTES
        return f"{event.agent_id} gives {number} chunks from {event.first} of {event.task_id} attempt {event.attempt}"
    if isinstance(event, EstimatesReady):
        told = (f"{task_id}: {', '.join(e.candidate for e in estimates)}" for task_id, estimates in event.answers)
        return f"estimates for {'; '.join(told)}"
    if isinstance(event, EstimatesFailed):
        return f"no estimates for {', '.join(event.task_ids)}: {event.reason}"
    if isinstance(event, AgentsAdded):
        return f"agents added: {event.spec.count} {event.spec.name}"
    if isinstance(event, AgentReady):
        held = ", ".join(f"{r.task_id} attempt {r.attempt}" for r in event.running)
        return f"{event.agent_id}#{event.incarnation} ready" + (f", holds {held}" if held else "")
    if isinstance(event, AgentLost):
        return f"{event.agent_id}#{event.incarnation} lost: {event.cause}"
    if isinstance(event, AgentsDrained):
        return f"to be drained: {', '.join(f'{agent_id}#{incarnation}' for agent_id, incarnation in event.agents)}"
    if isinstance(event, NodeDrained):
        return f"{event.node} is to be {'drained' if event.drained else 'kept'}"
    if isinstance(event, VersionDecided):
        return f"router {_version(event.record)}"
    if isinstance(event, GradeGiven):
        return f"{event.task_id} is graded {event.quality:g}"
    if isinstance(event, OutputGiven):
        how = f"failed: {_failure(event.failure)}" if event.failure is not None else "answered"
        return f"{event.agent_id}#{event.incarnation} {how} input {event.seq}, {event.task_id}, in term {event.term}"
    if isinstance(event, SnapshotMade):
        how = f"failed: {_failure(event.failure)}" if event.failure is not None else event.digest
        return f"{event.agent_id}#{event.incarnation} snapshot after input {event.seq} in term {event.term}: {how}"
    if isinstance(event, StateRefused):
        return f"{event.agent_id}#{event.incarnation} cannot have its state: {_failure(event.failure)}"
    if isinstance(event, AgentStartFailed):
        return f"{event.agent_id}#{event.incarnation} did not start: {_failure(event.failure)}"
    return "tick"


def command_text(command: Command) -> str:
    """One command, for people."""
    if isinstance(command, AcceptTask):
        return f"accept {command.task.id}"
    if isinstance(command, KnownTask):
        return f"known {command.submitted_id} as {command.task_id}"
    if isinstance(command, RefuseTask):
        return f"refuse {command.task_id}: {command.reason}: {command.detail}"
    if isinstance(command, RequestEstimates):
        return f"ask about {command.task_id}: {', '.join(command.candidates)}"
    if isinstance(command, StartAttempt):
        return f"start {command.task_id} attempt {command.attempt} on {command.agent_id} ({command.reason})"
    if isinstance(command, RequeueTask):
        until = f" until {command.not_before:.3f}" if command.not_before else ""
        counts = f" counts as {command.counts}" if command.counts else ""
        if command.arrow == "outlived":
            return f"over: {command.task_id} attempt {command.attempt}; the other one goes on ({counts.strip()})"
        return f"requeue {command.task_id} ({command.arrow}{counts}){until}"
    if isinstance(command, WakeTask):
        return f"wake {command.task_id}"
    if isinstance(command, ResolveTask):
        outcome = command.outcome
        why = f": {_failure(outcome.failure)}" if outcome.failure is not None else f" by {outcome.agent_id}"
        return f"resolve {outcome.task_id} {outcome.state.value}{why}"
    if isinstance(command, GradeTask):
        return f"grade {command.task_id} {command.quality:g}"
    if isinstance(command, RecordVersion):
        return f"record router {_version(command.record)}"
    if isinstance(command, MarkNode):
        return f"mark {command.node} as {'drained' if command.drained else 'kept'}"
    if isinstance(command, RecordStep):
        return f"record step {command.name} of {command.task_id} attempt {command.attempt}"
    if isinstance(command, RecordChunks):
        number, what = len(command.digests) // DIGEST_BYTES, f"{command.task_id} attempt {command.attempt}"
        return f"record {number} chunks from {command.first} of {what}, after {command.restarts} restarts"
    if isinstance(command, AnswerChunks):
        return f"answer chunks of {command.task_id} attempt {command.attempt}: {command.verdict}"
    if isinstance(command, AnswerStep):
        return f"answer step {command.name} of {command.task_id} attempt {command.attempt}: {command.verdict}"
    if isinstance(command, CancelAttempt):
        return f"stop {command.task_id} attempt {command.attempt} on {command.agent_id}"
    if isinstance(command, AnswerCancel):
        return f"answer cancel {command.task_id}: {command.state.value if command.state is not None else 'not open'}"
    if isinstance(command, AddAgents):
        return f"add {command.spec.count} {command.spec.name}"
    if isinstance(command, StartAgent):
        return f"start agent {command.agent_id}#{command.incarnation}"
    if isinstance(command, StopAgent):
        return f"stop agent {command.agent_id}#{command.incarnation}: {command.reason}"
    return _stateful_text(command)


def _stateful_text(command: Command) -> str:
    if isinstance(command, LogInput):
        return f"log {command.task_id} as input {command.seq} of {command.agent_id}"
    if isinstance(command, Promote):
        return f"promote {command.seat}#{command.seat_incarnation} in term {command.term}: {command.why}"
    if isinstance(command, KeepSnapshot):
        return f"keep snapshot of {command.agent_id} after input {command.snapshot.seq}: {command.snapshot.digest}"
    if isinstance(command, SkipInput):
        return f"leave out input {command.seq} of {command.agent_id}"
    if isinstance(command, RecordMismatch):
        return f"mismatch of {command.seat} after input {command.seq} of {command.agent_id}"
    if isinstance(command, RestoreState):
        of = f"after input {command.snapshot.seq}" if command.snapshot is not None else "of the beginning"
        return f"restore state {of} in {command.agent_id}#{command.incarnation}"
    if isinstance(command, ActivateSeat):
        return f"activate {command.agent_id}#{command.incarnation} for term {command.term}"
    if isinstance(command, DeliverInput):
        return f"deliver input {command.seq}, {command.task.id}, to {command.agent_id}#{command.incarnation}"
    if isinstance(command, DemandSnapshot):
        return f"demand snapshot after input {command.seq} of {command.agent_id}#{command.incarnation}"
    raise AssertionError(f"a command without a text: {command!r}")


def _version(record: RouterRecord) -> str:
    other = f", beside {record.other.version}" if record.other is not None else ""
    return f"{record.arrow}: {record.stage.value}, {record.live.version} is in force{other}"


def _failure(failure: Failure | None) -> str:
    if failure is None:
        return ""
    said = f"{failure.type}: {failure.message}" if failure.type else failure.message
    return f"{failure.kind}: {said}"

"""What attempts record while they run: the results of their steps, and the chunks that they give out.

Both are on disk before anybody goes on from them, and outlive the attempt: the next one is given the steps, and held
to the chunks (`flowray.core.steps`, `flowray.core.streaming`). Only a running attempt records, so what a zombie brings
is refused. Each batch has an answer that says what became of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowray.core.attempts import is_of
from flowray.core.commands import AnswerChunks, AnswerStep, RecordChunks, RecordStep
from flowray.core.events import AttemptFinished, ChunksMade, StepFinished
from flowray.core.model import Failure, Held
from flowray.core.steps import no_room, step_bytes
from flowray.core.streaming import DIGEST_BYTES, fit

if TYPE_CHECKING:
    from flowray.core.book import Entry
    from flowray.core.coordination import Coordination


class Recording:
    """A part of Coordination: steps and chunks of running attempts."""

    __slots__ = ("_core",)

    def __init__(self, core: Coordination) -> None:
        self._core = core

    def on_step(self, event: StepFinished) -> None:
        """Record the first result of each step; only a running attempt's, so what a zombie brings is refused."""
        core, entry = self._core, self._core.book.open.get(event.task_id)
        verdict, value, detail = "stale", None, ""
        running = entry.running() if entry is not None else ()
        if entry is not None and any(is_of(held, event) and held.incarnation == event.incarnation for held in running):
            if event.name in entry.steps:
                verdict, value = "known", entry.steps[event.name]
            elif detail := no_room(entry.steps, event.name, event.value):
                verdict = "refused"
            else:
                verdict = "recorded"
                core.commit(RecordStep(event.task_id, event.attempt, event.epoch, event.name, core.now, event.value))
                core.admission.grew(step_bytes(event.name, event.value))
        token = (event.task_id, event.attempt, event.epoch, event.agent_id, event.incarnation)
        core.emit(AnswerStep(*token, event.name, verdict, value, detail, event.number))

    def on_chunks(self, event: ChunksMade) -> None:
        """Record what is new of them; of a task's attempts all are held to the chunks that stand."""
        core, entry = self._core, self._core.book.open.get(event.task_id)
        running = entry.running() if entry is not None else ()
        held = next((h for h in running if is_of(h, event) and h.incarnation == event.incarnation), None)
        verdict, detail = "stale", ""
        if entry is not None and held is not None:
            stream, number = entry.stream, len(event.digests) // DIGEST_BYTES
            fits = fit(stream, event.first, event.digests)
            led = stream is not None and any(stream.leads(other) for other in running if other != held)
            if fits.gap or (fits.differs and led):
                self._displace(entry, held)
            elif fits.skip == number and not fits.differs:
                verdict = "recorded"
            elif detail := core.streaming.no_room(stream, number - fits.skip, len(event.body)):
                verdict = "refused"
            else:
                verdict = "recorded"
                digests = event.digests[fits.skip * DIGEST_BYTES :]
                self._record_chunks(entry, event, fits.at, digests, fits.skip, event.body)
                for other in running if fits.differs else ():
                    if other != held:  # it may have given what is withdrawn now
                        self._displace(entry, other)
        token = (event.task_id, event.attempt, event.epoch, event.agent_id, event.incarnation)
        core.emit(AnswerChunks(*token, event.number, verdict, detail))

    def end_stream(self, entry: Entry, answer: AttemptFinished) -> None:
        """What stands at the end is what the attempt that answers has given, and no more."""
        if entry.stream is not None and answer.chunks < entry.stream.count:
            self._record_chunks(entry, answer, answer.chunks)

    def _record_chunks(
        self,
        entry: Entry,
        event: ChunksMade | AttemptFinished,
        first: int,
        digests: bytes = b"",
        skip: int = 0,
        body: bytes = b"",
    ) -> None:
        core, stream, before = self._core, entry.stream, entry.grown_bytes
        restarts = 0 if stream is None else len(stream.restarts) + (first < stream.count)
        where = (event.task_id, event.attempt, event.epoch, first, core.now)
        core.commit(RecordChunks(*where, restarts, digests, len(body), skip, body))
        core.admission.grew(entry.grown_bytes - before)
        core.streaming.open_bytes += len(body)

    def _displace(self, entry: Entry, held: Held) -> None:
        """An attempt gives other chunks than the one that leads, or goes on from chunks that were withdrawn."""
        core, alone = self._core, entry.extra is None
        core.attempts.over(entry.task, held.attempt, held.agent_id)
        core.stopping.stop(entry.task.id, held)
        failure = Failure(kind="diverged", message=f"attempt {held.attempt} gave other chunks than those that stand")
        core.attempts.lost(entry, held.attempt, failure, "losses" if alone else "")

"""Simulated chunks: an attempt that gives them out, a reader who follows them, and who judges what was shown.

What an agent must do, in the simulation as in production: number chunks from the first that it is to give, have one
batch under way and send it again until it is answered, and answer its task only when all are on disk. What a reader
must do: ask for what comes after what it has, say how many restarts it knows of, and drop what is withdrawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from flowray.chunks import chunk_digest, decode_chunks, encode_chunks
from flowray.core.book import Book, is_running
from flowray.core.commands import AnswerChunks, RecordChunks
from flowray.core.events import ChunksMade
from flowray.core.model import Outcome, TaskId
from flowray.core.states import TaskState
from flowray.core.streaming import DIGEST_BYTES

if TYPE_CHECKING:
    from flowray.testing.agent import AgentProcess, Token
    from flowray.testing.world import World

Piece = tuple[str, bytes]  # codec and bytes of a chunk
RESEND_S = 5.0  # a batch without an answer is sent again
AGAIN_S = 0.1  # until a coordinator that has not heard of this agent yet is asked again
READER_PATIENCE_S = 1.0  # without an answer for so long, a reader asks again, then after twice as long,
READER_PATIENCE_MAX_S = 8.0  # and so on, up to this


class Shown(NamedTuple):
    """Chunks for one reader."""

    seq: int  # number of the first one
    restarts: int  # of the task's stream by now
    withdrawn: bool  # some that the reader has do not stand any more
    pieces: tuple[Piece, ...]
    ended: bool


class Outlet:
    """The chunks of one attempt."""

    def __init__(self, process: AgentProcess, token: Token, pieces: Sequence[Piece], first: int) -> None:
        self.next = first  # number of the next chunk to be given out
        self.pieces = pieces  # all that the attempt will give, by number
        self._process = process
        self._token = token
        self._acknowledged = first
        self._under_way: ChunksMade | None = None
        self._batches = 0
        self._then: Callable[[], None] | None = None  # when all are on disk
        self._lost: Callable[[str], None] | None = None

    def begin(self, over_s: float, lost: Callable[[str], None]) -> None:
        """Give them out, evenly over this time; `lost` is told when they are not wanted."""
        self._lost = lost
        clock, left = self._process.world.clock, len(self.pieces) - self.next
        for number in range(left):
            clock.after(over_s * (number + 0.5) / (left + 1), partial(self._process._do, self._give))

    def finish(self, then: Callable[[], None]) -> bool:
        """Is all of it on disk? Otherwise `then` is called when it is."""
        self.next = max(self.next, len(self.pieces))
        self._then = then
        self.send()
        return self._under_way is None

    def stop(self) -> None:
        """The attempt is over."""
        self._lost = self._then = self._under_way = None
        self.pieces = self.pieces[: self.next]

    def _give(self) -> None:
        if self._lost is not None and self.next < len(self.pieces):
            self.next += 1
            self.send()

    def send(self) -> None:
        """Send what waits, unless a batch is under way."""
        if self._under_way is not None or self._acknowledged >= self.next or self._lost is None:
            return
        batch = self.pieces[self._acknowledged : self.next]
        self._batches += 1
        digests = b"".join(chunk_digest(*piece) for piece in batch)
        process = self._process
        self._under_way = ChunksMade(
            *self._token,
            process.id,
            process.incarnation,
            self._acknowledged,
            digests,
            encode_chunks(batch),
            self._batches,
        )
        self.send_again(self._batches)

    def send_again(self, number: int = 0) -> None:
        """The batch under way (of this number, or whichever it is) has no answer yet."""
        batch, process = self._under_way, self._process
        if batch is None or number not in (0, batch.number):
            return
        if process.stream is not None:
            process.stream.up(partial(process.stream.coordinator.chunks, batch, process.stream))
        process.world.clock.after(RESEND_S, partial(process._do, partial(self.send_again, batch.number)))

    def answered(self, answer: AnswerChunks) -> None:
        """What became of a batch."""
        batch, process = self._under_way, self._process
        if batch is None or batch.number != answer.number:
            return
        if answer.verdict == "later":
            process.world.note("chunks put off")
            process.world.clock.after(AGAIN_S, partial(process._do, partial(self.send_again, batch.number)))
            return
        self._under_way = None
        if answer.verdict != "recorded":
            process.world.note(f"chunks {answer.verdict}")
            if self._lost is not None:
                self._lost(answer.verdict)
            return
        process.world.observer.chunks.acknowledged(batch)
        self._acknowledged += len(batch.digests) // DIGEST_BYTES
        self.send()
        if self._under_way is None and self._then is not None:
            self._then()


class Reader:
    """Somebody who follows a task's chunks, to its end."""

    def __init__(self, world: World, task_id: TaskId, *, pause_s: float = 0.0, first: int = 0) -> None:
        """`pause_s` is how long it looks at each page, at most; `first` where it begins."""
        self.has: list[Piece | None] = [None] * first  # what it was shown and stands, by number
        self.restarts: int | None = None
        self.ended = False
        self._world = world
        self._task_id = task_id
        self._pause_s = pause_s
        self._rng = Random(f"{world.seed}/reader/{task_id}/{first}")
        self._asked = 0
        self._epoch = 0
        self.on_shown: Callable[[Shown], None] = lambda _: None

    def ask(self) -> None:
        """For what comes next, and again as long as nobody answers."""
        self._asked += 1
        self._ask(self._asked, READER_PATIENCE_S)

    def _ask(self, number: int, patience_s: float) -> None:
        if self.ended or number != self._asked:
            return
        coordinator = self._world.reach()
        if coordinator is not None:
            show = partial(self._shown, coordinator.epoch, number)
            first = len(self.has)
            self._world.network.send(partial(coordinator.show, self._task_id, first, self.restarts, show))
        again = partial(self._ask, number, min(2 * patience_s, READER_PATIENCE_MAX_S))
        self._world.clock.after(patience_s, again)

    def _shown(self, epoch: int, number: int, page: Shown | None) -> None:
        self._world.network.send(partial(self._take, epoch, number, page))

    def _take(self, epoch: int, number: int, page: Shown | None) -> None:
        if self.ended or number != self._asked or page is None:
            return
        self._asked += 1  # what else comes of this question is a repeat
        if self._epoch not in (0, epoch):
            self._world.note("read on with another coordinator")
        self._epoch = epoch
        self._world.observer.chunks.withdrawn(self._task_id, self, page)
        if page.withdrawn:
            self._world.note("restart told to a reader")
            del self.has[page.seq :]
        self.restarts, self.ended = page.restarts, page.ended
        self.has.extend(page.pieces)
        self._world.observer.chunks.read(self._task_id, self, page)
        self.on_shown(page)
        self._world.clock.after(self._rng.random() * self._pause_s, self.ask)


class ChunkObserver:
    """Judges chunks, from the journal and from what readers were shown.

    A task has one version of its stream for each restart. Within one, chunks are only added. Whoever knows of so many
    restarts has the beginning of the version of that number, and nothing else: that is invariant 13.
    """

    def __init__(self, world: World, violation: Callable[[str, str], Exception]) -> None:
        self._world = world
        self._violation = violation
        self._versions: dict[TaskId, list[list[Piece]]] = {}
        self._recorded: dict[TaskId, int] = {}
        self._gives: dict[tuple[TaskId, int, int], tuple[Sequence[Piece], int]] = {}  # token -> pieces, its first
        self._readers: list[tuple[TaskId, Reader]] = []
        self._ends: dict[TaskId, tuple[Piece, ...]] = {}

    def follow(self, task_id: TaskId, reader: Reader) -> None:
        """This reader is to be shown all of it, some day."""
        self._readers.append((task_id, reader))

    def begun(self, token: Token, outlet: Outlet) -> None:
        """An attempt will give these chunks."""
        self._gives[token] = outlet.pieces, outlet.next

    def written(self, command: RecordChunks, book: Book) -> None:
        """On disk; the book is as it was before."""
        name = f"chunk {command.first} of {command.task_id} attempt {command.attempt}"
        entry = book.open.get(command.task_id)
        running = entry is not None and is_running(entry, command.attempt, command.epoch)
        if not running:
            raise self._violation("13", f"{name} of epoch {command.epoch} is not of a running attempt")
        versions = self._versions.setdefault(command.task_id, [[]])
        now, first = versions[-1], command.first
        if first > len(now):
            raise self._violation("13", f"{name} comes after {len(now)}")
        token = command.task_id, command.attempt, command.epoch
        gives, _ = self._gives.get(token, ((), 0))  # one that gives none may withdraw all
        added = decode_chunks(command.body)[command.skip :] if command.body else []
        if len(added) != len(command.digests) // DIGEST_BYTES:
            raise self._violation("13", f"{name}: {len(added)} chunks, {command}")
        if added != list(gives[first : first + len(added)]):
            raise self._violation("13", f"{name}: its attempt gave something else")
        if first < len(now):
            self._restarted(command, book, now, added, name)
            versions.append(now[:first])
            now = versions[-1]
        now.extend(added)
        recorded = self._recorded[command.task_id] = self._recorded.get(command.task_id, 0) + len(added)
        bound = self._world.policy.streaming.max_chunks
        if recorded > bound:
            raise self._violation("11", f"{command.task_id} has recorded {recorded} chunks, {bound} are allowed")
        self._world.note("chunks recorded")

    def _restarted(
        self, command: RecordChunks, book: Book, now: Sequence[Piece], added: Sequence[Piece], name: str
    ) -> None:
        if not added:
            self._world.note("chunks withdrawn at the end")
            return
        if added[0] == now[command.first]:
            raise self._violation("13", f"{name}: a restart without a difference")
        self._world.note("restarted in the middle" if command.first else "restarted from the beginning")
        stream = book.open[command.task_id].stream
        leads = stream is not None and any(
            (held.attempt, held.epoch) == (stream.attempt, stream.epoch) != (command.attempt, command.epoch)
            for held in book.open[command.task_id].running()
        )
        if leads:
            raise self._violation("13", f"{name}: withdraws what a running attempt has given")

    def acknowledged(self, batch: ChunksMade) -> None:
        """An agent may forget these."""
        first, pieces = batch.first, decode_chunks(batch.body)
        stood = any(
            version[first : first + len(pieces)] == pieces for version in self._versions.get(batch.task_id, [[]])
        )
        if not stood:
            raise self._violation("4", f"chunk {first} of {batch.task_id} was acknowledged and is not on disk")

    def resolved(self, outcome: Outcome, answering: Token | None) -> None:
        """A task has ended."""
        versions = self._versions.get(outcome.task_id, [[]])
        now, told = versions[-1], (outcome.chunks, len(outcome.restarts))
        if told != (len(now), len(versions) - 1):
            raise self._violation("13", f"{outcome.task_id} ended with {told}, not {len(now)}")
        if outcome.state is TaskState.SUCCEEDED and answering in self._gives:
            gives, first = self._gives[answering]
            whole = now[first:] == list(gives[first:]) and len(now) == max(first, len(gives))
            if not whole:
                detail = f"{outcome.task_id}: {len(now)} chunks stand, not the {len(gives)} of its answer"
                raise self._violation("13", detail)
        self._ends[outcome.task_id] = tuple(now)

    def withdrawn(self, task_id: TaskId, reader: Reader, page: Shown) -> None:
        """A reader is about to take a page in: is it told of a restart when it does not know of it, and only then?"""
        known = reader.restarts is not None and page.restarts == reader.restarts
        if known and page.withdrawn:
            raise self._violation("13", f"a reader of {task_id} was told twice of a restart")
        fits = page.seq < len(reader.has) if page.withdrawn else page.seq == len(reader.has)
        if not fits:
            raise self._violation("13", f"a reader of {task_id} with {len(reader.has)} chunks was shown {page.seq}")

    def read(self, task_id: TaskId, reader: Reader, page: Shown) -> None:
        """A reader has taken a page in."""
        versions = self._versions.get(task_id, [[]])
        version = versions[page.restarts] if page.restarts < len(versions) else []
        shown = [(at, piece) for at, piece in enumerate(reader.has) if piece is not None]
        right = all(at < len(version) and version[at] == piece for at, piece in shown)
        if not right:
            detail = f"a reader of {task_id} has {reader.has}, after {page.restarts} restarts: {version}"
            raise self._violation("13", detail)
        if page.ended:
            if task_id not in self._ends:
                raise self._violation("4", f"the end of {task_id} was shown and is not on disk")
            whole = len(reader.has) >= len(self._ends[task_id])
            if not whole:
                raise self._violation("13", f"a reader of {task_id} was told the end after {len(reader.has)} chunks")

    def finish(self) -> None:
        """Everything had its time."""
        for task_id, reader in self._readers:
            if not reader.ended:
                raise self._violation("17", f"a reader of {task_id} still waits, with {len(reader.has)} chunks")

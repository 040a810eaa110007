"""Chunks: what a task's agent gives out while it works, and which of it stands.

The chunks of a task are numbered from 0, whatever attempt they come from. What holds:

- **A chunk is on disk before anybody is shown it**, and before the agent may forget it. It goes with the same group
  commit as everything else (`RecordChunks`), so showing it costs one sync, and nothing that was shown can be lost,
  whoever dies. An agent has one batch under way and gathers the next meanwhile: a slow disk makes batches larger.
- **A later attempt is held to what stands.** Chunks that come again are recognised by their digests and dropped. At the
  first that differs the earlier attempt's chunks from there on are withdrawn, and a restart is recorded: whoever was
  shown them is told so. What comes before is the same, and stays. The same where the attempt that answers gave fewer.
- **Of two attempts at once the one that last added a chunk leads.** The other goes on as long as it gives the same;
  when it differs it is stopped. So no reader is sent back and forth between two. Where one of two withdraws what an
  attempt before them gave, the other is stopped, because it may have given the same.
- **Only a running attempt adds**, told apart by (attempt, epoch, incarnation) as always.

So: if the agent dies, the next attempt is held to all that was acknowledged, which is all that was shown. If the
coordinator dies, its agents send again what was not acknowledged, and readers ask the next one for what comes after the
chunks that they have. If both die, what was not on disk was shown to nobody.

A digest has 8 bytes: two texts that differ have the same one with a chance of 2**-64. They are kept in memory as long
as the task is open, and that is all that is: the chunks themselves lie in the store (`flowray.store`), by task and
number, and go with the outcome. The bounds are of what one task has ever recorded, withdrawn chunks included, so that
attempts that differ again and again come to an end. Who exceeds them is refused; who is faster than the disk waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from flowray.errors import ConfigError

if TYPE_CHECKING:
    from flowray.core.model import Held

DIGEST_BYTES = 8  # of one chunk
MAX_CHUNK_BYTES = 256 * 1024  # one chunk, encoded: more is no chunk but a result
_OVERHEAD = 256  # bytes that a stream takes in memory besides its digests, roughly


class StreamingPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on chunks, those included that a restart has withdrawn."""

    max_chunks: int = 200_000  # of one task
    max_bytes: int = 64 << 20  # of one task, encoded
    max_open_bytes: int = 4 << 30  # of all tasks that are open: this lies on the disk of the journal

    def __post_init__(self) -> None:
        for name in ("max_chunks", "max_bytes", "max_open_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"streaming.{name}", f"must be at least 1, got {getattr(self, name)}")


class SavedStream(Struct, frozen=True, array_like=True):
    """The stream of an open task, as a snapshot keeps it."""

    digests: bytes
    restarts: tuple[int, ...]
    recorded: int
    size_bytes: int
    attempt: int
    epoch: int


class Stream:
    """What stands of one open task's chunks. Changed by durable commands alone (`flowray.core.book`)."""

    __slots__ = ("attempt", "digests", "epoch", "recorded", "restarts", "size_bytes")

    def __init__(self) -> None:
        self.digests = bytearray()  # of the chunks that stand, in order
        self.restarts: list[int] = []  # for each restart, how many chunks stood after it
        self.recorded = 0  # chunks in all, those withdrawn included
        self.size_bytes = 0  # that they take, encoded
        self.attempt = 0  # that added a chunk last,
        self.epoch = 0  # and the epoch in which it was started

    @property
    def count(self) -> int:
        """Chunks that stand: the number of the next one."""
        return len(self.digests) // DIGEST_BYTES

    @property
    def held_bytes(self) -> int:
        """Memory that it takes, roughly, were nothing withdrawn."""
        return _OVERHEAD + DIGEST_BYTES * self.recorded

    def leads(self, held: Held) -> bool:
        """Is it this attempt that added a chunk last?"""
        return (held.attempt, held.epoch) == (self.attempt, self.epoch)

    def add(self, first: int, digests: bytes, size_bytes: int, attempt: int, epoch: int) -> None:
        """Put chunks at `first`; what stood from there on is withdrawn."""
        if first < self.count:
            del self.digests[first * DIGEST_BYTES :]
            self.restarts.append(first)
        self.digests += digests
        self.recorded += len(digests) // DIGEST_BYTES
        self.size_bytes += size_bytes
        self.attempt, self.epoch = attempt, epoch

    def save(self) -> SavedStream:
        """As it is now, for a snapshot."""
        return SavedStream(
            bytes(self.digests), tuple(self.restarts), self.recorded, self.size_bytes, self.attempt, self.epoch
        )

    @classmethod
    def of(cls, saved: SavedStream) -> Stream:
        """The inverse of `save`."""
        stream = cls()
        stream.digests += saved.digests
        stream.restarts.extend(saved.restarts)
        stream.recorded, stream.size_bytes = saved.recorded, saved.size_bytes
        stream.attempt, stream.epoch = saved.attempt, saved.epoch
        return stream


class Fit(NamedTuple):
    """How a batch of chunks fits to what stands."""

    at: int  # number of the first chunk that is to be added, or is missing
    skip: int  # chunks of the batch before it, which stand already
    differs: bool = False  # another chunk stands at `at`
    gap: bool = False  # no chunk stands just before the batch


def fit(stream: Stream | None, first: int, digests: bytes) -> Fit:
    """Compare a batch whose first chunk has the number `first` with what stands."""
    count = stream.count if stream is not None else 0
    if first > count:
        return Fit(count, 0, gap=True)
    if stream is None or first == count:
        return Fit(first, 0)
    number = len(digests) // DIGEST_BYTES
    known = min(count - first, number)
    begin = first * DIGEST_BYTES
    if stream.digests[begin : begin + known * DIGEST_BYTES] == digests[: known * DIGEST_BYTES]:
        return Fit(first + known, known)
    for skip in range(known):
        at, here = begin + skip * DIGEST_BYTES, skip * DIGEST_BYTES
        if stream.digests[at : at + DIGEST_BYTES] != digests[here : here + DIGEST_BYTES]:
            return Fit(first + skip, skip, differs=True)
    raise AssertionError("two batches differ as a whole and nowhere")


class Streaming:
    """The bounds, and what counts towards the one of all tasks."""

    __slots__ = ("_policy", "open_bytes")

    def __init__(self, policy: StreamingPolicy) -> None:
        self._policy = policy
        self.open_bytes = 0  # recorded chunks of open tasks

    def no_room(self, stream: Stream | None, chunks: int, size_bytes: int) -> str:
        """Why so many chunks more cannot be recorded for a task; "" when they can."""
        policy = self._policy
        recorded, held = (stream.recorded, stream.size_bytes) if stream is not None else (0, 0)
        if recorded + chunks > policy.max_chunks:
            return f"the task has {recorded} chunks, and {policy.max_chunks} is the most (core.streaming.max_chunks)"
        if held + size_bytes > policy.max_bytes:
            return f"its chunks take {held} bytes, and {policy.max_bytes} is the most (core.streaming.max_bytes)"
        if self.open_bytes + size_bytes > policy.max_open_bytes:
            return f"the chunks of open tasks take {self.open_bytes} bytes (core.streaming.max_open_bytes)"
        return ""


def standing(restarts: Sequence[int], seen_restarts: int | None, seen: int) -> int:
    """How many of the first `seen` chunks, read when there had been `seen_restarts`, stand by now.

    None: whoever asks has read none of them, and takes what stands.
    """
    if seen_restarts is None:
        return seen
    return min((seen, *restarts[seen_restarts:]))

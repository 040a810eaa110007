"""What to start again when processes of a head node have died, and how soon.

Ray's head is a control store, a raylet with all agents of that node behind it, and some processes beside these. A
control store whose tables lie on a disk comes back alone: nodes, agents and clients wait for it, and nothing of theirs
is lost. Everything else of the head hangs on its raylet, so when that dies the whole node starts anew. A store that
was in memory is gone with its process: then nothing here can put the cluster together again, and the supervisor ends.

How often something may be started again is bounded as in Erlang's supervisors (restart intensity), with the difference
that nobody gives up: after `free` starts within `within_s` each further one waits twice as long as the one before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

STORE, NODE = "gcs_server", "raylet"  # Ray's names of these kinds of process


@dataclass(frozen=True, slots=True)
class Again:
    """Start these kinds of process again after a wait. `NODE` means the whole node, and stands alone."""

    kinds: tuple[str, ...]
    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the head: what it was is lost with the process that died."""

    reason: str


@dataclass(slots=True, kw_only=True)
class Relaunching:
    """The decisions of one supervisor."""

    store_lasts: bool  # are the control store's tables on a disk, or in a Redis?
    free: int = 3  # starts within `within_s` that need not wait
    within_s: float = 60.0
    first_wait_s: float = 0.5  # doubled for each further start
    longest_wait_s: float = 5.0
    _starts: dict[str, deque[float]] = field(default_factory=dict)  # kind -> when it was started again lately

    def on_deaths(self, kinds: Iterable[str], now: float) -> Again | GiveUp:
        """These have died. `now` is in seconds of a monotonic time-line."""
        dead = sorted(set(kinds))
        if not self.store_lasts and {STORE, NODE} & set(dead):
            what = "control store" if STORE in dead else "raylet"
            return GiveUp(f"the {what} died, and the tables of the cluster were in memory")
        again = (NODE,) if NODE in dead else tuple(dead)
        return Again(again, max(self._wait_s(kind, now) for kind in again))

    def _wait_s(self, kind: str, now: float) -> float:
        starts = self._starts.setdefault(kind, deque(maxlen=self.free + 16))
        while starts and starts[0] <= now - self.within_s:
            starts.popleft()
        beyond = len(starts) - self.free
        starts.append(now)
        return 0.0 if beyond < 0 else min(self.longest_wait_s, self.first_wait_s * 2.0**beyond)

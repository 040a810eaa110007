"""An agent's messages: they wait in a lane and are handled one at a time, in the order in which they came.

The handling of one message is a turn. A lane has one turn at a time, a reentrant lane up to a bound. While a turn
waits for an answer to an ask of its own, the lane stands still: that is what makes deadlocks possible, so a lane knows
which asks it holds (waiting or in a turn) and a turn knows which asks of its own are open.

Room. One-way messages are bounded by windows: a lane lets each sending process have sent so many bytes, counted from
the beginning (absolute limits, as in QUIC, RFC 9000, 4.1, so that a limit that comes twice does no harm). Limits move
on as messages are taken. The first window is small, for nobody asked for it; later ones are the lane's capacity
divided by those that send. One message may overshoot a limit, so that a large one is never stuck. What waits in a lane
is therefore at most its capacity, plus a first window and one message for each sending process.
Asks need no window, because one that waited to be sent would be in nobody's lane and no probe could find it: their
number is bounded at the asker, and their bytes here.
"""

from __future__ import annotations

import math
from collections import deque

from msgspec import Struct

from flowray.errors import ConfigError
from flowray.mesh.envelopes import OVERHEAD_BYTES, Ask, Tell

_BYTES = ("message_bytes", "lane_bytes", "ask_bytes", "first_window_bytes", "window_bytes", "outbox_bytes")


class TalkLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of conversations. Bytes count bodies and an overhead of 256 for each message."""

    message_bytes: int = 1 << 20  # of one body; larger things belong into a task's payload or result
    lane_bytes: int = 16 << 20  # one-way messages waiting in one lane, when their senders use their windows up
    ask_bytes: int = 16 << 20  # asks waiting in one lane; more are refused at once
    first_window_bytes: int = 64 << 10  # what a process may send to an agent before it hears of it
    window_bytes: int = 1 << 20  # at most, for each sending process and agent
    outbox_bytes: int = 16 << 20  # waiting for one other process; asks beyond are refused, answers become refusals
    open_asks: int = 4_096  # of one agent at once
    waiting_sends: int = 4_096  # callers of one process that wait for room with one agent
    reentrant_turns: int = 1_000  # that a reentrant agent handles at once
    send_timeout_s: float = 60.0  # how long one `send` or `publish` waits for room
    ask_timeout_s: float = 60.0  # for asks whose caller says nothing

    def __post_init__(self) -> None:
        for name in (*_BYTES, "open_asks", "waiting_sends", "reentrant_turns"):
            if getattr(self, name) < 1:
                raise ConfigError(f"mesh.talk.{name}", f"must be at least 1, got {getattr(self, name)}")
        for name in ("send_timeout_s", "ask_timeout_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"mesh.talk.{name}", f"must be positive seconds, got {value}")
        if self.window_bytes < self.first_window_bytes:
            raise ConfigError("mesh.talk.window_bytes", "must be at least first_window_bytes")


class OpenAsk:
    """An ask that this process waits for. `token` is its caller's own and comes back with what becomes of it."""

    __slots__ = ("asker", "expires_at", "number", "peer", "receiver", "token", "turn")

    def __init__(
        self, number: int, asker: str, receiver: str, peer: str, expires_at: float, turn: Turn | None, token: object
    ) -> None:
        self.number = number
        self.asker = asker
        self.receiver = receiver
        self.peer = peer  # process of the receiver
        self.expires_at = expires_at
        self.turn = turn  # that stands still meanwhile; None for asks of `run` and of drivers
        self.token = token


class Turn:
    """One message being handled."""

    __slots__ = ("asks", "expires_at", "lane", "message", "peer", "seen", "wants_reply")

    def __init__(self, lane: Lane, message: Tell | Ask, peer: str, expires_at: float) -> None:
        self.lane = lane
        self.message = message
        self.peer = peer  # process that it came from
        self.expires_at = expires_at  # when nobody waits for the answer any more; inf for one-way messages
        self.asks: dict[int, OpenAsk] | None = None  # open ones of this turn, by number
        self.wants_reply = type(message) is Ask
        self.seen: set[tuple[str, int, int]] | None = None  # probes that came by: the ask they began with, and round


class Intake:
    """What one process has sent to a lane and may send."""

    __slots__ = ("announce_at", "consumed_bytes", "limit_bytes", "peer")

    def __init__(self, peer: str, first_window_bytes: int) -> None:
        self.peer = peer
        self.consumed_bytes = 0  # of one-way messages, taken out of the lane
        self.limit_bytes = first_window_bytes  # announced last
        self.announce_at = 1  # announce the next limit once so much is consumed


class Lane:
    """See the module. Changed by `Conversations` and by nothing else."""

    __slots__ = (
        "agent", "ask_bytes", "held", "idle", "intakes", "open_asks", "queue", "reentrant", "turns", "turns_limit",
    )  # fmt: skip

    def __init__(self, agent: str, turns_limit: int, *, reentrant: bool) -> None:
        self.agent = agent
        self.reentrant = reentrant
        self.turns_limit = turns_limit
        self.idle = True  # nobody will look into the queue until told to
        self.queue: deque[tuple[Tell, Intake, float] | tuple[Ask, str, float]] = deque()  # (message, from, expires_at)
        self.turns: set[Turn] = set()  # under way
        self.intakes: dict[str, Intake] = {}  # process -> its window
        # (process, number) of every ask that is here -> itself while it waits, its turn once it is handled. An ask in
        # the queue that is not in here was withdrawn.
        self.held: dict[tuple[str, int], Ask | Turn] = {}
        self.ask_bytes = 0  # of asks in the queue
        self.open_asks = 0  # of this agent, in its turns and elsewhere

    @property
    def ready(self) -> bool:
        """Can a turn begin?"""
        return bool(self.queue) and len(self.turns) < self.turns_limit

    def holder(self, process: str, number: int) -> Turn | None:
        """The turn that must end before this ask is answered; None where there is none, or any of several would do."""
        found = self.held.get((process, number))
        if type(found) is Ask:
            return None if self.reentrant else next(iter(self.turns), None)
        return found if type(found) is Turn else None


def cost_bytes(body: bytes) -> int:
    """What a message counts for."""
    return OVERHEAD_BYTES + len(body)

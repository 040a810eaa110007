"""All conversations of one process's agents: who sent what to whom, who waits, and what happens next. No IO.

    agent's code ── tell / ask ──▶ route ──▶ outbox of a process ── take_parcel ──▶ (the mesh)
    agent's code ◀── take ── lane ◀───────────── receive ◀──────────────────────────(the mesh)

The shell calls methods and afterwards looks into `flushable` (processes for which a parcel can be taken), `woken`
(lanes in which a turn can begin) and `settled` (callers that can go on). Time is given, as monotonic seconds.

Delivery between two living processes is in order and exactly once: that is the mesh's business, as is saying that a
process is gone (`peer_gone`). What was on its way to it is lost then, and those who wait for its answers are told.
Agents of the same process speak through the same door, so a message is a copy everywhere. What came for the agents here
is the business of `reception`.
"""

from __future__ import annotations

import difflib
import heapq
import itertools
from collections import deque

from flowray.errors import AgentUnreachable, AskError, AskFailed, AskTimeout, FlowrayError, NoRoom, NotConnected
from flowray.mesh import envelopes
from flowray.mesh.deadlocks import Deadlocks
from flowray.mesh.envelopes import (
    OVERHEAD_BYTES,
    Again,
    Answer,
    Ask,
    Confirm,
    Envelope,
    Gone,
    Probe,
    Refusal,
    Room,
    Tell,
    Withdrawal,
)
from flowray.mesh.lanes import Lane, OpenAsk, TalkLimits, Turn, cost_bytes
from flowray.mesh.reception import Reception
from flowray.mesh.routes import Outbox, Outboxes, Route, Waiter
from flowray.mesh.topics import Changes, DirectoryCopy

_SIMILAR = 200  # names looked at for the one that was probably meant


Settled = tuple[object, Answer | FlowrayError | None]  # a caller's token; its answer, what went wrong, or None: sent


class Conversations:
    """See the module. Not thread-safe: the shell holds a lock or stays on one thread."""

    def __init__(self, process: str, limits: TalkLimits | None = None, *, first_number: int = 1) -> None:
        self.process = process
        self.limits = limits or TalkLimits()
        self.places = DirectoryCopy()
        self.lanes: dict[str, Lane] = {}  # agents of this process
        self.settled: deque[Settled] = deque()
        self._routes: dict[str, Route] = {}
        self._outboxes = Outboxes()
        self._post = self._outboxes.post
        self._asks: dict[int, OpenAsk] = {}
        self._asking: dict[str, int] = {}  # asker -> how many of its asks are open
        self._expiries: list[tuple[float, int]] = []  # heap; numbers that are not open any more are skipped
        self._next_number = first_number
        self._closed = False
        self.deadlocks = Deadlocks(process, self.lanes, self._post, self._fail)
        self._reception = Reception(
            process, self.limits, self.lanes, self._outboxes, self.deadlocks, self._receive_other
        )
        # What the shell does with every message is the halves' own: a call in between would cost it time.
        self.flushable = self._outboxes.flushable
        self.woken = self._reception.woken
        self.leave = self._reception.leave
        self.take = self._reception.take
        self.answer = self._reception.answer
        self.fail = self._reception.fail
        self.end = self._reception.end

    # ── agents of this process ───────────────────────────────────────────────────────────────────────────────────

    def host(self, agent: str, *, reentrant: bool = False) -> Lane:
        """An agent of this process takes messages from now on."""
        lane = self._reception.host(agent, reentrant=reentrant)
        self._drop_route(agent, "it has moved")
        return lane

    def learn(self, changes: Changes) -> bool:
        """Take a change of the directory in. False when something is missing before it."""
        moved = self.places.apply(changes)
        if moved is None:
            return False
        for agent in moved:
            self._moved(agent)
        return True

    def _moved(self, agent: str) -> None:
        """The directory has said something of this agent."""
        route = self._routes.get(agent)
        if route is None or agent in self.lanes:
            return
        peer = self.places.process_of(agent)
        if route.closed == "absent" or peer not in ("", route.peer):
            self._drop_route(agent, "it is not where it was")
        elif peer:
            route.closed = ""
        else:
            route.closed = "unlisted"
            self._fail_waiting(route, "it is gone")

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────

    def tell(self, sender: str, receiver: str, codec: int, body: bytes, topic: str = "", message_id: str = "") -> bool:
        """Send one way. False when there is no room: nothing was sent, see `wait_for_room`.

        Raises:
            AgentUnreachable: nobody of this name is known.
        """
        route = self._routes.get(receiver) or self._find(receiver)
        if route.closed:
            raise AgentUnreachable(receiver, f"it is {route.closed}")
        if route.sent_bytes >= route.limit_bytes or route.waiting:
            return False
        cost = OVERHEAD_BYTES + len(body)
        route.sent_bytes += cost
        outbox = route.outbox
        outbox.envelopes.append(Tell(receiver, sender, codec, body, topic, message_id))
        outbox.size_bytes += cost
        if not outbox.listed:
            outbox.listed = True
            self.flushable.append(outbox)
        return True

    def publish(self, sender: str, topic: str, codec: int, body: bytes, message_id: str = "") -> int | None:
        """Send to all subscribers that can be reached: how many. None, and nothing is sent, if one has no room."""
        receivers = []
        for receiver in self.places.subscribers(topic):
            route = self._routes.get(receiver) or self._find(receiver)
            if not route.closed:
                if route.sent_bytes >= route.limit_bytes or route.waiting:
                    return None
                receivers.append(receiver)
        for receiver in receivers:
            self.tell(sender, receiver, codec, body, topic, message_id)
        return len(receivers)

    def wait_for_room(
        self,
        sender: str,
        receiver: str,
        codec: int,
        body: bytes,
        topic: str = "",
        message_id: str = "",
        *,
        token: object,
    ) -> Waiter:
        """Send as soon as there is room, after those that wait already; `settled` then says so.

        Raises:
            AgentUnreachable: nobody of this name is known.
            NoRoom: too many wait already.
        """
        route = self._routes.get(receiver) or self._find(receiver)
        if route.closed:
            raise AgentUnreachable(receiver, f"it is {route.closed}")
        if len(route.waiting) >= self.limits.waiting_sends:
            raise NoRoom(receiver, f"{len(route.waiting)} messages wait already (mesh.talk.waiting_sends)")
        waiter = Waiter(route, Tell(receiver, sender, codec, body, topic, message_id), token)
        route.waiting[waiter] = None
        self._release(route)
        return waiter

    def give_up_waiting(self, waiter: Waiter) -> bool:
        """Do not send it after all. False if it has been sent, or has failed."""
        if waiter not in waiter.route.waiting:
            return False
        del waiter.route.waiting[waiter]
        return True

    def ask(
        self,
        sender: str,
        receiver: str,
        codec: int,
        body: bytes,
        *,
        now: float,
        timeout_s: float,
        token: object,
        turn: Turn | None = None,
    ) -> OpenAsk:
        """Send a message that wants an answer; what becomes of it will be in `settled`, exactly once.

        `turn` is the one in which the asker does this, None outside of turns. An ask in a turn that was itself asked
        for has no more time than that one has left.

        Raises:
            AgentUnreachable: nobody of this name is known.
            NoRoom: too many asks of this agent are open, or its process takes nothing.
        """
        route = self._routes.get(receiver) or self._find(receiver)
        outbox = route.outbox
        if route.closed:
            raise AgentUnreachable(receiver, f"it is {route.closed}")
        asking = self._asking.get(sender, 0)
        if asking >= self.limits.open_asks:
            raise NoRoom(receiver, f"{asking} asks of {sender} are open: await some first (mesh.talk.open_asks)")
        if outbox.size_bytes >= self.limits.outbox_bytes:
            raise NoRoom(receiver, f"{outbox.size_bytes} bytes wait for its process (mesh.talk.outbox_bytes)")
        if turn is not None and turn not in turn.lane.turns:
            turn = None  # it is over: something it began goes on without it
        expires_at = now + timeout_s
        if turn is not None and turn.expires_at < expires_at:
            expires_at = turn.expires_at
        number = self._next_number
        self._next_number = number + 1
        open_ask = OpenAsk(number, sender, receiver, route.peer, expires_at, turn, token)
        self._asks[number] = open_ask
        self._asking[sender] = asking + 1
        if turn is not None:
            if turn.asks is None:
                turn.asks = {}
            turn.asks[number] = open_ask
        heapq.heappush(self._expiries, (expires_at, number))
        budget_s = max(0.0, expires_at - now)
        self._post(route.peer, Ask(number, receiver, sender, codec, body, budget_s, turn is not None))
        return open_ask

    def withdraw(self, open_ask: OpenAsk) -> bool:
        """Nobody waits for this ask any more; it does not settle. False if it has settled."""
        if not self._close(open_ask):
            return False
        self._post(open_ask.peer, Withdrawal(open_ask.number, open_ask.receiver))
        return True

    def _find(self, receiver: str) -> Route:
        if self._closed:
            raise NotConnected("this process has stopped talking")
        peer = self.process if receiver in self.lanes else self.places.process_of(receiver)
        if not peer:
            names = itertools.islice(itertools.chain(self.lanes, self.places.agents()), _SIMILAR)
            close = difflib.get_close_matches(receiver, names, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise AgentUnreachable(
                receiver, f"no agent of this name runs: none was added, or it is being started again{hint}"
            )
        route = self._routes[receiver] = Route(receiver, self._outboxes.of(peer), self.limits.first_window_bytes)
        return route

    def _release(self, route: Route) -> None:
        """Let those go on who wait for room, as far as there is some."""
        while route.waiting and route.sent_bytes < route.limit_bytes:
            waiter = next(iter(route.waiting))
            del route.waiting[waiter]
            route.sent_bytes += cost_bytes(waiter.message.body)
            self._post(route.peer, waiter.message)
            self.settled.append((waiter.token, None))

    def _drop_route(self, agent: str, reason: str) -> None:
        route = self._routes.pop(agent, None)
        if route is not None:
            self._fail_waiting(route, reason)

    def _fail_waiting(self, route: Route, reason: str) -> None:
        for waiter in route.waiting:
            self.settled.append((waiter.token, AgentUnreachable(route.receiver, reason)))
        route.waiting.clear()

    # ── what leaves ──────────────────────────────────────────────────────────────────────────────────────────────

    def take_parcel(self, outbox: Outbox) -> bytes | None:
        """The next parcel for a process; None when nothing waits. The shell takes until None, or puts it off."""
        return outbox.take_parcel()

    # ── what arrives ─────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, peer: str, parcel: bytes, now: float, *, outsider: bool = False) -> None:
        """Take a parcel in. `outsider`: the process is not of this cluster, see `check_outsider`.

        Raises:
            BadFrame: it is no parcel, or holds what may not come from there. Nothing of it was taken in.
        """
        arrived = envelopes.decode_parcel(parcel)
        if outsider:
            envelopes.check_outsider(peer, arrived)
        self._reception.receive(peer, arrived, now)

    def _receive_other(self, peer: str, envelope: Envelope) -> None:
        match envelope:
            case Answer():
                open_ask = self._asks.get(envelope.number)
                if open_ask is not None and open_ask.peer == peer and self._close(open_ask):
                    self.settled.append((open_ask.token, envelope))
            case Refusal():
                open_ask = self._asks.get(envelope.number)
                if open_ask is not None and open_ask.peer == peer:
                    self._fail(open_ask, _error_of(envelope, open_ask), tell_other_side=False)
            case Room():
                route = self._routes.get(envelope.agent)
                if route is not None and route.peer == peer and envelope.limit_bytes > route.limit_bytes:
                    route.limit_bytes = envelope.limit_bytes
                    self._release(route)
            case Gone():
                route = self._routes.get(envelope.agent)
                if route is not None and route.peer == peer:
                    if route.closed == "unlisted":
                        self._drop_route(envelope.agent, "it is gone")
                    else:
                        route.closed = "absent"
                        self._fail_waiting(route, f"it is not in {peer}")
            case Probe():
                self.deadlocks.probe(envelope)
            case Confirm():
                self.deadlocks.confirm(envelope)
            case Again():
                self.deadlocks.again(envelope)

    # ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────

    def _close(self, open_ask: OpenAsk) -> bool:
        """It is settled, one way or another. False if it was already."""
        if self._asks.pop(open_ask.number, None) is None:
            return False
        if len(self._expiries) > 2 * len(self._asks) + 64:  # mostly of asks that were answered in time
            self._expiries = [(ask.expires_at, number) for number, ask in self._asks.items()]
            heapq.heapify(self._expiries)
        left = self._asking[open_ask.asker] - 1
        if left:
            self._asking[open_ask.asker] = left
        else:
            del self._asking[open_ask.asker]
        turn = open_ask.turn
        if turn is not None and turn.asks is not None:
            turn.asks.pop(open_ask.number, None)
        return True

    def _fail(self, open_ask: OpenAsk, error: FlowrayError, *, tell_other_side: bool = True) -> None:
        if self._close(open_ask):
            self.settled.append((open_ask.token, error))
            if tell_other_side:
                self._post(open_ask.peer, Withdrawal(open_ask.number, open_ask.receiver))

    def expire(self, now: float) -> None:
        """Settle the asks whose time is over."""
        while self._expiries and self._expiries[0][0] <= now:
            _, number = heapq.heappop(self._expiries)
            open_ask = self._asks.get(number)
            if open_ask is not None:
                self._fail(open_ask, AskTimeout(open_ask.receiver, "no answer within its time"))

    def next_expiry(self) -> float | None:
        """When `expire` has something to do next; None when nothing is open."""
        while self._expiries and self._expiries[0][1] not in self._asks:
            heapq.heappop(self._expiries)
        return self._expiries[0][0] if self._expiries else None

    def peer_gone(self, peer: str, reason: str) -> None:
        """A process is gone, or has forgotten this one: nothing sent to it arrives, and nothing will come from it."""
        for agent in [agent for agent, route in self._routes.items() if route.peer == peer]:
            self._drop_route(agent, f"its process {peer} is gone: {reason}")
        self._outboxes.drop(peer)
        for open_ask in [ask for ask in self._asks.values() if ask.peer == peer]:
            error = AgentUnreachable(open_ask.receiver, f"its process {peer} is gone: {reason}")
            self._fail(open_ask, error, tell_other_side=False)
        self._reception.peer_gone(peer)
        self.deadlocks.search_all()  # searches under way may have died with that process

    def close(self) -> None:
        """Nothing is said or heard any more: all agents leave, and whoever waits is told."""
        for agent in list(self.lanes):
            self.leave(agent)
        for open_ask in list(self._asks.values()):
            self._fail(open_ask, NotConnected("this process has stopped talking"))
        for route in self._routes.values():
            for waiter in route.waiting:
                self.settled.append((waiter.token, NotConnected("this process has stopped talking")))
            route.waiting.clear()
        self._routes.clear()
        self._closed = True

    # ── looking in ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def dropped(self) -> int:
        """One-way messages for agents that are not here."""
        return self._reception.dropped

    @property
    def open_asks(self) -> int:
        """Asks of this process that wait for an answer."""
        return len(self._asks)


def _error_of(refusal: Refusal, open_ask: OpenAsk) -> FlowrayError:
    match refusal.reason:
        case "failed":
            return AskFailed(open_ask.receiver, refusal.error_type, refusal.detail)
        case "timeout":
            return AskTimeout(open_ask.receiver, refusal.detail)
        case "unreachable":
            return AgentUnreachable(open_ask.receiver, refusal.detail)
        case "no_room":
            return NoRoom(open_ask.receiver, refusal.detail)
        case _:
            return AskError(open_ask.receiver, f"{refusal.reason}: {refusal.detail}")

"""All conversations of one process's agents: who sent what to whom, who waits, and what happens next. No IO.

    agent's code ── tell / ask ──▶ route ──▶ outbox of a process ── take_parcel ──▶ (the mesh)
    agent's code ◀── take ── lane ◀───────────── receive ◀──────────────────────────(the mesh)

The shell calls methods and afterwards looks into `flushable` (processes for which a parcel can be taken), `woken`
(lanes in which a turn can begin) and `settled` (callers that can go on). Time is given, as monotonic seconds.

Delivery between two living processes is in order and exactly once: that is the mesh's business, as is saying that a
process is gone (`peer_gone`). What was on its way to it is lost then, and those who wait for its answers are told.
Agents of the same process speak through the same door, so a message is a copy everywhere.
"""

from __future__ import annotations

import difflib
import heapq
import itertools
import math
import sys
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
from flowray.mesh.lanes import Intake, Lane, OpenAsk, TalkLimits, Turn, cost_bytes
from flowray.mesh.routes import Outbox, Route, Waiter, counted_bytes
from flowray.mesh.topics import Changes, DirectoryCopy

_DETAIL = 2_000  # characters of another side's message
_SIMILAR = 200  # names looked at for the one that was probably meant


Settled = tuple[object, Answer | FlowrayError | None]  # a caller's token; its answer, what went wrong, or None: sent


class Conversations:
    """See the module. Not thread-safe: the shell holds a lock or stays on one thread."""

    def __init__(self, process: str, limits: TalkLimits | None = None, *, first_number: int = 1) -> None:
        self.process = process
        self.limits = limits or TalkLimits()
        self.places = DirectoryCopy()
        self.lanes: dict[str, Lane] = {}  # agents of this process
        self.flushable: deque[Outbox] = deque()
        self.woken: deque[Lane] = deque()
        self.settled: deque[Settled] = deque()
        self.dropped = 0  # one-way messages for agents that are not here
        self._routes: dict[str, Route] = {}
        self._outboxes: dict[str, Outbox] = {}
        self._asks: dict[int, OpenAsk] = {}
        self._asking: dict[str, int] = {}  # asker -> how many of its asks are open
        self._expiries: list[tuple[float, int]] = []  # heap; numbers that are not open any more are skipped
        self._next_number = first_number
        self._closed = False
        self.deadlocks = Deadlocks(process, self.lanes, self._post, self._fail)

    # ── agents of this process ───────────────────────────────────────────────────────────────────────────────────

    def host(self, agent: str, *, reentrant: bool = False) -> Lane:
        """An agent of this process takes messages from now on."""
        assert agent not in self.lanes, f"{agent} is here already"
        lane = Lane(agent, self.limits.reentrant_turns if reentrant else 1, reentrant=reentrant)
        self.lanes[agent] = lane
        self._drop_route(agent, "it has moved")
        return lane

    def leave(self, agent: str) -> None:
        """An agent of this process is gone: those whose asks it holds are told. Turns under way come to nothing."""
        lane = self.lanes.pop(agent, None)
        if lane is None:
            return
        for peer, number in lane.held:
            self._post(peer, Refusal(number, "unreachable", "", "it has left"))
        for peer in lane.intakes:
            self._post(peer, Gone(agent))
        lane.held.clear()
        lane.queue.clear()
        lane.intakes.clear()
        for turn in lane.turns:
            self._let_go(turn)
        lane.turns.clear()

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
            raise AgentUnreachable(receiver, f"no agent of this name is known{hint}")
        route = self._routes[receiver] = Route(receiver, self._outbox(peer), self.limits.first_window_bytes)
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

    def _outbox(self, peer: str) -> Outbox:
        found = self._outboxes.get(peer)
        if found is None:
            found = self._outboxes[peer] = Outbox(peer)
        return found

    def _post(self, peer: str, envelope: Envelope) -> None:
        outbox = self._outboxes.get(peer) or self._outbox(peer)
        outbox.envelopes.append(envelope)
        outbox.size_bytes += counted_bytes(envelope)
        if not outbox.listed:
            outbox.listed = True
            self.flushable.append(outbox)

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
        lanes = self.lanes
        for envelope in arrived:
            if type(envelope) is Tell:
                lane = lanes.get(envelope.receiver)
                if lane is None:
                    self.dropped += 1
                    self._post(peer, Gone(envelope.receiver))
                    continue
                intake = lane.intakes.get(peer)
                if intake is None:
                    intake = lane.intakes[peer] = Intake(peer, self.limits.first_window_bytes)
                lane.queue.append((envelope, intake, math.inf))
                if lane.idle:
                    lane.idle = False
                    self.woken.append(lane)
            else:
                self._receive_other(peer, envelope, now)

    def _receive_other(self, peer: str, envelope: Envelope, now: float) -> None:
        match envelope:
            case Ask():
                self._receive_ask(peer, envelope, now)
            case Answer():
                open_ask = self._asks.get(envelope.number)
                if open_ask is not None and open_ask.peer == peer and self._close(open_ask):
                    self.settled.append((open_ask.token, envelope))
            case Refusal():
                open_ask = self._asks.get(envelope.number)
                if open_ask is not None and open_ask.peer == peer:
                    self._fail(open_ask, _error_of(envelope, open_ask), tell_other_side=False)
            case Withdrawal():
                self._withdrawn(peer, envelope)
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

    def _receive_ask(self, peer: str, ask: Ask, now: float) -> None:
        lane = self.lanes.get(ask.receiver)
        if lane is None:
            self._post(peer, Refusal(ask.number, "unreachable", "", f"it is not in {self.process}"))
            return
        if lane.ask_bytes >= self.limits.ask_bytes:
            detail = f"{lane.ask_bytes} bytes of asks wait for it (mesh.talk.ask_bytes)"
            self._post(peer, Refusal(ask.number, "no_room", "", detail))
            return
        lane.queue.append((ask, peer, now + ask.budget_s))
        lane.ask_bytes += cost_bytes(ask.body)
        lane.held[peer, ask.number] = ask
        if lane.idle:
            lane.idle = False
            self.woken.append(lane)
        if ask.blocks:
            self.deadlocks.arrived(ask, peer, lane)

    def _withdrawn(self, peer: str, withdrawal: Withdrawal) -> None:
        lane = self.lanes.get(withdrawal.receiver)
        if lane is not None:
            # A turn under way goes on; its answer will find nobody.
            lane.held.pop((peer, withdrawal.number), None)

    # ── turns ────────────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, lane: Lane, now: float) -> Turn | None:
        """Begin the lane's next turn; None when there is none, and then the lane will be in `woken` when there is."""
        queue = lane.queue
        if len(lane.turns) < lane.turns_limit:
            while queue:
                message, source, expires_at = queue.popleft()
                if type(message) is Tell:
                    assert type(source) is Intake
                    source.consumed_bytes += OVERHEAD_BYTES + len(message.body)
                    if source.consumed_bytes >= source.announce_at:
                        self._make_room(lane, source)
                    turn = Turn(lane, message, source.peer, expires_at)
                    lane.turns.add(turn)
                    return turn
                assert type(message) is Ask and type(source) is str
                lane.ask_bytes -= cost_bytes(message.body)
                key = (source, message.number)
                if key not in lane.held:
                    continue  # withdrawn
                if now >= expires_at:
                    del lane.held[key]
                    self._post(source, Refusal(message.number, "timeout", "", "its time was over before its turn came"))
                    continue
                turn = lane.held[key] = Turn(lane, message, source, expires_at)
                lane.turns.add(turn)
                return turn
        lane.idle = True
        return None

    def answer(self, turn: Turn, codec: int, body: bytes) -> None:
        """End a turn. The answer goes to who asked, if anyone did and still waits."""
        message = turn.message
        if type(message) is Ask and self._end_ask(turn, message):
            if self._outbox(turn.peer).size_bytes >= self.limits.outbox_bytes:
                detail = f"the answer was not sent: {turn.peer} does not take what is sent to it"
                self._post(turn.peer, Refusal(message.number, "no_room", "", detail))
            else:
                self._post(turn.peer, Answer(message.number, codec, body))
        self.end(turn)

    def fail(self, turn: Turn, error_type: str, detail: str) -> None:
        """End a turn that raised."""
        message = turn.message
        if type(message) is Ask and self._end_ask(turn, message):
            self._post(turn.peer, Refusal(message.number, "failed", error_type[:200], detail[:_DETAIL]))
        self.end(turn)

    def end(self, turn: Turn) -> None:
        """End a turn whose message wanted no answer: the shortest way."""
        lane = turn.lane
        lane.turns.discard(turn)
        if turn.asks is not None:
            self._let_go(turn)
        if lane.idle and lane.queue:  # all its turns were taken
            lane.idle = False
            self.woken.append(lane)

    def _end_ask(self, turn: Turn, ask: Ask) -> bool:
        """Does somebody still wait for this turn's answer?"""
        held = turn.lane.held
        key = (turn.peer, ask.number)
        if held.get(key) is not turn:
            return False
        del held[key]
        return True

    def _let_go(self, turn: Turn) -> None:
        """The turn is over, and asks that it did not wait for go on without it."""
        if turn.asks is not None:
            for open_ask in turn.asks.values():
                open_ask.turn = None
            turn.asks = None

    def _make_room(self, lane: Lane, intake: Intake) -> None:
        limits = self.limits
        window = limits.lane_bytes // len(lane.intakes) if lane.intakes else limits.window_bytes
        window = max(limits.first_window_bytes, min(limits.window_bytes, window))
        limit = intake.consumed_bytes + window
        intake.announce_at = intake.consumed_bytes + window // 2
        if limit > intake.limit_bytes:
            intake.limit_bytes = limit
            self._post(intake.peer, Room(lane.agent, limit))

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
        outbox = self._outboxes.pop(peer, None)
        if outbox is not None:
            outbox.envelopes.clear()
            outbox.size_bytes = 0
        for open_ask in [ask for ask in self._asks.values() if ask.peer == peer]:
            error = AgentUnreachable(open_ask.receiver, f"its process {peer} is gone: {reason}")
            self._fail(open_ask, error, tell_other_side=False)
        for lane in self.lanes.values():
            intake = lane.intakes.pop(peer, None)
            if intake is not None:
                intake.announce_at = sys.maxsize  # its numbers mean nothing to the next process of this name
            for key in [key for key in lane.held if key[0] == peer]:
                del lane.held[key]
            kept = [entry for entry in lane.queue if entry[1] != peer]  # its asks; what it told is still told
            if len(kept) < len(lane.queue):
                lane.queue.clear()
                lane.queue.extend(kept)
                lane.ask_bytes = sum(cost_bytes(entry[0].body) for entry in kept if type(entry[0]) is Ask)
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

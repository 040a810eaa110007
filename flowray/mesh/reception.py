"""What came for the agents of one process: it waits in their lanes and is handled in turns. No IO.

The receiving half of `conversations`, which opens the parcels. What is said in return goes into the outboxes.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Sequence

from flowray.mesh.deadlocks import Deadlocks
from flowray.mesh.envelopes import OVERHEAD_BYTES, Answer, Ask, Envelope, Gone, Refusal, Room, Tell, Withdrawal
from flowray.mesh.lanes import Intake, Lane, TalkLimits, Turn, cost_bytes
from flowray.mesh.routes import Outboxes

_DETAIL = 2_000  # characters of another side's message


class Reception:
    """See the module. Not thread-safe, as `Conversations`."""

    def __init__(
        self,
        process: str,
        limits: TalkLimits,
        lanes: dict[str, Lane],
        outboxes: Outboxes,
        deadlocks: Deadlocks,
        other: Callable[[str, Envelope], None],
    ) -> None:
        """`lanes`: of the agents here, by agent. `other` takes what is not for an agent but for who asked or sends."""
        self._process = process
        self._limits = limits
        self._lanes = lanes
        self._outboxes = outboxes
        self._post = outboxes.post
        self._deadlocks = deadlocks
        self._other = other
        self.woken: deque[Lane] = deque()
        self.dropped = 0  # one-way messages for agents that are not here

    # ── agents ───────────────────────────────────────────────────────────────────────────────────────────────────

    def host(self, agent: str, *, reentrant: bool) -> Lane:
        """An agent takes messages from now on."""
        assert agent not in self._lanes, f"{agent} is here already"
        lane = Lane(agent, self._limits.reentrant_turns if reentrant else 1, reentrant=reentrant)
        self._lanes[agent] = lane
        return lane

    def leave(self, agent: str) -> None:
        """An agent of this process is gone: those whose asks it holds are told. Turns under way come to nothing."""
        lane = self._lanes.pop(agent, None)
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
            _let_go(turn)
        lane.turns.clear()

    def peer_gone(self, peer: str) -> None:
        """A process is gone: nobody waits there for answers. What it told is still told."""
        for lane in self._lanes.values():
            intake = lane.intakes.pop(peer, None)
            if intake is not None:
                intake.announce_at = sys.maxsize  # its numbers mean nothing to the next process of this name
            for key in [key for key in lane.held if key[0] == peer]:
                del lane.held[key]
            kept = [entry for entry in lane.queue if entry[1] != peer]
            if len(kept) < len(lane.queue):
                lane.queue.clear()
                lane.queue.extend(kept)
                lane.ask_bytes = sum(cost_bytes(entry[0].body) for entry in kept if type(entry[0]) is Ask)

    # ── what arrives ─────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, peer: str, arrived: Sequence[Envelope], now: float) -> None:
        """Take in what a process sent, in its order."""
        lanes = self._lanes
        for envelope in arrived:
            if type(envelope) is Tell:
                lane = lanes.get(envelope.receiver)
                if lane is None:
                    self.dropped += 1
                    self._post(peer, Gone(envelope.receiver))
                    continue
                intake = lane.intakes.get(peer)
                if intake is None:
                    intake = lane.intakes[peer] = Intake(peer, self._limits.first_window_bytes)
                lane.queue.append((envelope, intake, math.inf))
                if lane.idle:
                    lane.idle = False
                    self.woken.append(lane)
            elif type(envelope) is Ask:
                self._receive_ask(peer, envelope, now)
            elif type(envelope) is Withdrawal:
                self._withdrawn(peer, envelope)
            else:
                self._other(peer, envelope)

    def _receive_ask(self, peer: str, ask: Ask, now: float) -> None:
        lane = self._lanes.get(ask.receiver)
        if lane is None:
            self._post(peer, Refusal(ask.number, "unreachable", "", f"it is not in {self._process}"))
            return
        if lane.ask_bytes >= self._limits.ask_bytes:
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
            self._deadlocks.arrived(ask, peer, lane)

    def _withdrawn(self, peer: str, withdrawal: Withdrawal) -> None:
        lane = self._lanes.get(withdrawal.receiver)
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
            if self._outboxes.of(turn.peer).size_bytes >= self._limits.outbox_bytes:
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
            _let_go(turn)
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

    def _make_room(self, lane: Lane, intake: Intake) -> None:
        limits = self._limits
        window = limits.lane_bytes // len(lane.intakes) if lane.intakes else limits.window_bytes
        window = max(limits.first_window_bytes, min(limits.window_bytes, window))
        limit = intake.consumed_bytes + window
        intake.announce_at = intake.consumed_bytes + window // 2
        if limit > intake.limit_bytes:
            intake.limit_bytes = limit
            self._post(intake.peer, Room(lane.agent, limit))


def _let_go(turn: Turn) -> None:
    """The turn is over, and asks that it did not wait for go on without it."""
    if turn.asks is not None:
        for open_ask in turn.asks.values():
            open_ask.turn = None
        turn.asks = None

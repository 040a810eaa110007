"""Several processes whose agents talk over a simulated mesh, and an onlooker who sees all of them at once.

Between two processes parcels arrive in order, each when the test says so. A process can die and come back under its
name: what was on its way to it is lost, and the others hear of it in line with what it had sent before.
The onlooker knows the whole graph of who waits for whom. Every circle that ever exists is noted, so that what the
probes report can be compared with it.
"""

from __future__ import annotations

import itertools
from collections import deque

from flowray.errors import AgentUnreachable, AskDeadlock, NoRoom
from flowray.mesh.conversations import Conversations
from flowray.mesh.envelopes import BYTES, OVERHEAD_BYTES, Answer, Ask, Tell
from flowray.mesh.lanes import OpenAsk, TalkLimits, Turn
from flowray.mesh.topics import Directory

AskId = tuple[str, int]  # (process, number)
SMALL = TalkLimits(
    message_bytes=1_000, lane_bytes=4_000, ask_bytes=1 << 20, first_window_bytes=1_000, window_bytes=2_000,
    waiting_sends=8, open_asks=16, outbox_bytes=1 << 20,
)  # fmt: skip


class World:
    def __init__(self, agents: dict[str, str], reentrant: frozenset[str] = frozenset(), limits: TalkLimits = SMALL):
        """`agents`: agent -> process."""
        self.agents = agents
        self.reentrant = reentrant
        self.limits = limits
        self.now = 0.0
        self.directory = Directory(1)
        for agent, process in agents.items():
            self.directory.put(agent, process)
        self.numbers = itertools.count(1, 1_000_000)
        self.processes: dict[str, Conversations] = {}
        self.lives: dict[str, int] = {}  # process -> which life of it
        self.seen: dict[tuple[str, str], int] = {}  # (who, whom) -> the life of whom that who speaks to
        self.wires: dict[tuple[str, str], deque[tuple[int, bytes | None]]] = {}  # None: the news that it is gone
        for process in sorted(set(agents.values())):
            self.lives[process] = 0
            self.processes[process] = self._made(process)
        self.deaths = 0
        # What was seen.
        self.told: dict[tuple[str, str], int] = {}  # (sender, receiver) -> number of the last message sent
        self.heard: dict[tuple[str, str], list[int]] = {}
        self.waiting: dict[int, object] = {}
        self.settled: dict[object, list[object]] = {}  # token -> all that ever came back for it
        self.tokens = itertools.count()
        self.asks: dict[object, OpenAsk] = {}
        self.circles: dict[frozenset[AskId], tuple[str, ...]] = {}  # all that ever were -> their agents in order
        self.victims: list[tuple[AskId, frozenset[AskId]]] = []

    def _made(self, process: str) -> Conversations:
        made = Conversations(process, self.limits, first_number=next(self.numbers))
        for agent, where in self.agents.items():
            if where == process:
                made.host(agent, reentrant=agent in self.reentrant)
        changes = self.directory.changes_since(0, 0)
        assert changes is not None and made.learn(changes)
        return made

    # ── what agents do ───────────────────────────────────────────────────────────────────────────────────────────

    def of(self, agent: str) -> Conversations:
        return self.processes[self.agents[agent]]

    def tell(self, sender: str, receiver: str, *, wait: bool = True) -> bool:
        number = self.told.get((sender, receiver), 0) + 1
        body = b"%d" % number
        try:
            sent = self.of(sender).tell(sender, receiver, BYTES, body)
            if not sent and wait:
                token = ("tell", next(self.tokens))
                self.of(sender).wait_for_room(sender, receiver, BYTES, body, token=token)
                self.settled[token] = []
        except (AgentUnreachable, NoRoom):
            return False
        if sent or wait:
            self.told[sender, receiver] = number
        self.after()
        return sent or wait

    def ask(self, sender: str, receiver: str, turn: Turn | None = None, timeout_s: float = 1e9) -> OpenAsk | None:
        token = ("ask", next(self.tokens))
        try:
            asked = self.of(sender).ask(
                sender, receiver, BYTES, b"?", now=self.now, timeout_s=timeout_s, token=token, turn=turn
            )
        except (AgentUnreachable, NoRoom):
            return None
        self.settled[token] = []
        self.asks[token] = asked
        self.after()
        return asked

    def take(self, agent: str) -> Turn | None:
        conversations = self.of(agent)
        turn = conversations.take(conversations.lanes[agent], self.now)
        if turn is not None and type(turn.message) is Tell:
            self.heard.setdefault((turn.message.sender, agent), []).append(int(turn.message.body))
        self.after()
        return turn

    def turns(self, agent: str) -> list[Turn]:
        return sorted(self.of(agent).lanes[agent].turns, key=lambda turn: id(turn))

    def end(self, agent: str, turn: Turn) -> None:
        self.of(agent).answer(turn, BYTES, b"!")
        self.after()

    # ── the world ────────────────────────────────────────────────────────────────────────────────────────────────

    def busy_wires(self) -> list[tuple[str, str]]:
        return sorted(pair for pair, wire in self.wires.items() if wire)

    def deliver(self, pair: tuple[str, str]) -> None:
        source, target = pair
        life, parcel = self.wires[pair].popleft()
        if parcel is None:
            self.seen[target, source] = life
            self.processes[target].peer_gone(source, "killed")
        elif life == self.lives[target]:
            self.processes[target].receive(source, parcel, self.now)
        self.after()

    def kill(self, process: str) -> None:
        """It dies and is back at once, knowing nothing."""
        self.deaths += 1
        for asked in self.processes[process]._asks.values():
            self.asks.pop(asked.token)
            self.settled.pop(asked.token)
        for route in self.processes[process]._routes.values():
            for waiter in route.waiting:
                self.settled.pop(waiter.token)
        self.lives[process] += 1
        self.processes[process] = self._made(process)
        self.seen[process, process] = self.lives[process]
        for other in self.processes:
            if other != process:
                self.wires.setdefault((process, other), deque()).append((self.lives[process], None))
                self.seen[process, other] = self.lives[other]
        self.after()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for conversations in self.processes.values():
            conversations.expire(self.now)
        self.after()

    def after(self) -> None:
        """Everything that leaves a process goes onto its wires; the onlooker looks."""
        for process, conversations in self.processes.items():
            while conversations.flushable:
                outbox = conversations.flushable.popleft()
                while (parcel := conversations.take_parcel(outbox)) is not None:
                    life = self.seen.get((process, outbox.peer), 0)
                    self.wires.setdefault((process, outbox.peer), deque()).append((life, parcel))
            while conversations.settled:
                token, outcome = conversations.settled.popleft()
                self.settled[token].append(outcome)
                if isinstance(outcome, AskDeadlock):
                    self._note_victim((process, self.asks[token].number), outcome)
        self.circles.update(self.circles_now())

    # ── the onlooker ─────────────────────────────────────────────────────────────────────────────────────────────

    def circles_now(self) -> dict[frozenset[AskId], tuple[str, ...]]:
        """Every circle of asks that stand in each other's way at this moment."""
        arrows: dict[Turn, list[tuple[AskId, Turn]]] = {}
        for process, conversations in self.processes.items():
            for lane in conversations.lanes.values():
                for turn in lane.turns:
                    for asked in (turn.asks or {}).values():
                        other = self.processes[asked.peer].lanes[asked.receiver]
                        key = (process, asked.number)
                        if key in other.held and self._lives_match(process, asked.peer):
                            # Not `Lane.holder`: the onlooker has its own opinion.
                            holders = [other.held[key]] if isinstance(other.held[key], Turn) else []
                            if not holders and not other.reentrant:
                                holders = list(other.turns)
                            arrows.setdefault(turn, []).extend((key, holder) for holder in holders)
        found: dict[frozenset[AskId], tuple[str, ...]] = {}

        def walk(path: list[Turn], asks: list[AskId]) -> None:
            for key, after in arrows.get(path[-1], ()):
                if after is path[0]:
                    found[frozenset([*asks, key])] = tuple(turn.lane.agent for turn in path)
                elif after not in path:
                    walk([*path, after], [*asks, key])

        for start in arrows:
            walk([start], [])
        return found

    def _lives_match(self, process: str, peer: str) -> bool:
        """Does `process` know the present life of `peer`, and the other way round?"""
        known = self.seen.get((process, peer), 0), self.seen.get((peer, process), 0)
        return known == (self.lives[peer], self.lives[process])

    def _note_victim(self, victim: AskId, error: AskDeadlock) -> None:
        def same(cycle: tuple[str, ...]) -> bool:
            turned = [cycle[i:] + cycle[:i] for i in range(len(cycle))]
            return error.cycle in turned

        fitting = [asks for asks, agents in self.circles.items() if victim in asks and same(agents)]
        assert fitting, f"no such circle ever was: {error}; there were {sorted(self.circles.values())}"
        already = {asks for _, asks in self.victims}
        fresh = [asks for asks in fitting if asks not in already]
        assert fresh, f"a second victim of one circle: {error}"
        self.victims.append((victim, fresh[-1]))

    # ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        for process, conversations in self.processes.items():
            for lane in conversations.lanes.values():
                waiting: dict[str, int] = {}
                for message, source, _ in lane.queue:
                    if type(message) is Tell:
                        waiting[source.peer] = waiting.get(source.peer, 0) + OVERHEAD_BYTES + len(message.body)
                one = OVERHEAD_BYTES + self.limits.message_bytes
                for peer, size in waiting.items():
                    assert size <= max(self.limits.first_window_bytes, self.limits.window_bytes) + one, (process, peer)
                assert len(lane.turns) <= lane.turns_limit
                queued = sum(OVERHEAD_BYTES + len(m.body) for m, _, _ in lane.queue if type(m) is Ask)
                assert lane.ask_bytes == queued
            assert all(count <= self.limits.open_asks for count in conversations._asking.values())
            assert sum(conversations._asking.values()) == conversations.open_asks
            assert len(conversations._expiries) <= 2 * conversations.open_asks + 64
        for outcomes in self.settled.values():
            assert len(outcomes) <= 1
        for numbers in self.heard.values():
            assert numbers == sorted(set(numbers)), f"out of order or twice: {numbers}"
        if not self.busy_wires():
            assert not self.circles_now(), f"not found: {self.circles_now()}"

    def settle(self) -> None:
        """Let everything arrive and end every turn that waits for nothing, until nothing moves any more."""
        moved = True
        while moved:
            moved = False
            while wires := self.busy_wires():
                self.deliver(wires[0])
                moved = True
            self.check()
            for agent in self.agents:
                while self.take(agent) is not None:
                    moved = True
                for turn in self.turns(agent):
                    if not turn.asks:
                        self.end(agent, turn)
                        moved = True

    def check_settled(self) -> None:
        """Nothing is left of anything, and nobody was forgotten."""
        for process, conversations in self.processes.items():
            assert conversations.open_asks == 0, process
            assert not conversations._asking
            for route in conversations._routes.values():
                assert not route.waiting
            for lane in conversations.lanes.values():
                assert not lane.queue and not lane.turns and not lane.held and lane.ask_bytes == 0
        for token, outcomes in self.settled.items():
            assert len(outcomes) == 1, token
        if not self.deaths:
            for pair, last in self.told.items():
                assert self.heard.get(pair, []) == list(range(1, last + 1))
            for token, outcomes in self.settled.items():
                assert token[0] == "tell" or isinstance(outcomes[0], Answer | Exception)

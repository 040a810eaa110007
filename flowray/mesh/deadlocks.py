"""Finds agents that wait for one another in a circle, and breaks each circle at one ask.

The method is edge chasing: K. M. Chandy, J. Misra, L. M. Haas, "Distributed Deadlock Detection", ACM Transactions on
Computer Systems 1(2), 1983, pp. 144-156, in its AND model: a turn waits for all asks that it has open.

An arrow leads from a turn T to the turn U if T has an ask open that U must end before it is answered: U handles it, or
it waits in the lane in which U is the turn. Arrows exist only between turns: an ask of `run` is waited for by nobody
who asks that agent. Arrows last: neither end can change while U itself waits, except that an ask runs out of time.

Finding. A circle is complete when the last of its asks arrives at a lane whose turn waits already; nothing else can
complete it, because a turn waits from the moment it sends. So that is when the receiver starts a search, with a probe
along each ask that the waiting turn has open; each receiver checks that it holds the ask, and sends the probe on along
the open asks of the turn that must end first. Messages of one process to another arrive in order, so a probe cannot
overtake the ask it follows. If it comes to the turn that made the first ask, there is a circle. A search goes through
each turn once, so it costs a message for each arrow and not one for each path; an ask of someone who is not asked
himself costs none.

Being sure. Timeouts may have taken away arrows behind the probe's back. So before anything is done a confirmation goes
round the circle and asks every agent in it whether it still holds the ask before and still waits for the ask after.
Numbers of asks are never used again: what was there at the first look and at the second was there between the two, and
at the moment between the two rounds all arrows were there at once. That is a deadlock, not the shadow of one.

Breaking. The victim is the ask of the greatest agent id, so all who find a circle agree. The confirmation ends at that
agent, which gives the ask up if it is still open. Whether it was or not, the search through the first ask is then made
again: a turn that waits for several asks can lie on several circles, and a search sees one of those that share a turn.
It is also made again, for all asks held, when a process dies, because a search can die with it.

Bounds: a circle of more than 256 agents is left to the timeouts of its asks; so is one that needs a reentrant agent
with all of its turns taken, where any of many turns would do (that is the OR model, and needs another algorithm). An
ask counts as waited for as long as it is open and its turn goes on, whether or not the code has come to the `await`.
A one-way message that waits for room is no arrow: turns that fill one another's lanes end with NoRoom, in time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flowray.errors import AskDeadlock
from flowray.mesh.envelopes import Again, Ask, Confirm, Edge, Probe
from flowray.mesh.lanes import Lane, OpenAsk, Turn

LONGEST = 256  # agents in a circle
_SEEN = 4_096  # probes that one turn remembers; forgetting one costs messages and nothing else


class Deadlocks:
    """One process's part in it."""

    __slots__ = ("_fail", "_lanes", "_post", "_process", "_round", "found")

    def __init__(
        self,
        process: str,
        lanes: Mapping[str, Lane],
        post: Callable[[str, Probe | Confirm | Again], None],
        fail: Callable[[OpenAsk, AskDeadlock], None],
    ) -> None:
        self._process = process
        self._lanes = lanes
        self._post = post  # to a process, this one included
        self._fail = fail
        self._round = 0  # of searches that began here
        self.found = 0  # circles broken here

    def arrived(self, ask: Ask, process: str, lane: Lane) -> None:
        """An ask of somebody's turn was put into a lane."""
        turn = lane.holder(process, ask.number)
        if turn is not None and turn.asks:
            self._round += 1
            self._reach((Edge(ask.sender, process, ask.number, lane.agent, self._process),), self._round, turn)

    def again(self, again: Again) -> None:
        """Search once more through this ask, if it is still here."""
        edge = again.edge
        turn = self._holder(edge)
        if turn is not None and turn.asks:
            self._round += 1
            self._reach((edge,), self._round, turn)

    def search_all(self) -> None:
        """Search through all asks that are here."""
        for lane in self._lanes.values():
            for (process, _), held in lane.held.items():
                ask = held.message if type(held) is Turn else held
                if type(ask) is Ask and ask.blocks:
                    self.arrived(ask, process, lane)

    def probe(self, probe: Probe) -> None:
        """A probe came along its last ask."""
        turn = self._holder(probe.path[-1])
        if turn is not None and turn.asks and len(probe.path) <= LONGEST:
            self._reach(probe.path, probe.round, turn)

    def _holder(self, edge: Edge) -> Turn | None:
        lane = self._lanes.get(edge.receiver)
        return lane.holder(edge.process, edge.number) if lane is not None else None

    def _reach(self, path: tuple[Edge, ...], search: int, turn: Turn) -> None:
        """The last ask of the path waits for this turn, which itself waits."""
        first = path[0]
        if turn.seen is None:
            turn.seen = set()
        began = (first.process, first.number, search)
        if began in turn.seen:
            return
        if len(turn.seen) >= _SEEN:
            turn.seen.clear()
        turn.seen.add(began)
        assert turn.asks is not None
        if first.process == self._process and first.number in turn.asks:
            # The arrows' asks are unique, so all that find this circle cut it at the same place.
            at = max(range(len(path)), key=lambda i: (path[i].asker, path[i].process, path[i].number))
            cycle = path[at:] + path[:at]
            self._post(cycle[0].host, Confirm(cycle, 0, -at % len(path)))
            return
        for ask in turn.asks.values():
            edge = Edge(ask.asker, self._process, ask.number, ask.receiver, ask.peer)
            self._post(ask.peer, Probe((*path, edge), search))

    def confirm(self, confirm: Confirm) -> None:
        """Is this agent's part of the circle still there? Then ask the next, or, at the end, break it."""
        cycle, at = confirm.cycle, confirm.at
        if at >= len(cycle) or confirm.began >= len(cycle):
            return  # made by nobody who follows the protocol
        after = cycle[(at + 1) % len(cycle)]
        turn = self._holder(cycle[at])
        ask = turn.asks.get(after.number) if turn is not None and turn.asks is not None else None
        if ask is not None and after.process == self._process:
            if at + 1 < len(cycle):
                self._post(after.host, Confirm(cycle, at + 1, confirm.began))
                return
            self.found += 1
            self._fail(ask, AskDeadlock(ask.receiver, tuple(edge.asker for edge in cycle)))
        first = cycle[confirm.began]
        self._post(first.host, Again(first))

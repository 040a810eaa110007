"""Agents and the coordinator that do not reach each other: both ways, or only one.

As a transport does it: what is sent into a partition is held and sent again until it arrives, in order. A stream on
which one side has heard nothing for `SILENCE_S` is given up, with all that was held on it, and a new one is made as
soon as both directions are open. A node that is silent both ways is declared dead, although its processes go on until
they are heard again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from flowray.testing.faults import Partition

if TYPE_CHECKING:
    from flowray.testing.agent import AgentProcess, Stream
    from flowray.testing.network import Link
    from flowray.testing.world import World

SILENCE_S = 10.0  # of a stream, before it is given up
DECLARED_DEAD_S = 4.0  # of a node that is cut off both ways, as measured
UP, DOWN = 1, 2
Held = tuple[Callable[[], None], "Link", "Stream"]


class Partitions:
    """Who is cut off, which ways, and what is held for them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._cut: dict[tuple[str, int], int] = {}  # agent process -> ways
        self._number: dict[tuple[str, int], int] = {}  # -> of its cut: an older one ends without effect
        self._held: dict[tuple[str, int], list[Held]] = {}
        self._declared: dict[tuple[str, int], AgentProcess] = {}  # dead, as its node will learn when it is heard again
        self.cuts = 0  # so far

    def strike(self, fault: Partition) -> None:
        """Cut a share of the agents off, for a while."""
        rng = self._world.rng
        alive = list(self._world.processes.values())
        if not alive:
            return
        ways = rng.choice((UP, DOWN)) if fault.one_way else UP | DOWN
        self._world.note("cut off one way" if fault.one_way else "cut off")
        for process in rng.sample(alive, max(1, round(fault.share * len(alive)))):
            after_s = rng.uniform(0.0, fault.lasts_s / 2) if fault.staggered else 0.0
            lasts_s = fault.lasts_s * (rng.uniform(0.2, 1.0) if fault.staggered else 1.0)
            self._world.clock.after(after_s, partial(self._begin, process, ways, lasts_s))

    @property
    def active(self) -> bool:
        """Is anybody cut off?"""
        return bool(self._cut)

    def is_cut(self, process: AgentProcess, ways: int = UP | DOWN) -> bool:
        """Does nothing get through, any of these ways?"""
        return bool(self._cut) and bool(self._cut.get((process.id, process.incarnation), 0) & ways)

    def is_away(self, process: AgentProcess) -> bool:
        """Does nothing get through, either way?"""
        return bool(self._cut) and self._cut.get((process.id, process.incarnation), 0) == UP | DOWN

    def hold(self, deliver: Callable[[], None], link: Link, stream: Stream) -> None:
        """Keep a message until its way is open."""
        process = stream.agent
        self._held.setdefault((process.id, process.incarnation), []).append((deliver, link, stream))

    def heal(self) -> None:
        """Everybody reaches everybody."""
        for key in list(self._cut):
            self._open(key)

    def _begin(self, process: AgentProcess, ways: int, lasts_s: float) -> None:
        if self._world.healed or not process.alive:
            return
        key = process.id, process.incarnation
        self.cuts += 1
        self._cut[key], self._number[key] = ways, self.cuts
        self._world.trace.line(
            f"{process.id}#{process.incarnation} is cut off ({('up', 'down', 'both ways')[ways - 1]})"
        )
        self._world.clock.after(lasts_s, partial(self._end, key, self.cuts))
        if lasts_s > SILENCE_S and process.stream is not None:
            self._world.clock.after(SILENCE_S, partial(self._give_up, process, process.stream, self.cuts))
        if ways == UP | DOWN and lasts_s > DECLARED_DEAD_S and self._world.rng.random() < 0.7:
            self._world.clock.after(DECLARED_DEAD_S, partial(self._declare_dead, process, self.cuts))

    def _is_now(self, process: AgentProcess, number: int) -> bool:
        return process.alive and self._number.get((process.id, process.incarnation)) == number

    def _give_up(self, process: AgentProcess, stream: Stream, number: int) -> None:
        if self._is_now(process, number) and process.stream is stream:
            self._world.note("silent stream given up")
            self._held.pop((process.id, process.incarnation), None)
            stream.give_up()

    def _declare_dead(self, process: AgentProcess, number: int) -> None:
        if self._is_now(process, number):
            self._world.note("declared dead while cut off")
            self._world.report_death(process, "node declared dead")
            self._declared[process.id, process.incarnation] = process

    def _end(self, key: tuple[str, int], number: int) -> None:
        if self._number.get(key) == number:
            self._open(key)

    def _open(self, key: tuple[str, int]) -> None:
        self._cut.pop(key, None)
        self._number.pop(key, None)
        declared = self._declared.pop(key, None)
        if declared is not None:
            self._world.clock.after(self._world.rng.uniform(0.0, 5.0), partial(self._world.crash, declared))
        for deliver, link, stream in self._held.pop(key, ()):
            if not link.broken:
                self._world.note("held by a partition, then delivered")
                stream.send(deliver, link)

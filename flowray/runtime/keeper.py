"""One keeper on each node: it ends processes that were stopped and do not go on, and sees at once which have died.

Nobody else notices these. A stopped process (SIGSTOP, a debugger that was left, a shell's job control) keeps its
connections, Ray never asks it anything, and Ray's own checks are of nodes. So the keeper looks at the state that the
kernel tells of each process of its runtime on its node, the coordinator's among them, and kills what was stopped for
too long. Whoever watches the process then learns of its death as of any other, and death is certain: nothing that was
given to it can go on when it is given to another. It also tells how much of the node's memory is free.

The kernel tells of a death by a pidfd; the coordinator hears of it from here within milliseconds, where Ray may take
half a second for a process on another node.

A silence, a busy event loop, a process that waits for its disk are no reason: only the kernel's word "stopped" is.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from ray._private import utils as ray_utils

from flowray.runtime._ray_errors import LOST, REFUSED

COORDINATOR = "coordinator"  # its name here
_MEMORY_S = 2.0  # between two looks at the node's memory
_NOTICED = 0.02  # of the node's memory: a smaller change is not told
_NOTE_S = 0.2  # for the coordinator to hear why a process will die


class Watched(Struct, frozen=True, array_like=True):
    """A process on the keeper's node."""

    name: str
    pid: int


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(tuple[Watched, ...]).decode


class Stopped:
    """Who has been stopped for how long."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since: dict[str, float] = {}

    def look(self, states: Mapping[str, str], now: float) -> list[str]:
        """Of those whose states the kernel tells, the ones that have been stopped for the limit, at every look since.

        `now` is in seconds of a monotonic time-line.
        """
        self._since = {name: self._since.get(name, now) for name, state in states.items() if state == "T"}
        return [name for name, since in self._since.items() if now - since >= self._limit_s]


class Keeper:
    """The actor."""

    def __init__(self, node_id: str, stopped_s: float) -> None:
        self._node_id = node_id
        self._stopped_s = stopped_s
        self._stopped = Stopped(stopped_s)
        self._handles: dict[Watched, int] = {}  # -> pidfd, which no later process of the same pid answers to
        self._coordinator: Any = None
        self._telling: set[asyncio.Task[None]] = set()  # of deaths
        self._looking: asyncio.Task[None] | None = None
        self._measuring: asyncio.Task[None] | None = None
        self._told = math.nan  # free memory, as the coordinator knows it

    async def watch(self, body: bytes, coordinator: Any) -> None:
        """From now on these, and none else; the coordinator (an actor) hears what is ended and why."""
        self._coordinator = coordinator
        self._told = math.nan  # there may be other agents now, or another coordinator
        wanted = set(decode(body))
        for one in self._handles.keys() - wanted:
            self._let_go(one)
        for one in wanted - self._handles.keys():
            with contextlib.suppress(ProcessLookupError):  # it is gone: whoever watches it knows
                self._handles[one] = os.pidfd_open(one.pid)
                asyncio.get_running_loop().add_reader(self._handles[one], self._died, one)
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())
            self._measuring = asyncio.get_running_loop().create_task(self._measure())

    def _died(self, one: Watched) -> None:
        self._let_go(one)
        if one.name != COORDINATOR:
            telling = asyncio.get_running_loop().create_task(self._tell(one))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)

    def _let_go(self, one: Watched) -> None:
        handle = self._handles.pop(one)
        asyncio.get_running_loop().remove_reader(handle)
        os.close(handle)

    async def _tell(self, one: Watched) -> None:
        with contextlib.suppress(TimeoutError, *LOST, *REFUSED):  # a coordinator that is away hears it from Ray
            await asyncio.wait_for(self._coordinator.died.remote(one.name, one.pid), _MEMORY_S)

    async def pid(self) -> int:
        """As its node calls it."""
        return os.getpid()

    async def stay(self) -> None:
        """Never return: whoever waits for this learns when the keeper dies."""
        await asyncio.Event().wait()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._stopped_s / 4)
            due = set(self._stopped.look(states_of(self._handles), time.monotonic()))
            for one in [one for one in self._handles if one.name in due]:
                await self._end(one)

    async def _measure(self) -> None:
        """Tell how much of the node's memory (of its container's, where it is in one) is free, when that changed."""
        while True:
            free = free_memory()
            if not abs(free - self._told) <= _NOTICED:  # nan: not told yet
                with contextlib.suppress(TimeoutError, *LOST, *REFUSED):  # told again after the next look
                    await asyncio.wait_for(self._coordinator.memory.remote(self._node_id, free), _MEMORY_S)
                    self._told = free
            await asyncio.sleep(_MEMORY_S)

    async def _end(self, one: Watched) -> None:
        if one.name != COORDINATOR:
            cause = f"it was stopped for {self._stopped_s:g} s (by SIGSTOP, or a debugger) and was ended"
            # A coordinator that does not listen will learn of the death, and not of its reason.
            with contextlib.suppress(TimeoutError, *LOST, *REFUSED):
                await asyncio.wait_for(self._coordinator.ended.remote(one.name, cause), _NOTE_S)
        handle = self._handles.get(one)
        if handle is None:
            return  # it is not ours to watch any more, or has died
        if state_of(one.pid) == "T":  # it may have gone on meanwhile
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)


def gone(pid: int, within_s: float) -> bool:
    """Has the process of this node that is called so ended, now or within that time?"""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(within_s * 1000.0))
    finally:
        os.close(handle)


def free_memory() -> float:
    """0..1 of the memory that this node has."""
    total: int = ray_utils.get_system_memory()
    return min(1.0, max(0.0, 1.0 - ray_utils.get_used_memory() / total))


def states_of(watched: Iterable[Watched]) -> dict[str, str]:
    """Name -> what `state_of` says, without those that are gone."""
    return {one.name: state for one in watched if (state := state_of(one.pid))}


def state_of(pid: int) -> str:
    """The kernel's letter for what a process is doing (T: stopped); "" where there is none."""
    try:
        said = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return said[said.rindex(b")") + 2 :][:1].decode()

"""A cable that is late and loses frames: `python -m flowray.testing.cables LINK OTHER ...` carries frames between two.

What the kernel's `netem` does, for kernels without it. Each way is late by a time that is drawn anew each second, and
keeps its order; each frame is lost with a probability. Offloaded checksums and segments are carried as they are
(PACKET_VNET_HDR), so neither end has to be told. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence

_SOL_PACKET = 263
_ADD_MEMBERSHIP, _VNET_HDR, _IGNORE_OUTGOING = 1, 15, 23
_PROMISCUOUS = 1
_ETH_P_ALL = 3
_MOST_BYTES = 1 << 17  # of a frame with its header: segments that are still joined have up to 64 KiB
_HELD = 20_000  # frames under way, each way: more are lost, as a switch loses them
_STEADY_S = 1.0  # for so long a way is late by the same time


class Way:
    """From one link to the other."""

    def __init__(
        self, come: socket.socket, go: socket.socket, late_s: tuple[float, float], loss: float, rng: random.Random
    ) -> None:
        self.come, self._go = come, go
        self._late_s, self._loss, self._rng = late_s, loss, rng
        self._held: deque[tuple[float, bytes]] = deque()
        self._now_late_s, self._drawn_at = 0.0, -math.inf

    def take(self, now: float) -> None:
        """Take in what has come."""
        if now >= self._drawn_at + _STEADY_S:
            self._now_late_s, self._drawn_at = self._rng.uniform(*self._late_s), now
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = self.come.recv(_MOST_BYTES)
                if len(self._held) < _HELD and self._rng.random() >= self._loss:
                    last = self._held[-1][0] if self._held else 0.0
                    self._held.append((max(last, now + self._now_late_s), frame))

    def give(self, now: float) -> float | None:
        """Send what is due; when the next one is, None when nothing is under way."""
        while self._held and self._held[0][0] <= now:
            _, frame = self._held.popleft()
            with contextlib.suppress(OSError):  # the link is down, or its queue is full: such frames are lost
                self._go.send(frame)
        return self._held[0][0] if self._held else None


def opened(link: str) -> socket.socket:
    """A socket that has all frames that come in by a link, and sends by it."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    found.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
    found.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    found.bind((link, _ETH_P_ALL))
    member = struct.pack("iHH8s", socket.if_nametoindex(link), _PROMISCUOUS, 0, b"")
    found.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, member)
    found.setblocking(False)
    return found


def carry(ways: Sequence[Way]) -> None:
    """Until the process is ended."""
    while True:
        now = time.monotonic()
        due = [at for way in ways if (at := way.give(now)) is not None]
        wait_s = max(0.0, min(due) - now) if due else None
        ready, _, _ = select.select([way.come for way in ways], [], [], wait_s)
        now = time.monotonic()
        for way in ways:
            if way.come in ready:
                way.take(now)


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m flowray.testing.cables", description=__doc__)
    parser.add_argument("links", nargs=2, help="names of the two links")
    parser.add_argument("--late-s", nargs=2, type=float, default=(0.0, 0.0), help="each way, the least and the most")
    parser.add_argument("--loss", type=float, default=0.0, help="share of the frames that are lost, each way")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    one, other = (opened(link) for link in options.links)
    late_s = (options.late_s[0], options.late_s[1])
    carry([Way(a, b, late_s, options.loss, rng) for a, b in ((one, other), (other, one))])


if __name__ == "__main__":
    main()

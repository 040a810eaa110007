"""A steady beat for an event loop: wakes it at fixed moments, and says how many of them have passed.

`asyncio.sleep` is no beat for this: uvloop's timers have a grain of 1 ms, several messages' worth, and spinning would
take the processor from the side that is measured. A timerfd is exact to microseconds and is a file like any other.
Python has it from 3.13 on; until then through libc.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import AsyncIterator

_MONOTONIC = 1  # CLOCK_MONOTONIC: the clock of time.perf_counter
_NONBLOCK, _CLOEXEC, _ABSOLUTE = 0o4000, 0o2000000, 1
_BEFORE_FIRST_NS = 1_000_000
_libc = ctypes.CDLL(None, use_errno=True)


class _Time(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _Timer(ctypes.Structure):
    _fields_ = [("interval", _Time), ("first", _Time)]


async def ticks(rate_per_s: float, count: int) -> AsyncIterator[float]:
    """`count` moments, evenly spaced, each at or after it has come, in seconds of time.perf_counter.

    A loop that was held up is given all that it missed, at once and with the moments they should have had.

    Raises:
        OSError: the kernel gives no timer.
    """
    interval_ns = round(1e9 / rate_per_s)
    first_ns = time.perf_counter_ns() + _BEFORE_FIRST_NS
    descriptor = _libc.timerfd_create(_MONOTONIC, _NONBLOCK | _CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "no timer for the open loop")
    loop, woken = asyncio.get_running_loop(), asyncio.Event()
    try:
        timer = _Timer(_Time(*divmod(interval_ns, 10**9)), _Time(*divmod(first_ns, 10**9)))
        if _libc.timerfd_settime(descriptor, _ABSOLUTE, ctypes.byref(timer), None) < 0:
            raise OSError(ctypes.get_errno(), "the timer for the open loop cannot be set")
        loop.add_reader(descriptor, woken.set)
        given = 0
        while given < count:
            await woken.wait()
            woken.clear()
            try:
                passed = int.from_bytes(os.read(descriptor, 8), "little")
            except BlockingIOError:  # woken twice for one beat
                continue
            for number in range(given, min(given + passed, count)):
                yield (first_ns + number * interval_ns) / 1e9
            given += passed
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)

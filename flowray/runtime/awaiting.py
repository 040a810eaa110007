"""What `ask`, `send` and `publish` return: one object that can be awaited on a loop and has `.result()` for threads.

`Done` is already over, which is what `send` is nearly always, so it costs nothing to make or to await. `Reply` waits
for an answer. `Pending` is a message for which there is no room yet: it is sent by being awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from flowray.errors import AgentUnreachable, AskError, FlowrayError, NoRoom, WaitTimeout
from flowray.mesh.envelopes import Answer

if TYPE_CHECKING:
    from flowray.mesh.lanes import OpenAsk
    from flowray.mesh.routes import Waiter
    from flowray.runtime.talking import Talking

Outcome = Answer | FlowrayError | None


def on_a_loop() -> bool:
    """Does the calling thread run an event loop?"""
    return asyncio._get_running_loop() is not None


class Done:
    """Over before it was returned."""

    __slots__ = ("_value",)

    done = True

    def __init__(self, value: Any = None) -> None:
        self._value = value

    def result(self, timeout_s: float | None = None) -> Any:
        """The value, at once."""
        return self._value

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()  # makes this a generator, as awaiting wants one
        return self._value

    def __repr__(self) -> str:
        return f"<Done {self._value!r}>"


class Paused(Done):
    """Over as well, but awaiting it lets the loop do other things: what was sent can leave meanwhile."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, Any]:
        yield
        return self._value


# What every `send` with room returns. Code that only sends would never let the loop go, and its receiver would wait
# until a window is full, and then the sender for the receiver: so each of some sends pauses.
SENT, SENT_PAUSED = Done(), Paused()


class Settling:
    """Something that `Talking` settles once, and that threads and loops may wait for meanwhile."""

    __slots__ = ("_outcome", "_settled", "_talking", "_wake")

    def __init__(self, talking: Talking) -> None:
        self._talking = talking
        self._settled = False
        self._outcome: Outcome = None
        self._wake: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        """Is it over, one way or another?"""
        return self._settled

    @property
    def shared(self) -> bool:
        """Does more than one wait for it?"""
        return len(self._wake) > 1

    def settle(self, outcome: Outcome) -> list[Callable[[], None]]:
        """It is over (with the lock of `Talking` held): what to call once the lock is released."""
        self._outcome, self._settled = outcome, True
        wake, self._wake = self._wake, []
        return wake

    def wait(self, timeout_s: float | None) -> bool:
        """Block this thread until it is over; False when that takes longer than `timeout_s`.

        Raises:
            RuntimeError: this thread runs an event loop, which may be the one that must bring the news.
        """
        if self.done:
            return True
        if on_a_loop():
            raise RuntimeError("await it: .result() would stop the event loop that runs this code")
        over = threading.Event()
        wake = over.set
        if not self._register(wake):
            return True
        if over.wait(timeout_s):
            return True
        with self._talking.lock:
            if wake not in self._wake:
                return True
            self._wake.remove(wake)
        return False

    def _register(self, wake: Callable[[], None]) -> bool:
        """Call this once it is over. False if it is over already."""
        with self._talking.lock:
            if not self._settled:
                self._wake.append(wake)
            return not self._settled

    def arrival(self) -> asyncio.Future[None] | None:
        """A future of the running loop that is done when this is over; None when it is over already."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[None] = loop.create_future()

        def arrive() -> None:
            if not arrived.done():
                arrived.set_result(None)

        def wake() -> None:
            if asyncio._get_running_loop() is loop:
                arrive()
            else:
                loop.call_soon_threadsafe(arrive)

        return arrived if self._register(wake) else None


class Reply(Settling):
    """The answer to an ask, sooner or later."""

    __slots__ = ("asked", "receiver")

    def __init__(self, talking: Talking, receiver: str) -> None:
        super().__init__(talking)
        self.receiver = receiver
        self.asked: OpenAsk | None = None

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the answer. Raises what `Context.ask` says, and WaitTimeout after `timeout_s`: the ask goes on."""
        if not self.wait(timeout_s):
            raise WaitTimeout(f"no answer of {self.receiver}", timeout_s or 0.0, "the ask goes on")
        return self._value()

    def __await__(self) -> Generator[Any, None, Any]:
        arrived = None if self._settled else self.arrival()
        if arrived is not None:
            try:
                yield from arrived.__await__()
            except asyncio.CancelledError:
                self._talking.withdraw(self, AskError(self.receiver, "given up: what waited for it was cancelled"))
                raise
        return self._value()

    def _value(self) -> Any:
        outcome = self._outcome
        if isinstance(outcome, FlowrayError):
            raise outcome
        assert outcome is not None
        return self._talking.decode(outcome.codec, outcome.body)

    def __repr__(self) -> str:
        return f"<Reply of {self.receiver!r}, {'here' if self._settled else 'awaited'}>"


class Pending(Settling):
    """A one-way message for which its receiver has no room yet."""

    __slots__ = ("_send", "begun", "receiver", "waiter")

    def __init__(self, talking: Talking, receiver: str, send: Callable[[Pending], None]) -> None:
        super().__init__(talking)
        self.receiver = receiver
        self._send = send  # puts itself into the queue for room
        self.begun = False
        self.waiter: Waiter | None = None

    def result(self, timeout_s: float | None = None) -> None:
        """Wait for room and send.

        Raises:
            NoRoom: there was none within `timeout_s` (None: the configured time); nothing was sent.
        """
        if not self._settled and on_a_loop():
            raise RuntimeError("await it: .result() would stop the event loop that runs this code")
        limit_s = self._talking.limits.send_timeout_s if timeout_s is None else timeout_s
        self.start()
        if not self.wait(limit_s):
            self._give_up(limit_s)
        self._check()

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()

    async def _wait(self) -> None:
        self.start()
        arrived = self.arrival()
        if arrived is not None:
            limit_s = self._talking.limits.send_timeout_s
            try:
                async with asyncio.timeout(limit_s):
                    await arrived
            except TimeoutError:
                self._give_up(limit_s)
            except asyncio.CancelledError:
                self._talking.give_up_waiting(self)
                raise
        self._check()

    def start(self) -> None:
        """Wait for room from now on."""
        if not self.begun:
            self.begun = True
            self._send(self)

    def _give_up(self, limit_s: float) -> None:
        if self._talking.give_up_waiting(self):
            detail = f"its queue was full for {limit_s:g} s: it handles messages slower than they come, or not at all"
            raise NoRoom(self.receiver, detail)

    def _check(self) -> None:
        if isinstance(self._outcome, FlowrayError):
            raise self._outcome

    def __del__(self) -> None:
        if not self.begun:
            text = f"a message to {self.receiver!r} was not sent: there was no room, and `send` was not awaited"
            warnings.warn(text, RuntimeWarning, stacklevel=1, source=self)


class PendingPublish:
    """What was published while a subscriber had no room: sent to all of them by being awaited."""

    __slots__ = ("_begun", "_sends", "_topic")

    done = False  # never before it is awaited

    def __init__(self, topic: str, sends: Callable[[], list[Pending]]) -> None:
        self._topic = topic
        self._sends = sends
        self._begun = False

    def result(self, timeout_s: float | None = None) -> int:
        """Send, waiting for room: how many were sent. Those that went away meanwhile do not count."""
        if on_a_loop():
            raise RuntimeError("await it: .result() would stop the event loop that runs this code")
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        sent = 0
        for send in self._begin():
            with contextlib.suppress(AgentUnreachable):
                send.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
                sent += 1
        return sent

    def __await__(self) -> Generator[Any, None, int]:
        sent = 0
        for send in self._begin():
            with contextlib.suppress(AgentUnreachable):
                yield from send.__await__()
                sent += 1
        return sent

    def _begin(self) -> list[Pending]:
        self._begun = True
        return self._sends()

    def __del__(self) -> None:
        if not self._begun:
            text = f"nothing was published to {self._topic!r}: a subscriber had no room, and it was not awaited"
            warnings.warn(text, RuntimeWarning, stacklevel=1, source=self)

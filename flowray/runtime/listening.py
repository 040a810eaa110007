"""Who hears the messages of a lane: async code on the mesh's loop, sync code in a thread, or an iterator.

Async code costs no task per message: one task for the lane awaits one handler after the other. (Driving handlers by
hand until they suspend would save little, and break what asks for the current task: asyncio.timeout, TaskGroup.)
Only a reentrant lane makes a task for each message, because there messages are handled side by side.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from flowray.agents import Message, wants_context
from flowray.errors import NotConnected, WaitTimeout
from flowray.mesh.envelopes import Ask, Tell
from flowray.mesh.lanes import Lane, Turn
from flowray.runtime.awaiting import on_a_loop

if TYPE_CHECKING:
    from flowray.runtime.talking import Speaker, Talking

MakeContext = Callable[["Speaker", float | None], Any]  # (how to speak, remaining_s or None) -> a Context
_SLICE_S = 0.0005  # a lane that is never empty lets the loop's other work pass this often


class Listener(ABC):
    """What all three have in common."""

    def __init__(self, talking: Talking, lane: Lane) -> None:
        self._talking = talking
        self._lane = lane
        self._left = False

    @abstractmethod
    def wake(self) -> None:
        """A turn can begin. Called from any thread."""

    @abstractmethod
    def leave(self) -> None:
        """No further turn. Called from the mesh's loop, after the lane has left."""


class Hearing(Listener):
    """A listener that calls `on_message`."""

    def __init__(self, talking: Talking, lane: Lane, on_message: Callable[..., Any], context: MakeContext) -> None:
        super().__init__(talking, lane)
        self._on_message = on_message
        self._context = context if wants_context(on_message) else None

    def _begin(self, turn: Turn) -> Any:
        """Call `on_message` (an async one gives a coroutine)."""
        heard = turn.message
        body = self._talking.decode(heard.codec, heard.body)
        if type(heard) is Ask:
            message = Message(body, heard.sender, "", True)
        else:
            message = Message(body, heard.sender, heard.topic, False, heard.message_id)  # type: ignore[union-attr]
        if self._context is None:
            return self._on_message(message)
        remaining_s = max(0.0, turn.expires_at - self._talking.clock()) if type(heard) is Ask else None
        return self._on_message(message, self._context(self._talking.speaker(self._lane.agent, turn), remaining_s))


class AsyncHearing(Hearing):
    """On the mesh's loop."""

    def __init__(self, talking: Talking, lane: Lane, on_message: Callable[..., Any], context: MakeContext) -> None:
        super().__init__(talking, lane, on_message, context)
        self._woken = asyncio.Event()
        self._side_by_side: set[asyncio.Task[None]] = set()
        self._task = talking.loop.create_task(self._listen(), name=f"lane of {lane.agent}")

    def wake(self) -> None:
        if on_a_loop() and asyncio.get_running_loop() is self._talking.loop:
            self._woken.set()
        else:
            self._talking.loop.call_soon_threadsafe(self._woken.set)

    def leave(self) -> None:
        self._left = True
        for task in (self._task, *self._side_by_side):
            if task is not asyncio.current_task():  # an agent may leave in its own turn
                task.cancel()

    async def _listen(self) -> None:
        talking, lane, clock = self._talking, self._lane, self._talking.clock
        until = clock() + _SLICE_S
        while not self._left:
            now = clock()
            if now > until:
                await asyncio.sleep(0)
                until = clock() + _SLICE_S
            turn = talking.take(lane, now)
            if turn is None:
                await self._woken.wait()
                self._woken.clear()
                until = clock() + _SLICE_S
            elif lane.reentrant:
                task = talking.loop.create_task(self._hear(turn))
                self._side_by_side.add(task)
                task.add_done_callback(self._side_by_side.discard)
            else:
                await self._hear(turn)

    async def _hear(self, turn: Turn) -> None:
        try:
            value = await self._begin(turn)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the agent leaves, or the loop ends
            self._talking.turn_failed(turn, error)  # the user's own doing
        except BaseException as error:  # noqa: BLE001 - user code, SystemExit included
            self._talking.turn_failed(turn, error)
        else:
            self._talking.turn_ended(turn, value)


class ThreadHearing(Hearing):
    """In a thread of its own."""

    def __init__(self, talking: Talking, lane: Lane, on_message: Callable[..., Any], context: MakeContext) -> None:
        super().__init__(talking, lane, on_message, context)
        self._woken = threading.Event()
        threading.Thread(target=self._listen, daemon=True, name=f"lane of {lane.agent}").start()

    def wake(self) -> None:
        self._woken.set()

    def leave(self) -> None:
        self._left = True
        self._woken.set()  # a turn under way cannot be stopped; it is the last

    def _listen(self) -> None:
        talking, lane, clock = self._talking, self._lane, self._talking.clock
        while not self._left:
            turn = talking.take(lane, clock())
            if turn is None:
                self._woken.wait()
                self._woken.clear()
                continue
            try:
                value = self._begin(turn)
            except BaseException as error:  # noqa: BLE001 - user code, SystemExit included
                talking.turn_failed(turn, error)
            else:
                talking.turn_ended(turn, value)


class Subscription(Listener):
    """An iterator over messages, for threads and for loops: `for message in ...`, `async for message in ...`.

    Ends when it is closed. While nobody takes messages out, their senders run out of room and wait.
    """

    def __init__(self, talking: Talking, lane: Lane) -> None:
        super().__init__(talking, lane)
        self._condition = threading.Condition()
        self._arrivals: set[asyncio.Future[None]] = set()

    @property
    def id(self) -> str:
        """What agents can `send` to, and what the directory must list for topics."""
        return self._lane.agent

    def close(self) -> None:
        """Hear nothing more. May be called from any thread, and twice."""
        self._talking.leave(self._lane.agent)

    def get(self, timeout_s: float | None = None) -> Message:
        """The next message; blocks this thread.

        Raises:
            WaitTimeout: none came within `timeout_s`.
            NotConnected: it is closed.
        """
        message = self._wait(timeout_s)
        if message is None:
            raise NotConnected(f"{self.id} is closed")
        return message

    def _wait(self, timeout_s: float | None) -> Message | None:
        """The next message; None when it is closed."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            message = self._next()
            if message is not None:
                return message
            if self._left:
                return None
            if on_a_loop():
                raise RuntimeError("use `async for`: waiting here would stop the event loop that runs this code")
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise WaitTimeout(f"no message for {self.id}", timeout_s or 0.0, "the subscription goes on")
            with self._condition:
                if self._lane.idle and not self._left:
                    self._condition.wait(left)

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        message = self._wait(None)
        if message is None:
            raise StopIteration
        return message

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        while True:
            message = self._next()
            if message is not None:
                return message
            if self._left:
                raise StopAsyncIteration
            arrived = asyncio.get_running_loop().create_future()
            with self._condition:
                if not self._lane.idle or self._left:
                    continue
                self._arrivals.add(arrived)
            try:
                await arrived
            finally:
                with self._condition:
                    self._arrivals.discard(arrived)

    def _next(self) -> Message | None:
        while (turn := self._talking.take(self._lane, self._talking.clock())) is not None:
            heard = turn.message
            if type(heard) is Ask:
                self._talking.turn_refused(turn, "NotImplementedError", f"{self.id} hears messages and answers none")
                continue
            self._talking.turn_ended(turn, None)
            assert isinstance(heard, Tell)
            body = self._talking.decode(heard.codec, heard.body)
            return Message(body, heard.sender, heard.topic, False, heard.message_id)
        return None

    def wake(self) -> None:
        with self._condition:
            self._condition.notify_all()
            arrivals = list(self._arrivals)
        for arrived in arrivals:
            arrived.get_loop().call_soon_threadsafe(_arrive, arrived)

    def leave(self) -> None:
        self._left = True
        self.wake()


def _arrive(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)


def hearing_for(on_message: Callable[..., Any]) -> type[AsyncHearing] | type[ThreadHearing]:
    """Where this method runs."""
    call = getattr(on_message, "__call__", None)  # noqa: B004 - an object with an async __call__
    return (
        AsyncHearing if inspect.iscoroutinefunction(on_message) or inspect.iscoroutinefunction(call) else ThreadHearing
    )

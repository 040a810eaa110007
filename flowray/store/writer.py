"""One thread that writes: it takes everything that waits, commits it as one group, and then tells each who waits.

There is no lingering: while one commit is under way the next group fills, so groups are as large as the load makes
them and a lone command does not wait. Work is done in the order in which it was handed in.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from flowray.core.commands import DurableCommand
from flowray.errors import StoreError
from flowray.store.config import StoreConfig
from flowray.store.journal import Journal
from flowray.store.records import held_bytes

Done = Callable[[StoreError | None], None]
# One transaction of a longer piece of work. True: that was the last one.
Step = Callable[[], bool]


class _Append:
    __slots__ = ("commands", "done", "size_bytes")

    def __init__(self, commands: Sequence[DurableCommand], done: Done) -> None:
        self.commands, self.done = commands, done
        self.size_bytes = sum(map(held_bytes, commands))


class _Chore:
    __slots__ = ("done", "step")

    def __init__(self, step: Step, done: Done) -> None:
        self.step, self.done = step, done


class Writer:
    """The queue in front of a Journal and the thread that empties it."""

    def __init__(self, journal: Journal, config: StoreConfig) -> None:
        self._journal = journal
        self._config = config
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._left = threading.Condition(self._lock)
        self._queue: deque[_Append | _Chore] = deque()
        self._in_hand: deque[_Append | _Chore] = deque()  # taken by the thread and not yet answered
        self._commands = 0  # handed in and not yet answered
        self._bytes = 0
        self._idle = False
        self._closing = False
        self._failure: StoreError | None = None
        self._thread = threading.Thread(target=self._run, name="flowray-store", daemon=True)

    @property
    def failure(self) -> StoreError | None:
        """Why nothing is written any more; None while all is well."""
        return self._failure

    @property
    def backlog_ratio(self) -> float:
        """How full the queue is, by its fuller bound; at 1 the next append waits."""
        return max(self._commands / self._config.queue_commands, self._bytes / self._config.queue_bytes)

    def start(self) -> None:
        self._thread.start()

    def append(self, commands: Sequence[DurableCommand], done: Done) -> None:
        item = _Append(commands, done)
        with self._lock:
            while self._full(item) and self._failure is None and not self._closing:
                self._left.wait()
            self._put(item)
            self._commands += len(item.commands)
            self._bytes += item.size_bytes

    def add(self, step: Step, done: Done) -> None:
        """Queue work that is not an append, behind everything handed in before it."""
        with self._lock:
            self._put(_Chore(step, done))

    def close(self) -> None:
        """Write what is queued and end the thread."""
        with self._lock:
            self._closing = True
            self._arrived.notify()
            self._left.notify_all()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def _full(self, item: _Append) -> bool:
        # Never true for the writer's own thread (a callback that appends): it would wait for itself.
        return (
            self._commands > 0
            and (
                self._commands + len(item.commands) > self._config.queue_commands
                or self._bytes + item.size_bytes > self._config.queue_bytes
            )
            and threading.current_thread() is not self._thread
        )

    def _put(self, item: _Append | _Chore) -> None:
        if self._failure is not None:
            # A new object each time: an exception raised twice would collect both tracebacks.
            raise type(self._failure)(*self._failure.args) from self._failure
        if self._closing:
            raise StoreError("the store is closed")
        self._queue.append(item)
        if self._idle:
            self._idle = False
            self._arrived.notify()

    def _run(self) -> None:
        try:
            self._journal.settle()
            while self._take():
                if isinstance(self._in_hand[0], _Chore):
                    self._do_chore(self._in_hand[0])
                else:
                    self._commit([item for item in self._in_hand if isinstance(item, _Append)])
        except StoreError as error:
            self._fail(error)
        except BaseException as error:
            # Our bug, or a callback's: threading prints it. Whoever waits must not wait for ever.
            self._fail(StoreError(f"the writer's thread ended by {error!r}"))
            raise

    def _take(self) -> bool:
        """Take the next group of appends, or one chore. False when closing and nothing is left."""
        with self._lock:
            while not self._queue:
                if self._closing:
                    return False
                self._idle = True
                self._arrived.wait()
            self._idle = False
            self._in_hand.append(first := self._queue.popleft())
            if isinstance(first, _Chore):
                return True
            commands, size_bytes = len(first.commands), first.size_bytes
            while self._queue and isinstance(item := self._queue[0], _Append):
                commands, size_bytes = commands + len(item.commands), size_bytes + item.size_bytes
                if commands > self._config.group_commands or size_bytes > self._config.group_bytes:
                    break
                self._in_hand.append(self._queue.popleft())
            return True

    def _commit(self, group: list[_Append]) -> None:
        commands = [command for item in group for command in item.commands]
        if commands:
            self._journal.write_group(commands)
        with self._lock:
            self._commands -= len(commands)
            self._bytes -= sum(item.size_bytes for item in group)
            self._left.notify_all()
        while self._in_hand:
            self._in_hand.popleft().done(None)
        self._journal.checkpoint_if_due(idle=not self._queue)

    def _do_chore(self, chore: _Chore) -> None:
        finished = chore.step()
        self._in_hand.popleft()
        if finished:
            chore.done(None)
        else:
            with self._lock:
                self._queue.append(chore)  # behind what arrived meanwhile: appends do not wait for all of it
        self._journal.checkpoint_if_due(idle=not self._queue)

    def _fail(self, error: StoreError) -> None:
        """Nothing is written from here on: a failed fsync cannot be repeated, and a fence is for ever."""
        with self._lock:
            self._failure = error
            unanswered = [*self._in_hand, *self._queue]
            self._in_hand.clear()
            self._queue.clear()
            self._commands = self._bytes = 0
            self._left.notify_all()
        for item in unanswered:
            item.done(error)

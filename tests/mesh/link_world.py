"""Two processes with a link each, and streams between them that lose what they like; without any IO.

The same steps as the endpoint's: greet, judge, open, write, read, break. Everything that is on its way is bytes.
"""

from __future__ import annotations

import itertools
from collections import deque

from flowray.mesh import frames
from flowray.mesh.frames import Frame, Hello, Limits
from flowray.mesh.link import Link, Verdict

LIMITS = Limits(window_items=8, window_bytes=64, frame_bytes=16, message_bytes=40)


class Stream:
    """`dialler` has written its greeting. Each side sees the end of it by itself."""

    def __init__(self, dialler: Process, acceptor: Process, greeting: bytes) -> None:
        self.sides = {dialler.name: dialler, acceptor.name: acceptor}
        self.dialler, self.acceptor = dialler, acceptor
        self.to: dict[str, deque[bytes]] = {dialler.name: deque(), acceptor.name: deque([greeting])}
        self.dead: set[str] = set()  # sides that have ended it

    def other(self, process: Process) -> Process:
        return self.acceptor if process is self.dialler else self.dialler


class Process:
    """One life of a process: what it has sent to and received from each link of the other, by the link's end."""

    _lives = itertools.count(1)

    def __init__(self, name: str, limits: Limits = LIMITS) -> None:
        self.name = name
        self.life = next(self._lives)
        self.limits = limits
        self._ends = (f"{self.life}-{number}" for number in itertools.count(1))
        self.link = Link(limits, next(self._ends))
        self.former: list[str] = []
        self.stream: Stream | None = None
        self.pending: Stream | None = None
        self.written: dict[str, list[bytes]] = {}  # my end -> what was queued on it
        self.got: dict[tuple[str, str], list[bytes]] = {}  # (my end, other end) -> what came
        self.lost: dict[str, int] = {}  # my end -> reported as unconfirmed when it was over
        self.unconsumed: deque[bytes] = deque()

    def send(self, message: bytes) -> bool:
        if not self.link.has_room():
            return False
        self.link.send(message)
        self.written.setdefault(self.link.end, []).append(message)
        return True

    def consume(self, items: int) -> None:
        taken = [self.unconsumed.popleft() for _ in range(min(items, len(self.unconsumed)))]
        self.link.consumed(len(taken), sum(map(len, taken)))

    def renew(self) -> None:
        if not self.link.other_end:  # nothing was ever sent: it may be under another name
            written = self.written.pop(self.link.end, [])
            self.link.end = next(self._ends)
            self.written[self.link.end] = written
            return
        self.drop()

    def drop(self) -> None:
        self.hang_up()
        self.lost[self.link.end] = self.link.held
        if self.link.other_end:
            self.former.append(self.link.other_end)
        self.link = Link(self.limits, next(self._ends), self.link.backlog)

    def forget(self) -> None:
        """Have nothing to do with the other any more, and then begin anew: what it sent is not counted any longer."""
        self.drop()
        self.former.clear()
        self.unconsumed.clear()
        self.link = Link(self.limits, next(self._ends))

    def hang_up(self) -> None:
        if self.stream is not None:
            self.stream.dead.add(self.name)
            self.stream = None
            self.link.broken()

    def greeting(self, to: str) -> bytes:
        return frames.encode(self.link.greeting(runtime="r", name=self.name, to=to, version=frames.VERSION))

    def judge(self, hello: Hello) -> Verdict:
        return Verdict.FORGOTTEN if hello.end in self.former else self.link.judge(hello)

    def check(self) -> None:
        """The bounds that the module `link` states."""
        link, limits = self.link, self.limits
        assert link.held < 2 * limits.window_items + 1
        assert link.held_bytes < 2 * limits.window_bytes + limits.message_bytes
        assert link.held - link.queued <= limits.window_items
        unconfirmed = itertools.islice(link._unconfirmed, limits.window_items)
        assert sum(map(len, unconfirmed)) <= limits.window_bytes
        assert link.held_bytes == sum(map(len, link._queue)) + sum(map(len, link._unconfirmed))
        assert len(self.unconsumed) <= limits.window_items
        assert sum(map(len, self.unconsumed)) <= limits.window_bytes
        assert link.backlog == (len(self.unconsumed), sum(map(len, self.unconsumed)))


class World:
    """Processes "a" and "b", and all streams that were ever dialled and are not over on both sides."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self.now = {name: Process(name, limits) for name in "ab"}
        self.past: list[Process] = []
        self.streams: list[Stream] = []

    def dial(self, name: str) -> None:
        process = self.now[name]
        if process.stream is None and process.pending is None:
            other = self.now["b" if name == "a" else "a"]
            process.pending = Stream(process, other, process.greeting(other.name))
            self.streams.append(process.pending)

    def give_up(self, name: str) -> None:
        """The answer did not come in time, or the stream broke while it was waited for."""
        process = self.now[name]
        if process.pending is not None:
            process.pending.dead.add(name)
            process.pending = None

    def end(self, stream: Stream, name: str) -> None:
        """This side sees the stream end."""
        process = stream.sides[name]
        stream.dead.add(name)
        if process.stream is stream:
            process.hang_up()
        if process.pending is stream:
            process.pending = None
        if stream.dead >= {"a", "b"} and stream in self.streams:
            self.streams.remove(stream)

    def replace(self, name: str) -> None:
        """The process dies and another takes its name. Its streams stay half open; what is on its way stays there."""
        old = self.now[name]
        for stream in list(self.streams):
            if stream.sides[name] is old:
                self.end(stream, name)
        old.stream = old.pending = None
        self.past.append(old)
        self.now[name] = Process(name, self.limits)

    def write(self, name: str) -> bool:
        process = self.now[name]
        stream = process.stream
        if stream is None or (frame := process.link.next_frame()) is None:
            return False
        assert len(frames.encode(frame)) <= process.limits.wire_bytes
        stream.to[stream.other(process).name].append(frames.encode(frame))
        return True

    def read(self, stream: Stream, name: str) -> bool:
        """This side takes in the next thing of the stream."""
        process = stream.sides[name]
        if name in stream.dead or not stream.to[name]:
            return False
        frame = frames.decode(stream.to[name].popleft())
        if isinstance(frame, Frame):
            if process.stream is not stream:  # another has taken over
                self.end(stream, name)
                return True
            messages = process.link.receive(frame)
            process.got.setdefault((process.link.end, process.link.other_end), []).extend(messages)
            process.unconsumed.extend(messages)
        elif isinstance(frame, Hello):
            (self._answered if process is stream.dialler else self._accepted)(stream, process, frame)
        else:
            self.end(stream, name)
        return True

    def _accepted(self, stream: Stream, process: Process, hello: Hello) -> None:
        if process.name < hello.name and process.pending is not None:
            return self.end(stream, process.name)  # both sides dialled at once
        verdict = process.judge(hello)
        if verdict is Verdict.OVER:
            process.renew()
            verdict = process.judge(hello)
        if verdict is Verdict.FORGOTTEN:
            stream.to[hello.name].append(process.greeting(hello.name))
        if verdict is not Verdict.GOES_ON:
            return self.end(stream, process.name)
        process.hang_up()
        self.give_up(process.name)
        process.link.open(hello)
        process.stream = stream
        stream.to[hello.name].append(process.greeting(hello.name))

    def _answered(self, stream: Stream, process: Process, hello: Hello) -> None:
        if process.pending is not stream:
            return self.end(stream, process.name)
        process.pending = None
        verdict = process.judge(hello)
        if verdict is Verdict.GOES_ON and hello.knows == process.link.end:
            process.link.open(hello)
            process.stream = stream
            return None
        assert verdict in (Verdict.OVER, Verdict.FORGOTTEN), (verdict, hello)
        process.renew()
        return self.end(stream, process.name)

    def settle(self) -> None:
        """From now on nothing is lost and everybody consumes: run until nothing moves."""
        for _ in range(1_000):
            moved = False
            for stream in list(self.streams):
                for name in "ab":
                    other = "a" if name == "b" else "b"
                    while self.read(stream, name):
                        moved = True
                    if other in stream.dead and name not in stream.dead and not stream.to[name]:
                        self.end(stream, name)
                        moved = True
            for process in self.now.values():
                process.consume(len(process.unconsumed))
                process.check()
            for name in "ab":
                while self.write(name):
                    moved = True
            if not moved and any(process.stream is None for process in self.now.values()):
                self.dial("a")
                moved = True
            if not moved:
                return
        raise AssertionError("it never comes to rest")

    def check_delivery(self) -> None:
        """What came on a link is what was queued at its other end, from the first on: each once and in order."""
        everybody = [*self.past, *self.now.values()]
        for process in everybody:
            if process in self.now.values():
                process.check()
            for (_, other_end), got in process.got.items():
                sender = next(one for one in everybody if other_end.startswith(f"{one.life}-"))
                queued = sender.written.get(other_end, [])
                assert got == queued[: len(got)]
                if other_end in sender.lost:  # told as lost: all of which nobody can be sure
                    assert len(queued) - sender.lost[other_end] <= len(got)

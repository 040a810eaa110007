"""The process that forks workers: imports what they need, listens on a socket, ends with its raylet.

It has one thread, always: a fork copies only the thread that forks, and a lock that another one held stays locked in
the child for ever. That is checked when everything is imported, and again before each fork.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this directory: its modules are to be found as parts of flowray only

import ctypes
import gc
import importlib
import marshal
import os
import select
import signal
import socket
import struct
import time
from pathlib import Path
from types import CodeType

from flowray.runtime.template.launcher import stat_of
from flowray.runtime.template.setup import PRELOAD
from flowray.runtime.template.worker import Request, become

RAY_VERSIONS = ("2.60.",)  # whose private parts are known to bear this
MODULES = (
    "ray",
    "ray._private.workers.default_worker",
    "uvloop",
    "ray._common.usage.usage_lib",  # what `ray.init` of a worker would import
    "flowray.runtime.process",
    "flowray.runtime.coordinator",
)
IDLE_S = 600.0  # without a fork alive and without a request, until the template ends
_REQUEST_BYTES = 4 << 20
_REQUEST_S = 5.0  # for a whole request to arrive
_TRIAL_S = 3.0  # for the first fork, which only looks whether forking works; less than the launcher's STALL_S
_RAYLET_GONE_S = 10.0  # workers end by themselves when their raylet does; after this they are ended
_KEPT_DESCRIPTORS = 3


class CannotFork(Exception):
    """This process is not fit to be a template; the text says why."""


class Template:
    """Listens for launchers, forks, and sees its forks end."""

    def __init__(self, path: str, raylet: int, worker: str) -> None:
        """`worker` is Ray's default_worker.py. Raises CannotFork or OSError."""
        self.path = path
        self._worker = worker
        self._raylet = os.pidfd_open(raylet)
        self._raylet_pid = raylet
        self._children: dict[int, float] = {}  # process id -> when it was forked, monotonic
        self._ended, tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        self._tell = tell
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # the descriptor above is what wakes us
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        Path(self.path).unlink(missing_ok=True)  # of one that was killed: whoever starts a template holds the lock
        self._listener.bind(self.path)
        self._listener.listen(512)
        self._listener.setblocking(False)

    def serve(self) -> Request | None:
        """Take requests. Returns one in each fork; None in the template itself, when it is time to end."""
        poll = select.poll()
        for descriptor in (self._listener.fileno(), self._raylet, self._ended):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(None if self._children else IDLE_S * 1000)}
            if self._ended in ready:
                os.read(self._ended, 4096)
                self._reap()
            if self._raylet in ready:
                self._end("its raylet has ended")
                return None
            if self._listener.fileno() in ready:
                request = self._accept()
                if request is not None:
                    return request
            if not ready and not self._children:
                self._end(f"nobody has asked for {IDLE_S:g} s")
                return None

    def _accept(self) -> Request | None:
        """Serve one launcher. Returns its request in the fork only."""
        try:
            stream, _ = self._listener.accept()
        except OSError:
            return None  # it went away before it was served
        received: list[int] = []
        child: Request | None = None
        try:
            request = self._read(stream, received)
            if request is None:
                return None
            require_one_thread()
            pid = os.fork()
            if pid == 0:
                child = request
                self._forget()
                return request
            self._children[pid] = time.monotonic()  # the fork itself answers: this process may be killed at any moment
        except (OSError, ValueError, EOFError, TypeError) as error:
            say(f"a request was not served: {error}")
        except CannotFork as error:
            say(f"cannot fork any more: {error}")
            self._listener.close()
            Path(self.path).unlink(missing_ok=True)
            raise
        finally:
            if child is None:
                stream.close()
                for descriptor in received:
                    os.close(descriptor)
        return None

    def _read(self, stream: socket.socket, received: list[int]) -> Request | None:
        """A launcher's request; None when it only wanted to know whether somebody listens.

        Descriptors that arrived are in `received`, whatever happens.

        Raises:
            ValueError, EOFError, TypeError: what came is no request, or none for this template.
            OSError: it did not come in time.
        """
        deadline = time.monotonic() + _REQUEST_S
        stream.settimeout(_REQUEST_S)
        peer = struct.unpack("3i", stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        if peer != os.geteuid():
            raise ValueError(f"it came from user {peer}")
        head, descriptors, _, _ = socket.recv_fds(stream, 4, 8)
        received += descriptors
        if not head:
            return None
        length = int.from_bytes(head, "big")
        if len(head) != 4 or len(descriptors) != _KEPT_DESCRIPTORS or not 0 < length <= _REQUEST_BYTES:
            raise ValueError(f"{length} bytes with {len(descriptors)} descriptors is no request")
        body = bytearray()
        while len(body) < length:
            stream.settimeout(max(0.001, deadline - time.monotonic()))
            more = stream.recv(length - len(body))
            if not more:
                raise ValueError("it ended in the middle")
            body += more
        arguments, environment, directory = marshal.loads(body)
        if arguments[0] != self._worker:
            raise ValueError(f"it is for {arguments[0]}, and this template has {self._worker}")
        if environment.get(b"RAY_RAYLET_PID") != os.environb[b"RAY_RAYLET_PID"]:
            raise ValueError("it is of another raylet")
        return Request(arguments, environment, directory, tuple(descriptors), stream)

    def _forget(self) -> None:
        """In a fork: let go of what is the template's."""
        self._listener.close()
        for descriptor in (self._raylet, self._ended, self._tell):
            os.close(descriptor)

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            lived_s = time.monotonic() - self._children.pop(pid, time.monotonic())
            code = os.waitstatus_to_exitcode(status)
            if code:
                how = f"by signal {-code}" if code < 0 else f"with {code}"
                say(f"worker {pid} ended {how} after {lived_s:.1f} s")

    def _end(self, why: str) -> None:
        self._listener.close()
        for ending in ("socket", "lock", "deaths"):
            Path(self.path).with_suffix(f".{ending}").unlink(missing_ok=True)
        deadline = time.monotonic() + _RAYLET_GONE_S
        while self._children and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.02)
        for pid in self._children:
            say(f"worker {pid} outlived its raylet and is ended")
            os.kill(pid, signal.SIGKILL)
        say(f"ends: {why}")


def say(what: str) -> None:
    """A line for the template's log, which is its standard error."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} template {os.getpid()}: {what}\n")


def require_one_thread() -> None:
    """Raises CannotFork when this process has more than one thread."""
    threads = os.listdir("/proc/self/task")  # noqa: PTH208 - before every fork
    if len(threads) != 1:
        names = sorted({Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in threads})
        raise CannotFork(f"there are {len(threads)} threads ({', '.join(names)})")


def preload(extra: str) -> CodeType:
    """Import everything; the code of Ray's worker. Raises CannotFork, or whatever a module raises."""
    # Libraries that start threads when they are imported, one for each core, if they are not told otherwise.
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    for module in (*MODULES, *filter(None, extra.split(","))):
        importlib.import_module(module)
        try:
            require_one_thread()
        except CannotFork as error:
            raise CannotFork(f"after importing {module} {error}") from error
    import ray

    if not ray.__version__.startswith(RAY_VERSIONS):
        raise CannotFork(f"Ray is {ray.__version__}, and only {', '.join(RAY_VERSIONS)}* is known to work")
    from flowray.runtime.template import deferred

    deferred.install()
    file = worker_file()
    return compile(Path(file).read_bytes(), file, "exec")


def worker_file() -> str:
    """Ray's default_worker.py."""
    file = sys.modules["ray._private.workers.default_worker"].__file__
    assert file is not None
    return file


def settle() -> None:
    """Put the memory in an order that forks can share for long."""
    gc.collect()
    gc.freeze()  # the collector writes into every object it looks at; it will not look at these any more
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def try_fork() -> None:
    """Fork once, and see whether the fork can do what workers do. Raises CannotFork."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = _trial()
        finally:
            os._exit(status)
    watched = os.pidfd_open(pid)
    try:
        ended = select.select([watched], [], [], _TRIAL_S)[0]
        if not ended:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(watched)
    if not ended:
        raise CannotFork(f"a fork hung for {_TRIAL_S:g} s: something that was imported does not bear forking")
    if status:
        raise CannotFork(f"a fork ended with {os.waitstatus_to_exitcode(status)}: see above")


def _trial() -> int:
    """In the trial fork: threads, an event loop, Ray's settings. Its exit status."""
    import asyncio
    import threading

    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()
    return 0


def main() -> None:
    """`template.py <path> <descriptor>`: serve at <path>.socket, and say so on the descriptor."""
    path, told = sys.argv[1], int(sys.argv[2])
    raylet = int(os.environ["RAY_RAYLET_PID"])
    code = preload(os.environ.get(PRELOAD, ""))
    settle()
    try_fork()
    template = Template(f"{path}.socket", raylet, worker_file())
    if path.rpartition("-")[2] != str(stat_of(raylet)[0]):
        raise CannotFork(f"process {raylet} is not the raylet that asked")
    sys.path.insert(0, str(Path(worker_file()).parent))  # as Python does for a file that it runs
    os.write(told, b"listening")  # fails, and ends us, when the launcher could not wait any longer
    os.close(told)
    say("listens")
    request = template.serve()
    if request is not None:
        become(request, code)


if __name__ == "__main__":
    main()

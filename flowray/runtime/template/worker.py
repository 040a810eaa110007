"""What a fork of the template does before it is a Ray worker like any other."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, ModuleType

from flowray.runtime.resting import main_thread

_GO_S = 10.0  # between the fork and the launcher's word


@dataclass(frozen=True)
class Request:
    """One worker to start."""

    arguments: list[str]  # of Python: the worker's file, and what follows
    environment: dict[bytes, bytes]
    directory: bytes
    streams: tuple[int, ...]  # standard input, output and error: descriptors of this process
    stream: socket.socket  # to the launcher


def become(request: Request, code: CodeType) -> None:
    """Run Ray's worker in this process, to its end. Returns when its launcher did not want it any more.

    Args:
        request: from the launcher.
        code: of Ray's `default_worker.py`.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    request.stream.settimeout(_GO_S)
    try:
        request.stream.sendall(b"P%8d" % os.getpid())
        if request.stream.recv(1) != b"G":
            return
    except OSError:
        return  # the launcher went away, and has started the worker otherwise
    for number, descriptor in enumerate(request.streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    job = os.environ["RAY_JOB_ID"]
    os.environ.clear()
    os.environb.update(request.environment)
    os.environ["RAY_JOB_ID"] = job  # the one that Ray's C++ part has read: both name the worker's log files by it
    os.chdir(request.directory)
    _reseed()
    main_thread.prepare()
    _tell_when_ready(request.stream)

    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")  # Ray's C++ settings, from the new environment
    sys.argv = list(request.arguments)
    main = ModuleType("__main__")
    main.__file__ = request.arguments[0]
    sys.modules["__main__"] = main
    exec(code, main.__dict__)  # Ray's own file, as `python default_worker.py` would run it


def _reseed() -> None:
    """Randomness that every fork would share otherwise. Python's own `random` sees to itself.

    What stays the same in all forks of one template is the seed of `hash()`: sets of strings are iterated in the same
    order in all of them.
    """
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.seed()


def _tell_when_ready(stream: socket.socket) -> None:
    """Tell the launcher when this worker is registered with its raylet and begins to take work."""
    from ray._private.worker import Worker

    main_loop: Callable[[Worker], None] = Worker.main_loop

    def telling(self: Worker) -> None:
        Worker.main_loop = main_loop
        try:
            stream.sendall(b"R")
        except OSError:
            sys.exit(1)  # the launcher has given this worker up and started another of its id
        stream.close()
        main_loop(self)

    Worker.main_loop = telling

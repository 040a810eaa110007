"""A process that is stopped with the journal's lock in its hands: `python -m store.stopped DIRECTORY write|checkpoint`.

It says "ready" and stops itself. If it goes on afterwards it tries to write, and says what came of that.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import sys
from pathlib import Path

from .builders import accept, opened, write
from .child import say


def main(directory: str, what: str) -> None:
    store = opened(Path(directory), "zombie")
    assert write(store, [accept(1)]) is None
    journal = store._journal
    if what == "write":
        with journal._transaction("hold the lock"):
            stop()
    elif what == "checkpoint":
        # As SQLite does while it copies the log, which has no place where one could stop it from here.
        descriptor = os.open(f"{directory}/flowray.db-shm", os.O_RDWR)
        fcntl.fcntl(descriptor, fcntl.F_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 121, 1, 0))
        stop()
    else:
        stop()
    error = write(store, [accept(2)])
    say(type(error).__name__)


def stop() -> None:
    say("ready")
    os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    main(*sys.argv[1:])

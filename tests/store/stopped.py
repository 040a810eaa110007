"""A process that is stopped with the journal's lock in its hands: `python -m store.stopped WHERE write|checkpoint`.

WHERE is a directory, or a URL of PostgreSQL, "#" and the schema. It says "ready" and stops itself. If it goes on
afterwards it tries to write, and says what came of that.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import sys
from pathlib import Path

from flowray.store import open_store

from .builders import accept, config, write
from .child import say


def main(directory: str, what: str) -> None:
    url, _, schema = directory.partition("#")
    # Nothing but its successor is to end it.
    settings = {"url": url, "schema": schema, "idle_transaction_s": 600.0} if schema else {}
    store = open_store(Path(directory), config(**settings))
    store.begin_epoch("zombie")
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

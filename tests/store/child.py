"""A process that appends until it is stopped: `python -m store.child WHERE COUNT waiting|rushing [allow_volatile]`.

WHERE is a directory, or a URL of PostgreSQL, "#" and the schema.

It writes "began E", "ack N" or "fail N" to its standard output, unbuffered, from the moment that it knows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from flowray.errors import StoreError
from flowray.store import StoreConfig, open_store

from .builders import ANYWHERE, Answers, life, snapshot


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def told(number: int, then: Callable[[StoreError | None], None], error: StoreError | None) -> None:
    say(f"ack {number}" if error is None else f"fail {number} {type(error).__name__} {error}")
    then(error)


def main(where: str, count: str, pace: str, volatile: str = "") -> None:
    allowed = tuple(name for name in ANYWHERE if name != "tmpfs")
    url, _, schema = where.partition("#")
    config = StoreConfig(
        url=url if schema else "",
        schema=schema,
        allow_filesystems=allowed if volatile else ANYWHERE,
        allow_volatile=bool(volatile),
        checkpoint_bytes=1_600_000,  # an eighth of it while nothing waits
        queue_commands=500,
        group_commands=100,
    )
    store = open_store(Path(where), config)
    recovery = store.begin_epoch("child")
    # Numbers go on from life to life, so that no task is resolved twice.
    begin = recovery.epoch * 1_000_000
    say(f"began {recovery.epoch}")
    answers = Answers()
    try:
        for done in range(int(count)):
            store.append(life(begin + done), partial(told, begin + done, answers))
            if pace == "waiting":
                answers.wait(done + 1)
            elif done % 400 == 399:
                store.save_snapshot(snapshot(*range(20), at=float(begin)), lambda _: None)
    except StoreError as error:
        say(f"refused {error}")
    store.close()
    say("closed")


if __name__ == "__main__":
    main(*sys.argv[1:])

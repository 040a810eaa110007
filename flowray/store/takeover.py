"""Make way for a successor: end the process that keeps the journal's write lock and does not give it up.

Every process that can be replaced can also still be alive, and fences keep it from doing harm. But one that was
stopped (SIGSTOP, a debugger, a frozen container) in the middle of a transaction keeps SQLite's lock for as long as it
stays so, and no successor could begin. The kernel knows who it is: SQLite's locks are byte ranges of the file
`flowray.db-shm`, and /proc/locks has their owners. So nothing needs to be recorded that could be out of date, or be
about a process whose number another one has by now.

The bytes: https://www.sqlite.org/walformat.html#wal_locks (120 to write, 121 to checkpoint, 122 to recover).
"""

from __future__ import annotations

import os
import select
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from flowray.errors import StoreError

LOCKS = Path("/proc/locks")
_FIRST_BYTE, _LAST_BYTE = 120, 122
_EXIT_S = 10.0  # for a killed process to be gone: one that waits for its disk goes only when that answers


def make_way(connection: sqlite3.Connection, database: Path, patience_s: float) -> None:
    """Return when the write lock can be had, or when nobody can be found who keeps it.

    Another process that keeps it for longer than `patience_s` is killed: its successor is here.
    Raises StoreError when it cannot be, sqlite3.Error as statements do.
    """
    before_ms = connection.execute("PRAGMA busy_timeout").fetchone()[0]
    connection.execute(f"PRAGMA busy_timeout = {int(patience_s * 1000)}")
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname != "SQLITE_BUSY":
            raise
        end_holders(database)
    finally:
        connection.execute(f"PRAGMA busy_timeout = {before_ms}")


def end_holders(database: Path) -> list[int]:
    """Kill whoever else holds an exclusive lock of this database now, and wait until they are gone: their numbers.

    Raises StoreError when one cannot be killed, or does not go.
    """
    ended: list[int] = []
    for pid in dict.fromkeys(holders(database)):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        except OSError as error:
            raise _stays(pid, database, str(error)) from error
        try:
            # Asked again now that the descriptor names one process for good: the number may have changed hands.
            if pid not in holders(database):
                continue
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(_EXIT_S * 1000):
                raise _stays(pid, database, f"it was killed and is not gone after {_EXIT_S:g} s")
            ended.append(pid)
        except ProcessLookupError:
            continue
        except PermissionError as error:
            raise _stays(pid, database, str(error)) from error
        finally:
            os.close(descriptor)
    return ended


def holders(database: Path) -> Iterator[int]:
    """Other processes that hold an exclusive lock of this database, as far as the kernel tells.

    Processes of other containers and machines have no number here: they are not among them.
    """
    try:
        shared = Path(f"{database}-shm").stat()
        lines = LOCKS.read_text().splitlines()
    except OSError:
        return
    file = f"{os.major(shared.st_dev):02x}:{os.minor(shared.st_dev):02x}:{shared.st_ino}"
    for line in lines:
        fields = line.split()
        # 1: POSIX  ADVISORY  WRITE 16268 fe:00:2146440 120 120  (who waits for a lock has "->" in the second place)
        if len(fields) != 8 or fields[1] != "POSIX" or fields[3] != "WRITE" or fields[5] != file:
            continue
        pid, first, last = int(fields[4]), int(fields[6]), fields[7]
        overlaps = first <= _LAST_BYTE and (last == "EOF" or int(last) >= _FIRST_BYTE)
        if overlaps and pid > 0 and pid != os.getpid():
            yield pid


def _stays(pid: int, database: Path, why: str) -> StoreError:
    return StoreError(f"process {pid} keeps the write lock of {database} and cannot be ended ({why}): end it first")

"""Faults on demand: a process whose N-th system call of a kind kills it, fails, or is late.

Processes are forked from a server that has everything imported, and strace is attached when they are ready: a tenth
of a second for each point instead of two. strace counts calls for each thread; each part of the script does its
writing in one thread, so every call can be hit.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flowray.store.schema import FILE_NAME

from .script import play

STRACE = shutil.which("strace")
SYNCS = ("fdatasync", "fsync")
# What changes a file or a directory. writev is what the process says, and is never hit.
CALLS = (*SYNCS, "pwrite64", "write", "ftruncate", "fallocate", "rename", "link", "unlink")
_TRACED = ",".join((*CALLS, "renameat", "renameat2", "linkat", "unlinkat", "writev"))
_LINE = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)(\(| resumed>)(.*)$", re.DOTALL)


class NoTracing(Exception):
    """This machine lets nobody trace; the message says why."""


@dataclass(frozen=True)
class Call:
    """One system call from strace's log, in the order of its end."""

    thread: int
    name: str
    text: str  # arguments and result
    begun: int  # line where it began
    ended: int  # line where it ended

    @property
    def failed(self) -> bool:
        return " = -1 " in self.text or self.text.endswith("= ?")


@dataclass(frozen=True)
class Life:
    """What one process did."""

    status: int  # exit status; negative: the signal that killed it
    said: tuple[str, ...]
    calls: tuple[Call, ...]

    @property
    def acks(self) -> int:
        return sum(line.startswith("ack ") for line in self.said)


def fast_directory() -> Path | None:
    """Where files are in memory: the faults are made, so no real disk is needed."""
    place = Path("/dev/shm")
    return place if place.is_dir() and os.access(place, os.W_OK) else None


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="flowray-crash-", dir=fast_directory()) as name:
        yield Path(name)


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["store.script"])
    return context


def _body(part: str, directory: str, said: str, gate: Connection) -> None:
    def wait() -> None:
        gate.send_bytes(b"ready")
        gate.recv_bytes()

    play(part, Path(directory), Path(said), wait)


def live(part: str, directory: Path, inject: str = "", *, traced: bool = True) -> Life:
    """One life under strace, with a fault (`fdatasync:error=EIO:when=3`) or without; or not even traced.

    Raises:
        NoTracing: strace is not there, or not allowed to.
    """
    if STRACE is None:
        raise NoTracing("strace is not installed (apt-get install strace)")
    context = _context()
    with tempfile.TemporaryDirectory(dir=fast_directory()) as name:
        log, said = Path(name, "log"), Path(name, "said")
        ours, theirs = context.Pipe()
        process = context.Process(target=_body, args=(part, str(directory), str(said), theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            if not ours.poll(60):
                raise AssertionError(f"{part} was not ready within a minute")
            ours.recv_bytes()
            with _attached(process.pid, log, inject) if traced else contextlib.nullcontext():
                ours.send_bytes(b"go")
                process.join(60)
                if process.exitcode is None:
                    raise AssertionError(f"{part} with {inject or 'no fault'} did not end within a minute")
        finally:
            process.kill()
            process.join()
            ours.close()
        words = said.read_text() if said.exists() else ""
        # A last line without its end was never read by anybody.
        whole = tuple(words[: words.rfind("\n") + 1].splitlines())
        return Life(process.exitcode, whole, tuple(_parsed(log.read_text())) if traced else ())


@contextlib.contextmanager
def _attached(pid: int, log: Path, inject: str) -> Iterator[None]:
    """Traced from here on. The log is complete afterwards."""
    assert STRACE is not None
    command = [STRACE, "-f", "-y", "-s", "40", "-o", str(log), "-e", f"trace={_TRACED}", "-e", "signal=none"]
    if inject:
        command += ["-e", f"inject={inject}"]
    tracer = subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    heard = ""
    try:
        while "attached" not in heard:
            line = tracer.stderr.readline()
            if not line:
                raise NoTracing(f"strace cannot attach here: {heard.strip()}")
            heard += line
        yield
        tracer.wait(20)
    finally:
        tracer.kill()
        tracer.wait()
        tracer.stderr.close()


def _parsed(log: str) -> Iterator[Call]:
    begun: dict[int, tuple[str, str, int]] = {}
    for number, line in enumerate(log.splitlines()):
        match = _LINE.match(line)
        if match is None:
            continue
        thread, name, kind, text = int(match[1]), match[2], match[3], match[4]
        if kind == "(" and text.endswith("<unfinished ...>"):
            begun[thread] = (name, text.removesuffix("<unfinished ...>"), number)
        elif kind == "(":
            yield Call(thread, name, text, number, number)
        else:
            _, start, at = begun.pop(thread, ("", "", number))
            yield Call(thread, name, start + text, at, number)
    for thread, (name, text, at) in begun.items():  # the process ended within it
        yield Call(thread, name, f"{text} = ?", at, 1 << 62)


def counted(life: Life) -> Counter[str]:
    """How often the busiest thread makes each call: `when` counts for each thread."""
    found: dict[int, Counter[str]] = {}
    for call in life.calls:
        found.setdefault(call.thread, Counter())[call.name] += 1
    most: Counter[str] = Counter()
    for each in found.values():
        most |= each
    return most


def early(life: Life) -> list[str]:
    """Answers that were given before what they are about was on disk: each is a broken promise.

    On disk means: the log was synced, without an error, after the last write to it.
    """
    found: list[str] = []
    dirty_from, broken = -1, False
    for call in sorted(life.calls, key=lambda call: call.ended):
        if call.name == "pwrite64" and "-wal>" in call.text:
            dirty_from = call.ended
        elif call.name in SYNCS and "-wal>" in call.text:
            # What could not be synced once is never known to be on disk, whatever a later sync says.
            broken = broken or (call.failed and dirty_from >= 0)
            if call.begun > dirty_from:
                dirty_from = -1
        elif call.name == "writev" and '"ack ' in call.text and (dirty_from >= 0 or broken):
            found.append(call.text)
    return found


def synced_after_failure(life: Life) -> list[Call]:
    """Syncs of the database or of its log, after one of the same file failed: their answer proves nothing."""
    found: list[Call] = []
    failed: set[str] = set()
    for call in life.calls:
        path = call.text[call.text.find("<") + 1 : call.text.find(">")]
        if call.name in SYNCS and path.endswith((FILE_NAME, "-wal")):
            if path in failed:
                found.append(call)
            if call.failed:
                failed.add(path)
    return found

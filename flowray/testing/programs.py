"""A program inside a node, and what the host sees of a node's processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from flowray.errors import FlowrayError

POLL_S = 0.02


class ClusterFailed(FlowrayError):
    """The cluster, or a process in it, did not do what it was asked for; the message has the end of its output."""


class Process:
    """A program that runs inside a node. Its output goes to a file, whole."""

    def __init__(self, popen: subprocess.Popen[bytes], output: Path, what: str) -> None:
        self._popen = popen
        self._what = what
        self.output_path = output

    @property
    def pid(self) -> int:
        """As the host calls it."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._popen.poll()

    @property
    def output(self) -> str:
        """What it has written so far, standard error included."""
        return self.output_path.read_text(errors="replace")

    def wait(self, timeout_s: float) -> int:
        """Its exit status, when it has ended. Raises ClusterFailed when it does not within `timeout_s`."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ClusterFailed(f"{self._what} still runs after {timeout_s:g} s:\n{tail(self.output)}") from None

    def check(self, timeout_s: float) -> str:
        """Its output, when it has ended well. Raises ClusterFailed otherwise."""
        status = self.wait(timeout_s)
        if status:
            raise ClusterFailed(f"{self._what} ended with {status}:\n{tail(self.output)}")
        return self.output

    def kill(self) -> None:
        """End it with SIGKILL, and whatever it has started."""
        if self._popen.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self._popen.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
            self._popen.kill()
            self._popen.wait()


def wait_until(condition: Any, timeout_s: float, what: str, poll_s: float = POLL_S) -> Any:
    """The first true value of `condition()`. Raises ClusterFailed, naming `what`, when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise ClusterFailed(f"not within {timeout_s:g} s: {what}")
        time.sleep(poll_s)
    return value


def tail(text: str, lines: int = 30) -> str:
    """The last lines of an output."""
    return "\n".join(text.splitlines()[-lines:])


# ── PID namespaces ───────────────────────────────────────────────────────────────────────────────────────────────────


def only_child(pid: int) -> int:
    """Host pid of the one process that this one has started. Raises ClusterFailed when there is not one."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if len(children) != 1:
        raise ClusterFailed(f"process {pid} should have one child, not {children}")
    return int(children[0])


def pids_of_space(first: int) -> list[int]:
    """Host pids of all processes in the PID namespace of `first`."""
    try:
        space = os.readlink(f"/proc/{first}/ns/pid")  # noqa: PTH115 - it is no path, only looks like one
    except OSError:
        return []
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - names, not paths
        if name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if os.readlink(f"/proc/{name}/ns/pid") == space:  # noqa: PTH115
                    found.append(int(name))
    return sorted(found)


def inner_pid(pid: int) -> int:
    """What a process's own namespace calls it: the last number of NSpid. 0 if it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return 0


def command_line(pid: int) -> str:
    """As `ps` shows it; "" for a process that has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""

"""Running one side of a measurement in a fresh process, so that sides share neither heap nor caches nor a Ray."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.measure import SideAbsent, SideFailed

ROOT = Path(__file__).resolve().parent.parent
LOCK_VARIABLE = "FLOWRAY_BENCH_LOCK"
ABSENT = "absent"  # what a worker prints instead of figures: {"absent": reason}
_STOP_S = 30.0  # between SIGTERM and SIGKILL: Ray takes some seconds to end its processes


class WorkerFailed(SideFailed):
    """A side's process did not give its figures."""


def run_worker(
    name: str, settings: Mapping[str, Any], *, timeout_s: float, python: str | Path = sys.executable
) -> dict[str, Any]:
    """Run `bench.workers.<name>`, with this `python`, and return what it printed.

    It waits for the lock (flock) of the file that FLOWRAY_BENCH_LOCK names, if there is one: whoever else on this
    machine uses the same file does not run at the same time.

    Raises:
        SideAbsent: it said that it cannot take part.
        WorkerFailed: it did not end in time, ended badly or printed something else; with the end of its errors.
    """
    command = [str(python), "-m", f"bench.workers.{name}", json.dumps(settings)]
    with _locked(os.environ.get(LOCK_VARIABLE, "")), tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=clean_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise WorkerFailed(f"{name} took more than {timeout_s:g} s{_tail(errors)}") from None
        finally:
            _end(process)
        if process.returncode != 0:
            raise WorkerFailed(f"{name} ended with {process.returncode}{_tail(errors)}")
        try:
            found: dict[str, Any] = json.loads(output)
        except ValueError:
            raise WorkerFailed(f"{name} printed no JSON but {output[:200]!r}{_tail(errors)}") from None
        if ABSENT in found:
            raise SideAbsent(found[ABSENT])
        return found


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what would join somebody's cluster or change a side's configuration behind our back."""
    return {
        name: value
        for name, value in environment.items()
        if name != "RAY_ADDRESS" and not name.startswith(("FLOWRAY_", "RAY_JOB", "GRPC_", "PYTHONPATH"))
    }


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    if not path:
        yield
        return
    with Path(path).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a worker that is still there, and what is left of its process group, which bears its number."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _tail(errors: Any) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").splitlines()[-15:]
    return ":\n" + "\n".join(lines) if lines else ""

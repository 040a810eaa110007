"""Environments of peers: a virtual environment for each, made when it is first needed, with pinned versions.

A peer's packages would change ours (AutoGen needs another grpcio) and no test needs them, so they are installed beside
the project and not into it: `bench/.peers/NAME-HASH`, where the hash is that of the pins and of the interpreter. New
pins make a new environment; the old one may be deleted by hand. What cannot be made is a reason, not a failure: the
peer is then absent from the run, and the document says why.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.measure import SideAbsent, say

HERE = Path(__file__).resolve().parent
PINS = HERE / "peers"  # NAME.txt: the whole environment, `package==version` in each line
MADE = HERE / ".peers"
_INSTALL_S = 900.0
_READY = "ready"  # written last: an environment without it was interrupted and is made again

Run = Callable[[Sequence[str]], None]


def python_of(name: str, *, pins: Path = PINS, made: Path = MADE, run: Run | None = None) -> Path:
    """The interpreter of a peer's environment, which is made if there is none.

    Raises:
        SideAbsent: it cannot be made, with what pip said.
    """
    text = (pins / f"{name}.txt").read_text()
    home = made / f"{name}-{_fingerprint(text)}"
    python = home / "bin" / "python"
    made.mkdir(exist_ok=True)
    # Two benchmarks at once: the second waits and finds it made. The kernel drops the lock with its holder.
    with (made / f"{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / _READY).exists():
            say(f"making the environment of {name} in {home}")
            shutil.rmtree(home, ignore_errors=True)
            _make(name, home, python, pins / f"{name}.txt", run or _run)
            (home / _READY).touch()
    return python


def versions_of(name: str, packages: Sequence[str], *, pins: Path = PINS) -> dict[str, str]:
    """What is pinned for these packages, under `PEER's PACKAGE` when the project has one of that name too."""
    found = {}
    for line in (pins / f"{name}.txt").read_text().splitlines():
        package, _, version = line.partition("==")
        if package in packages:
            found[package if package.startswith(name) else f"{name}'s {package}"] = version.strip()
    return found


def _fingerprint(text: str) -> str:
    of = f"{sys.version_info[:3]} {sys.platform} {os.uname().machine}\n{text}"
    return hashlib.sha256(of.encode()).hexdigest()[:12]


def _make(name: str, home: Path, python: Path, pins: Path, run: Run) -> None:
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
    try:
        run([sys.executable, "-m", "venv", str(home)])
        run([*pip, "--requirement", str(pins)])
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or "").splitlines() if not line.startswith("WARNING")]
        why = " / ".join(lines[-3:]) or f"ended with {error.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    else:
        return
    shutil.rmtree(home, ignore_errors=True)
    raise SideAbsent(f"its environment could not be made: {why}") from None


def _run(command: Sequence[str]) -> None:
    subprocess.run(
        command,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=_INSTALL_S,
    )

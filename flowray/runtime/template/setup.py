"""Puts the launcher in the place of `sys.executable` while a node of Ray is started."""

from __future__ import annotations

import hashlib
import os
import py_compile
import shlex
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowray.errors import FlowrayError
from flowray.runtime.template import launcher
from flowray.runtime.template.template import PRELOAD

_SOURCE = Path(launcher.__file__)


class NoTemplate(FlowrayError):
    """Workers cannot be forked on this machine; they start as Ray starts them."""


def directory() -> Path:
    """Where launchers and sockets of this user lie; made if there is none. Nobody else may enter it.

    Raises:
        NoTemplate: it cannot be made, or is somebody else's.
    """
    # Not in TMPDIR: a socket's whole path has 107 bytes, and all nodes on a machine are to find the same.
    path = Path("/tmp") / f"flowray-{os.geteuid()}"  # noqa: S108 - checked below
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise NoTemplate(f"{path} cannot be made: {error}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise NoTemplate(f"{path} is somebody else's: remove it")
    if found.st_mode & 0o077:
        path.chmod(0o700)
    return path


def install() -> Path:
    """Write down the launcher for this Python, if it is not there, and remove what is left of raylets that are gone.

    Returns:
        An executable file that takes the arguments of Python.

    Raises:
        NoTemplate: it cannot be written, or this machine cannot run it.
    """
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        raise NoTemplate("forking workers needs Linux 5.3 or later")
    python = sys.executable
    here = directory()
    template = _SOURCE.with_name("template.py")
    name = hashlib.sha256(b"\0".join([_SOURCE.read_bytes(), python.encode(), str(template).encode()])).hexdigest()[:16]
    code, file = here / f"{name}.pyc", here / f"{name}.python"
    try:
        _sweep(here)
        if not file.exists():
            py_compile.compile(str(_SOURCE), cfile=str(code), doraise=True)
            words = [python, "-IS", str(code), python, str(here), str(template)]
            _write(file, f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    except (OSError, py_compile.PyCompileError) as error:
        raise NoTemplate(f"the launcher cannot be written to {here}: {error}") from error
    return file


@contextmanager
def in_place(file: Path, preload: tuple[str, ...] = ()) -> Iterator[None]:
    """Have Ray start its processes by the launcher while it is entered: by `ray.init`, or Ray's own command line.

    Args:
        file: from `install`.
        preload: modules that workers will find imported, besides Ray's and flowray's own.
    """
    executable, before = sys.executable, os.environ.get(PRELOAD)
    sys.executable = str(file)
    if preload:
        os.environ[PRELOAD] = ",".join(preload)
    try:
        yield
    finally:
        sys.executable = executable
        if preload:
            if before is None:
                os.environ.pop(PRELOAD, None)
            else:
                os.environ[PRELOAD] = before


def trouble(raylet_pid: int) -> list[str]:
    """Why templates of a raylet on this machine were given up; empty when all is well."""
    files = sorted(directory().glob(f"*-{raylet_pid}-*.broken"))
    return [file.read_text() for file in files]


def _write(file: Path, text: str) -> None:
    """Whole or not at all: others may be starting nodes at the same moment."""
    descriptor, temporary = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(descriptor, "w") as output:
        output.write(text)
    os.chmod(temporary, 0o700)
    os.rename(temporary, file)


def _sweep(here: Path) -> None:
    """Remove files of raylets that are gone, of this process namespace: others cannot be looked up from here."""
    namespace = f"{os.stat('/proc/self/ns/pid').st_ino:x}"
    for file in here.glob(f"{namespace}-*"):
        _, pid, began, _ = file.name.split("-", 3)
        try:
            gone = launcher.stat_of(int(pid))[0] != int(began)
        except (OSError, ValueError, IndexError):
            gone = True
        if gone:
            file.unlink(missing_ok=True)

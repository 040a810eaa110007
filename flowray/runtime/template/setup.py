"""Puts the launcher in the place of `sys.executable` while a node of Ray is started."""

from __future__ import annotations

import hashlib
import os
import py_compile
import shlex
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowray.errors import FlowrayError
from flowray.runtime.template import launcher

PRELOAD = "FLOWRAY_TEMPLATE_PRELOAD"  # environment of a node: further modules for its template, with commas between
_RUN_S = 20.0  # for an empty program, once
_SOURCE = Path(launcher.__file__)


class NoTemplate(FlowrayError):
    """Workers cannot be forked on this machine; they start as Ray starts them."""


def directory() -> Path:
    """Where the sockets of this user's templates lie; made if there is none. Nobody else may enter it.

    Raises:
        NoTemplate: it cannot be made, or is somebody else's.
    """
    # Not in TMPDIR or at home: a socket's whole path has 107 bytes, and file systems of networks have no sockets.
    return _private(Path("/tmp") / f"flowray-template-{os.geteuid()}")


def install() -> Path:
    """Write down the launcher for this Python, if it is not there, and remove what is left of raylets that are gone.

    Returns:
        An executable file that takes the arguments of Python.

    Raises:
        NoTemplate: it cannot be written, or this machine cannot run it.
    """
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        raise NoTemplate("forking workers needs Linux 5.3 or later")
    here = directory()
    _sweep(here)
    template = str(_SOURCE.with_name("template.py"))
    # At home, and named by what it is: nodes use it as long as they run, and /tmp is swept on many machines.
    at_home = _private(Path.home() / ".flowray" / ".launcher")
    what = [_SOURCE.read_bytes(), sys.executable.encode(), sys.version.encode(), str(here).encode(), template.encode()]
    name = hashlib.sha256(b"\0".join(what)).hexdigest()[:16]
    code, file = at_home / f"{name}.pyc", at_home / f"{name}.python"
    try:
        if not (file.exists() and code.exists()):
            py_compile.compile(str(_SOURCE), cfile=str(code), doraise=True)
            words = [sys.executable, "-IS", str(code), sys.executable, str(here), template]
            _write(file, f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            subprocess.run([str(file), "-c", "pass"], check=True, timeout=_RUN_S, capture_output=True)
    except (OSError, py_compile.PyCompileError, subprocess.SubprocessError) as error:
        file.unlink(missing_ok=True)
        raise NoTemplate(f"the launcher cannot be written to {at_home} and run there: {error}") from error
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


def trouble() -> list[str]:
    """Why templates of the node that this process has started were given up; empty when all is well."""
    from ray._private.worker import _global_node

    raylets = _global_node.all_processes.get("raylet", []) if _global_node is not None else []
    files = [directory() / f"{launcher.key_of(raylet.process.pid)}.broken" for raylet in raylets]
    return [file.read_text() for file in files if file.exists()]


def _private(path: Path) -> Path:
    """The directory, made if there is none, and nobody's but ours."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise NoTemplate(f"{path} is somebody else's: remove it")
        if found.st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise NoTemplate(f"{path} cannot be made: {error}") from error
    return path


def _write(file: Path, text: str) -> None:
    """Whole or not at all: others may be starting nodes at the same moment."""
    descriptor, temporary = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(descriptor, "w") as output:
        output.write(text)
    Path(temporary).chmod(0o700)
    Path(temporary).rename(file)


def _sweep(here: Path) -> None:
    """Remove files of raylets that are gone, of this process namespace: others cannot be looked up from here."""
    namespace = f"{Path('/proc/self/ns/pid').stat().st_ino:x}"
    for file in here.glob(f"{namespace}-*"):
        _, pid, rest = file.name.split("-", 2)
        try:
            gone = launcher.stat_of(int(pid))[0] != int(rest.partition(".")[0])
        except (OSError, ValueError, IndexError):
            gone = True
        if gone:
            file.unlink(missing_ok=True)

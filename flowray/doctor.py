"""Look at this machine for what usually goes wrong, before it does: each finding says what to do about it."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from flowray.config import Config
from flowray.errors import MissingExtra, StoreError
from flowray.store import filesystem
from flowray.store.config import StoreConfig
from flowray.store.reading import describe

OK, WARN, FAIL = "ok", "warn", "fail"
_REDIS_PORT = 6379
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: str  # ok | warn | fail
    text: str
    way_out: str = ""  # "" when it is ok


def examine(config: Config, environment: Mapping[str, str], home: Path) -> list[Finding]:
    """Look at everything. Takes a second at most and starts nothing."""
    checks: list[Callable[[], Finding]] = [
        _python,
        _ray,
        lambda: _memory(config),
        lambda: _shared_memory(config),
        lambda: _cpus(config),
        lambda: _journal(config, home),
        _redis,
        _open_files,
        lambda: _token(environment, home),
        lambda: _left_over(home),
        lambda: _clock(time.time()),
    ]
    return [check() for check in checks]


def _python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    text = ".".join(map(str, version))
    if version >= (3, 11):
        return Finding(name="Python", state=OK, text=text)
    return Finding(name="Python", state=FAIL, text=f"{text}; 3.11 is the oldest supported", way_out="use a newer one")


def _ray() -> Finding:
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        return Finding(name="Ray", state=FAIL, text="not installed", way_out="pip install flowray")
    wanted = next((r for r in metadata.requires("flowray") or [] if r.startswith("ray")), "")
    if version.split(".")[:2] == ["2", "60"]:
        return Finding(name="Ray", state=OK, text=version)
    text = f"{version}; this flowray was made for {wanted or '2.60'}"
    return Finding(name="Ray", state=FAIL, text=text, way_out="pip install 'ray[serve]>=2.60,<2.61'")


def _memory(config: Config) -> Finding:
    free = psutil.virtual_memory().available
    agents = sum(a.count for a in config.agents)
    # A stock Ray worker takes about 65 MB of its own; the object store and Ray's own processes about 1 GiB.
    wanted = _GIB + (config.ray.object_store_mb << 20) + agents * (65 << 20)
    text = f"{free / _GIB:.1f} GiB free" + (f", {wanted / _GIB:.1f} GiB wanted for {agents} agents" if agents else "")
    if free >= wanted:
        return Finding(name="memory", state=OK, text=text)
    way_out = "end something else, lower ray.object_store_mb, or have fewer agents"
    return Finding(name="memory", state=FAIL if free < wanted / 2 else WARN, text=text, way_out=way_out)


def _shared_memory(config: Config) -> Finding:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Finding(
            name="/dev/shm", state=WARN, text="missing; Ray will use /tmp, slowly", way_out="mount a tmpfs there"
        )
    free, wanted = shutil.disk_usage(path).free, config.ray.object_store_mb << 20
    text = f"{free / _GIB:.2f} GiB free, {wanted / _GIB:.2f} GiB wanted for the object store"
    if free >= wanted:
        return Finding(name="/dev/shm", state=OK, text=text)
    return Finding(
        name="/dev/shm", state=WARN, text=text, way_out="docker run --shm-size=2g, or lower ray.object_store_mb"
    )


def _cpus(config: Config) -> Finding:
    usable = len(os.sched_getaffinity(0))
    wanted = config.ray.num_cpus or usable
    text = f"{usable} usable"
    if wanted > 4 * usable:
        way_out = "lower ray.num_cpus"
        return Finding(name="CPUs", state=WARN, text=f"{text}, ray.num_cpus says {wanted}", way_out=way_out)
    if usable < 2:
        return Finding(
            name="CPUs", state=WARN, text=f"{text}: Ray's own processes need one", way_out="use a larger machine"
        )
    return Finding(name="CPUs", state=OK, text=text)


def _journal(config: Config, home: Path) -> Finding:
    if config.store.url:
        return _server(config.store)
    directory = Path(config.journal).expanduser() if config.journal else home / ".flowray"
    existing = next(path for path in [directory, *directory.absolute().parents] if path.exists())
    if not os.access(existing, os.W_OK):
        way_out = "name another directory in `journal`"
        return Finding(name="journal", state=FAIL, text=f"{existing} cannot be written to", way_out=way_out)
    try:
        filesystem.refuse_unfit(existing, config.store)
    except StoreError as error:
        text, _, way_out = str(error).partition(": ")
        return Finding(name="journal", state=FAIL, text=text, way_out=way_out)
    kind = filesystem.filesystem_of(existing.resolve(), filesystem.MOUNTINFO.read_text())
    free = shutil.disk_usage(existing).free
    text = f"{directory} on {kind}, {free / _GIB:.1f} GiB free"
    if free < _GIB:
        return Finding(
            name="journal", state=WARN, text=text, way_out="make room, or name another directory in `journal`"
        )
    return Finding(name="journal", state=OK, text=text)


def _server(config: StoreConfig) -> Finding:
    """Can the store in PostgreSQL be reached from this machine?"""
    try:
        from flowray.store import postgres_schema

        begun = "has a journal" if postgres_schema.exists(config) else "has no journal yet"
    except MissingExtra as error:
        text, _, way_out = str(error).partition(": ")
        return Finding(name="journal", state=FAIL, text=text, way_out=way_out)
    except StoreError as error:
        return Finding(name="journal", state=FAIL, text=str(error), way_out="see that `psql` gets there from here")
    return Finding(name="journal", state=OK, text=f"{describe(Path(), config)} can be reached, and {begun}")


def _redis(port: int = _REDIS_PORT) -> Finding:
    """flowray never takes 6379, but a plain `ray start` would, and a Redis there confuses `address="auto"`."""
    name = f"port {port}"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.3) as connection:
            connection.settimeout(0.3)
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
    except OSError as error:
        taken = isinstance(error, TimeoutError)
        text = "taken, by no Redis" if taken else "free"
        return Finding(name=name, state=OK, text=f"{text}; flowray uses another")
    if answer.startswith((b"+PONG", b"-")):
        text = "a Redis listens here; a plain `ray start --head` would fail"
        return Finding(name=name, state=WARN, text=text, way_out="use `flowray up`, or ray start --port=<another>")
    return Finding(name=name, state=OK, text="taken, by no Redis; flowray uses another")


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= 4096 or soft == resource.RLIM_INFINITY:
        return Finding(name="open files", state=OK, text=f"up to {soft}")
    way_out = f"ulimit -n {min(65536, hard) if hard != resource.RLIM_INFINITY else 65536}"
    return Finding(name="open files", state=WARN, text=f"up to {soft}; Ray wants 4096 or more", way_out=way_out)


def _token(environment: Mapping[str, str], home: Path) -> Finding:
    name, mode = "Ray token", environment.get("RAY_AUTH_MODE", "")
    if mode == "disabled":
        text = "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports can run code as you"
        return Finding(name=name, state=FAIL, text=text, way_out="unset RAY_AUTH_MODE")
    if environment.get("RAY_AUTH_TOKEN"):
        return Finding(name=name, state=OK, text="from RAY_AUTH_TOKEN")
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    if not file.exists():
        return Finding(name=name, state=OK, text=f"{file} will be made, for you alone")
    rights = file.stat().st_mode & 0o777
    if rights & 0o077:
        text = f"{file} has mode {rights:04o}: others on this machine can read it"
        return Finding(name=name, state=FAIL, text=text, way_out=f"chmod 600 {file}")
    return Finding(name=name, state=OK, text=f"{file}, mode {rights:04o}")


def _left_over(home: Path) -> Finding:
    from flowray.runtime import service

    found = [file.parent.name for file in sorted((home / ".flowray").glob("*/up.json"))]
    stale = [name for name in found if service.running(name) is None]
    if stale:
        text = f"written down but not running any more: {', '.join(stale)}"
        return Finding(name="runtimes", state=WARN, text=text, way_out=f"flowray down --name {stale[0]}")
    return Finding(name="runtimes", state=OK, text=f"up: {', '.join(found)}" if found else "none up")


def _clock(now: float) -> Finding:
    """Deadlines and tokens go by the clock; a machine that woke in 1970 fails in ways that nobody understands."""
    newest = Path(__file__).stat().st_mtime
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < newest - 86_400:
        way_out = "set the clock (timedatectl set-ntp true)"
        return Finding(name="clock", state=FAIL, text=f"{text} is before flowray was installed", way_out=way_out)
    return Finding(name="clock", state=OK, text=text)

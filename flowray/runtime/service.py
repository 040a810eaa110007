"""A runtime that outlives the command that started it: `up` starts Ray's head and a coordinator, `down` ends them.

The head is kept by a supervisor (`runtime.head`), which is what runs. Where its control store outlives it, so do its
address and its name (~/.flowray/<name>/head.json), until `down`: nodes and agents elsewhere wait for it to come back.

What was started is written down in ~/.flowray/<name>/up.json, with the moment at which each process began: a process
id alone may belong to somebody else by the time `down` comes. Nothing is ever ended by name, and `ray stop`, which
ends every Ray on the machine, is not used.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec
import psutil
from msgspec import Struct, structs

from flowray.config import Config
from flowray.errors import ConfigError, FlowrayError, NotConnected

if TYPE_CHECKING:
    from flowray.runtime.runtime import Runtime

_WATCH_S = 0.5  # between two looks of a process that stays with its head
_STOP_S = 10.0  # between SIGTERM and SIGKILL
_LAST_STARTED = Path("/tmp/ray/ray_current_cluster")
_KEPT = "head.json"
_REDIS_PORT = 6379  # Ray's own default, and everybody's Redis: never taken


class Process(Struct, frozen=True):
    """One process, told apart from a later one of the same id by when it began."""

    pid: int
    began_at: float  # seconds since the epoch, as the kernel says

    @classmethod
    def of(cls, process: psutil.Process) -> Process:
        """Raises psutil.NoSuchProcess when it is gone."""
        return cls(process.pid, process.create_time())

    def find(self) -> psutil.Process | None:
        """The process, unless it has ended."""
        try:
            found = psutil.Process(self.pid)
            if abs(found.create_time() - self.began_at) > 0.05 or found.status() == psutil.STATUS_ZOMBIE:
                return None
        except psutil.NoSuchProcess:
            return None
        return found


class Kept(Struct, frozen=True, kw_only=True):
    """What must be the same when a head is started again on the same store."""

    address: str  # host:port
    dashboard: str  # host:port; "" without one
    home: str  # label of the node, which the coordinator is placed by
    store: str  # as the configuration has it
    store_path: str = ""  # directory of an embedded store, all of it ours


class Up(Struct, frozen=True, kw_only=True):
    """What `up` started."""

    name: str
    address: str  # of Ray's control store, host:port
    dashboard: str  # host:port; "" without one
    head: Process
    children: tuple[Process, ...] = ()  # of the head, once all were up
    log: str = ""
    journal: str = ""


def directory_of(name: str) -> Path:
    """Where what belongs to a runtime of this name is kept."""
    return Path.home() / ".flowray" / name


def read(name: str) -> Up | None:
    """What is written down of a runtime; None when nothing is. Raises FlowrayError for a file that cannot be read."""
    file = directory_of(name) / "up.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=Up)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise FlowrayError(f"{file} cannot be read ({error}): remove it if nothing of it runs any more") from error


def running(name: str) -> Up | None:
    """What is written down of a runtime, if its head still runs."""
    up = read(name)
    return up if up is not None and up.head.find() is not None else None


def all_known() -> Iterator[Up]:
    """Every runtime that is written down, by name."""
    for file in sorted((Path.home() / ".flowray").glob("*/up.json")):
        known = read(file.parent.name)
        if known is not None:
            yield known


def address_of(name: str, environment: Mapping[str, str]) -> str:
    """Where a runtime is: what `up` wrote down, else RAY_ADDRESS, else the cluster that Ray started here last.

    Raises:
        NotConnected: there is none, or nobody answers there (Ray itself would try for minutes).
    """
    up = running(name)
    address = up.address if up is not None else environment.get("RAY_ADDRESS", "") or _last_started()
    if not address:
        raise NotConnected(f"no runtime {name!r} is up on this machine")
    return checked(address)


def checked(address: str) -> str:
    """The address, if somebody answers there. Raises NotConnected."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError("--address", f"wants host:port, got {address!r}")
    if not _listens(address):
        raise NotConnected(f"no Ray cluster answers at {address}")
    return address


def _last_started() -> str:
    """Ray's own note of the cluster that was started here last; it stays when the cluster is gone."""
    try:
        return _LAST_STARTED.read_text().strip()
    except OSError:
        return ""


def start_head(config: Config, *, host: str, dashboard: bool, timeout_s: float) -> Up:
    """Start Ray's head in the background and wait until it answers.

    Raises:
        FlowrayError: it is not up in time, or ended; the message has the end of its log.
    """
    from flowray.runtime import head as heads
    from flowray.runtime.cluster import ensure_token, ray_environment

    ensure_token()
    directory = directory_of(config.name)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = directory / "up.log"
    kept = _kept(config, host=host, dashboard=dashboard)
    address, board = kept.address, kept.dashboard
    told = heads.head_of(config, address=address, dashboard=board, home=kept.home, store_path=kept.store_path)
    environment = {**os.environ, **ray_environment(config), "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)  # a head joins nobody
    with _private(log) as output:
        head = subprocess.Popen(
            heads.command(told),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=directory,
            start_new_session=True,  # the terminal's Ctrl-C and its end are not for it
        )
    up = Up(name=config.name, address=address, dashboard=board, head=Process.of(psutil.Process(head.pid)), log=str(log))
    _write(up)  # at once: should this process die now, `down` still finds the head
    try:
        _wait_until_up(head, address, log, timeout_s)
    except BaseException:
        stop_head(up)
        raise
    up = structs.replace(up, children=_children(up.head))
    _write(up)
    return up


def stop_head(up: Up) -> int:
    """End the head and its children; how many processes had to be ended. Forgets what was written down."""
    targets = list(dict.fromkeys([up.head, *_children(up.head), *up.children]))
    found = [process for process in (target.find() for target in targets) if process is not None]
    for process in found[:1] if up.head.find() is not None else []:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _wait_gone(targets[:1], _STOP_S)
    for send in (psutil.Process.terminate, psutil.Process.kill):
        for target in targets:
            process_left = target.find()
            if process_left is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    send(process_left)
        if _wait_gone(targets, _STOP_S):
            break
    (directory_of(up.name) / "up.json").unlink(missing_ok=True)
    if _last_started().rpartition(":")[2] == up.address.rpartition(":")[2]:
        # Whoever asks Ray for "auto" would otherwise wait for a cluster that is gone.
        with contextlib.suppress(OSError):
            _LAST_STARTED.unlink()
    return len(found)


def up(
    config: Config, *, host: str = "127.0.0.1", dashboard: bool = True, wait_s: float = 120.0
) -> tuple[Up, bool, float]:
    """Start a runtime that stays: what is up, whether this call started it, and the seconds until all was ready.

    Calling it again for a runtime that is up joins it (and adds the configuration's agents).

    Raises:
        FlowrayError: Ray does not start, or the agents are not ready in time. What was started is stopped again.
    """
    from flowray.runtime.runtime import Runtime

    began_at = time.monotonic()
    found = running(config.name)
    there = found if found is not None else start_head(config, host=host, dashboard=dashboard, timeout_s=wait_s)
    try:
        journal = config.journal or str(directory_of(config.name) / "journal")
        there = structs.replace(there, journal=journal)
        settings = structs.replace(config, journal=journal, ray=structs.replace(config.ray, address=there.address))
        runtime = Runtime.start(settings, keep=True)
        try:
            if settings.agents:
                runtime.wait_ready(max(1.0, wait_s - (time.monotonic() - began_at)))
        finally:
            runtime.disconnect()
        _write(structs.replace(there, children=_children(there.head)))
    except BaseException:
        if found is None:
            stop_head(there)
        raise
    return there, found is None, time.monotonic() - began_at


def keep(up: Up) -> int:
    """Stay as long as its head does, for whoever watches this process (systemd); the exit status.

    On SIGTERM or SIGINT the runtime is taken down. Use from the main thread.
    """
    wanted = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: wanted.set())
    while up.head.find() is not None:
        if wanted.wait(_WATCH_S):
            down(up.name)
            return 0
    return 1


def down(name: str) -> int:
    """Stop a runtime that `up` started; how many processes were ended. Accepted tasks stay in its journal.

    Raises:
        NotConnected: nothing of this name is written down.
    """
    known = read(name)
    if known is None:
        raise NotConnected(f"no runtime {name!r} was started with `flowray up`")
    if known.head.find() is not None:
        # Ray may be half dead; then ending its processes is all that is left to do.
        with contextlib.suppress(FlowrayError):
            _connected(name, known.address).stop()
    ended = stop_head(known)
    forget_store(name)
    return ended


def _connected(name: str, address: str) -> Runtime:
    from flowray.runtime.runtime import Runtime

    try:
        return Runtime.connect(name)
    except NotConnected:
        return Runtime.connect(name, address=address)


def _kept(config: Config, *, host: str, dashboard: bool) -> Kept:
    """Where a head that is gone was, if its store is there and it comes back to the same place; else a new place."""
    file = directory_of(config.name) / _KEPT
    ray = config.ray
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Kept)
    except FileNotFoundError:
        found = None
    except (OSError, msgspec.MsgspecError) as error:
        raise FlowrayError(f"{file} cannot be read ({error}): remove it, and agents elsewhere start anew") from error
    if found is not None:
        same = (found.address.rpartition(":")[0], bool(found.dashboard), found.store) == (host, dashboard, ray.store)
        if same and found.store != "memory":
            return found
        forget_store(config.name)
    place = Path(ray.store_path).expanduser() if ray.store_path else directory_of(config.name)
    new = Kept(
        address=f"{host}:{_free_port(host)}",
        dashboard=f"127.0.0.1:{_free_port('127.0.0.1')}" if dashboard else "",
        home=secrets.token_hex(8),
        store=ray.store,
        store_path=str(place.absolute() / f"gcs-{config.name}") if ray.store == "embedded" else "",
    )
    _write_private(file, new)
    return new


def forget_store(name: str) -> None:
    """Remove what a head left for the next one: its control store, and where it was."""
    file = directory_of(name) / _KEPT
    with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
        store_path = msgspec.json.decode(file.read_bytes(), type=Kept).store_path
        if store_path:
            shutil.rmtree(store_path, ignore_errors=True)
    file.unlink(missing_ok=True)


def _free_port(host: str) -> int:
    """A port that nobody listens on now. Ray binds it a moment later; that somebody is faster shows in its log."""
    while True:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
        if port != _REDIS_PORT:
            return port


def _wait_until_up(head: subprocess.Popen[bytes], address: str, log: Path, timeout_s: float) -> None:
    """Wait for the control store to answer and for the head's own node to be in it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if head.poll() is not None:
            raise FlowrayError(f"Ray did not start (exit code {head.returncode}); the end of {log}:\n{_tail(log)}")
        # The port answers before the node has joined; `ray start` says so once it has.
        if _listens(address) and b"Ray runtime started." in log.read_bytes():
            return
        time.sleep(0.1)
    raise FlowrayError(f"Ray did not start within {timeout_s:.0f} s; the end of {log}:\n{_tail(log)}")


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1.0):
            return True
    except OSError:
        return False


def _tail(log: Path, lines: int = 12) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(empty)"


def _children(head: Process) -> tuple[Process, ...]:
    found = head.find()
    if found is None:
        return ()
    children = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in found.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                children.append(Process.of(child))
    return tuple(children)


def _wait_gone(targets: Iterable[Process], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    left = list(targets)
    while left and time.monotonic() < deadline:
        left = [target for target in left if target.find() is not None]
        if left:
            time.sleep(0.05)
    return not left


def _write(record: Up) -> None:
    _write_private(directory_of(record.name) / "up.json", record)


def _write_private(file: Path, record: Struct) -> None:
    """Whole or not at all, and readable by its owner only."""
    part = file.with_name(f".{file.stem}-{os.getpid()}.part")
    with _private(part) as output:
        output.write(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    part.replace(file)


def _private(file: Path) -> IO[bytes]:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(descriptor, 0o600)
    return os.fdopen(descriptor, "wb")

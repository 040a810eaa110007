"""The supervisor of a head node: `python -m flowray.runtime.head '{"name": ...}'`.

It starts Ray's head with a store that outlives it, and starts again what dies: the control store alone, in its place;
the whole node when the raylet died (`core.relaunching` decides). Agents, coordinator and clients wait meanwhile. The
coordinator has a label of this head for its home: Ray places it on the new node, and it recovers from its journal.

Ray's processes are this one's children, and die with it (Ray asks the kernel for that). Nothing else is ever touched.
The death of a child is seen at once, by a pidfd. When the supervisor itself dies, whoever started it does so again, on
the same directory: `flowray up`, or systemd (`flowray up --systemd`).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import psutil
from msgspec import Struct
from ray._private import utils as ray_utils
from ray._private.node import Node
from ray._private.parameter import RayParams

from flowray.bridges.address import Address
from flowray.config import Config
from flowray.core.relaunching import NODE, STORE, GiveUp, Relaunching
from flowray.runtime.cluster import system_config
from flowray.runtime.home import HOME
from flowray.runtime.template import setup
from flowray.runtime.template.quick import RayletGone, quick

STARTED = "Ray runtime started."  # what it prints once the head is up
_LOOK_S = 0.25  # the longest it takes to see a death that a pidfd did not tell
_END_S = 5.0  # for a process that was killed to be gone
_GIVEN_UP = 3  # exit status of a supervisor that cannot put its head together again


class Head(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a supervisor is told."""

    name: str  # of the runtime
    port: int  # of the control store
    host: str = ""  # this node's address for others; "" for what Ray finds
    home: str  # what this head is called for as long as its journal lies here
    dashboard_port: int = 0  # on loopback; 0 for none
    num_cpus: int | None = None
    object_store_bytes: int = 512 << 20
    temp_dir: str = ""
    labels: dict[str, str] = {}
    store: str = "embedded"  # as `ray.store`
    store_path: str = ""
    settings: dict[str, int] = {}  # Ray's, for all of the cluster
    template: bool = True
    preload: list[str] = []


def head_of(config: Config, *, address: str, dashboard: str, home: str, store_path: str) -> Head:
    """What the configuration says of a head. `address` and `dashboard` are host:port."""
    host, _, port = address.rpartition(":")
    return Head(
        name=config.name,
        port=int(port),
        host="" if host == "127.0.0.1" else host,  # Ray would put another address of this machine in its place
        home=home,
        dashboard_port=int(dashboard.rpartition(":")[2]) if dashboard else 0,
        num_cpus=config.ray.num_cpus,
        object_store_bytes=config.ray.object_store_mb << 20,
        temp_dir=config.ray.temp_dir,
        store=config.ray.store,
        store_path=store_path,
        settings=system_config(config),
        template=config.ray.template,
        preload=list(config.ray.preload),
    )


def command(head: Head) -> list[str]:
    """The command that runs a supervisor."""
    return [sys.executable, "-m", "flowray.runtime.head", msgspec.json.encode(head).decode()]


def store_environment(head: Head) -> dict[str, str]:
    """What Ray reads of its store from the environment."""
    if head.store == "memory":
        return {}
    if head.store == "embedded":
        return {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": head.store_path}
    return {"RAY_external_storage_namespace": f"flowray-{head.name}"}  # one Redis may have several clusters


def params_of(head: Head) -> RayParams:
    """The same in Ray's words. Raises ConfigError for a Redis whose URL is not where it is said to be."""
    params: dict[str, Any] = {}
    if head.store not in ("embedded", "memory"):
        url = urlsplit(Address(head.store, "redis-streams").read())
        where = f"{url.scheme}://{url.hostname}:{url.port or 6379}"
        params["external_addresses"] = [where, where]  # the second is for a shard that Ray does not use any more
        params["num_redis_shards"] = 1
        params["redis_username"] = unquote(url.username or "")
        params["redis_password"] = unquote(url.password or "")
    if head.dashboard_port:
        params["dashboard_port"] = head.dashboard_port
    return RayParams(
        node_ip_address=head.host or None,
        node_name=head.host or None,
        gcs_server_port=head.port,
        num_cpus=head.num_cpus,
        object_store_memory=head.object_store_bytes,
        temp_dir=head.temp_dir or None,
        labels={HOME: head.home, **head.labels},
        min_worker_port=10_002,  # as `ray start` has it
        max_worker_port=19_999,
        include_dashboard=bool(head.dashboard_port),
        dashboard_host="127.0.0.1",
        _system_config=dict(head.settings),
        **params,
    )


class Supervisor:
    """Keeps one head running. Use from the main thread: Ray's processes die with the thread that started them."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._relaunching = Relaunching(store_lasts=head.store != "memory")
        self._node: Any = None  # None while there is none
        self._due: dict[str, float] = {}  # kind of process that is gone -> when (monotonic) it is started again

    def run(self) -> int:
        """Start the head and keep it; returns the exit status when it cannot be kept."""
        try:
            self._start_node()
        except RayletGone as error:
            say(f"{error}: another node is started")
            self._start_node()
        print(STARTED, flush=True)  # noqa: T201 - whoever started this waits for it
        dead: list[str] = []
        while True:
            if dead:
                decided = self._relaunching.on_deaths(dead, time.monotonic())
                if isinstance(decided, GiveUp):
                    say(f"{decided.reason}: the head ends, to be started again by whoever started it")
                    return _GIVEN_UP
                self._due |= {kind: time.monotonic() + decided.after_s for kind in decided.kinds}
            dead = self._start_due() or self._look()

    def close(self) -> None:
        """End Ray's processes, politely and then not."""
        node, self._node = self._node, None
        if node is not None:
            node.kill_all_processes(check_alive=False, allow_graceful=True)

    def _look(self) -> list[str]:
        """Kinds of process that have ended since the last look; waits a moment for the first."""
        known = self._node.all_processes if self._node is not None else {}
        processes = {kind: one.process for kind, several in known.items() for one in several if kind not in self._due}
        next_due_s = min((at - time.monotonic() for at in self._due.values()), default=_LOOK_S)
        _wait_for_end([process.pid for process in processes.values()], max(0.0, min(_LOOK_S, next_due_s)))
        dead = [kind for kind, process in processes.items() if process.poll() is not None]
        for kind in dead:
            say(f"{kind} (pid {processes[kind].pid}) ended with {processes[kind].returncode}")
        return dead

    def _start_due(self) -> list[str]:
        """Start what is due; of which kind something did not start."""
        began_at = time.monotonic()
        due = [kind for kind, at in self._due.items() if at <= began_at]
        for kind in sorted(due, key=lambda one: (one != NODE, one != STORE)):
            self._due.pop(kind, None)
            try:
                self._start(kind)
            except Exception as error:  # noqa: BLE001 - whatever Ray says, it is tried again, ever more slowly
                say(f"{kind} does not start: {type(error).__name__}: {error}")
                return [kind]
            say(f"{kind} was started again in {time.monotonic() - began_at:.2f} s")
            if kind == NODE:
                self._due.clear()
                break
        return []

    def _start(self, kind: str) -> None:
        node = self._node
        if kind == NODE:
            self.close()
            self._start_node()
        elif kind == STORE:
            node.kill_gcs_server(check_alive=False)  # forgets the one that is gone
            node.start_gcs_server()
        else:
            starts = {
                "log_monitor": node.start_log_monitor,
                "monitor": node.start_monitor,
                "dashboard": lambda: node.start_api_server(include_dashboard=True, raise_on_failure=False),
            }
            node.all_processes.pop(kind, None)
            if kind in starts:
                starts[kind]()

    def _start_node(self) -> None:
        try:
            self._node = Node(params_of(self._head), head=True, shutdown_at_exit=False, spawn_reaper=True)
        except BaseException:
            _end_children()  # what was started of it has the store's lock, and its port
            raise
        ray_utils.write_ray_address(self._node.gcs_address, self._head.temp_dir or None)  # as `ray start` does


def _end_children() -> None:
    """End all processes that this one has started, and theirs."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=_END_S)


def _wait_for_end(pids: Iterable[int], timeout_s: float) -> None:
    """Return when one of these processes has ended, or after the time-out."""
    poll, handles = select.poll(), []
    try:
        for pid in pids:
            handles.append(os.pidfd_open(pid))
            poll.register(handles[-1], select.POLLIN)
        poll.poll(timeout_s * 1000.0)
    except ProcessLookupError:
        return  # it has ended, and been reaped
    finally:
        for handle in handles:
            os.close(handle)


def say(text: str) -> None:
    """Into the log of `flowray up`."""
    print(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {text}", flush=True)  # noqa: T201


def _leave(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    sys.exit(0)  # no Exception: nothing of Ray's catches it


def main() -> None:
    """Run until SIGTERM, or until the head cannot be kept."""
    head = msgspec.json.decode(sys.argv[1], type=Head)
    for name in ("RAY_ADDRESS", "RAY_REDIS_ADDRESS"):
        os.environ.pop(name, None)  # a head joins nobody, and its store is what it was told
    os.environ.update(store_environment(head))
    if head.store_path:
        Path(head.store_path).mkdir(mode=0o700, parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _leave)
    supervisor = Supervisor(head)
    with ExitStack() as stack:
        if head.template:
            try:
                stack.enter_context(setup.in_place(setup.install(), tuple(head.preload)))
            except setup.NoTemplate as error:
                say(f"workers of this node start the slow way: {error}")
        stack.enter_context(quick())
        try:
            status = supervisor.run()
        finally:
            supervisor.close()
    sys.exit(status)


if __name__ == "__main__":
    main()

"""A real Ray cluster of several nodes on one machine, to kill processes and whole nodes of and to cut off.

Each node has a network, PID and mount namespace of its own and hangs on a bridge that nothing else uses, so a node
can die as a machine does (every process of it at once), be cut off, and come back under its address; and nothing here
can reach, or be reached by, another Ray on the machine. Failure detection is as flowray sets it; tokens are on.

    with NamespaceCluster(nodes=2, cpus=2) as cluster:
        driver = cluster.run(0, [sys.executable, "driver.py"])
        cluster.kill_node(1)
        cluster.start_node(1)

Needs root and iproute2, util-linux (`cluster_missing()` says what is not there). Whatever a run leaves behind when it
is killed itself, the next one removes: names are recorded before they are used, and processes die with their parent.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from flowray.errors import MissingExtra
from flowray.testing.programs import (
    POLL_S,
    ClusterFailed,
    Process,
    command_line,
    inner_pid,
    only_child,
    pids_of_space,
    tail,
    wait_until,
)
from flowray.testing.spaces import Names, cluster_missing, ip, limit, sweep

__all__ = ["ClusterFailed", "NamespaceCluster", "Process", "cluster_missing", "sweep", "tail", "wait_until"]

_STARTED = "Ray runtime started"  # what `ray start` prints once its node is in the cluster


class NamespaceCluster:
    """Nodes 0 (the head) to `nodes - 1`. Use as a context manager, from one thread."""

    def __init__(
        self,
        nodes: int = 2,
        *,
        cpus: int | Sequence[int] = 2,
        labels: Sequence[Mapping[str, str]] = (),
        environment: Mapping[str, str] | None = None,
        object_store_mb: int = 128,
        dashboard: bool = False,
        start_timeout_s: float = 120.0,
        store: str = "",
    ) -> None:
        """`cpus` and `labels` go by node; every node has the label `node` = its number besides. `environment` is
        added to what flowray sets for Ray, on every node and for every driver. With a `store` (as `ray.store`) the
        head is kept by flowray's supervisor, as `flowray up` has it, and can be killed; else it is Ray's own."""
        if nodes < 1 or nodes > 200:
            raise ValueError(f"nodes must be between 1 and 200, got {nodes}")
        self.nodes = nodes
        self._cpus = [cpus] * nodes if isinstance(cpus, int) else list(cpus)
        self._labels = [{"node": str(i), **(labels[i] if i < len(labels) else {})} for i in range(nodes)]
        self._object_store_mb = object_store_mb
        self._dashboard = dashboard
        self._start_timeout_s = start_timeout_s
        self._store = store
        mark = secrets.token_hex(3)
        self._names = Names(f"fr{mark}", nodes)
        # No address of ours exists outside the namespaces, so no network of the machine can clash with these.
        self._subnet = f"10.{77 + int(mark[:2], 16) % 100}.{int(mark[2:4], 16)}"
        self._port = 20_000 + int(mark[2:], 16) % 9_000  # of the head; between Ray's own ranges, and never 6379
        self._extra = dict(environment or {})
        self._started: dict[int, subprocess.Popen[bytes]] = {}  # node -> the `unshare` that holds it
        self._initial: dict[int, int] = {}  # node -> host pid of its PID 1
        self._starts = 0
        self._programs: list[Process] = []
        self._carriers: dict[int, subprocess.Popen[bytes]] = {}  # node -> who carries the frames of its bad cable
        self.directory = Path()  # of this run, on the host: node-0, node-1 and what they printed

    # ── beginning and end ────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> NamespaceCluster:
        missing = cluster_missing()
        if missing:
            raise MissingExtra(missing)
        sweep()
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self._names.name}-"))
        self._names.record(self.directory)
        try:
            self._build()
            for node in range(self.nodes):
                self.start_node(node)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process and remove every namespace, link and file of this cluster. May be called twice."""
        for program in self._programs:
            program.kill()
        for carrier in self._carriers.values():
            carrier.kill()
        for node in list(self._started):
            self.kill_node(node)
        self._names.remove()
        if self.directory.name:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _build(self) -> None:
        names = self._names
        (self.directory / "token").touch(mode=0o600)
        (self.directory / "token").write_text(secrets.token_hex(32))
        (self.directory / "home").mkdir()  # in a node, its own directory is mounted here
        Path("/tmp/ray").mkdir(exist_ok=True)  # the same
        ip("link", "add", names.bridge, "type", "bridge")
        ip("link", "set", names.bridge, "up")
        for node in range(self.nodes):
            space, link = names.space(node), names.link(node)
            (self.directory / f"node-{node}" / "ray").mkdir(parents=True)
            ip("netns", "add", space)
            ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", link, "master", names.bridge, "up")
            ip("-n", space, "addr", "add", f"{self.ip(node)}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
            # Nothing answers there: it is how Ray finds out which of its addresses others would see.
            ip("-n", space, "route", "add", "default", "dev", "eth0")

    # ── what drivers need ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def address(self) -> str:
        """Of the cluster, for `ray.init` in any of its nodes."""
        return f"{self.ip(0)}:{self._port}"

    def ip(self, node: int) -> str:
        """A node's address."""
        return f"{self._subnet}.{node + 1}"

    def home(self, node: int) -> Path:
        """The node's own directory as the host sees it; inside the node it is `inner_home` (and HOME)."""
        return self.directory / f"node-{node}"

    @property
    def inner_home(self) -> Path:
        """Where every node sees its own directory, and no other's."""
        return self.directory / "home"

    def environment(self) -> dict[str, str]:
        """For a Ray process in any node."""
        from flowray.config import Config
        from flowray.runtime.cluster import ray_environment

        mine = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "FLOWRAY_"))}
        return {
            **mine,
            **ray_environment(Config()),
            "RAY_AUTH_TOKEN_PATH": str(self.directory / "token"),
            "RAY_ADDRESS": self.address,
            "HOME": str(self.inner_home),
            "FLOWRAY_SOCKETS": str(self.inner_home / "s"),  # /tmp is one for all nodes, as it is on no real machines
            **self._extra,
        }

    # ── nodes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def start_node(self, node: int) -> None:
        """Start a node that is not there; returns when it is in the cluster."""
        if node in self._started:
            raise ValueError(f"node {node} runs already")
        self._starts += 1
        output = self.directory / f"start-{self._starts}-node-{node}.log"
        ray = self._head_command() if node == 0 and self._store else self._ray_command(node)
        # The shell stays as PID 1: it collects orphans, which `ray start --block` would leave as zombies.
        script = " && ".join(
            [
                f"mount --bind {shlex.quote(str(self.home(node)))} {shlex.quote(str(self.inner_home))}",
                f"mount --bind {shlex.quote(str(self.home(node) / 'ray'))} /tmp/ray",
                f"mount -t tmpfs -o size={self._object_store_mb * 2 + 64}m tmpfs /dev/shm",
                f"cd {shlex.quote(str(self.inner_home))}",
                f"{{ {shlex.join(ray)} & wait $!; }}",
            ]
        )
        command = [
            *("setpriv", "--pdeathsig", "KILL"),
            *("nsenter", f"--net=/run/netns/{self._names.space(node)}"),
            *("unshare", "--pid", "--fork", "--mount-proc", "--mount", "--kill-child=KILL"),
            *("bash", "-c", script),
        ]
        environment = {**self.environment(), "FLOWRAY_NODE": str(node)}
        with output.open("wb") as log:
            self._started[node] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + self._start_timeout_s
        while _STARTED not in (text := output.read_text(errors="replace")):
            if self._started[node].poll() is not None or "Traceback" in text or time.monotonic() > deadline:
                self.kill_node(node)
                raylet = "\n".join(tail(file.read_text(errors="replace")) for file in self.logs(node, "raylet.*"))
                raise ClusterFailed(f"node {node} does not start:\n{tail(text)}\n{raylet}")
            time.sleep(POLL_S)
        self._initial[node] = only_child(self._started[node].pid)

    def _ray_command(self, node: int) -> list[str]:
        return [
            *(sys.executable, "-m", "flowray.runtime.template.cli", "start"),
            *(
                ["--head", f"--port={self._port}", f"--include-dashboard={'true' if self._dashboard else 'false'}"]
                if node == 0
                else [f"--address={self.address}"]
            ),
            f"--node-ip-address={self.ip(node)}",
            f"--num-cpus={self._cpus[node]}",
            f"--object-store-memory={self._object_store_mb << 20}",
            f"--labels={','.join(f'{name}={value}' for name, value in self._labels[node].items())}",
            "--disable-usage-stats",
            "--block",
        ]

    def _head_command(self) -> list[str]:
        from flowray.config import Config
        from flowray.runtime import head
        from flowray.runtime.cluster import system_config

        return head.command(
            head.Head(
                name=self._names.name,
                port=self._port,
                host=self.ip(0),
                home=self._names.name,
                dashboard_port=8265 if self._dashboard else 0,
                num_cpus=self._cpus[0],
                object_store_bytes=self._object_store_mb << 20,
                labels=self._labels[0],
                store=self._store,
                store_path=str(self.inner_home / "gcs") if self._store == "embedded" else "",
                settings=system_config(Config()),
            )
        )

    def kill_node(self, node: int) -> None:
        """End all processes of a node at once, as a power failure would. Nothing when it is not there."""
        held = self._started.pop(node, None)
        if held is None:
            return
        first = self._initial.pop(node, 0)
        if first:
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, signal.SIGKILL)  # PID 1 of the namespace: the kernel takes all others with it
        else:
            held.kill()
        held.wait()

    def store_process(self) -> int:
        """Host pid of the head's control store; 0 while there is none."""
        return next(iter(self.processes(0, r"^\S*gcs_server ")), 0)

    def supervisor(self) -> int:
        """Host pid of the head's supervisor. Raises ClusterFailed where the head has none."""
        for pid in self.processes(0, r"-m flowray\.runtime\.head "):
            return pid
        raise ClusterFailed("the head has no supervisor")

    def partition(self, node: int) -> None:
        """Cut a node off from all others; its processes go on."""
        ip("link", "set", self._names.link(node), "down")

    def partition_one_way(self, node: int) -> None:
        """Nothing that a node sends reaches another one, and it hears all that they send.

        It believes every other node to have a hardware address that nobody has; so its frames are lost without a word.
        """
        for other in set(range(self.nodes)) - {node}:
            nobody = ("lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent")
            ip("-n", self._names.space(node), "neigh", "replace", self.ip(other), *nobody)

    def slow_cable(self, node: int, rate: str) -> None:
        """A node's cable carries no more than this (`1mbit`), each way."""
        limit(self._names.link(node), rate)
        limit("eth0", rate, self._names.space(node))

    def bad_cable(self, node: int, *, late_s: tuple[float, float] = (0.0, 0.0), loss: float = 0.0) -> None:
        """A node's cable is late by a time between these, drawn anew each second, and loses this share of frames."""
        names = self._names
        near, far = names.spare(node)
        ip("link", "add", near, "type", "veth", "peer", "name", far)
        ip("link", "set", names.link(node), "nomaster")
        ip("link", "set", far, "master", names.bridge, "up")
        ip("link", "set", near, "up")
        command = [sys.executable, "-m", "flowray.testing.cables", names.link(node), near]
        command += ["--late-s", *map(str, late_s), "--loss", str(loss), "--seed", str(node)]
        self._carriers[node] = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], start_new_session=True)

    def heal(self, node: int) -> None:
        """Undo `partition`, `partition_one_way`, `slow_cable` and `bad_cable`."""
        names = self._names
        carrier = self._carriers.pop(node, None)
        if carrier is not None:
            carrier.kill()
            carrier.wait()
            ip("link", "delete", names.spare(node)[0])
            ip("link", "set", names.link(node), "master", names.bridge)
        self.slow_cable(node, "")
        ip("link", "set", names.link(node), "up")
        ip("-n", names.space(node), "neigh", "flush", "dev", "eth0", "nud", "permanent")

    def lives(self, node: int) -> bool:
        """Is a node that was started still there? Ray leaves a node that was away for too long by itself."""
        return node in self._started and self._started[node].poll() is None

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────

    def run(
        self,
        node: int,
        program: Sequence[str] | str,
        environment: Mapping[str, str] | None = None,
        name: str = "",
        *,
        beside: bool = False,
    ) -> Process:
        """Start a program (arguments, or the text of a Python script) inside a node. It dies with node and harness.

        With `beside` it only shares the node's cable, as another machine behind the same switch: it is cut off with
        the node, but sees other processes and files, survives the node's death, and knows no Ray.
        """
        arguments = [sys.executable, "-c", program] if isinstance(program, str) else list(program)
        label = name or f"program-{len(self._programs)}"
        output = self.directory / f"{label}.log"
        if beside:
            enter = ["nsenter", f"--net=/run/netns/{self._names.space(node)}"]
        else:
            enter = ["nsenter", "--target", str(self._initial[node]), "--net", "--pid", "--mount"]
            enter.append(f"--wdns={self.inner_home}")
        inherited = self.environment()
        if beside:
            inherited = {name: value for name, value in inherited.items() if not name.startswith("RAY_")}
        with output.open("wb") as log:
            popen = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", *enter),
                    *("setpriv", "--pdeathsig", "KILL", *arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**inherited, **(environment or {})},
                start_new_session=True,
            )
        process = Process(popen, output, label)
        self._programs.append(process)
        return process

    def processes(self, node: int, pattern: str = "") -> dict[int, str]:
        """Processes of a node whose command line has `pattern` (a regular expression): host pid -> command line."""
        found = {}
        for pid in pids_of_space(self._initial[node]):
            line = command_line(pid)
            if line and re.search(pattern, line):
                found[pid] = line
        return found

    def host_pid(self, node: int, pid: int) -> int:
        """What the host calls the process that a node calls `pid`. Raises ProcessLookupError if it is gone."""
        for candidate in pids_of_space(self._initial[node]):
            if inner_pid(candidate) == pid:
                return candidate
        raise ProcessLookupError(f"node {node} has no process {pid}")

    def kill_process(self, node: int, pid: int) -> None:
        """SIGKILL the process that a node calls `pid`. Raises ProcessLookupError if it is gone."""
        os.kill(self.host_pid(node, pid), signal.SIGKILL)

    def node_of(self, ip: str) -> int:
        """The number of the node that has an address."""
        return int(ip.rpartition(".")[2]) - 1

    def logs(self, node: int, pattern: str = "*") -> Iterator[Path]:
        """Files that Ray writes in a node, of all its lives."""
        return self.home(node).glob(f"ray/session_*/logs/{pattern}")

"""The network namespaces of a cluster, its bridge and its cables: by name, so that they can be removed in any case."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil

from flowray.testing.programs import ClusterFailed

_TOOLS = {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux", "setpriv": "util-linux"}


def cluster_missing() -> str:
    """Why this machine cannot have such a cluster; "" when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool) is None})
    if absent:
        return f"these Debian packages are not installed: {', '.join(absent)}"
    tried = subprocess.run(
        shlex.split("unshare --net --pid --fork --mount-proc --mount ip link add fr0 type bridge"),
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if tried.returncode == 0 else f"namespaces cannot be made here: {tried.stderr.strip()}"


class Names:
    """Everything a cluster creates outside its directory, by name: recorded first, removed whatever happened."""

    def __init__(self, name: str, nodes: int) -> None:
        self.name = name
        self.nodes = nodes
        self.bridge = f"{name}b"  # an interface's name may have 15 characters
        self.file = records() / f"{name}.json"

    def space(self, node: int) -> str:
        """A node's network namespace."""
        return f"{self.name}-{node}"

    def link(self, node: int) -> str:
        """The bridge's end of a node's cable."""
        return f"{self.name}v{node}"

    def spare(self, node: int) -> tuple[str, str]:
        """Both ends of the piece that a bad cable (`flowray.testing.cables`) has between its carrier and the bridge."""
        return f"{self.name}s{node}", f"{self.name}t{node}"

    def record(self, directory: Path) -> None:
        """Write down what will be there, for a `sweep` after this process was killed."""
        owner = psutil.Process()
        body = {"nodes": self.nodes, "pid": owner.pid, "born": owner.create_time(), "directory": str(directory)}
        self.file.write_text(json.dumps(body))

    def remove(self) -> None:
        """All of it, as far as it is there."""
        for node in range(self.nodes):
            ip("netns", "delete", self.space(node), check=False)
            ip("link", "delete", self.link(node), check=False)
            ip("link", "delete", self.spare(node)[0], check=False)
        ip("link", "delete", self.bridge, check=False)
        self.file.unlink(missing_ok=True)


def sweep() -> list[str]:
    """Remove what clusters left whose process is gone; their names. Those of living processes are left alone."""
    removed = []
    for file in sorted(records().glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):  # another sweep may be at the same file
            body = json.loads(file.read_text())
            if _alive(int(body["pid"]), float(body["born"])):
                continue
            Names(file.stem, int(body["nodes"])).remove()
            shutil.rmtree(body["directory"], ignore_errors=True)
            removed.append(file.stem)
    return removed


def records() -> Path:
    """Where living clusters, and those that were killed, are written down."""
    path = Path(tempfile.gettempdir()) / "flowray-clusters"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _alive(pid: int, born: float) -> bool:
    try:
        return abs(float(psutil.Process(pid).create_time()) - born) < 1.0
    except psutil.NoSuchProcess:
        return False


def ip(*arguments: str, check: bool = True) -> None:
    """Call the tool of this name. Raises ClusterFailed when it fails, unless told not to look."""
    _call("ip", *arguments, check=check)


def limit(link: str, rate: str, space: str = "") -> None:
    """Let a link, of a namespace where one is named, send no faster than this (`1mbit`); "" takes that back."""
    words = ["-n", space] if space else []
    if rate:
        # More than 400 ms of frames are lost: so it is with a slow line, and TCP finds out how fast it may be.
        shape = f"tbf rate {rate} burst 4kb latency 400ms"
        _call("tc", *words, *f"qdisc replace dev {link} root {shape}".split(), check=True)
    else:
        _call("tc", *words, "qdisc", "del", "dev", link, "root", check=False)


def _call(*words: str, check: bool) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise ClusterFailed(f"{' '.join(words)}: {done.stderr.strip()}")

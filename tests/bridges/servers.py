"""Real servers for these tests: private, on free loopback ports, in a directory of their own, ended by their pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

RABBIT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # not the one in /usr/sbin, which changes user and directory
USER, PASSWORD = (
    "bridge-test",
    "s3cret/p@ss",
)  # a password that a URL must quote, to see that nothing prints either form
QUOTED = "s3cret%2Fp%40ss"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def missing(kind: str) -> str:
    """Why this kind of server cannot be started here; "" when it can."""
    if kind == "redis":
        return "" if shutil.which("redis-server") else "redis-server is not installed (apt-get install redis-server)"
    wanted = RABBIT.exists() and shutil.which("epmd")
    return "" if wanted else "rabbitmq-server is not installed (apt-get install rabbitmq-server)"


class Server:
    """One server that can be killed and started again on the same port and files."""

    name = ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.directory / "output.log").open("ab") as output:
            self._process = self._spawn(output.fileno())
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.directory / "output.log").read_text(errors="replace")[-2000:]
                raise AssertionError(f"{self.name} does not start (exit {self._process.poll()}):\n{said}")
            time.sleep(0.02)

    def kill(self) -> None:
        """As a crash does it: SIGKILL, nothing written any more."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGKILL)  # what it wrote goes with the directory

    def _end(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(timeout=20)

    def _spawn(self, output: int) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _ask(self, request: bytes, expected: bytes) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as wire:
                wire.settimeout(2)
                wire.sendall(request)
                return expected in wire.recv(64)
        except OSError:
            return False


AnyServer = TypeVar("AnyServer", bound=Server)


@contextlib.contextmanager
def started(server: AnyServer) -> Iterator[AnyServer]:
    """Let it run for a while."""
    try:
        server.start()
        yield server
    finally:
        server.stop()


class RedisServer(Server):
    """By default `appendfsync always`: what it confirmed survives its crash, as the tests of crashes need it."""

    name = "redis-server"

    def __init__(self, directory: Path, fsync: str = "always") -> None:
        super().__init__(directory)
        self._fsync = fsync

    @property
    def url(self) -> str:
        return f"redis://:{QUOTED}@127.0.0.1:{self.port}/0"

    def _spawn(self, output: int) -> subprocess.Popen[bytes]:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""]
        durable = ["--appendonly", "yes", "--appendfsync", self._fsync, "--requirepass", PASSWORD]
        return subprocess.Popen(["redis-server", *options, *durable], stdout=output, stderr=output)

    def _answers(self) -> bool:
        return self._ask(f"AUTH {PASSWORD}\r\nPING\r\n".encode(), b"+OK")


class RabbitServer(Server):
    """A node with its own name, files, cookie and port mapper (epmd), which this ends as well."""

    name = "rabbitmq-server"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._mapper_port = free_port()
        self._node_port = free_port()
        lines = ["default_user = " + USER, "default_pass = " + PASSWORD, "log.file.level = warning"]
        (directory / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        self._environment = {
            **os.environ,
            "HOME": str(directory),
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"bridges{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._node_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput +S 2:2 -kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "no-plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "no-environment"),
            "RABBITMQ_ALLOW_INPUT": "1",  # the script then becomes the server: its pid is the server's
        }
        self._mapper = subprocess.Popen(
            ["epmd", "-port", str(self._mapper_port), "-address", "127.0.0.1"],
            env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"amqp://{USER}:{QUOTED}@127.0.0.1:{self.port}/"

    def stop(self) -> None:
        super().stop()
        self._mapper.kill()
        self._mapper.wait(timeout=20)

    def _spawn(self, output: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(RABBIT)], env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip

    def _answers(self) -> bool:
        return self._ask(b"AMQP\x00\x00\x09\x01", b"RabbitMQ") or self._ask(b"AMQP\x00\x00\x09\x01", b"\x01\x00\x00")

"""A PostgreSQL for tests and benchmarks: private, in a directory of its own, and ended by its number.

    with started() as server:
        store = open_store(directory, StoreConfig(url=server.url, schema="mine"))

It runs under a user without rights, as it refuses to run as root, and syncs as a real one does. It needs the server's
binaries (Debian: postgresql) and nothing that is set up: `missing()` says what is not there.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

SUPERUSER, USER, PASSWORD = "root", "locked", "s3cret/p@ss"  # a password that a URL must quote
QUOTED = "s3cret%2Fp%40ss"
DATABASE = "flowray"
_START_S = 60.0


def binaries() -> Path | None:
    """Of the newest PostgreSQL that is installed as Debian does."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


def missing() -> str:
    """Why there can be no server here; "" when there can."""
    if binaries() is None:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    return "" if os.geteuid() or shutil.which("setpriv") else "setpriv is not installed (apt-get install util-linux)"


def _tool(name: str) -> Path:
    where = binaries()
    if where is None:
        raise ServerFailed(missing())
    return where / name


class ServerFailed(RuntimeError):
    """The server, or one of its tools, did not do what was asked of it."""


class PostgresServer:
    """One server that can be killed and started again on the same port and files. From one thread."""

    def __init__(self, listen: str = "127.0.0.1") -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="flowray-pg-", dir="/tmp"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._listen = listen
        self._process: subprocess.Popen[bytes] | None = None
        self._user: pwd.struct_passwd | None = None
        if not os.geteuid():
            names = {entry.pw_name: entry for entry in pwd.getpwall()}
            self._user = names.get("postgres") or names["nobody"]
            os.chown(self.directory, self._user.pw_uid, self._user.pw_gid)
        self._made = False

    @property
    def url(self) -> str:
        """By its socket, where everybody is trusted: the directory is its user's alone, and root's."""
        return f"postgresql://{SUPERUSER}@/{DATABASE}?host={self.directory}&port={self.port}"

    def tcp_url(self, host: str = "127.0.0.1", *, user: str = USER, password: str = QUOTED) -> str:
        """By the network, where a password is wanted."""
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@{host}:{self.port}/{DATABASE}"

    def start(self) -> None:
        """Return once it answers. Raises ServerFailed."""
        if not self._made:
            self._make()
        with (self.directory / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", str(self.data), "-p", str(self.port), "-k", str(self.directory)),
                stdout=output,
                stderr=output,
                cwd=self.directory,
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerFailed(f"PostgreSQL does not start:\n{self.said()}")
            time.sleep(0.02)
        if not self._made:
            self.psql(f"CREATE DATABASE {DATABASE}", "postgres")
            self.psql(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")
            self._made = True

    @property
    def data(self) -> Path:
        """Its files."""
        return self.directory / "data"

    def said(self) -> str:
        """The end of what it printed."""
        return (self.directory / "output.log").read_text(errors="replace")[-3000:]

    def psql(self, statement: str, database: str = DATABASE) -> str:
        """What the server answers. Raises ServerFailed when it does not like the statement."""
        options = ["-h", str(self.directory), "-p", str(self.port), "-U", SUPERUSER, "-d", database]
        return self._ran("psql", "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", *options, "-c", statement).strip()

    def kill(self) -> None:
        """As a crash of the machine does it: every process of it at once, nothing written any more."""
        if self._process is None:
            raise ServerFailed("it was never started")
        children = psutil.Process(self._process.pid).children()
        for process in (self._process, *children):
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                process.kill()
        self._process.wait(timeout=20)

    def stop(self) -> None:
        """For good."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)  # at once, its own processes too
            self._process.wait(timeout=20)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _make(self) -> None:
        self._ran("initdb", "-D", str(self.data), "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--no-locale")
        (self.data / "pg_hba.conf").write_text("local all all trust\nhost all all all scram-sha-256\n")
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(f"listen_addresses = '{self._listen}'\nmax_connections = 40\nshared_buffers = 32MB\n")

    def _ran(self, name: str, *arguments: str) -> str:
        done = subprocess.run(
            self._command(name, *arguments), capture_output=True, text=True, check=False, cwd=self.directory
        )
        if done.returncode:
            raise ServerFailed(f"{name}: {done.stderr.strip()}")
        return done.stdout

    def _command(self, name: str, *arguments: str) -> list[str]:
        command = [str(_tool(name)), *arguments]
        if self._user is not None:
            rights = [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups"]
            # It goes with the tests, however they end.
            command = ["setpriv", *rights, "--pdeathsig=QUIT", *command]
        return command

    def _answers(self) -> bool:
        ready = [str(_tool("pg_isready")), "-q", "-h", str(self.directory), "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0


@contextlib.contextmanager
def started(**settings: str) -> Iterator[PostgresServer]:
    """One for a while."""
    server = PostgresServer(**settings)
    try:
        server.start()
        yield server
    finally:
        server.stop()

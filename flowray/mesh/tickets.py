"""A ticket: all that a client needs to reach a runtime, in one file. Neither Ray nor a certificate of its own.

`flowray up` leaves one in ~/.flowray/<name>/ticket.json for the same user; `flowray ticket` makes one for another
machine. Whoever holds it is a client of the runtime until its token expires.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs

from flowray.errors import ConfigError, MeshError, NotConnected
from flowray.mesh.private_files import PrivateFile
from flowray.mesh.tokens import MAX_HOURS, Tokens

FILE = "ticket.json"
VERSION = 1
MAX_SOCKET_BYTES = 107  # Linux: sockaddr_un


class TicketUnusable(NotConnected):
    """There is no ticket, or it opens nothing any more. `hint` is the way out."""

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail, hint)
        self.detail, self.hint = detail, hint

    def __str__(self) -> str:
        return f"{self.detail}: {self.hint}" if self.hint else self.detail


class Ticket(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a runtime is and what opens it. At least one of `socket` and `address` is set.

    Raises ValueError with the name of the field for values that fit nothing.
    """

    version: int = VERSION
    runtime: str
    socket: str = ""  # absolute path of a Unix socket, for processes of the same machine
    address: str = ""  # host:port of the TLS door
    roots_pem: str = ""  # of the runtime's authority; needed for `address`
    server_name: str  # the process that has to answer
    token: str  # the secret
    expires_at_utc: float  # of the token; seconds since the epoch

    def __post_init__(self) -> None:
        if not self.runtime:
            raise ValueError("runtime: is empty")
        if not self.server_name:
            raise ValueError("server_name: is empty")
        if not self.token.startswith("frk_"):
            raise ValueError("token: does not begin with frk_")
        if not self.socket and not self.address:
            raise ValueError("address: is empty, and so is socket: one of them is needed")
        if self.socket and (not self.socket.startswith("/") or len(os.fsencode(self.socket)) > MAX_SOCKET_BYTES):
            raise ValueError(f"socket: wants an absolute path of at most {MAX_SOCKET_BYTES} bytes")
        if self.address:
            _, port = split_address("address", self.address)
            if port == 0:
                raise ValueError("address: has port 0")
            if "BEGIN CERTIFICATE" not in self.roots_pem:
                raise ValueError("roots_pem: has no certificate, by which to recognise who answers at the address")

    def __repr__(self) -> str:
        return f"Ticket({self.runtime!r} at {self.address or self.socket}, until {self.expires_at_utc:.0f})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("runtime", self.runtime), ("at", self.address or self.socket)]

    def encoded(self) -> bytes:
        """As JSON, with the token."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def save(self, path: Path | None = None) -> Path:
        """Write it, for its owner alone; without a path to where `load(runtime)` looks. Raises MeshError."""
        target = path or path_of(self.runtime)
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise MeshError(f"{target.parent} cannot be made: {error.strerror}") from error
        PrivateFile(target).write(self.encoded())
        return target

    def renewed(self, tokens: Tokens, roots_pem: str, now_utc: float) -> Ticket:
        """This ticket while it has half a day left and the roots are the same; else one with a new token.

        For the runtime's own ticket, which is saved again whenever this gives another. The old token is left to
        expire: somebody may be connected by it.
        """
        if self.roots_pem == roots_pem and self.expires_at_utc - now_utc > MAX_HOURS * 3600 / 2:
            return self
        token, grant = tokens.create("client", hours=MAX_HOURS, label="up")
        return structs.replace(self, token=token, roots_pem=roots_pem, expires_at_utc=grant.expires_at_utc)

    @classmethod
    def load(cls, where: Path | str, *, now_utc: float | None = None) -> Ticket:
        """The ticket in a file, or of the runtime of this name on this machine.

        A string with a slash or that ends in .json is a path.

        Raises:
            ConfigError: it is neither a name nor a path.
            TicketUnusable: there is none, others can read it, it is damaged or of another version, or it expired.
        """
        path, again = _find(where)
        try:
            data = PrivateFile(path).read()
        except MeshError as error:
            raise TicketUnusable(str(error)) from error
        if data is None:
            raise TicketUnusable(f"there is no ticket {path}", again)
        ticket = cls._decoded(data, path, again)
        if ticket.expires_at_utc <= (time.time() if now_utc is None else now_utc):
            ended = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ticket.expires_at_utc))
            raise TicketUnusable(f"the ticket {path} expired at {ended}", again)
        return ticket

    @classmethod
    def _decoded(cls, data: bytes, path: Path, again: str) -> Ticket:
        try:
            version = msgspec.json.decode(data, type=_Versioned).version
            if version != VERSION:
                raise TicketUnusable(f"the ticket {path} has version {version}, this flowray knows {VERSION}", again)
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeError) as error:
            # What these say has names of fields in it, and no values.
            raise TicketUnusable(f"the ticket {path} is damaged ({error})", again) from None


class _Versioned(Struct):
    version: int


def path_of(runtime: str) -> Path:
    """Where the ticket of a runtime of this machine and user is. Raises ConfigError for what names no directory."""
    if not runtime or "/" in runtime or "\0" in runtime or runtime in (".", ".."):
        raise ConfigError("runtime", f"cannot be a runtime's name: {runtime!r:.100}")
    return Path.home() / ".flowray" / runtime / FILE


def split_address(field: str, address: str) -> tuple[str, int]:
    """host:port, with an IPv6 host in brackets. Raises ValueError that names the field."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if not colon or not bare or (":" in bare) != bracketed or any(c in bare for c in "[]/ @") or not bare.isprintable():
        raise ValueError(f"{field}: wants host:port, an IPv6 host in brackets; got {address!r:.100}")
    if not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65_535:
        raise ValueError(f"{field}: wants a port up to 65535; got {address!r:.100}")
    return bare, int(port)


def _find(where: Path | str) -> tuple[Path, str]:
    if isinstance(where, Path) or "/" in where or where.endswith(".json"):
        return Path(where).expanduser(), "make one with `flowray ticket NAME -o FILE` where the runtime is"
    return path_of(where), "start the runtime with `flowray up`, which leaves one there and renews it while it runs"

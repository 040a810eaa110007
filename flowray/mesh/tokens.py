"""Tokens of callers from outside: made, checked and revoked while the runtime runs, in one small file.

A token is 256 random bits. The file has its SHA-256 and not the token: who reads the file cannot call, and a digest of
so many random bits needs no salt and no slow hash. Every check looks whether the file was replaced, so that what
`flowray token revoke` does takes effect at once in every process that uses the file.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast, get_args

import msgspec
from msgspec import Struct, structs

from flowray.errors import ConfigError, MeshError
from flowray.mesh.private_files import PrivateFile, make_private_directory

FILE = "tokens.json"
PREFIX = "frk_"
DEFAULT_HOURS = 8.0
MAX_HOURS = 24.0
MAX_TOKENS = 1_024  # valid or revoked, at one time
MAX_LABEL_CHARACTERS = 100
Scope = Literal["client", "admin"]
_SHAPE = re.compile(r"frk_[A-Za-z0-9_-]{43}")
_HOUR_S = 3600.0
_VERSION = 1


class TokenRefused(MeshError):
    """A token that does not open this door. `reason` is "unknown", "expired", "revoked", "scope" or "too_often".

    `retry_after_s` is None where waiting does not help. The message never has the token in it.
    """

    def __init__(self, reason: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason, detail, retry_after_s)
        self.reason, self.detail, self.retry_after_s = reason, detail, retry_after_s
        self.retryable = retry_after_s is not None

    def __str__(self) -> str:
        return self.detail


class Grant(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One token as it is kept: everything but the token. `token_id` is not secret, and names it in `revoke`."""

    token_id: str
    digest: str  # SHA-256 of the token, hexadecimal
    scope: Scope
    label: str  # for whom it was made
    made_at_utc: float  # seconds since the epoch
    expires_at_utc: float
    revoked_at_utc: float | None = None

    def state(self, now_utc: float) -> str:
        """ "valid", "revoked" or "expired"."""
        if self.revoked_at_utc is not None:
            return "revoked"
        return "valid" if now_utc < self.expires_at_utc else "expired"


class _Table(Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    grants: tuple[Grant, ...]


def check_scope(scope: str) -> Scope:
    """The scope, if it is one. Raises ConfigError."""
    for one in get_args(Scope):
        if scope == one:
            return cast(Scope, one)
    raise ConfigError("scope", f"must be {' or '.join(get_args(Scope))}, got {scope!r:.60}")


class Tokens:
    """The tokens of one runtime. Any number of threads and processes may share a directory."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        """Makes the directory where it is missing; no file means no tokens. Raises MeshError if others may use it."""
        make_private_directory(directory)
        self._file = PrivateFile(directory / FILE)
        self._clock = clock
        self._lock = threading.Lock()
        self._grants: tuple[Grant, ...] | None = None

    def create(self, scope: Scope, *, hours: float = DEFAULT_HOURS, label: str = "") -> tuple[str, Grant]:
        """A new token, which nobody can be told again, and what is kept of it.

        Raises:
            ConfigError: a field is out of its bounds.
            MeshError: there are too many, or the file cannot be written.
        """
        check_scope(scope)
        if not 0 < hours <= MAX_HOURS:
            raise ConfigError("hours", f"must be more than 0 and at most {MAX_HOURS:g}, got {hours!r}")
        if len(label) > MAX_LABEL_CHARACTERS or not (label.isprintable() or not label):
            raise ConfigError("label", f"wants at most {MAX_LABEL_CHARACTERS} printable characters, got {label!r:.120}")
        token = PREFIX + secrets.token_urlsafe(32)
        with self._lock, self._file.locked():
            now_utc = self._clock()
            grants = self._read()
            kept = [one for one in grants if now_utc < one.expires_at_utc + MAX_HOURS * _HOUR_S]
            if len(kept) >= MAX_TOKENS:
                raise MeshError(
                    f"{len(kept)} tokens are kept, and no more than {MAX_TOKENS} may be: revoking frees nothing at "
                    f"once, but each is forgotten {MAX_HOURS:g} hours after its end"
                )
            taken = {one.token_id for one in kept}
            token_id = next(one for one in iter(lambda: secrets.token_hex(4), "") if one not in taken)
            grant = Grant(
                token_id=token_id,
                digest=_digest(token),
                scope=scope,
                label=label,
                made_at_utc=now_utc,
                expires_at_utc=now_utc + hours * _HOUR_S,
            )
            self._write((*kept, grant))
        return token, grant

    def grants(self) -> tuple[Grant, ...]:
        """All that are kept, oldest first; expired ones stay for a day, so that their holders are told so."""
        with self._lock:
            return self._current()

    def revoke(self, token_id: str) -> Grant:
        """Refuse it from now on. Revoking it again changes nothing. Raises ConfigError when there is none."""
        with self._lock, self._file.locked():
            grants = list(self._read())
            found = next((n for n, one in enumerate(grants) if one.token_id == token_id), None)
            if found is None:
                known = ", ".join(one.token_id for one in grants[-5:]) or "none"
                raise ConfigError("token_id", f"no token {token_id!r:.60} is kept", f"the latest: {known}")
            if grants[found].revoked_at_utc is None:
                grants[found] = structs.replace(grants[found], revoked_at_utc=self._clock())
                self._write(tuple(grants))
            return grants[found]

    def check(self, token: str, scope: Scope = "client") -> Grant:
        """What this token allows; "admin" allows what "client" does.

        Raises:
            TokenRefused: it is unknown, expired, revoked or has another scope.
            MeshError: the file has become unusable; nobody gets in.
        """
        digest, found = _digest(token), None
        with self._lock:
            grants = self._current()
        for one in grants:  # all of them, each compared in constant time: how long it takes tells nothing
            if hmac.compare_digest(one.digest, digest):
                found = one
        if found is None:
            shape = "" if _SHAPE.fullmatch(token) else f" (it does not look like one: {PREFIX} and 43 characters)"
            raise TokenRefused(
                "unknown", f"unknown token{shape}: get one with `flowray ticket` or `flowray token create`"
            )
        state = found.state(self._clock())
        if state != "valid":
            raise TokenRefused(state, f"token {found.token_id} is {state}: get another with `flowray ticket`")
        if scope == "admin" and found.scope != "admin":
            raise TokenRefused("scope", f"token {found.token_id} has scope {found.scope!r}, this needs {scope!r}")
        return found

    def holds(self, grant: Grant) -> bool:
        """Is what `check` returned still good? For connections that stay open; costs one stat."""
        with self._lock:
            grants = self._current()
        kept = next((one for one in grants if one.token_id == grant.token_id), None)
        return kept is not None and kept.digest == grant.digest and kept.state(self._clock()) == "valid"

    def _current(self) -> tuple[Grant, ...]:
        grants = self._grants
        return grants if grants is not None and not self._file.is_changed() else self._read()

    def _read(self) -> tuple[Grant, ...]:
        self._grants = None  # should this fail, the next check must not go by what was
        data = self._file.read()
        if data is None:
            table = _Table(_VERSION, ())
        else:
            way_out = "remove it, and make new tokens"
            try:
                table = msgspec.json.decode(data, type=_Table)
            except msgspec.MsgspecError as error:
                raise MeshError(f"{self._file.path} is damaged ({error}): {way_out}") from None
            if table.version != _VERSION:
                raise MeshError(
                    f"{self._file.path} has version {table.version}, this flowray knows {_VERSION}: {way_out}"
                )
        self._grants = table.grants
        return table.grants

    def _write(self, grants: tuple[Grant, ...]) -> None:
        self._file.write(msgspec.json.encode(_Table(_VERSION, grants)))
        self._read()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()

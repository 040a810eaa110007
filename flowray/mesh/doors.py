"""The door for callers from outside: a token, not too many wrong ones from the same place, and no name from inside."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from urllib.parse import unquote

from flowray.errors import ConfigError, MeshError
from flowray.mesh.frames import Hello
from flowray.mesh.gates import Gate
from flowray.mesh.tokens import Grant, Scope, TokenRefused, Tokens

OUTSIDE = "client-"  # how the names of all callers with a token begin
MAX_CALLERS = 10_000


class Door:
    """A gate: lets in who shows a good token and calls itself "client-...", or proves its name by a certificate.

    Processes of the runtime that come over a Unix socket without a certificate are left to `inside`, if there is one.

    For one thread. Whoever is let in stays until `lapsed` names it: ask once a second.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        scope: Scope = "client",
        inside: Gate | None = None,
        back_off: BackOff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens, self._scope, self._clock = tokens, scope, clock
        self._back_off = back_off or BackOff()
        self._inside = inside
        self._grants: dict[str, Grant] = {}  # by the caller's name

    def refusal(self, hello: Hello, certified: str | None, source: str) -> str:
        """Why this caller may not come in; "" if it may. `source` is what gRPC's `context.peer()` says."""
        if certified is not None:
            return "" if certified == hello.name else f"its certificate says {certified!r}"
        if not hello.name.startswith(OUTSIDE):
            if self._inside is not None and source_of(source) == "unix":
                return self._inside.refusal(hello, certified, source)
            # Or a client could be taken for an agent, or for the coordinator.
            return f"a caller with a token is called {OUTSIDE}..., not {hello.name!r:.60}"
        if len(self._grants) >= MAX_CALLERS and hello.name not in self._grants:
            return f"{MAX_CALLERS} callers are inside already"
        try:
            grant = self.admit(hello.token, source)
        except MeshError as error:
            return str(error)
        held = self._grants.get(hello.name)
        if held is not None and held.token_id != grant.token_id and self._tokens.holds(held):
            return f"{hello.name!r:.60} is inside already, by another token"
        self._grants[hello.name] = grant
        return ""

    def admit(self, token: str, source: str) -> Grant:
        """What this token allows.

        Only unknown tokens count as failures. Who has one that expired or was revoked guesses nothing, and one
        forgotten notebook must not lock out all others behind its address.

        Raises:
            TokenRefused: not this one, or not now.
            MeshError: the file of tokens has become unusable; nobody gets in.
        """
        place, now_s = source_of(source), self._clock()
        wait_s = self._back_off.wait_s(place, now_s)
        if wait_s > 0:
            detail = f"too many wrong tokens from {place}: try again in {math.ceil(wait_s)} s"
            raise TokenRefused("too_often", detail, retry_after_s=wait_s)
        try:
            return self._tokens.check(token, self._scope)
        except TokenRefused as refused:
            if refused.reason == "unknown":
                self._back_off.failed(place, now_s)
            raise

    def lapsed(self) -> list[str]:
        """Callers whose token was revoked or has expired since they came in. Each is named once: end its stream."""
        names = [name for name, grant in self._grants.items() if not self._tokens.holds(grant)]
        for name in names:
            del self._grants[name]
        return names

    def left(self, name: str) -> None:
        """This caller is gone for good."""
        self._grants.pop(name, None)


class BackOff:
    """How often one source may fail in a while. Told the time; holds a bounded number of sources."""

    def __init__(self, *, failures: int = 5, within_s: float = 60.0, max_sources: int = 10_000) -> None:
        for name, value in (("failures", failures), ("max_sources", max_sources)):
            if value < 1:
                raise ConfigError(name, f"must be at least 1, got {value!r}")
        if not 0 < within_s < math.inf:
            raise ConfigError("within_s", f"must be positive, got {within_s!r}")
        self._failures, self._within_s, self._max_sources = failures, within_s, max_sources
        self._times: OrderedDict[str, deque[float]] = OrderedDict()  # by the latest failure, oldest first

    def wait_s(self, source: str, now_s: float) -> float:
        """How long this source has to wait before it may try; 0 for not at all."""
        times = self._times.get(source)
        if times is None or len(times) < self._failures:
            return 0.0
        return max(0.0, times[0] + self._within_s - now_s)

    def failed(self, source: str, now_s: float) -> None:
        """It tried and failed.

        When there is no room the source that was quiet longest is forgotten. Somebody with that many addresses gains
        as many guesses, which at 256 bits is nothing.
        """
        self._times.setdefault(source, deque(maxlen=self._failures)).append(now_s)
        self._times.move_to_end(source)
        while self._times:
            oldest, times = next(iter(self._times.items()))
            if len(self._times) <= self._max_sources and times[-1] + self._within_s > now_s:
                break
            del self._times[oldest]

    def __len__(self) -> int:
        return len(self._times)


def source_of(peer: str) -> str:
    """A gRPC peer without its port. Of IPv6 only the first 64 bits: one host has all the rest to itself."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind or "unknown"
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))

"""Who a process is: its name in a certificate, and the TLS credentials made of it.

Every process of a runtime has a name and a certificate of the runtime's own authority (`authority`), which says that
name twice: as a URI, flowray://<runtime>/<name>, which the other side reads to learn who called; and as a DNS name,
which a caller demands, so that it reaches the process that it wants and not just any of the runtime.

Needs grpc; needs no cryptography, which only the authority loads.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from msgspec import Struct

from flowray.errors import ConfigError, MeshError
from flowray.mesh.grpc_tuned import grpc

MAX_NAME_CHARACTERS = 200
_SCHEME = "flowray"
_DOMAIN = "flowray.internal"  # .internal is reserved for private use: no public name ever collides
_PLAIN_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?")


class Credentials(Struct, frozen=True, kw_only=True):
    """What one process shows and whom it believes, for a few hours. Never shown: it holds a private key."""

    runtime: str
    name: str
    certificate_pem: str
    key_pem: str
    roots_pem: str  # of every authority generation that may have signed a peer's certificate
    expires_at_utc: float  # seconds since the epoch

    def __repr__(self) -> str:
        return f"Credentials({self.name!r} of runtime {self.runtime!r}, until {self.expires_at_utc:.0f})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("runtime", self.runtime), ("name", self.name)]


def check_name(field: str, name: str) -> None:
    """Raises ConfigError for what cannot be the name of a process or runtime."""
    if not name or len(name) > MAX_NAME_CHARACTERS:
        raise ConfigError(field, f"wants 1 to {MAX_NAME_CHARACTERS} characters, got {len(name)}")
    if not name.isprintable():  # line breaks, NUL and lone surrogates among them
        raise ConfigError(field, f"has characters that cannot be printed: {name!r}")


def uri_of(runtime: str, name: str) -> str:
    """flowray://<runtime>/<name>, percent-encoded."""
    return f"{_SCHEME}://{quote(runtime, safe='')}/{quote(name, safe='')}"


def dns_name_of(runtime: str, name: str) -> str:
    """The name that a caller demands of the other side's certificate. Different names never give the same one."""
    return f"{_label(name)}.{_label(runtime)}.{_DOMAIN}"


def _label(name: str) -> str:
    """A name as one DNS label. What is none already gets its digest appended: "a.b" must not become "a-b"."""
    if _PLAIN_LABEL.fullmatch(name) and "--" not in name:
        return name
    digest = base64.b32encode(hashlib.sha256(name.encode()).digest()[:16]).decode().rstrip("=").lower()
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:30].strip("-")
    return f"{readable or 'x'}--{digest}"


def target_options(runtime: str, name: str) -> list[tuple[str, str]]:
    """Channel options by which a caller reaches this process and no other, whatever address it dials."""
    return [("grpc.ssl_target_name_override", dns_name_of(runtime, name))]


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    """For calls of one process to another; both show their certificates.

    A channel keeps what it was made with. Make a new one for each new connection after a renewal, with
    `target_options`; streams that are open go on.
    """
    return grpc.ssl_channel_credentials(
        root_certificates=credentials.roots_pem.encode(),
        private_key=credentials.key_pem.encode(),
        certificate_chain=credentials.certificate_pem.encode(),
    )


def outside_credentials(roots_pem: str) -> grpc.ChannelCredentials:
    """For a caller that shows a token instead of a certificate. It still demands the other side's."""
    if not roots_pem.strip():
        # gRPC would fall back on the public authorities, which have no say here.
        raise ConfigError("roots_pem", "is empty: without the runtime's own roots nobody can be recognised")
    return grpc.ssl_channel_credentials(root_certificates=roots_pem.encode())


def server_credentials(current: Callable[[], Credentials], *, require_client: bool) -> grpc.ServerCredentials:
    """For one port of a server. `current` is asked at every handshake, so that a renewal needs no restart.

    `current` runs in threads of gRPC: it hands out what is there and does not wait. If it fails, the server goes on
    with what it had. With `require_client` a caller without a certificate of this runtime does not get in; without
    it none is asked for, and `peer_name` is None. Make one for each port: what is new is handed over once.
    """
    lock = threading.Lock()
    shown = current()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        now = current()
        with lock:
            if now == shown:
                return None  # gRPC keeps its context, which takes longer to make than a handshake
            shown = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(_configuration(shown), fetch, require_client)


def _configuration(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
    pair = (credentials.key_pem.encode(), credentials.certificate_pem.encode())
    return grpc.ssl_server_certificate_configuration([pair], credentials.roots_pem.encode())


def peer_name(auth_context: Mapping[str, Iterable[bytes]], *, runtime: str | None = None) -> str | None:
    """Who called, by the certificate that the handshake has verified; None for a caller that showed none.

    `auth_context` is a servicer context's `auth_context()`. With `runtime`, a name of another one is None too.
    """
    if b"ssl" not in auth_context.get("transport_security_type", ()):
        return None
    if b"false" not in auth_context.get("ssl_session_reused", ()):
        # A resumed session repeats what a certificate said before, and nobody looks whether it has expired since.
        # Our own callers never resume.
        return None
    found = [identity for uri in auth_context.get("peer_uri", ()) if (identity := _parsed(uri)) is not None]
    if len(found) != 1:  # more than one would let a peer choose
        return None
    of, name = found[0]
    return name if runtime is None or of == runtime else None


def _parsed(uri: bytes) -> tuple[str, str] | None:
    try:
        text = uri.decode("ascii")
        parts = urlsplit(text)
        runtime, name = unquote(parts.netloc, errors="strict"), unquote(parts.path[1:], errors="strict")
    except ValueError:
        return None
    # Written back it must be the same: nothing that two readers could understand differently.
    return (runtime, name) if runtime and name and uri_of(runtime, name) == text else None


def refusal(details: str, *, runtime: str, name: str) -> MeshError | None:
    """The details of a call that failed with UNAVAILABLE as a sentence, if it failed for who the two sides are.

    None for everything else: nobody there, a server that stops.
    """
    wanted = f"{name!r} of runtime {runtime!r}"
    if "Hostname Verification Check failed" in details:
        return MeshError(f"the process that answers there is not {wanted}: it has another name in its certificate")
    if "certificate has expired" in details:
        return MeshError(f"the certificate of {wanted} has expired: it was not renewed, or a clock is wrong")
    if "certificate is not yet valid" in details:
        return MeshError(f"the certificate of {wanted} is not valid yet: set the clocks of both machines")
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return MeshError(
            f"the process that answers there has no certificate of the authority that we know for {wanted}: it "
            "belongs to another runtime, or our credentials are of an earlier life of this one"
        )
    if "WRONG_VERSION_NUMBER" in details:
        return MeshError(f"what answers there does not speak TLS: it is not {wanted}")
    if "failed to connect" in details and "Socket closed" in details:
        # The protocol lets a server hang up without a word when it does not like a certificate.
        return MeshError(
            f"{wanted} ended the connection in the handshake: it wants a certificate of its runtime and ours is "
            "absent, expired or of another authority; or it is stopping"
        )
    return None

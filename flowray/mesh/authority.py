"""The private certificate authority of one runtime: makes identities that live for hours, and renews itself.

It has generations. One signs; the next is made long before it does, and everybody is told of it in `roots_pem`, so
that a rotation is understood at once by processes that hold older credentials; the last one stays in `roots_pem`
until nothing that it signed is valid any more. A generation that has stopped signing loses its key.

The directory is the runtime's root of trust: whoever can read it can be anyone. After that, stop the runtime and
delete it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from msgspec import Struct, structs

from flowray.errors import ConfigError, MeshError
from flowray.mesh import certificates
from flowray.mesh.identities import Credentials, check_name, dns_name_of, uri_of
from flowray.mesh.private_files import PrivateFile, make_private_directory

FILE = "authority.json"
MAX_LEAF_HOURS = 24.0
CLOCK_SKEW_S = 600.0  # certificates begin this much earlier: another machine's clock may be behind
_HOUR_S = 3600.0
_DAY_S = 24 * _HOUR_S
_SIGNS_S = 30 * _DAY_S  # of one generation, which waits as long before
_VALID_S = 90 * _DAY_S
_OVERLAP_S = MAX_LEAF_HOURS * _HOUR_S + CLOCK_SKEW_S  # by then all that a retired generation signed has expired
_VERSION = 1


class _Generation(Struct, frozen=True, forbid_unknown_fields=True):
    number: int
    certificate_pem: str
    ends_at_utc: float
    key_pem: str = ""  # "" once it has stopped signing
    signs_from_utc: float = 0.0  # 0: not yet
    retired_at_utc: float = 0.0  # 0: not yet

    def __repr__(self) -> str:
        return f"_Generation({self.number})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("number", self.number)]


class _State(Struct, frozen=True, forbid_unknown_fields=True):
    """The file: retired generations, then the one that signs, then the next."""

    version: int
    runtime: str
    generations: tuple[_Generation, ...]

    @property
    def signing(self) -> _Generation:
        return self.generations[-2]

    def roots_pem(self, now_utc: float) -> str:
        return "".join(
            one.certificate_pem
            for one in self.generations
            if not one.retired_at_utc or now_utc < one.retired_at_utc + _OVERLAP_S
        )


class Authority:
    """Makes credentials for the processes of one runtime. Any number of threads and processes may share a directory."""

    def __init__(self, directory: Path, runtime: str, clock: Callable[[], float]) -> None:
        """Use `open`."""
        self.runtime = runtime
        self._clock = clock
        self._file = PrivateFile(directory / FILE)
        self._lock = threading.Lock()
        self._state: _State | None = None
        self._signer: tuple[int, x509.Certificate, ec.EllipticCurvePrivateKey] | None = None

    @classmethod
    def open(cls, directory: Path, *, runtime: str, clock: Callable[[], float] = time.time) -> Authority:
        """The authority in this directory, made if there is none. `clock` gives seconds since the epoch.

        Raises:
            ConfigError: `runtime` cannot be a name.
            MeshError: the directory belongs to another runtime, others may read it, or its file is damaged.
        """
        check_name("runtime", runtime)
        make_private_directory(directory)
        authority = cls(directory, runtime, clock)
        with authority._lock:
            authority._current()
        return authority

    @property
    def roots_pem(self) -> str:
        """Certificates of all generations that a valid certificate may come from, now or after the next rotation."""
        with self._lock:
            return self._current().roots_pem(self._clock())

    @property
    def generation(self) -> int:
        """Which one signs; the first is 1."""
        with self._lock:
            return self._current().signing.number

    def issue(self, name: str, addresses: Iterable[str] = (), hours: float = MAX_LEAF_HOURS) -> Credentials:
        """A new key and certificate for the process of this name. Takes well under a millisecond.

        `addresses` are IP addresses under which it can be reached, for tools that check those; flowray's own callers
        check the name. Renew at half the time.

        Raises:
            ConfigError: a field is out of its bounds.
            MeshError: the authority's file has become unusable.
        """
        check_name("name", name)
        if not 0 < hours <= MAX_LEAF_HOURS:
            raise ConfigError("hours", f"must be more than 0 and at most {MAX_LEAF_HOURS:g}, got {hours!r}")
        places = [x509.IPAddress(certificates.ip(address)) for address in addresses]
        with self._lock:
            now_utc = self._clock()
            state = self._current()
            roots_pem = state.roots_pem(now_utc)
            parent, parent_key = self._signer_of(state.signing)
        key = ec.generate_private_key(ec.SECP256R1())
        expires_at_utc = float(int(now_utc + hours * _HOUR_S))  # certificates know whole seconds
        dns_name = dns_name_of(self.runtime, name)
        certificate = (
            certificates.builder(
                key, certificates.common_name(dns_name.partition(".")[0]), now_utc - CLOCK_SKEW_S, expires_at_utc
            )
            .issuer_name(parent.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(certificates.key_usage(signs=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.UniformResourceIdentifier(uri_of(self.runtime, name)), x509.DNSName(dns_name), *places]
                ),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(parent_key.public_key()), critical=False)
            .sign(parent_key, hashes.SHA256())
        )
        return Credentials(
            runtime=self.runtime,
            name=name,
            certificate_pem=certificates.pem(certificate),
            key_pem=certificates.key_pem_of(key),
            roots_pem=roots_pem,
            expires_at_utc=expires_at_utc,
        )

    def renewing(
        self, name: str, addresses: Iterable[str] = (), hours: float = MAX_LEAF_HOURS
    ) -> Callable[[], Credentials]:
        """What `server_credentials` asks: the same credentials for half of their life, then new ones.

        For processes that have the authority beside them. The first are issued here and now.
        """
        places, lock = tuple(addresses), threading.Lock()
        held = self.issue(name, places, hours)

        def current() -> Credentials:
            nonlocal held
            with lock:
                if not 0 <= held.expires_at_utc - self._clock() - hours * _HOUR_S / 2 <= hours * _HOUR_S / 2:
                    held = self.issue(name, places, hours)  # also after a clock was set back
                return held

        return current

    def rotate(self) -> int:
        """Let the next generation sign from now on; its number. Happens by itself every 30 days.

        Nobody needs to be told: what was issued before knows the next generation already.

        Raises:
            MeshError: the last rotation was less than a certificate's life ago, so that somebody may still hold
                credentials that do not know the next generation.
        """
        with self._lock, self._file.locked():
            state, now_utc = self._read(), self._clock()
            if state is None:
                raise MeshError(f"{self._file.path} is gone: open the authority again to make another")
            wait_s = state.signing.signs_from_utc + _OVERLAP_S - now_utc
            if state.signing.number > 1 and wait_s > 0:
                raise MeshError(
                    f"the authority of runtime {self.runtime!r} was rotated lately, and processes with older "
                    f"credentials do not know the next generation yet: rotate again in {wait_s / _HOUR_S:.1f} hours"
                )
            return self._write(_rotated(state, now_utc)).signing.number

    def _current(self) -> _State:
        """What the file says, brought up to date. The caller holds the lock."""
        state = self._state
        if state is None or self._file.is_changed():
            state = self._read()
        if state is None or _is_due(state, self._clock()):
            with self._file.locked():
                state = self._read()  # another process may have been faster
                if state is None:
                    state = self._write(_first(self.runtime, self._clock()))
                elif _is_due(state, self._clock()):
                    state = self._write(_rotated(state, self._clock()))
        self._state = state
        return state

    def _read(self) -> _State | None:
        data = self._file.read()
        if data is None:
            return None
        way_out = "stop the runtime and remove the file; every process then gets a new identity"
        try:
            state = msgspec.json.decode(data, type=_State)
        except msgspec.MsgspecError as error:
            raise MeshError(f"{self._file.path} is damaged ({error}): {way_out}") from None
        if state.version != _VERSION:
            raise MeshError(f"{self._file.path} has version {state.version}, this flowray knows {_VERSION}: {way_out}")
        if state.runtime != self.runtime:
            raise MeshError(
                f"{self._file.path} is the authority of runtime {state.runtime!r}, not of {self.runtime!r}: "
                "give each runtime a directory of its own"
            )
        if len(state.generations) < 2 or not all(one.key_pem for one in state.generations[-2:]):
            raise MeshError(f"{self._file.path} is damaged (no generation can sign): {way_out}")
        return state

    def _write(self, state: _State) -> _State:
        self._file.write(msgspec.json.encode(state))
        self._file.read()  # so that `is_changed` compares with what was just written
        self._state = state
        return state

    def _signer_of(self, generation: _Generation) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        if self._signer is None or self._signer[0] != generation.number:
            try:
                certificate = x509.load_pem_x509_certificate(generation.certificate_pem.encode())
                key = serialization.load_pem_private_key(generation.key_pem.encode(), None)
            except ValueError:
                key = None
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                # The reason is left out: it could quote the key.
                raise MeshError(f"{self._file.path} is damaged: generation {generation.number} cannot sign") from None
            self._signer = (generation.number, certificate, key)
        return self._signer[1], self._signer[2]


def _first(runtime: str, now_utc: float) -> _State:
    signing = structs.replace(_made(runtime, 1, now_utc), signs_from_utc=now_utc)
    return _State(_VERSION, runtime, (signing, _made(runtime, 2, now_utc)))


def _is_due(state: _State, now_utc: float) -> bool:
    signing = state.signing
    return now_utc >= min(signing.signs_from_utc + _SIGNS_S, signing.ends_at_utc - _OVERLAP_S)


def _rotated(state: _State, now_utc: float) -> _State:
    """The next generation signs, and the one after it is made. What has expired is left out."""
    *retired, signing, following = state.generations
    kept = [one for one in retired if now_utc < one.retired_at_utc + _OVERLAP_S]
    kept.append(structs.replace(signing, key_pem="", retired_at_utc=now_utc))
    if following.ends_at_utc - _OVERLAP_S <= now_utc:  # the runtime has been away for months, and so has everybody
        following = _made(state.runtime, following.number, now_utc)
    following = structs.replace(following, signs_from_utc=now_utc)
    return structs.replace(state, generations=(*kept, following, _made(state.runtime, following.number + 1, now_utc)))


def _made(runtime: str, number: int, now_utc: float) -> _Generation:
    key = ec.generate_private_key(ec.SECP256R1())
    # The random part keeps the authorities of two lives of a runtime apart, in logs and when a chain is built.
    subject = certificates.common_name(f"flowray authority {number} {secrets.token_hex(8)}")
    ends_at_utc = float(int(now_utc + _VALID_S))
    certificate = (
        certificates.builder(key, subject, now_utc - CLOCK_SKEW_S, ends_at_utc)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(certificates.key_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _Generation(number, certificates.pem(certificate), ends_at_utc, certificates.key_pem_of(key))

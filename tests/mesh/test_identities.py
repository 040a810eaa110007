"""Names in certificates, and who gets through a handshake over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from grpc.experimental.session_cache import ssl_session_cache_lru
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from flowray.errors import ConfigError
from flowray.mesh.authority import Authority
from flowray.mesh.grpc_tuned import grpc
from flowray.mesh.identities import (
    Credentials,
    channel_credentials,
    check_name,
    dns_name_of,
    outside_credentials,
    peer_name,
    refusal,
    server_credentials,
    target_options,
    uri_of,
)

HOUR_S = 3600.0
names = st.text(min_size=1, max_size=60).filter(str.isprintable)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "identity", runtime="team")


@pytest.fixture
def yesterday(authority: Authority, tmp_path: Path) -> Authority:
    """The same authority as it was a day and more ago: what it issues has expired."""
    return Authority.open(tmp_path / "identity", runtime="team", clock=lambda: time.time() - 30 * HOUR_S)


async def _who(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    caller = peer_name(context.auth_context(), runtime="team")
    async for request in requests:
        yield f"{caller}:{request.decode()}".encode()


@contextlib.asynccontextmanager
async def serving(current: Callable[[], Credentials], *, require_client: bool = True) -> AsyncIterator[int]:
    """A server on loopback that answers who called; its port."""
    server = grpc.aio.server()
    handlers = {"who": grpc.stream_stream_rpc_method_handler(_who)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(current, require_client=require_client))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def calling(port: int, credentials: Any, wanted: str = "coordinator") -> AsyncIterator[Any]:
    """An open stream to the process of this name."""
    options = target_options("team", wanted)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        yield channel.stream_stream("/test/who")()


async def say(stream: Any, text: str) -> str:
    await stream.write(text.encode())
    answer: bytes = await stream.read()
    return answer.decode()


async def ask(port: int, credentials: Any, wanted: str = "coordinator") -> str:
    async with calling(port, credentials, wanted) as stream:
        return await say(stream, "hi")


async def refused(port: int, credentials: Any, wanted: str = "coordinator") -> str:
    """The sentence about a connection that must not come about."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(port, credentials, wanted)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    error = refusal(caught.value.details(), runtime="team", name=wanted)
    assert error is not None, caught.value.details()
    return str(error)


def shown_by(port: int) -> x509.Certificate:
    """The certificate that a server shows to a new connection."""
    return x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port), timeout=10).encode())


def generation_of(certificate: x509.Certificate) -> str:
    return str(certificate.issuer.rfc4514_string().split()[2])


async def test_both_sides_learn_who_the_other_is(authority):
    coordinator = authority.issue("coordinator", ["127.0.0.1"])
    async with serving(lambda: coordinator) as port:
        for name in ("agent-7", "Schreiber/ä 3", "node:10.0.0.1"):
            assert await ask(port, channel_credentials(authority.issue(name))) == f"{name}:hi"


async def test_a_caller_demands_the_name_it_wants(authority):
    other = authority.issue("agent-1", ["127.0.0.1"])
    async with serving(lambda: other) as port:
        text = await refused(port, channel_credentials(authority.issue("driver")))
    assert text == (
        "the process that answers there is not 'coordinator' of runtime 'team': it has another name in its certificate"
    )


async def test_a_server_of_another_authority_is_refused(authority, tmp_path):
    impostor = Authority.open(tmp_path / "other", runtime="team").issue("coordinator", ["127.0.0.1"])
    async with serving(lambda: impostor) as port:
        assert "belongs to another runtime" in await refused(port, channel_credentials(authority.issue("driver")))
        assert "belongs to another runtime" in await refused(port, outside_credentials(authority.roots_pem))


async def test_an_expired_server_is_refused(authority, yesterday):
    stale = yesterday.issue("coordinator")
    async with serving(lambda: stale) as port:
        text = await refused(port, channel_credentials(authority.issue("driver")))
    assert text == (
        "the certificate of 'coordinator' of runtime 'team' has expired: it was not renewed, or a clock is wrong"
    )


async def test_callers_that_cannot_prove_who_they_are_are_refused(authority, yesterday, tmp_path):
    coordinator = authority.issue("coordinator")
    stranger = Authority.open(tmp_path / "other", runtime="team").issue("driver")
    of_stranger = channel_credentials(structs.replace(stranger, roots_pem=authority.roots_pem))
    expired = channel_credentials(yesterday.issue("driver"))
    async with serving(lambda: coordinator) as port:
        for credentials in (of_stranger, expired, outside_credentials(authority.roots_pem)):
            text = await refused(port, credentials)
            assert "ended the connection in the handshake: it wants a certificate of its runtime" in text
        assert await ask(port, channel_credentials(authority.issue("driver"))) == "driver:hi"


async def test_a_server_from_the_future_is_refused(authority, tmp_path):
    tomorrow = Authority.open(tmp_path / "identity", runtime="team", clock=lambda: time.time() + 2 * HOUR_S)
    early = tomorrow.issue("coordinator")
    async with serving(lambda: early) as port:
        assert "is not valid yet: set the clocks" in await refused(port, channel_credentials(authority.issue("driver")))


async def test_who_does_not_speak_tls_is_said(authority):
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        assert "does not speak TLS" in await refused(port, channel_credentials(authority.issue("driver")))
    finally:
        await server.stop(0)


async def test_a_resumed_session_proves_nothing(authority):
    """Else a caller could go on for days with a certificate that has expired."""
    coordinator = authority.issue("coordinator")
    credentials = channel_credentials(authority.issue("driver"))
    cache = ssl_session_cache_lru(10)
    options = [*target_options("team", "coordinator"), ("grpc.ssl_session_cache", cache)]
    answers = []
    async with serving(lambda: coordinator) as port:
        for _ in range(2):
            async with grpc.aio.secure_channel(
                f"127.0.0.1:{port}", credentials, options=[*options, ("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                answers.append(await say(channel.stream_stream("/test/who")(), "hi"))
    assert answers == ["driver:hi", "None:hi"]


async def test_a_door_for_tokens_asks_for_no_certificate(authority):
    coordinator = authority.issue("coordinator")
    async with serving(lambda: coordinator, require_client=False) as port:
        assert await ask(port, outside_credentials(authority.roots_pem)) == "None:hi"
        # Whatever a caller shows there was not verified, so it must not count.
        assert await ask(port, channel_credentials(authority.issue("agent"))) == "None:hi"


async def test_a_new_certificate_needs_no_restart_and_breaks_no_stream(authority):
    current = [authority.issue("coordinator")]
    door = outside_credentials(authority.roots_pem)
    async with serving(lambda: current[0], require_client=False) as port, calling(port, door) as stream:
        assert await say(stream, "before") == "None:before"
        first = await asyncio.to_thread(shown_by, port)
        assert (await asyncio.to_thread(shown_by, port)).serial_number == first.serial_number
        current[0] = authority.issue("coordinator")
        second = await asyncio.to_thread(shown_by, port)
        assert second.serial_number != first.serial_number
        assert await say(stream, "after") == "None:after"
        assert await ask(port, door) == "None:hi"


async def test_a_new_authority_generation_breaks_nobody(authority):
    current = [authority.issue("coordinator")]
    early = authority.issue("early")
    async with serving(lambda: current[0]) as port, calling(port, channel_credentials(early)) as stream:
        assert await say(stream, "before") == "early:before"
        assert authority.rotate() == 2
        # The server has not heard of it yet; a peer that was issued after it gets in.
        late = authority.issue("late")
        assert generation_of(x509.load_pem_x509_certificate(late.certificate_pem.encode())) == "2"
        assert await ask(port, channel_credentials(late)) == "late:hi"
        # The server is renewed; a peer that was issued before the rotation still knows it, and is known.
        current[0] = authority.issue("coordinator")
        assert await ask(port, channel_credentials(early)) == "early:hi"
        assert await ask(port, channel_credentials(late)) == "late:hi"
        assert await say(stream, "after") == "early:after"


async def test_what_a_retired_generation_signed_is_refused_in_the_end(authority, tmp_path):
    first = authority.issue("coordinator")
    authority.rotate()
    later = Authority.open(tmp_path / "identity", runtime="team", clock=lambda: time.time() + 25 * HOUR_S)
    async with serving(lambda: first) as port:
        assert await ask(port, channel_credentials(authority.issue("driver"))) == "driver:hi"
        forgetful = structs.replace(authority.issue("driver"), roots_pem=later.roots_pem)
        assert "belongs to another runtime" in await refused(port, channel_credentials(forgetful))


async def test_a_server_whose_renewal_fails_goes_on(authority):
    answers = [authority.issue("coordinator")]

    def current() -> Credentials:
        return answers[0]  # an IndexError once it is empty

    async with serving(current) as port:
        answers.clear()
        assert await ask(port, channel_credentials(authority.issue("driver"))) == "driver:hi"


def test_no_roots_are_not_the_public_ones():
    with pytest.raises(ConfigError, match="roots_pem: is empty"):
        outside_credentials(" \n")


def test_other_failures_are_not_about_identity():
    for details in ("", "Socket closed", "failed to connect to all addresses; last error: Connection refused"):
        assert refusal(details, runtime="team", name="x") is None


def context_of(*uris: str, security: bytes = b"ssl") -> dict[str, list[bytes]]:
    uri_bytes = [uri.encode() for uri in uris]
    return {"transport_security_type": [security], "ssl_session_reused": [b"false"], "peer_uri": uri_bytes}


@settings(deadline=None)
@given(names, names)
def test_a_name_comes_back_from_its_uri(runtime, name):
    context = context_of(uri_of(runtime, name))
    assert peer_name(context) == name
    assert peer_name(context, runtime=runtime) == name
    assert peer_name(context, runtime=runtime + "x") is None


@pytest.mark.parametrize(
    "context",
    [
        {},
        context_of(),
        context_of("flowray://team/a", security=b"insecure"),
        {**context_of("flowray://team/a"), "ssl_session_reused": [b"true"]},
        {name: one for name, one in context_of("flowray://team/a").items() if name != "ssl_session_reused"},
        context_of("flowray://team/a", "flowray://team/b"),
        context_of("spiffe://team/a"),
        context_of("flowray://team/"),
        context_of("flowray:///a"),
        context_of("flowray://team/a/b"),
        context_of("flowray://team/a?x=1"),
        context_of("flowray://team/a#b"),
        context_of("flowray://team/%61"),
        context_of("flowray://team/%ff"),
        context_of("flowray://[team/a"),
        context_of("flowray://team/ä"),
    ],
)
def test_a_name_that_is_not_plain_is_none(context):
    assert peer_name(context) is None


@settings(deadline=None)
@given(names, names)
def test_different_names_have_different_dns_names(one, other):
    label, _, rest = dns_name_of("team", one).partition(".")
    assert rest == "team.flowray.internal"
    assert 0 < len(label) <= 63 and label.strip("-") == label
    assert set(label) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert (one == other) == (dns_name_of("team", one) == dns_name_of("team", other))


def test_a_digest_cannot_be_spelt_by_another_name():
    spelt = dns_name_of("team", "a.b").partition(".")[0]
    assert dns_name_of("team", spelt).partition(".")[0] != spelt
    assert dns_name_of("team", "agent-7") == "agent-7.team.flowray.internal"
    assert len(dns_name_of("r" * 200, "n" * 200)) <= 253


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "a\0", "\ud800"])
def test_impossible_names_are_named(authority, name):
    with pytest.raises(ConfigError, match=r"^field: "):
        check_name("field", name)
    with pytest.raises(ConfigError, match=r"^name: "):
        authority.issue(name)


def test_credentials_travel_and_do_not_show(authority):
    credentials = authority.issue("agent-7")
    for encode, decode in (
        (msgspec.msgpack.encode, msgspec.msgpack.decode),
        (msgspec.json.encode, msgspec.json.decode),
    ):
        assert decode(encode(credentials), type=Credentials) == credentials
    shown = f"{credentials} {credentials!r} {[credentials]} {credentials.__rich_repr__()}"
    assert "PRIVATE KEY" not in shown and "agent-7" in shown
    assert all(line not in shown for line in credentials.key_pem.splitlines())


@settings(deadline=None)
@given(
    st.builds(
        Credentials,
        runtime=names,
        name=names,
        certificate_pem=st.text(max_size=40),
        key_pem=st.text(max_size=40),
        roots_pem=st.text(max_size=40),
        expires_at_utc=st.floats(0, 1e10),
    )
)
def test_any_credentials_travel(credentials):
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(credentials), type=Credentials) == credentials


def test_a_certificate_says_all_that_is_wanted_of_it(authority):
    credentials = authority.issue("agent.7", ["127.0.0.1", "[::1]"], hours=2)
    certificate = x509.load_pem_x509_certificate(credentials.certificate_pem.encode())
    names_in_it = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names_in_it.get_values_for_type(x509.UniformResourceIdentifier) == ["flowray://team/agent.7"]
    assert names_in_it.get_values_for_type(x509.DNSName) == [dns_name_of("team", "agent.7")]
    assert [str(ip) for ip in names_in_it.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    use = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {one._name for one in use} == {"serverAuth", "clientAuth"}
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical and not basic.value.ca
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert certificate.not_valid_after_utc.timestamp() == credentials.expires_at_utc
    lasts_s = (certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds()
    assert lasts_s == pytest.approx(2 * HOUR_S + 600, abs=2)

"""Endpoints over TCP with TLS: names are proved by certificates."""

from __future__ import annotations

import asyncio

import pytest
from nodes import RUNTIME, Node, have_all, raw

from flowray.errors import MeshError
from flowray.mesh import identities
from flowray.mesh.authority import Authority

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def authority(place):
    return Authority.open(place / "authority", runtime=RUNTIME)


async def listening(
    node, authority, name: str, *, certified: str = "", require_client: bool = True
) -> tuple[Node, str]:
    """A node that listens on TCP, and where."""
    one = await node(name, listens=False)
    credentials = authority.issue(name)
    serving = identities.server_credentials(lambda: credentials, require_client=require_client)
    return one, f"127.0.0.1:{await one.endpoint.listen_tcp('127.0.0.1', 0, serving)}"


async def test_messages_pass_both_ways(node, authority):
    b, target = await listening(node, authority, "b")
    a = await node("a", listens=False, token="")  # its certificate is enough
    asked = 0

    def credentials():
        nonlocal asked
        asked += 1
        return identities.channel_credentials(authority.issue("a"))

    a.endpoint.dial("b", target, credentials)
    await asyncio.gather(a.say("b", 2000), b.say("a", 2000))
    await b.until(lambda: have_all(a, b))
    await a.until(lambda: have_all(b, a))
    assert asked == 1


async def test_who_answers_must_be_who_was_dialled(node, authority):
    _, target = await listening(node, authority, "c")
    a = await node("a", listens=False)
    peer = a.endpoint.dial("b", target, identities.channel_credentials(authority.issue("a")))
    await a.until(lambda: "another name in its certificate" in peer.refused)


async def test_who_dials_must_be_who_it_says(node, authority):
    b, target = await listening(node, authority, "b")
    liar = await node("liar", listens=False)
    peer = liar.endpoint.dial("b", target, identities.channel_credentials(authority.issue("a")))
    await liar.until(lambda: bool(peer.refused))
    assert peer.refused == "its certificate says 'a'"
    assert b.endpoint.peers() == []


async def test_another_authority_is_not_believed(node, authority, place):
    _, target = await listening(node, authority, "b")
    other = Authority.open(place / "other", runtime=RUNTIME)
    a = await node("a", listens=False)
    peer = a.endpoint.dial("b", target, identities.channel_credentials(other.issue("a")))
    await a.until(lambda: "has no certificate of the authority that we know" in peer.refused)


async def test_without_a_certificate_the_token_counts(node, authority):
    b, target = await listening(node, authority, "b", require_client=False)
    outside = identities.outside_credentials(authority.roots_pem)
    guest = await node("guest", listens=False)
    guest.endpoint.dial("b", target, outside)
    await guest.say("b", 3)
    await b.until(lambda: have_all(guest, b))
    stranger = await node("stranger", listens=False, token="guess")
    peer = stranger.endpoint.dial("b", target, outside)
    await stranger.until(lambda: bool(peer.refused))
    assert peer.refused == "a wrong token"


async def test_plain_connections_get_nowhere(node, authority):
    b, target = await listening(node, authority, "b")
    a = await node("a", listens=False)
    peer = a.endpoint.dial("b", target)
    await a.until(lambda: bool(peer.refused))
    async with raw(target) as stranger:
        with pytest.raises(Exception, match=r"UNAVAILABLE|InvalidStateError|RPC"):
            await stranger.write(stranger.hello("b"))
            await stranger.rest()
    assert b.endpoint.peers() == [] and not peer.connected.is_set()
    with pytest.raises(MeshError, match="needs TLS credentials"):
        await a.endpoint.listen_tcp("127.0.0.1", 0, None)

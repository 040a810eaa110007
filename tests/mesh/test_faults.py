"""Bad networks between two endpoints, and peers that are killed: no loss, nothing twice, nothing that grows."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from nodes import Network, Node, have_all, small
from processes import child

from flowray.mesh.endpoint import PeerGone, StreamBroken, StreamUp

pytestmark = pytest.mark.timeout(20)


async def joined(node, network) -> tuple[Node, Node, Network]:
    """a dials b over a network that can be spoilt; both have small windows."""
    a, b = await node("a", listens=False, limits=small()), await node("b", limits=small())
    between = await network("b")
    a.endpoint.dial("b", f"unix:{between.path}")
    await a.endpoint.peer("b").connected.wait()
    await b.endpoint.peer("a").connected.wait()
    return a, b, between


async def all_there(a: Node, b: Node) -> None:
    """Both have all of each other, each once, nothing is held any more, and nobody was taken for dead."""
    await b.until(lambda: have_all(a, b))
    await a.until(lambda: have_all(b, a))
    for one, other in ((a, b), (b, a)):
        link = one.endpoint.peer(other.name).link
        await one.until(lambda link=link: link.held == 0)
        assert link.held_bytes == 0 and link.backlog == (0, 0)
        assert not [event for event in one.events if isinstance(event, PeerGone)]


@pytest.mark.parametrize("seed", [1, 2])
async def test_connections_cut_in_the_middle_of_bytes(node, network, seed):
    random = Random(seed)
    a, b, between = await joined(node, network)
    for _ in range(8):
        # At any byte of greetings or of frames, in either direction; several connections may go before a frame passes.
        between.lose_at = between.passed + random.choice([1, 100, 700, 3_000, 20_000])
        await asyncio.gather(a.say("b", 50, size=100), b.say("a", 50, size=300))
        await a.until(lambda: not between.lose_at)
    await all_there(a, b)
    for one in (a, b):
        assert [type(event) for event in one.events] == [StreamUp, StreamBroken] * (len(one.events) // 2) + [StreamUp]
        assert len(one.events) > 3


@pytest.mark.timeout(120)
async def test_a_cut_network(node, network, pytestconfig):
    away_s = 60 if pytestconfig.getoption("--chaos-full") else 0.3
    a, b, between = await joined(node, network)
    await asyncio.gather(a.say("b", 50), b.say("a", 50))
    between.refusing = True
    between.cut()
    await a.until_told(StreamBroken, "b")
    await b.until_told(StreamBroken, "a")
    saying = asyncio.gather(a.say("b", 1000), b.say("a", 1000))
    for one, other in ((a, "b"), (b, "a")):
        await one.until(lambda one=one, other=other: not one.endpoint.peer(other).link.has_room())
        assert not one.endpoint.peer(other).send(b"not taken")
    await asyncio.sleep(away_s)
    for one, other in ((a, "b"), (b, "a")):
        assert one.endpoint.peer(other).link.held == 2 * small().window_items
    assert a.endpoint.peer("b").refused
    between.refusing = False
    await saying
    await all_there(a, b)


async def test_a_half_open_connection_is_noticed_and_replaced(node, network, monkeypatch):
    """Nothing passes and nobody is told, as when a machine loses its power or a process is stopped."""
    monkeypatch.setattr("flowray.mesh.peers._SWEEP_S", 0.05)
    settings = {"limits": small(), "silent_after_s": 1.0}
    a, b = await node("a", listens=False, **settings), await node("b", **settings)
    between = await network("b")
    a.endpoint.dial("b", f"unix:{between.path}")
    await asyncio.gather(a.say("b", 50), b.say("a", 50))
    await a.endpoint.peer("b").connected.wait()
    await b.endpoint.peer("a").connected.wait()
    between.stall()
    saying = asyncio.gather(a.say("b", 500), b.say("a", 500))
    await a.until_told(StreamBroken, "b")
    await b.until_told(StreamBroken, "a")
    between.flow()  # what was on its way arrives late, on connections that nobody wants any more
    await saying
    await all_there(a, b)


async def test_a_stall_that_ends_in_time_is_no_break(node, network):
    a, b, between = await joined(node, network)
    for _ in range(3):
        between.stall()
        saying = asyncio.gather(a.say("b", 200), b.say("a", 200))
        await asyncio.sleep(0.1)
        between.flow()
        await saying
    await all_there(a, b)
    assert a.events == [StreamUp("b")]


async def test_a_slow_network_carries_all(node, network):
    a, b, between = await joined(node, network)
    between.piece_bytes, between.delay_s = 700, 0.001
    await asyncio.gather(a.say("b", 300, size=200), b.say("a", 300, size=200))
    await all_there(a, b)
    assert a.events == [StreamUp("b")]


@pytest.mark.slow
async def test_a_peer_that_is_killed_is_reported_and_its_successor_found(node, place):
    a = await node("a")
    for life in range(2):
        events = len(a.events)
        settings = {"name": "b", "peer": "a", "path": f"{place}/b", "dials": f"unix:{place}/a", "size": 20_000}
        async with child(settings) as b:
            peer = a.endpoint.dial("b", f"unix:{place}/b")
            if life:
                await a.until_told(PeerGone, "b", events)
                a.got.clear()
            await a.until(lambda: len(a.got.get("b", ())) > 100)  # in the middle of large frames
            heard = a.heard("b")
            assert heard == list(range(len(heard)))
            events = len(a.events)
            await b.kill()
            broken = await a.until_told(StreamBroken, "b", events)
            assert broken.reason and not peer.connected.is_set()
        (place / "b").unlink()
        while peer.send(b"0"):
            pass
        assert peer.link.held == 2 * a.endpoint.limits.window_items


@pytest.mark.slow
async def test_two_processes_with_both_dialling(place):
    one = {"name": "a", "peer": "b", "path": f"{place}/a", "dials": f"unix:{place}/b"}
    other = {"name": "b", "peer": "a", "path": f"{place}/b", "dials": f"unix:{place}/a"}
    async with child(one) as a, child(other) as b:
        for side in (a, b):
            await side.hear("event", "StreamUp")
        sent = [(await side.ask("stop", "sent"))["sent"] for side in (a, b)]
        for side, (of_link, of_node) in ((b, sent[0]), (a, sent[1])):
            counted = await side.ask("count", "heard")
            assert counted["in_order"] and counted["heard"] == of_link <= of_node

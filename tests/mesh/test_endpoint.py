"""Endpoints over real gRPC: meeting, refusing, limits, leaving. Faults of the network are in test_faults."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest
from nodes import Node, descriptors, have_all, raw, small, threads

from flowray.errors import ConfigError, MeshError
from flowray.mesh import frames
from flowray.mesh.endpoint import PeerGone, StreamBroken, StreamUp
from flowray.mesh.frames import Bye, Frame, Hello

pytestmark = pytest.mark.timeout(20)


async def meet(one: Node, other: Node, place) -> None:
    """`one` dials; both are connected."""
    one.endpoint.dial(other.name, f"unix:{place / other.name}")
    await one.endpoint.peer(other.name).connected.wait()
    await other.endpoint.peer(one.name).connected.wait()


async def test_messages_come_in_order_both_ways(node, place):
    a, b = await node("a", listens=False), await node("b")
    a.endpoint.dial("b", f"unix:{place}/b")
    await asyncio.gather(a.say("b", 5000), b.say("a", 5000, size=100))
    await b.until(lambda: have_all(a, b))
    await a.until(lambda: have_all(b, a))
    assert a.events == [StreamUp("b")] and b.events == [StreamUp("a")]


async def test_both_dial_at_once_and_one_stream_comes_of_it(node, place):
    for _ in range(20):
        a, b = await node("a"), await node("b")
        a.endpoint.dial("b", f"unix:{place}/b")
        b.endpoint.dial("a", f"unix:{place}/a")
        await asyncio.gather(a.say("b", 200), b.say("a", 200))
        await b.until(lambda a=a, b=b: have_all(a, b))
        await a.until(lambda a=a, b=b: have_all(b, a))
        for one in (a, b):
            assert not [event for event in one.events if isinstance(event, PeerGone)]
        await asyncio.gather(a.endpoint.close(), b.endpoint.close())


@pytest.mark.slow
async def test_a_hundred_dial_at_once(node, place):
    hub = await node("hub")
    many = [await node(f"n{number}", listens=False) for number in range(100)]
    for one in many:
        one.endpoint.dial("hub", f"unix:{place}/hub")
    await asyncio.gather(*(one.say("hub", 20) for one in many), *(hub.say(one.name, 20) for one in many))
    for one in many:
        await hub.until(lambda one=one: have_all(one, hub))
        await one.until(lambda one=one: have_all(hub, one))
    assert sorted(hub.events, key=str) == sorted((StreamUp(one.name) for one in many), key=str)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "name", "reason"),
    [
        ({"token": "guess"}, "b", "a wrong token"),
        ({"runtime": "other"}, "b", "it belongs to the runtime 'other', this process to 'r'"),
        ({}, "c", "it looks for 'c', this process is 'b'"),
    ],
)
async def test_a_refused_peer_is_told_why(node, place, settings, name, reason):
    a, b = await node("a", listens=False, **settings), await node("b")
    peer = a.endpoint.dial(name, f"unix:{place}/b")
    await a.until(lambda: bool(peer.refused))
    assert peer.refused == reason
    assert not peer.connected.is_set() and b.endpoint.peers() == [] and a.events == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "it speaks version 2 of the protocol, this process 1"),
        ({"name": "b"}, "it has the name of this process, 'b'"),
        ({"name": ""}, "its name: wants 1 to 200 characters, got 0"),
        ({"name": "two\nlines"}, "its name: has characters that cannot be printed"),
        ({"token": ""}, "a wrong token"),
        ({"received": 1}, "its greeting says that it received 1 messages; it confirmed 0 of 0 that were sent"),
    ],
)
async def test_a_stranger_is_told_why(node, place, changes, reason):
    b = await node("b")
    async with raw(f"unix:{place}/b") as stranger:
        await stranger.write(stranger.hello("b", **changes))
        said = await stranger.rest()
    assert len(said) == 1 and isinstance(said[0], Bye) and said[0].reason.startswith(reason)
    assert b.events == []


async def test_nobody_dials_itself_and_names_are_names(node, place):
    a = await node("a")
    with pytest.raises(MeshError, match="cannot dial itself"):
        a.endpoint.dial("a", f"unix:{place}/a")
    with pytest.raises(ConfigError, match="name"):
        Node("")
    with pytest.raises(ConfigError, match="runtime"):
        Node("b", runtime="two\nlines")


async def test_a_socket_is_private_and_its_path_short(node, place):
    a = await node("a")
    with pytest.raises(MeshError, match="another process listens there"):
        await a.endpoint.listen_unix(place / "a")
    with pytest.raises(MeshError, match="too long"):
        await a.endpoint.listen_unix(place / ("x" * 100))
    with pytest.raises(MeshError, match="No such file"):
        await a.endpoint.listen_unix(place / "absent" / "a")
    place.chmod(0o755)
    with pytest.raises(MeshError, match="chmod 700"):
        await a.endpoint.listen_unix(place / "other")
    assert (place / "a").stat().st_mode & 0o777 == 0o600


# ── what strangers say ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_malformed_bytes_end_the_stream_and_nothing_else(node, place):
    a, b = await node("a", listens=False), await node("b")
    await meet(a, b, place)
    whole = frames.encode(Frame(0, 9, 9, 1, [b"x"]))
    for said in (b"", b"\xc1", whole[:-1], b"\x91" * 10_000, b"x" * 60_000, frames.encode(Bye("hello?")), whole):
        async with raw(f"unix:{place}/b") as stranger:
            await stranger.write(said)
            assert [type(one) for one in await stranger.rest()] == [Bye]
        if said is not whole:
            async with raw(f"unix:{place}/b") as stranger:
                await stranger.write(stranger.hello("b"))
                assert isinstance(await stranger.read(), Hello)
                await stranger.write(said)
                assert [type(one) for one in await stranger.rest()][-1:] == [Bye]
            b.endpoint.forget("raw", "the next one begins anew")
    await a.say("b", 10)
    await b.until(lambda: have_all(a, b))
    assert a.events == [StreamUp("b")]


async def test_replayed_frames_are_dropped_and_gaps_refused(node, place):
    b = await node("b")
    async with raw(f"unix:{place}/b") as stranger:
        await stranger.write(stranger.hello("b"))
        assert isinstance(await stranger.read(), Hello)
        for first, messages in ((1, [b"0", b"1"]), (1, [b"0", b"1"]), (2, [b"1", b"2"]), (1, [b"0"]), (4, [b"3"])):
            await stranger.write(Frame(0, 9, 9, first, messages))
        await b.until(lambda: b.heard("raw") == [0, 1, 2, 3])
        await stranger.write(Frame(0, 9, 9, 6, [b"5"]))
        said = await stranger.rest()
        assert said[-1] == Bye("message 6 came after message 4: some are missing")
    assert b.heard("raw") == [0, 1, 2, 3]
    broken = await b.until_told(StreamBroken, "raw")
    assert "some are missing" in broken.reason


async def test_a_replayed_greeting_does_not_disturb_the_stream(node, place):
    a, b = await node("a", listens=False), await node("b")
    await meet(a, b, place)
    first_end = a.endpoint.peer("b").link.end
    async with raw(f"unix:{place}/b") as stranger:
        await stranger.write(stranger.hello("b", name="a", end=first_end, number=1))
        said = await stranger.rest()
        assert isinstance(said[0], Bye) and "out of date" in said[0].reason
    b.endpoint.peer("a")._former_ends.append("earlier-1")  # as when the process before this one was replaced
    async with raw(f"unix:{place}/b") as stranger:
        await stranger.write(stranger.hello("b", name="a", end="earlier-1", number=100))
        said = await stranger.rest()
        assert isinstance(said[0], Hello) and said[0].knows == first_end and len(said) == 1
    await a.say("b", 10)
    await b.until(lambda: have_all(a, b))
    assert b.events == [StreamUp("a")]


async def test_an_oversized_message_is_refused_on_both_sides(node, place):
    limits = small()
    a, b = await node("a", listens=False, limits=limits), await node("b", limits=limits)
    await meet(a, b, place)
    for send in (a.endpoint.peer("b").send, a.endpoint.peer("b").send_anyway):
        with pytest.raises(MeshError, match="a message of 32001 bytes to b; the limit is 32000: send a reference"):
            send(b"x" * 32_001)
    a.endpoint.peer("b").send(b"1".ljust(32_000, b"."))
    await b.until(lambda: b.heard("a") == [1])
    async with raw(f"unix:{place}/b") as stranger:
        await stranger.write(stranger.hello("b"))
        assert isinstance(await stranger.read(), Hello)
        with pytest.raises(Exception, match=r"larger than max|RESOURCE_EXHAUSTED|CANCELLED|Internal"):
            await stranger.write(Frame(0, 9, 9, 1, [b"x" * limits.wire_bytes]))
            await stranger.rest()
            raise Exception(str(await stranger.call.code()))
    await b.until_told(StreamBroken, "raw")
    assert b.heard("raw") == []
    async with raw(f"unix:{place}/b") as stranger:  # credit ends before that
        await stranger.write(stranger.hello("b", end="raw-2"))
        assert isinstance(await stranger.read(), Hello)
        await stranger.write(Frame(0, 9, 9, 1, [b"1"] * 65))
        assert (await stranger.rest())[-1] == Bye("more messages than it was given credit for")
    assert b.heard("raw") == []


async def test_who_does_not_greet_is_sent_away(node, place, monkeypatch):
    monkeypatch.setattr("flowray.mesh.endpoint.GREET_S", 0.05)
    monkeypatch.setattr("flowray.mesh.endpoint._UNGREETED", 3)
    b = await node("b")
    async with contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(raw(f"unix:{place}/b")) for _ in range(8)]
        said = [await one.rest() for one in await _connected(silent)]
    reasons = sorted(one[0].reason for one in said)
    assert set(reasons) <= {"no greeting within 0.05 s", "3 others are greeting this process at this moment"}
    assert b.endpoint._ungreeted == 0 and b.endpoint.peers() == []


async def _connected(streams: list) -> list:
    for stream in streams:
        await stream.call.wait_for_connection()
    return streams


# ── back pressure ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_slow_reader_slows_its_sender_and_nothing_piles_up(node, place):
    limits = small()
    a = await node("a", listens=False, limits=limits)
    b = await node("b", limits=limits, consumes=False)
    await meet(a, b, place)
    peer, source = a.endpoint.peer("b"), b.endpoint.peer("a")
    saying = asyncio.create_task(a.say("b", 1000, size=500))
    await b.until(lambda: len(b.heard("a")) >= limits.window_items and not peer.link.has_room())
    assert not saying.done() and not peer.send(b"one more")
    assert len(b.heard("a")) == limits.window_items
    assert peer.link.held <= 2 * limits.window_items and peer.link.held_bytes <= 2 * limits.window_bytes
    waiting = asyncio.create_task(peer.room())
    done = 0
    while len(b.heard("a")) < 1000:
        came = b.got["a"][done:]
        done += len(came)
        source.consumed(len(came), sum(map(len, came)))
        assert peer.link.held <= 2 * limits.window_items
        count = done
        await b.until(lambda count=count: len(b.heard("a")) > count)
    await asyncio.gather(saying, waiting)
    assert have_all(a, b)


async def test_waiting_for_room_leaves_nothing_when_it_is_given_up(node):
    a = await node("a", listens=False, limits=small())
    peer = a.endpoint.peer("b")
    while peer.send(b"x"):
        pass
    for _ in range(100):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await peer.room()
    assert peer._waiting == 0
    waiting = asyncio.create_task(peer.room())
    await asyncio.sleep(0)
    a.endpoint.forget("b", "it is not wanted")
    with pytest.raises(MeshError, match="b is gone: it is not wanted"):
        await waiting
    with pytest.raises(MeshError, match="b is gone"):
        peer.send(b"x")
    assert a.events == [PeerGone("b", "it is not wanted", 128)]


async def test_the_last_messages_are_confirmed_without_more_traffic(node, place):
    a, b = await node("a", listens=False), await node("b")
    await meet(a, b, place)
    await a.say("b", 3)
    await a.until(lambda: a.endpoint.peer("b").link.held == 0)
    assert have_all(a, b)


# ── other processes under the same name ──────────────────────────────────────────────────────────────────────────────


async def test_a_restarted_peer_is_a_new_one(node, place):
    a, b = await node("a"), await node("b", consumes=False)
    a.endpoint.dial("b", f"unix:{place}/b")
    await a.say("b", 10)
    await b.until(lambda: len(b.heard("a")) == 10)
    await b.endpoint.close(0)
    broken = await a.until_told(StreamBroken, "b")
    assert broken.reason
    again = await node("b")
    gone = await a.until_told(PeerGone, "b")
    assert gone.reason == "another process has its name now" and gone.unconfirmed == 10
    a.sent.clear()
    await a.say("b", 5)
    await again.until(lambda: have_all(a, again))


async def test_what_was_queued_before_the_first_meeting_goes_to_whoever_comes(node, place):
    a = await node("a", listens=False)
    peer = a.endpoint.dial("b", f"unix:{place}/b")
    await a.say("b", 10)
    await a.until(lambda: bool(peer.refused))
    b = await node("b")
    await b.until(lambda: have_all(a, b))
    assert a.events == [StreamUp("b")]


async def test_one_side_forgets_the_other_and_both_begin_anew(node, place):
    a, b = await node("a", listens=False), await node("b")
    await meet(a, b, place)
    await a.say("b", 10)
    await b.until(lambda: have_all(a, b))
    b.endpoint.forget("a", "a test")
    gone = await a.until_told(PeerGone, "b")
    assert gone.reason == "it had forgotten this process"
    a.sent.clear(), b.got.clear()
    await a.say("b", 10)
    await b.until(lambda: have_all(a, b))


async def test_a_peer_that_stays_away_is_forgotten(node, place):
    a = await node("a", listens=False, forget_after_s=0.1)
    peer = a.endpoint.dial("b", f"unix:{place}/nobody")
    peer.send(b"x")
    gone = await a.until_told(PeerGone, "b")
    assert gone == PeerGone("b", "not heard of for 0.1 s", 1)
    assert a.endpoint.known("b") is None


async def test_the_way_to_a_peer_may_change(node, place):
    a, b = await node("a", listens=False), await node("b")
    peer = a.endpoint.dial("b", f"unix:{place}/nobody")
    await a.until(lambda: bool(peer.refused))
    assert a.endpoint.dial("b", f"unix:{place}/b") is peer
    await a.say("b", 3)
    await b.until(lambda: have_all(a, b))


async def test_a_dialler_outlives_the_stream_that_took_over(node, place):
    """The other side dials too and its stream takes over; when that ends, this side must dial again."""
    a, b = await node("a"), await node("b")
    await meet(a, b, place)
    async with raw(f"unix:{place}/a") as stranger:
        await stranger.write(stranger.hello("a", name="b", end="other-1"))
        assert isinstance(await stranger.read(), Hello)
        await a.until_told(PeerGone, "b")
    await a.until(lambda: a.endpoint.peer("b").link.instance == b.endpoint.instance)
    await a.endpoint.peer("b").connected.wait()
    await a.say("b", 3)
    await b.until(lambda: have_all(a, b))


# ── handlers and leaving ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_handler_may_refuse_what_it_gets(node, place):
    a, b = await node("a", listens=False), await node("b")
    await meet(a, b, place)
    b.error = frames.BadFrame("not what was agreed")
    await a.say("b", 1)
    broken = await a.until_told(StreamBroken, "b")
    assert broken.reason == "not what was agreed"
    await a.until_told(StreamUp, "b", after=2)


async def test_a_handlers_own_error_is_told_and_the_stream_comes_back(node, place):
    a, b = await node("a", listens=False), await node("b")
    await meet(a, b, place)
    told: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    for one, other in ((b, a), (a, b)):  # the side that accepted, and the one that dialled
        one.error = KeyError("a bug")
        events = len(one.events)
        other.endpoint.peer(one.name).send(b"x")
        broken = await one.until_told(StreamBroken, other.name, events)
        assert "KeyError" in broken.reason
        await one.until_told(StreamUp, other.name, events)
        await one.endpoint.peer(other.name).connected.wait()
        await other.endpoint.peer(one.name).connected.wait()
    assert [str(context["exception"]) for context in told] == ["'a bug'", "'a bug'"]


@pytest.mark.parametrize("dials", [True, False])
async def test_closing_says_what_is_queued(node, place, dials):
    a, b = await node("a"), await node("b")
    await meet(*((a, b) if dials else (b, a)), place)
    for _ in range(3):
        await a.say("b", 2000)
    assert await a.endpoint.close(30) == 0
    assert have_all(a, b)
    assert (await b.until_told(StreamBroken, "a")).reason == "its process is leaving"
    with pytest.raises(MeshError, match="is closed"):
        a.endpoint.dial("b", f"unix:{place}/b")


async def test_closing_does_not_wait_for_who_does_not_consume(node, place):
    a = await node("a", listens=False, limits=small())
    b = await node("b", limits=small(), consumes=False)
    await meet(a, b, place)
    peer = a.endpoint.peer("b")
    saying = asyncio.create_task(a.say("b", 1000))
    await b.until(lambda: len(b.heard("a")) == 64 and peer.link.held == 128)
    await a.endpoint.close(0.1)
    with pytest.raises(MeshError, match="this process is leaving"):
        await saying
    assert a.endpoint.peer("b").link.held >= 64


async def test_closing_leaves_nothing_behind(node, place):
    async def round_() -> None:
        hub = Node("hub")
        await hub.endpoint.listen_unix(place / "hub")
        many = [Node(f"n{number}") for number in range(10)]
        for one in many:
            one.endpoint.dial("hub", f"unix:{place}/hub")
            one.endpoint.dial("nobody", f"unix:{place}/nobody")
        for one in many:
            await one.say("hub", 5)
            await hub.until(lambda one=one: have_all(one, hub))
        for one in many[:5]:
            await one.endpoint.close()
        await hub.endpoint.close()
        for one in many[5:]:
            await one.endpoint.close(0)

    async def counted() -> tuple[int, int, int]:
        gc.collect()
        for _ in range(100):  # grpc closes in threads of its own
            await asyncio.sleep(0.01)
            if len(asyncio.all_tasks()) == 1:
                break
        return len(asyncio.all_tasks()), descriptors(), threads()

    others = threads()  # of whoever ran in this process before: Ray, for one
    await round_()
    tasks, files, _ = await counted()
    assert tasks == 1
    for _ in range(3):
        await round_()
    for _ in range(200):
        after = await counted()
        if after[:2] <= (tasks, files) and after[2] - others <= 60:  # grpc's idle threads end after a while
            break
    assert after[0] == tasks and after[1] <= files
    assert after[2] - others <= 60
    assert list(place.iterdir()) == []

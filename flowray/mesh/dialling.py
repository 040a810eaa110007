"""Keeping a stream to a peer open from this side: one attempt after another, for as long as the peer is wanted.

Both sides may dial. When two streams meet, the one stays that was dialled by the process whose name is smaller; the
other side learns it from the refusal, or from the greeting that comes in.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from typing import Any

from flowray.errors import MeshError
from flowray.mesh import frames, identities
from flowray.mesh.frames import BadFrame, Bye, Hello
from flowray.mesh.grpc_tuned import grpc
from flowray.mesh.link import Verdict
from flowray.mesh.peer import Peer, Way
from flowray.mesh.peers import Peers
from flowray.mesh.streams import DialledStream, StreamLost, brief, options

GREET_S = 5.0  # for the other side to greet
_RETRY_S = (0.005, 0.5)  # between two dials: first, and at most
_LOOK_S = 0.02  # between two looks at a Unix socket that nobody answers: each costs 30 us, a dial 2 ms
_UNWELCOME_S = 2.0  # after having been turned away: who insists is taken for somebody who guesses tokens
_LASTING_S = 1.0  # a stream that lasts as long was worth its dial


async def keep_dialling(peers: Peers, peer: Peer) -> None:
    """See the module. Ends when the peer is gone or this process closes."""
    loop = asyncio.get_running_loop()
    wait_s = _RETRY_S[0]
    while not peers.closed and not peer.gone:
        peer.nudge.clear()
        if peer.conversation is not None:
            await peer.nudge.wait()
            continue
        began_at = loop.time()
        if peer.way is not None and not _may_answer(peer.way.target):
            peer.refused = "nobody listens at its socket"
            await asyncio.sleep(_LOOK_S * random.uniform(0.5, 1.0))
            continue
        try:
            await _dial(peers, peer)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise
            # Not this task was cancelled but its stream, because another one took over.
        wait_s = _RETRY_S[0] if loop.time() - began_at > _LASTING_S else min(wait_s * 2, _RETRY_S[1])
        await asyncio.sleep(_UNWELCOME_S if peer.unwelcome else wait_s * random.uniform(0.5, 1.0))


def _may_answer(target: str) -> bool:
    """False for a Unix socket where nobody listens. Of others only dialling tells."""
    if not target.startswith("unix:"):
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(target.removeprefix("unix:")) in (0, errno.EAGAIN, errno.EINPROGRESS)


async def _dial(peers: Peers, peer: Peer) -> None:
    """One stream from its beginning to its end."""
    way = peer.way
    assert way is not None
    channel = _channel(peers, peer.name, way)
    try:
        stream = DialledStream(channel)
        peer.pending = stream
        try:
            hello = await _greet(peers, peer, stream)
        finally:
            wanted = peer.pending is stream
            if wanted:
                peer.pending = None
        if hello is None or not wanted:
            stream.cancel()
            return
        await peers.carry(peer, peers.begin(peer, stream, hello, answer=False))
    finally:
        await channel.close()


async def _greet(peers: Peers, peer: Peer, stream: DialledStream) -> Hello | None:
    """The greeting of the other side, if the link goes on with it; else None, and `peer.refused` says why."""
    try:
        async with asyncio.timeout(GREET_S):
            await stream.write(frames.encode(peers.greeting(peer)))
            data = await stream.read()
        if peer.pending is not stream:
            return None
        if data is grpc.aio.EOF:
            peer.refused = "it ended the stream without a greeting"
            return None
        hello = frames.decode(data)
        if isinstance(hello, Bye):
            peer.refused, peer.unwelcome = hello.reason[: frames.REASON_CHARACTERS], hello.unwelcome
            return None
        if not isinstance(hello, Hello):
            raise BadFrame("it sent something before it greeted")
        if hello.name != peer.name:
            raise BadFrame(f"{hello.name!r} answers in its place")
        peer.refused = peers.refusal(hello)
        if peer.refused:
            return None
        match peer.judge(hello):
            case Verdict.GOES_ON if hello.knows == peer.link.end:
                return hello
            case Verdict.OVER | Verdict.FORGOTTEN:
                peer.pending = None
                peers.replaced(peer, hello)
            case _:
                peer.refused = "its greeting does not fit ours"
    except TimeoutError:
        peer.refused = f"no answer within {GREET_S:g} s"
    except StreamLost as error:
        text = brief(error)
        peer.refused = str(identities.refusal(text, runtime=peers.runtime, name=peer.name) or text)
    except MeshError as error:
        peer.refused = str(error)
    return None


def _channel(peers: Peers, name: str, way: Way) -> Any:
    if way.credentials is None:
        return grpc.aio.insecure_channel(way.target, options=options(peers.limits))
    credentials = way.credentials() if callable(way.credentials) else way.credentials
    server_name = way.server_name or identities.dns_name_of(peers.runtime, name)
    override = ("grpc.ssl_target_name_override", server_name)
    return grpc.aio.secure_channel(way.target, credentials, options=[*options(peers.limits), override])

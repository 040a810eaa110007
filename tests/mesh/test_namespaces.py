"""Two processes in network namespaces of their own, joined by a cable that is pulled out. TLS is on."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess

import pytest
from processes import child

from flowray.mesh.authority import Authority

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the Debian package iproute2 is not installed"),
]
PORT = 7171  # in namespaces of their own


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def cable():
    """Two namespaces with an interface each: ((name, address), (name, address))."""
    mark = secrets.token_hex(3)
    sides = ((f"fm{mark}a", "10.99.7.1"), (f"fm{mark}b", "10.99.7.2"))
    try:
        for name, _ in sides:
            ip("netns", "add", name)
        ip("-n", sides[0][0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", sides[1][0])
        for name, address in sides:
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield sides
    finally:
        for name, _ in sides:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


async def test_a_cut_between_two_machines_and_a_kill(cable, place, pytestconfig, capsys):
    away_s = 60 if pytestconfig.getoption("--chaos-full") else 5
    authority = str(Authority.open(place / "authority", runtime="r") and place / "authority")
    (space_a, address_a), (space_b, address_b) = cable
    settings = {"authority": authority, "port": PORT, "size": 200, "pause_s": 0.02}
    one = {**settings, "name": "a", "peer": "b", "host": address_a, "dials": f"{address_b}:{PORT}"}
    other = {**settings, "name": "b", "peer": "a", "host": address_b, "dials": f"{address_a}:{PORT}"}
    inside_a, inside_b = (("ip", "netns", "exec", space) for space in (space_a, space_b))
    async with child(one, inside_a) as a, child(other, inside_b) as b:
        for side in (a, b):
            await side.hear("event", "StreamUp")
        ip("-n", space_a, "link", "set", "eth0", "down")
        for side in (a, b):
            await side.hear("event", "StreamBroken")
        await asyncio.sleep(away_s)  # what is tested is an absence of this length
        ip("-n", space_a, "link", "set", "eth0", "up")
        for side in (a, b):
            await side.hear("event", "StreamUp")
        sent = [(await side.ask("stop", "sent"))["sent"][0] for side in (a, b)]
        for side, expected in ((b, sent[0]), (a, sent[1])):
            counted = await side.ask("count", "heard")
            assert counted["in_order"] and counted["heard"] == expected and counted["held"] == 0
            assert "PeerGone" not in [event["event"] for event in side.events]
        with capsys.disabled():
            print(f"\n  cut for {away_s} s: {sent[0]} and {sent[1]} messages sent, all came once and in order")  # noqa: T201
        await b.kill()
        await a.hear("event", "StreamBroken")
        async with child(other, inside_b) as again:
            await a.hear("event", "PeerGone")
            await again.hear("event", "StreamUp")

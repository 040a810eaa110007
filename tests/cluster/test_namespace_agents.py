"""Agents and drivers on two nodes: they talk TLS across, and nobody else gets in; before a restart and after it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowray.testing.cluster import NamespaceCluster, Process, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
PROGRAM = str(Path(__file__).parent / "node_agents.py")
HEAD, FAR = 0, 1

# Whoever speaks gRPC without TLS, and whoever speaks TLS without a certificate of the runtime.
STRANGER = """
import asyncio, socket, ssl, sys
import grpc.aio

async def plain(target):
    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.stream_stream("/flowray.Mesh/Stream")()
        try:
            await call.write(b"hello")
            return f"let in: {await call.read()!r}"
        except grpc.aio.AioRpcError as error:
            return error.code().name

def without_certificate(host, port):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), timeout=10) as raw, context.wrap_socket(raw) as tls:
            version = tls.version()
            tls.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n")
            data = tls.recv(4096)  # TLS 1.3 says only now that a certificate was wanted
            return f"{version}: let in, {data!r}" if data else f"{version}: refused without a word"
    except (ssl.SSLError, ConnectionError) as error:
        return f"refused: {error}"

host, port = sys.argv[1], int(sys.argv[2])
print(asyncio.run(plain(f"{host}:{port}")))
print(without_certificate(host, port))
"""


def program(cluster: NamespaceCluster, node: int, role: str, **settings: Any) -> Process:
    return cluster.run(node, [sys.executable, PROGRAM, role, json.dumps(settings)])


def said(process: Process) -> dict[str, Any]:
    """What a program said in its last line, when it has ended well."""
    found: dict[str, Any] = json.loads(process.check(120).strip().splitlines()[-1])
    return found


def use(cluster: NamespaceCluster, node: int, **settings: Any) -> dict[str, Any]:
    return said(program(cluster, node, "use", **settings))


def sockets(cluster: NamespaceCluster, node: int, pid: int, *which: str) -> list[list[tuple[str, int]]]:
    """TCP sockets of a process of a node, as `ss` lists them: [(own address, own port), (the other's, its port)]."""
    host_pid = cluster.host_pid(node, pid)
    command = ["nsenter", "--target", str(host_pid), "--net", "ss", "-Htnp", *which]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mine = [line for line in listed.splitlines() if f"pid={host_pid}," in line]
    pairs = [re.findall(r"\[?(?:::ffff:)?([\d.*:]+?)\]?:(\d+|\*)\s", line) for line in mine]
    return [[(ip, int(port) if port.isdigit() else 0) for ip, port in pair[-2:]] for pair in pairs]


def peers(cluster: NamespaceCluster, node: int, pid: int) -> set[tuple[str, int]]:
    """Whom a process of a node has a TCP connection to."""
    return {pair[-1] for pair in sockets(cluster, node, pid, "state", "established")}


def doors(cluster: NamespaceCluster, node: int, pid: int) -> set[tuple[str, int]]:
    """Where a process of a node listens."""
    return {pair[0] for pair in sockets(cluster, node, pid, "-l")}


def test_agents_and_drivers_of_two_nodes_talk_tls(cluster: NamespaceCluster) -> None:
    started = said(program(cluster, HEAD, "start", journal=str(cluster.inner_home / "nodes")))
    (near_ip, near_pid), (far_ip, far_pid) = started["asked"]
    assert [near_ip, far_ip] == [cluster.ip(HEAD), cluster.ip(FAR)]

    tasks = [["near", {"ask": ["far-0"]}], ["far", {"ask": ["near-0"]}]]
    for node in (HEAD, FAR):  # drivers, too, may be on either
        found = use(cluster, node, tasks=tasks, ask=["near-0", "far-0"], large_bytes=300_000)
        assert found["asked"] == [[near_ip, near_pid], [far_ip, far_pid]]
        first, second = found["results"]
        assert first["here"] == second["there"][0] == [near_ip, near_pid]
        assert second["here"] == first["there"][0] == [far_ip, far_pid]
        assert found["large"] == [far_ip, far_pid]

    # The far agent talks to the coordinator over the network, the near one by a socket of their machine.
    port = int((cluster.home(HEAD) / "nodes" / "mesh_port").read_text())
    assert (near_ip, port) in doors(cluster, HEAD, found["status"]["pid"])
    assert (near_ip, port) in peers(cluster, FAR, far_pid)
    assert (near_ip, port) not in peers(cluster, HEAD, near_pid)
    # And to the near one, or the other way round.
    mesh_of_near = doors(cluster, HEAD, near_pid) & peers(cluster, FAR, far_pid)
    mesh_of_far = doors(cluster, FAR, far_pid) & peers(cluster, HEAD, near_pid)
    assert mesh_of_near or mesh_of_far

    # None of them lets anybody in who has no certificate of the runtime's authority.
    for ip, door in {(near_ip, port)} | mesh_of_near | mesh_of_far:
        stranger = cluster.run(FAR, [sys.executable, "-c", STRANGER, ip, str(door)])
        plain, bare = stranger.check(60).splitlines()[-2:]
        assert plain == "UNAVAILABLE"
        assert "refused" in bare, bare


def test_a_coordinator_that_was_killed_finds_the_agents_of_the_other_node(cluster: NamespaceCluster) -> None:
    before = use(cluster, FAR, ask=["far-0"])
    gate = cluster.home(FAR) / "gate"
    inner = str(cluster.inner_home / "gate")
    waiting = program(cluster, FAR, "use", tasks=[["far", {"ask": ["near-0"], "gate": inner}]])
    wait_until(lambda: gate.with_suffix(".begun").exists() or waiting.returncode, 60, "the far agent works")
    os.kill(cluster.host_pid(HEAD, before["status"]["pid"]), signal.SIGKILL)
    after = use(cluster, HEAD, ask=["near-0"])
    assert after["status"]["epoch"] > before["status"]["epoch"]
    assert after["agents"] == before["agents"], "the same processes: adopted, with what they were doing"
    gate.touch()
    (result,) = said(waiting)["results"]
    assert result["attempt"] == 1 and result["here"] == after["agents"]["far-0"][2:]
    assert result["there"] == [after["agents"]["near-0"][2:]]


def test_warm_processes_give_way_to_agents(cluster: NamespaceCluster) -> None:
    """A class is added for which there is no room beside the warm processes of others."""
    found = use(cluster, HEAD, late=True, ask=["late-0", "near-0"])
    assert [ip for ip, _ in found["asked"]] == [cluster.ip(HEAD)] * 2
    assert not found["status"]["blocks"]

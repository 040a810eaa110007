"""The cluster harness itself: nodes that are apart, faults that happen, nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flowray.testing.cluster import ClusterFailed, NamespaceCluster, sweep, wait_until
from flowray.testing.spaces import records

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

REACH = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1.0).close()
    print("reached")
except OSError as error:
    print("not reached:", error)
"""

LISTEN = """
import socket, sys
port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
port.bind((sys.argv[1], 7001))
port.settimeout(1.5)
print("listening", flush=True)
try:
    port.recv(16)
    print("heard")
except TimeoutError:
    print("silence")
"""

TAKE = """
import socket, sys
with socket.create_server((sys.argv[1], 7002)) as port:
    print("listening", flush=True)
    come, _ = port.accept()
    while come.recv(65536):
        pass
    come.sendall(b"!")
"""

GIVE = """
import socket, sys, time
began = time.monotonic()
with socket.create_connection((sys.argv[1], 7002), timeout=20.0) as way:
    way.sendall(bytes(int(sys.argv[2])))
    way.shutdown(socket.SHUT_WR)
    way.recv(1)
print(time.monotonic() - began)
"""

SPEAK = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
    for _ in range(10):
        port.sendto(b"hello", (sys.argv[1], 7001))
        time.sleep(0.1)
"""

STRANGER = """
import sys
import grpc
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(grpc.insecure_channel(sys.argv[1]))
try:
    print("let in:", stub.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), timeout=10))
except grpc.RpcError as error:
    print(error.code().name)
"""


def links() -> str:
    return subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout


def spaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def test_the_nodes_are_one_cluster_with_labels_and_a_token(cluster: NamespaceCluster) -> None:
    script = "import json, ray; ray.init(logging_level='error'); print(json.dumps(ray.nodes()))"
    said = cluster.run(0, script).check(60)
    nodes = json.loads(said[said.index("[{") :])
    assert {n["NodeManagerAddress"]: n["Labels"].get("zone") for n in nodes} == {
        cluster.ip(0): None,
        cluster.ip(1): "far",
    }
    assert not cluster.address.endswith(":6379")
    assert (cluster.directory / "token").stat().st_mode & 0o777 == 0o600
    assert cluster.environment()["RAY_AUTH_MODE"] == "token"
    stranger = cluster.run(1, [sys.executable, "-c", STRANGER, cluster.address])
    assert "UNAUTHENTICATED" in stranger.check(60), "without the token nobody comes in"


def test_nodes_share_neither_processes_nor_files_nor_ports(cluster: NamespaceCluster) -> None:
    script = "import os, pathlib; pathlib.Path('mine').write_text('x'); print(sorted(os.listdir('.')), os.getpid())"
    said = cluster.run(1, script).check(30)
    assert "'mine'" in said
    assert (cluster.home(1) / "mine").exists() and not (cluster.home(0) / "mine").exists()
    here = cluster.run(0, "import os; print(os.path.exists('mine'), os.path.exists('/tmp/ray/session_latest'))").check(
        30
    )
    assert here.split() == ["False", "True"]
    assert not set(cluster.processes(0)) & set(cluster.processes(1))
    assert any("gcs_server" in line for line in cluster.processes(0).values())
    assert not cluster.processes(1, "gcs_server")


def test_a_process_is_killed_by_the_number_its_node_gives_it(cluster: NamespaceCluster) -> None:
    sleeper = cluster.run(1, "import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    inner = int(wait_until(lambda: sleeper.output.strip(), 30, "it has said its number"))
    assert psutil.Process(cluster.host_pid(1, inner)).is_running()
    cluster.kill_process(1, inner)
    assert sleeper.wait(10) != 0
    with pytest.raises(ProcessLookupError):
        cluster.kill_process(1, inner)


def test_a_partition_cuts_off_and_healing_joins_again(cluster: NamespaceCluster) -> None:
    reach = [sys.executable, "-c", REACH, *cluster.address.split(":")]
    assert cluster.run(1, reach).check(30).startswith("reached")
    cluster.partition(1)
    try:
        assert cluster.run(1, reach).check(30).startswith("not reached")
        assert cluster.run(0, reach).check(30).startswith("reached"), "the head still reaches itself"
    finally:
        cluster.heal(1)
    # The bridge takes a moment to learn the link again.
    wait_until(lambda: cluster.run(1, reach).check(30).startswith("reached"), 30, "the nodes see each other again")


def test_a_partition_one_way_lets_a_node_hear_and_not_speak(cluster: NamespaceCluster) -> None:
    def heard(sender: int, listener: int) -> bool:
        address = cluster.ip(listener)
        listening = cluster.run(listener, [sys.executable, "-c", LISTEN, address])
        wait_until(lambda: "listening" in listening.output, 30, "somebody listens")
        cluster.run(sender, [sys.executable, "-c", SPEAK, address]).check(30)
        return "heard" in listening.check(30)

    cluster.partition_one_way(1)
    try:
        assert heard(0, 1)
        assert not heard(1, 0)
    finally:
        cluster.heal(1)
    try:
        again = heard(1, 0)
    except ClusterFailed:
        assert not cluster.lives(1), "on a busy machine that took so long that Ray gave the node up, and it left"
        cluster.kill_node(1)
        cluster.start_node(1)
        again = heard(1, 0)
    assert again


def took_s(cluster: NamespaceCluster, size: int) -> float:
    """Of a connection from beside the second node to beside the first, so many bytes and an answer."""
    taker = cluster.run(0, [sys.executable, "-c", TAKE, cluster.ip(0)], beside=True)
    wait_until(lambda: "listening" in taker.output, 30, "somebody listens")
    said = cluster.run(1, [sys.executable, "-c", GIVE, cluster.ip(0), str(size)], beside=True).check(60)
    taker.check(30)
    return float(said)


def test_a_slow_cable_carries_no_more_than_it_may(cluster: NamespaceCluster) -> None:
    cluster.slow_cable(1, "8mbit")
    try:
        slow_s = took_s(cluster, 2_000_000)
    finally:
        cluster.heal(1)
    assert slow_s > 1.8, "two million bytes at a million a second"
    assert took_s(cluster, 2_000_000) < slow_s


def test_a_bad_cable_is_late_and_loses_frames(cluster: NamespaceCluster) -> None:
    reach = [sys.executable, "-c", REACH, *cluster.address.split(":")]
    cluster.bad_cable(1, late_s=(0.1, 0.15))
    try:
        assert took_s(cluster, 100_000) > 0.4, "to connect, and to be answered, takes each way twice"
    finally:
        cluster.heal(1)
    cluster.bad_cable(1, loss=1.0)
    try:
        assert cluster.run(1, reach, beside=True).check(30).startswith("not reached")
    finally:
        cluster.heal(1)
    wait_until(
        lambda: cluster.run(1, reach, beside=True).check(30).startswith("reached"), 30, "the nodes see each other again"
    )
    name = cluster.directory.name.partition("-")[0]
    assert f"{name}s1" not in links() and f"{name}t1" not in links(), "the spare piece is gone"


def test_a_program_that_fails_says_so_with_its_output(cluster: NamespaceCluster) -> None:
    with pytest.raises(ClusterFailed, match="ZeroDivisionError"):
        cluster.run(0, "1 / 0").check(30)
    with pytest.raises(ClusterFailed, match="still runs after"):
        cluster.run(0, "import time; time.sleep(600)").check(0.1)


def test_what_a_killed_harness_leaves_is_swept_up() -> None:
    """The harness is killed with its cluster running: the processes go by themselves, the names with the next run."""
    script = """
import os, signal
from flowray.testing.cluster import NamespaceCluster
cluster = NamespaceCluster(nodes=1, cpus=1).__enter__()
print(cluster.directory, cluster._initial[0], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    directory, first = done.stdout.split()
    name = Path(directory).name.partition("-")[0]
    wait_until(lambda: not psutil.pid_exists(int(first)), 30, "the node has died with its harness")
    assert name in spaces() and name in links() and Path(directory).exists()
    assert name in sweep()
    assert name not in spaces() and name not in links() and not Path(directory).exists()
    assert name not in sweep()


def test_living_clusters_are_not_swept(cluster: NamespaceCluster) -> None:
    name = cluster.directory.name.partition("-")[0]
    assert name not in sweep()
    assert name in spaces() and name in links()


def test_a_cluster_leaves_nothing(cluster: NamespaceCluster) -> None:
    """Closing twice is fine. Runs last of all with this cluster: it is gone after it."""
    name = cluster.directory.name.partition("-")[0]
    processes = [psutil.Process(pid) for pid in [*cluster.processes(0), *cluster.processes(1)]]
    cluster.close()
    cluster.close()
    assert name not in spaces() and name not in links() and not cluster.directory.exists()
    assert processes and not any(process.is_running() for process in processes)
    assert not (records() / f"{name}.json").exists()

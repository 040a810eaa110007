"""Each finding of the doctor, on machines as they are met."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from flowray import doctor
from flowray.config import AgentConfig, Config, RayConfig
from flowray.doctor import FAIL, OK, WARN, Finding
from flowray.store.config import StoreConfig


def test_what_is_not_ok_says_what_to_do(tmp_path: Path) -> None:
    findings = doctor.examine(Config(), {"RAY_AUTH_MODE": "disabled"}, tmp_path)
    assert len({finding.name for finding in findings}) == len(findings) == 11
    assert all(finding.way_out for finding in findings if finding.state != OK)


def test_python_and_clock() -> None:
    assert doctor._python((3, 10, 2)).state == FAIL
    assert doctor._python((3, 11, 0)).state == OK
    assert doctor._clock(0.0).state == FAIL


@pytest.mark.parametrize(("version", "state"), [("2.60.3", OK), ("2.61.0", FAIL), ("2.9.0", FAIL)])
def test_ray_must_be_the_one_that_flowray_was_made_for(
    monkeypatch: pytest.MonkeyPatch, version: str, state: str
) -> None:
    monkeypatch.setattr(doctor.metadata, "version", lambda name: version)
    assert doctor._ray().state == state


def test_memory_is_measured_against_the_team() -> None:
    huge = Config(agents=[AgentConfig(use="a:B", count=100_000)])
    assert doctor._memory(huge).state == FAIL
    assert "wanted for 100000 agents" in doctor._memory(huge).text
    assert doctor._shared_memory(Config(ray=RayConfig(object_store_mb=10_000_000))).state == WARN
    assert doctor._cpus(Config(ray=RayConfig(num_cpus=10_000))).state == WARN


@pytest.mark.parametrize(
    ("environment", "mode", "state"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, None, FAIL),
        ({"RAY_AUTH_TOKEN": "sesame"}, None, OK),
        ({}, None, OK),
        ({}, 0o600, OK),
        ({}, 0o644, FAIL),
    ],
)
def test_the_token(tmp_path: Path, environment: dict[str, str], mode: int | None, state: str) -> None:
    if mode is not None:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").touch(mode=0o600)
        (tmp_path / ".ray" / "auth_token").chmod(mode)
    found = doctor._token(environment, tmp_path)
    assert found.state == state
    assert "sesame" not in found.text


def test_a_journal_where_none_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text("1 1 0:1 / / rw - nfs4 server:/ rw\n")
    monkeypatch.setattr(doctor.filesystem, "MOUNTINFO", mounts)
    found = doctor._journal(Config(journal=str(tmp_path / "not" / "yet")), tmp_path)
    assert found.state == FAIL
    assert "nfs4" in found.text
    allowed = Config(journal=str(tmp_path), store=StoreConfig(allow_filesystems=("nfs4",)))
    assert doctor._journal(allowed, tmp_path).state in (OK, WARN)


def answering(answer: bytes) -> tuple[int, threading.Thread]:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = server.accept()
        connection.recv(64)
        connection.sendall(answer)
        connection.close()
        server.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return server.getsockname()[1], thread


@pytest.mark.parametrize(("answer", "state"), [(b"+PONG\r\n", WARN), (b"-NOAUTH\r\n", WARN), (b"HTTP/1.1 400\r\n", OK)])
def test_a_redis_where_ray_would_like_to_be(answer: bytes, state: str) -> None:
    port, thread = answering(answer)
    assert doctor._redis(port).state == state
    thread.join()


def test_a_free_redis_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert doctor._redis(port) == Finding(name=f"port {port}", state=OK, text="free; flowray uses another")


def test_runtimes_that_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert doctor._left_over(tmp_path).text == "none up"
    (tmp_path / ".flowray" / "old").mkdir(parents=True)
    record = '{"name":"old","address":"127.0.0.1:1","dashboard":"","head":{"pid":4194304,"began_at":0.0}}'
    (tmp_path / ".flowray" / "old" / "up.json").write_text(record)
    found = doctor._left_over(tmp_path)
    assert (found.state, found.way_out) == (WARN, "flowray down --name old")


def test_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda what: (1024, 4096))
    assert doctor._open_files().way_out == "ulimit -n 4096"

"""What `up` writes down and `down` ends: the recorded processes, all of them, and no others."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from polling import eventually

from flowray.config import Config, RayConfig
from flowray.errors import ConfigError, FlowrayError, NotConnected
from flowray.runtime import service
from flowray.runtime.head import head_of, params_of
from flowray.runtime.service import Process, Up

CHILD = "import time; time.sleep(60)"
PARENT = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {CHILD!r}]); time.sleep(60)"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of our own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(service, "_LAST_STARTED", tmp_path / "ray_current_cluster")
    return tmp_path


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a child."""
    process = subprocess.Popen([sys.executable, "-c", PARENT], start_new_session=True)
    eventually(psutil.Process(process.pid).children, "its child is there")
    yield process
    for one in [*psutil.Process(process.pid).children(), process] if process.poll() is None else []:
        one.kill()
    process.wait()


def up_of(process: subprocess.Popen[bytes], **changes: object) -> Up:
    record = Up(name="x", address="127.0.0.1:1", dashboard="", head=Process.of(psutil.Process(process.pid)), **changes)  # type: ignore[arg-type]
    service.directory_of("x").mkdir(parents=True, exist_ok=True)
    service._write(record)
    return record


def test_the_record_is_private_and_comes_back(home: Path, sleeper: subprocess.Popen[bytes]) -> None:
    record = up_of(sleeper)
    file = home / ".flowray" / "x" / "up.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert service.read("x") == record == service.running("x")
    assert list(service.all_known()) == [record]
    assert [path.name for path in file.parent.iterdir()] == ["up.json"]


def test_a_damaged_record_is_told(home: Path) -> None:
    (home / ".flowray" / "x").mkdir(parents=True)
    (home / ".flowray" / "x" / "up.json").write_text("{")
    with pytest.raises(FlowrayError, match="remove it if nothing of it runs"):
        service.read("x")


def test_stop_ends_the_head_and_its_children(home: Path, sleeper: subprocess.Popen[bytes]) -> None:
    child = Process.of(psutil.Process(sleeper.pid).children()[0])
    assert service.stop_head(up_of(sleeper)) == 2
    assert child.find() is None
    assert sleeper.wait(10) == -15
    assert service.read("x") is None


def test_a_recorded_child_is_ended_although_the_head_is_gone(sleeper: subprocess.Popen[bytes]) -> None:
    child = Process.of(psutil.Process(sleeper.pid).children()[0])
    record = up_of(sleeper, children=(child,))
    sleeper.kill()
    sleeper.wait()
    assert child.find() is not None
    assert service.running("x") is None
    assert service.stop_head(record) == 1
    assert child.find() is None


def test_a_process_that_got_the_number_later_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    """Process ids are used again: what began at another moment is somebody else."""
    head = Process.of(psutil.Process(sleeper.pid))
    other = Up(name="x", address="127.0.0.1:1", dashboard="", head=Process(head.pid, head.began_at - 10))
    assert other.head.find() is None
    assert service.stop_head(other) == 0
    assert sleeper.poll() is None


def test_down_of_a_head_that_is_gone_just_clears_up(home: Path, sleeper: subprocess.Popen[bytes]) -> None:
    up_of(sleeper)
    sleeper.kill()
    sleeper.wait()
    assert service.down("x") == 0
    with pytest.raises(NotConnected):
        service.down("x")


def test_where_a_runtime_is(home: Path, sleeper: subprocess.Popen[bytes]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(NotConnected, match="no runtime 'x' is up"):
            service.address_of("x", {})
        assert service.address_of("x", {"RAY_ADDRESS": there}) == there
        (home / "ray_current_cluster").write_text(f"{there}\n")
        assert service.address_of("x", {}) == there
        up_of(sleeper)  # its own record comes first, and nobody listens there
        with pytest.raises(NotConnected, match=r"answers at 127\.0\.0\.1:1"):
            service.address_of("x", {"RAY_ADDRESS": there})
    with pytest.raises(ConfigError, match="wants host:port"):
        service.checked("nowhere")


def test_rays_note_of_a_cluster_goes_with_it_and_only_with_it(home: Path, sleeper: subprocess.Popen[bytes]) -> None:
    note = home / "ray_current_cluster"
    note.write_text("192.0.2.1:77")
    service.stop_head(up_of(sleeper))
    assert note.exists()
    note.write_text("192.0.2.1:1")  # Ray notes another address of this machine, and the same port
    service.stop_head(Up(name="x", address="127.0.0.1:1", dashboard="", head=Process(1 << 22, 0.0)))
    assert not note.exists()


def test_the_head_is_told_what_the_configuration_says_and_never_takes_the_redis_port() -> None:
    config = Config(ray=RayConfig(num_cpus=3, object_store_mb=100, temp_dir="/t"))
    place = {"home": "h", "store_path": "/s"}
    told = params_of(head_of(config, address="127.0.0.1:5000", dashboard="127.0.0.1:5001", **place))
    assert (told.gcs_server_port, told.dashboard_host, told.dashboard_port) == (5000, "127.0.0.1", 5001)
    assert (told.num_cpus, told.object_store_memory, told.temp_dir) == (3, 104857600, "/t")
    assert (told.include_dashboard, told.node_ip_address) == (True, None)
    assert told.labels == {"flowray-home": "h"}
    other = params_of(head_of(config, address="10.0.0.1:5000", dashboard="", **place))
    assert (other.include_dashboard, other.node_ip_address) == (False, "10.0.0.1")
    assert service._free_port("127.0.0.1") != 6379


def test_a_head_that_ends_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "up.log"
    log.write_text("first\nthe reason\n")
    head = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(FlowrayError, match=r"exit code 3\)(.|\n)*the reason"):
        service._wait_until_up(head, "127.0.0.1:1", log, 20.0)

"""The supervisor with stand-ins for Ray's processes: what died is started again, and nothing else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from polling import eventually

from flowray.config import Config, RayConfig
from flowray.runtime import head as heads
from flowray.runtime.head import Supervisor, head_of

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
KINDS = ("gcs_server", "raylet", "log_monitor", "monitor")


class Ended(BaseException):
    """The test has seen enough."""


class StandIn:
    """For Ray's Node: its processes sleep."""

    made: list[StandIn]
    fails: int  # starts of a control store that fail
    node_fails: int = 0  # starts of a node that fail half-way
    half: int = 0  # pid of the last process of such a node
    over: threading.Event

    def __init__(self, *_: Any, **__: Any) -> None:
        self.all_processes: dict[str, list[Any]] = {}
        self.gcs_address = "127.0.0.1:1"
        for kind in KINDS:
            self._begin(kind)
            if StandIn.node_fails:
                StandIn.node_fails -= 1
                StandIn.half = self.pid(kind)
                raise RuntimeError("the raylet does not answer")
        StandIn.made.append(self)

    def _begin(self, kind: str) -> None:
        assert kind not in self.all_processes, "as Ray's own"
        self.all_processes[kind] = [SimpleNamespace(process=subprocess.Popen(SLEEP))]

    def pid(self, kind: str) -> int:
        """0 while there is none."""
        processes = self.all_processes.get(kind)
        return processes[0].process.pid if processes else 0

    def kill_gcs_server(self, *, check_alive: bool) -> None:
        self.all_processes.pop("gcs_server", None)

    def start_gcs_server(self) -> None:
        if StandIn.fails:
            StandIn.fails -= 1
            raise RuntimeError("the store is locked")
        self._begin("gcs_server")

    def start_log_monitor(self) -> None:
        self._begin("log_monitor")

    def start_monitor(self) -> None:
        self._begin("monitor")

    def kill_all_processes(self, **_: Any) -> None:
        for (one,) in self.all_processes.values():
            one.process.kill()
            one.process.wait()
        self.all_processes.clear()


class Kept:
    """A supervisor in a thread of its own."""

    def __init__(self, **settings: Any) -> None:
        config = Config(name="x", ray=RayConfig(**settings))
        told = head_of(config, address="127.0.0.1:5000", dashboard="", home="h", store_path="/nowhere")
        self.supervisor = Supervisor(told)
        self.status: int | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        eventually(lambda: StandIn.made)

    def _run(self) -> None:
        try:
            self.status = self.supervisor.run()
        except Ended:
            pass
        finally:
            self.supervisor.close()

    @property
    def node(self) -> StandIn:
        return StandIn.made[-1]

    def kill(self, kind: str) -> int:
        pid = self.node.pid(kind)
        os.kill(pid, signal.SIGKILL)
        return pid


@pytest.fixture
def keep(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Kept]]:
    StandIn.made, StandIn.fails, StandIn.over = [], 0, threading.Event()
    wait = heads._wait_for_end

    def until_over(pids: Any, timeout_s: float) -> None:
        if StandIn.over.is_set():
            raise Ended
        wait(pids, timeout_s)

    monkeypatch.setattr(heads, "Node", StandIn)
    monkeypatch.setattr(heads, "_wait_for_end", until_over)
    monkeypatch.setattr(heads.ray_utils, "write_ray_address", lambda *_: None)
    begun: list[Kept] = []

    def begin(**settings: Any) -> Kept:
        begun.append(Kept(**settings))
        return begun[-1]

    yield begin
    StandIn.over.set()
    for one in begun:
        one.thread.join(20.0)
        assert not one.thread.is_alive()


@pytest.mark.parametrize("kind", ["gcs_server", "log_monitor", "monitor"])
def test_what_died_alone_is_started_again_alone(keep: Callable[..., Kept], kind: str) -> None:
    kept = keep()
    before = {each: kept.node.pid(each) for each in KINDS}
    kept.kill(kind)
    eventually(lambda: kept.node.pid(kind) not in (0, before[kind]))
    assert len(StandIn.made) == 1
    assert {each: kept.node.pid(each) for each in KINDS if each != kind} == {
        each: pid for each, pid in before.items() if each != kind
    }


def test_with_its_raylet_the_whole_node_starts_anew(keep: Callable[..., Kept]) -> None:
    kept = keep()
    first = kept.node
    kept.kill("raylet")
    eventually(lambda: len(StandIn.made) == 2)
    assert first.all_processes == {}, "what was left of the old node was ended"
    assert all(kept.node.pid(kind) for kind in KINDS)


def test_what_a_node_had_started_when_it_failed_is_ended_before_the_next_try(
    keep: Callable[..., Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "_end_children", lambda: os.kill(StandIn.half, signal.SIGKILL))  # not all of pytest's
    kept = keep()
    StandIn.node_fails = 1
    kept.kill("raylet")
    eventually(lambda: len(StandIn.made) == 2)
    assert not psutil.pid_exists(StandIn.half) or psutil.Process(StandIn.half).status() == psutil.STATUS_ZOMBIE


def test_only_what_a_process_has_started_is_ended_with_it() -> None:
    other = subprocess.Popen(SLEEP)
    script = f"import subprocess\nsubprocess.Popen({SLEEP!r})\nfrom flowray.runtime.head import _end_children\n"
    script += "import psutil\n_end_children()\nprint(len(psutil.Process().children()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_store_that_does_not_start_is_tried_again(
    keep: Callable[..., Kept], capsys: pytest.CaptureFixture[str]
) -> None:
    StandIn.fails = 2
    kept = keep()
    dead = kept.kill("gcs_server")
    eventually(lambda: kept.node.pid("gcs_server") not in (0, dead))
    said = capsys.readouterr().out
    assert said.count("the store is locked") == 2
    assert f"gcs_server (pid {dead}) ended with -9" in said


def test_a_head_with_its_tables_in_memory_ends_with_its_store(keep: Callable[..., Kept]) -> None:
    kept = keep(store="memory")
    kept.kill("gcs_server")
    kept.thread.join(20.0)
    assert kept.status == 3
    assert kept.node.all_processes == {}


def test_a_head_ends_its_processes_when_it_is_told_to(keep: Callable[..., Kept]) -> None:
    kept = keep()
    StandIn.over.set()
    kept.thread.join(20.0)
    assert kept.node.all_processes == {}

"""The keeper ends processes that were stopped and do not go on, and no others. Real processes, no Ray."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from flowray.runtime.keeper import COORDINATOR, Keeper, Stopped, Watched, encode, gone, state_of


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


class Told:
    """The coordinator's actor, as far as a keeper calls it."""

    def __init__(self, deaf: bool = False) -> None:
        self.heard: list[tuple[str, str]] = []
        self._deaf = deaf
        self.ended = self
        self.free: list[float] = []
        self.memory = SimpleNamespace(remote=self.hear)
        self.dead: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self.died = SimpleNamespace(remote=self.bury)

    async def bury(self, name: str, pid: int) -> None:
        self.dead.put_nowait((name, pid))

    async def hear(self, node_id: str, free: float) -> None:
        assert node_id == "node"
        self.free.append(free)

    async def remote(self, name: str, cause: str) -> None:
        self.heard.append((name, cause))
        if self._deaf:
            await asyncio.Event().wait()


async def until_dead(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, 60)


def test_stopped_at_every_look_for_the_limit() -> None:
    stopped = Stopped(1.0)
    assert stopped.look({"a": "T", "b": "S"}, 0.0) == []
    assert stopped.look({"a": "T", "b": "T"}, 0.9) == []
    assert stopped.look({"a": "R", "b": "T"}, 1.5) == []  # it went on meanwhile
    assert stopped.look({"a": "T", "b": "T"}, 2.0) == ["b"]
    assert stopped.look({"a": "T"}, 3.0) == ["a"]


def test_a_debuggers_hold_is_not_a_stop() -> None:
    assert Stopped(0.0).look({"a": "t", "b": "D"}, 0.0) == []


async def test_a_stopped_process_is_ended_and_the_coordinator_hears_why_before(
    sleeper: subprocess.Popen[bytes],
) -> None:
    keeper, coordinator = Keeper("node", 0.2), Told()
    await keeper.watch(encode((Watched("agent", sleeper.pid),)), coordinator)
    await asyncio.sleep(0.5)
    assert sleeper.poll() is None and not coordinator.heard
    os.kill(sleeper.pid, signal.SIGSTOP)
    assert await until_dead(sleeper) == -signal.SIGKILL
    ((name, cause),) = coordinator.heard
    assert name == "agent" and "stopped for 0.2 s" in cause


async def test_a_coordinator_that_does_not_listen_keeps_nobody_alive(sleeper: subprocess.Popen[bytes]) -> None:
    keeper = Keeper("node", 0.1)
    await keeper.watch(encode((Watched("agent", sleeper.pid),)), Told(deaf=True))
    os.kill(sleeper.pid, signal.SIGSTOP)
    assert await until_dead(sleeper) == -signal.SIGKILL


async def test_the_coordinator_itself_is_ended_without_being_asked(sleeper: subprocess.Popen[bytes]) -> None:
    keeper, coordinator = Keeper("node", 0.1), Told()
    await keeper.watch(encode((Watched(COORDINATOR, sleeper.pid),)), coordinator)
    os.kill(sleeper.pid, signal.SIGSTOP)
    assert await until_dead(sleeper) == -signal.SIGKILL
    assert not coordinator.heard


async def test_who_is_not_to_be_watched_any_more_may_be_stopped(sleeper: subprocess.Popen[bytes]) -> None:
    keeper, coordinator = Keeper("node", 0.05), Told()
    await keeper.watch(encode((Watched("agent", sleeper.pid),)), coordinator)
    await keeper.watch(encode(()), coordinator)
    os.kill(sleeper.pid, signal.SIGSTOP)
    await asyncio.sleep(0.5)
    assert state_of(sleeper.pid) == "T"


async def test_how_much_memory_is_free_is_told_and_again_to_whoever_asks_anew(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowray.runtime.keeper._MEMORY_S", 0.02)
    keeper, coordinator, successor = Keeper("node", 60.0), Told(), Told()
    await keeper.watch(encode((Watched("agent", sleeper.pid),)), coordinator)
    await asyncio.sleep(0.3)
    assert coordinator.free and all(0.0 < free < 1.0 for free in coordinator.free)
    await keeper.watch(encode((Watched("agent", sleeper.pid),)), successor)
    while not successor.free:
        await asyncio.sleep(0.01)


async def test_a_process_that_is_gone_is_no_trouble(sleeper: subprocess.Popen[bytes]) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    keeper = Keeper("node", 0.05)
    watched: tuple[Any, ...] = (Watched("gone", int(gone.stdout)), Watched("agent", sleeper.pid))
    await keeper.watch(encode(watched), Told())
    os.kill(sleeper.pid, signal.SIGSTOP)
    assert await until_dead(sleeper) == -signal.SIGKILL
    assert state_of(int(gone.stdout)) == ""


async def test_a_death_is_told(sleeper: subprocess.Popen[bytes]) -> None:
    keeper, coordinator = Keeper("node", 5.0), Told()
    await keeper.watch(encode((Watched("agent", sleeper.pid),)), coordinator)
    sleeper.kill()
    assert await asyncio.wait_for(coordinator.dead.get(), 60) == ("agent", sleeper.pid)


async def test_the_death_of_a_coordinator_is_told_to_nobody(sleeper: subprocess.Popen[bytes]) -> None:
    keeper, coordinator = Keeper("node", 5.0), Told()
    await keeper.watch(encode((Watched(COORDINATOR, sleeper.pid),)), coordinator)
    sleeper.kill()
    await until_dead(sleeper)
    await asyncio.sleep(0.1)
    assert coordinator.dead.empty()


async def test_who_is_not_watched_any_more_may_die(sleeper: subprocess.Popen[bytes]) -> None:
    keeper, coordinator = Keeper("node", 5.0), Told()
    await keeper.watch(encode((Watched("agent", sleeper.pid),)), coordinator)
    await keeper.watch(encode(()), coordinator)
    sleeper.kill()
    await until_dead(sleeper)
    await asyncio.sleep(0.1)
    assert coordinator.dead.empty()


def test_a_process_has_gone_when_the_kernel_says_so(sleeper: subprocess.Popen[bytes]) -> None:
    assert not gone(sleeper.pid, 0.01)
    sleeper.kill()
    assert gone(sleeper.pid, 30.0)
    sleeper.wait()
    assert gone(sleeper.pid, 0.0), "and nobody is called so"

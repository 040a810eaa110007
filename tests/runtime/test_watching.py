"""When a process counts as dead: on the coordinator's own node by what the kernel says, whatever Ray says."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from flowray.runtime.pools import Pools

HERE, ELSEWHERE = "a-node", "another"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def watched(pid: int, node_id: str) -> tuple[Pools, Any, list[tuple[bool, bool]]]:
    """Pools, a process that Ray calls dead, and what becomes of it: certain, and was it there still?"""
    pools: Any = Pools.__new__(Pools)
    lost: list[tuple[bool, bool]] = []
    pools._node_id = HERE

    async def watch() -> tuple[str, bool]:
        return "its worker process has died", True

    def note(_: object, __: str, *, certain: bool = False) -> None:
        lost.append((certain, psutil.Process(pid).status() != psutil.STATUS_ZOMBIE))

    pools._lost = note
    made = SimpleNamespace(node_id=node_id, pid=pid)
    return pools, SimpleNamespace(link=SimpleNamespace(watch=watch), made=made, stopped=False), lost


async def test_a_process_that_ray_calls_dead_is_dead_when_it_is(sleeper: subprocess.Popen[bytes]) -> None:
    pools, process, lost = watched(sleeper.pid, HERE)
    watching = asyncio.create_task(pools._watch(process))
    await asyncio.sleep(0.1)
    assert not lost, "its connection is gone, and it is there"
    sleeper.kill()
    await watching
    assert lost == [(True, False)]


async def test_a_process_that_goes_on_is_not_certainly_dead(sleeper: subprocess.Popen[bytes]) -> None:
    pools, process, lost = watched(sleeper.pid, HERE)
    await pools._watch(process)
    assert lost == [(False, True)]


async def test_of_another_node_ray_is_believed(sleeper: subprocess.Popen[bytes]) -> None:
    pools, process, lost = watched(sleeper.pid, ELSEWHERE)
    await pools._watch(process)
    assert lost == [(True, True)]

"""The coordinator's side of the keepers: each node with processes of the runtime has one that knows them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flowray.runtime._ray_errors import GONE, LOST, NOT_CREATED, REFUSED
from flowray.runtime.cluster import NAMESPACE
from flowray.runtime.keeper import COORDINATOR, Keeper, Watched, encode, gone

_GATHER_S = 0.2  # changes within this are told together
_END_S = 2.0  # at a time, for a keeper's process to end
_AGAIN_S = 1.0  # until a keeper that died, or could not be started, is started again


class Keepers:
    """Use only from the coordinator's event loop."""

    def __init__(self, runtime: str, node_id: str, stopped_s: float, coordinator: Any) -> None:
        """`node_id` and `coordinator` (an actor) are the coordinator's own; with `stopped_s` 0 nothing is watched."""
        self._runtime = runtime
        self._stopped_s = stopped_s
        self._coordinator = coordinator
        self._pids: dict[str, dict[str, int]] = {node_id: {COORDINATOR: os.getpid()}}  # node -> process -> pid
        self._minding: dict[str, asyncio.Task[None]] = {}  # node -> who has a keeper there
        self._changed: dict[str, asyncio.Event] = {}
        self._ending: dict[str, int] = {}  # node -> pid of the keeper that was told to end
        self._closed = False

    def add(self, node_id: str, name: str, pid: int) -> None:
        """A process is there."""
        self._pids.setdefault(node_id, {})[name] = pid
        self._tell(node_id)

    def remove(self, node_id: str, name: str) -> None:
        """It is gone, or nobody minds what becomes of it."""
        if self._pids.get(node_id, {}).pop(name, None) is not None:
            self._tell(node_id)

    async def dismiss(self, node_id: str) -> list[str]:
        """A node is drained: its keeper goes, too. (With the next process there comes another one.) Gives its name
        as long as it may be there still."""
        if not self._pids.get(node_id) and not await asyncio.to_thread(self._end, node_id):
            return [self._name(node_id)]
        return []

    def _end(self, node_id: str) -> bool:
        """Blocking calls; has it gone? Ray calls it dead as soon as it is told to end it, and lets go of its name; so
        a process of Ray's own on that node asks the kernel."""
        pid = self._ending.get(node_id)
        try:
            keeper = ray.get_actor(self._name(node_id), namespace=NAMESPACE)
        except ValueError:
            if pid is None:
                return True  # there is none
        else:
            with contextlib.suppress(*LOST):  # it has died, or does not answer: then it is ended unseen
                pid = self._ending[node_id] = ray.get(keeper.pid.remote(), timeout=_END_S)
            ray.kill(keeper, no_restart=True)
            if pid is None:
                return False  # once more, for its name
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        asking = ray.remote(gone).options(num_cpus=0, scheduling_strategy=there, enable_task_events=False)
        try:
            ended = ray.get(asking.remote(pid, _END_S))
        except GONE:
            ended = True  # with its node
        except NOT_CREATED:
            ended = False  # the one that asked has died: once more
        if ended:
            self._ending.pop(node_id, None)
        return bool(ended)

    def _name(self, node_id: str) -> str:
        return f"{self._runtime}/keeper/{node_id}"

    def close(self) -> None:
        """Everything is ended by whoever calls this, the keepers too."""
        self._closed = True
        for task in self._minding.values():
            task.cancel()

    def _tell(self, node_id: str) -> None:
        if self._closed or not self._stopped_s:
            return
        self._changed.setdefault(node_id, asyncio.Event()).set()
        if node_id not in self._minding:
            self._minding[node_id] = asyncio.get_running_loop().create_task(self._mind(node_id))

    async def _mind(self, node_id: str) -> None:
        """Have a keeper there as long as there is something to keep."""
        while self._pids.get(node_id):
            with contextlib.suppress(*LOST, *NOT_CREATED, *REFUSED):  # then once more, if the node still has a process
                await self._keep(node_id)
            await asyncio.sleep(_AGAIN_S)
        self._pids.pop(node_id, None)
        self._changed.pop(node_id, None)
        del self._minding[node_id]

    async def _keep(self, node_id: str) -> None:
        """Start a keeper, or find the one that is there, and tell it all changes. Raises one of Ray's errors."""
        actor = await asyncio.to_thread(self._actor, node_id)
        staying = asyncio.ensure_future(actor.stay.remote())
        changed = self._changed[node_id]
        changed.set()
        try:
            while self._pids.get(node_id):
                waiting = asyncio.ensure_future(changed.wait())
                await asyncio.wait((staying, waiting), return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if staying.done():
                    await staying
                await asyncio.sleep(_GATHER_S)
                changed.clear()
                watched = tuple(Watched(name, pid) for name, pid in self._pids[node_id].items())
                await actor.watch.remote(encode(watched), self._coordinator)
        finally:
            staying.cancel()

    def _actor(self, node_id: str) -> Any:
        """Blocking calls to Ray's control plane; runs in a thread."""
        return (
            ray.remote(Keeper)
            .options(
                name=self._name(node_id),
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                max_restarts=0,
                max_task_retries=0,
                num_cpus=0,
                enable_task_events=False,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            )
            .remote(node_id, self._stopped_s)
        )

"""The coordinator's side of the keepers: each node with processes of the runtime has one that knows them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flowray.runtime._ray_errors import LOST, NOT_CREATED, REFUSED
from flowray.runtime.cluster import NAMESPACE
from flowray.runtime.keeper import COORDINATOR, Keeper, Watched, encode

_GATHER_S = 0.2  # changes within this are told together
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
        self._closed = False

    def add(self, node_id: str, name: str, pid: int) -> None:
        """A process is there."""
        self._pids.setdefault(node_id, {})[name] = pid
        self._tell(node_id)

    def remove(self, node_id: str, name: str) -> None:
        """It is gone, or nobody minds what becomes of it."""
        if self._pids.get(node_id, {}).pop(name, None) is not None:
            self._tell(node_id)

    async def dismiss(self, node_id: str) -> None:
        """A node is drained: its keeper goes, too. (With the next process there comes another one.)"""
        if not self._pids.get(node_id):
            await asyncio.to_thread(self._end, node_id)

    def _end(self, node_id: str) -> None:
        with contextlib.suppress(ValueError, *LOST):  # there is none
            ray.kill(ray.get_actor(self._name(node_id), namespace=NAMESPACE), no_restart=True)

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

"""What Ray says of its cluster, and what it last said where it does not answer.

Ray's control store may be gone while tasks go on. Asking it then blocks, in Ray's own code, for a minute: so there is
never more than one question under way, and nobody waits long for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ray
from msgspec import Struct

from flowray.runtime._ray_errors import NOT_CREATED, REFUSED, brief
from flowray.runtime.views import NodeView

_ANSWER_S = 1.0


class Sight(Struct, frozen=True):
    """The cluster at one moment."""

    nodes: tuple[NodeView, ...] = ()
    blocks: dict[str, str] = {}  # that are not in place -> their state
    failed: str = ""  # why this is not from now; "" when it is


class Lookout:
    """Use only from one event loop."""

    def __init__(self, blocks: Callable[[], dict[str, str]]) -> None:
        """`blocks` asks Ray, and blocks, as the rest here does."""
        self._blocks = blocks
        self._asking: asyncio.Task[Sight] | None = None
        self._last = Sight()

    async def look(self) -> Sight:
        """The cluster as it is; within seconds, also when Ray does not answer."""
        try:
            if self._asking is not None and not self._asking.done():  # begun before this call: not news enough
                await asyncio.wait_for(asyncio.shield(self._asking), _ANSWER_S)
            if self._asking is None or self._asking.done():
                self._asking = asyncio.get_running_loop().create_task(asyncio.to_thread(self._ask))
                self._asking.add_done_callback(_take_note)
            self._last = await asyncio.wait_for(asyncio.shield(self._asking), _ANSWER_S)
        except TimeoutError:
            return Sight(self._last.nodes, self._last.blocks, f"no answer for {_ANSWER_S:g} s")
        except (*NOT_CREATED, *REFUSED) as error:
            return Sight(self._last.nodes, self._last.blocks, brief(error))
        return self._last

    def _ask(self) -> Sight:
        return Sight(tuple(_node(one) for one in ray.nodes()), self._blocks())


def _take_note(asking: asyncio.Task[Sight]) -> None:
    """What goes wrong after nobody waits for it any more is no news: the next question says it."""
    if not asking.cancelled():
        asking.exception()


def _node(said: dict[str, Any]) -> NodeView:
    return NodeView(
        node_id=said["NodeID"],
        address=said["NodeManagerAddress"],
        alive=said["Alive"],
        cpus=said["Resources"].get("CPU", 0.0),
        memory_bytes=int(said["Resources"].get("memory", 0)),
        labels=said.get("Labels", {}),
    )

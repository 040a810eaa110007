"""Telling agents which of their results are on disk, so that they need not keep them any longer.

Nobody waits for that, and a message of its own would wake the agent's process for nothing else. So it goes along with
the next task for that agent, in the same frame; where none comes, by itself after a moment.
"""

from __future__ import annotations

import asyncio

from flowray.mesh.peer import Peer
from flowray.runtime import messages
from flowray.runtime.messages import Acknowledge

_LATER_S = 0.1  # as long as this, at most, an agent keeps results that are on disk


class Acknowledgements:
    """What agents are still to be told. For one event loop."""

    def __init__(self) -> None:
        self._due: dict[str, tuple[Peer, int]] = {}  # agent -> its process, the last of its results on disk
        self._timer: asyncio.TimerHandle | None = None

    def on_disk(self, peer: Peer, agent_id: str, last: int) -> None:
        """All results of this agent up to the `last` one are on disk."""
        self._due[agent_id] = (peer, last)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LATER_S, self._tell_all)

    def tell(self, agent_id: str) -> None:
        """Tell this agent now, if there is something: another message goes to it as well."""
        due = self._due.pop(agent_id, None)
        if due is not None:
            peer, last = due
            peer.send_anyway(messages.encode(Acknowledge(agent_id, last)))

    def _tell_all(self) -> None:
        self._timer = None
        for agent_id in list(self._due):
            self.tell(agent_id)

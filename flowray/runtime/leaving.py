"""Drain, as who wants it sees it: asked for again until it is done, so a coordinator may be replaced meanwhile.

What is decided about it is in `flowray.core.draining`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from flowray.errors import ConfigError, WaitTimeout
from flowray.runtime.messages import Question
from flowray.runtime.views import NodeView, Status

if TYPE_CHECKING:
    from flowray.runtime.runtime import Runtime

_LOOK_S = 0.2
_LEAST_PREFIX = 6  # characters of a node's id that may stand for it


def drain_agents(rt: Runtime, names: Iterable[str], timeout_s: float) -> list[str]:
    """See Agents.drain."""
    wanted = set(names)
    status = rt.status()
    known = {agent.agent_id for agent in status.agents} | {agent.name for agent in status.agents}
    if unknown := sorted(wanted - known):
        raise ConfigError("agents", f"there is no agent, and no class of agents, called {unknown[0]!r}")
    named = [a for a in status.agents if a.agent_id in wanted or a.name in wanted]
    meant = {a.agent_id: a.incarnation for a in named if a.state != "broken"}  # those have no process to leave
    deadline = time.monotonic() + timeout_s
    while True:
        left = [(a.agent_id, a.incarnation) for a in status.agents if meant.get(a.agent_id) == a.incarnation]
        coming = [a.agent_id for a in status.agents if a.agent_id in meant and a.state in ("starting", "waiting")]
        if not left and not coming:
            return sorted(meant)
        if left:
            rt._ask(Question("drain_agents", agents=left), bool)
        waiting = ", ".join([name for name, _ in left] + coming)
        _wait(deadline, timeout_s, waiting)
        status = rt.status()


def drain_node(rt: Runtime, node: str, timeout_s: float) -> str:
    """See Runtime.drain_node."""
    status = rt.status()
    found = node_of(status, node)
    if found.node_id == status.node:
        hint = "its journal is there; drain it by stopping the runtime, which keeps what was accepted"
        raise ConfigError("node", f"{node} is the coordinator's own node", hint)
    deadline = time.monotonic() + timeout_s
    while left := _ask_node(rt, "drain_node", found.node_id):
        _wait(deadline, timeout_s, f"{', '.join(left)} on {found.address}")
    return found.node_id


def keep_node(rt: Runtime, node: str) -> str:
    """See Runtime.keep_node."""
    found = node_of(rt.status(), node)
    _ask_node(rt, "keep_node", found.node_id)
    return found.node_id


def node_of(status: Status, node: str) -> NodeView:
    """The living node of this address or id (or its beginning). Raises ConfigError where that is none, or several."""
    alive = [one for one in status.nodes if one.alive]
    by_id = [one for one in alive if len(node) >= _LEAST_PREFIX and one.node_id.startswith(node)]
    found = [one for one in alive if one.address == node] or by_id
    if len(found) != 1:
        known = ", ".join(f"{one.address} ({one.node_id[:12]})" for one in alive)
        problem = f"no living node is called {node!r}" if not found else f"{len(found)} nodes are called {node!r}"
        raise ConfigError("node", problem, f"there are {known}" if known else "Ray says of none")
    return found[0]


def _ask_node(rt: Runtime, what: str, node_id: str) -> list[str]:
    left: list[str] = rt._ask(Question(what, node=node_id), list[str])
    return left


def _wait(deadline: float, timeout_s: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise WaitTimeout(f"not left: {what}", timeout_s, "they go on leaving")
    time.sleep(_LOOK_S)

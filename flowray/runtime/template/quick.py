"""Starting a head of Ray without waiting for what nobody needs.

`ray.init` and `ray start` start the processes of a node one after another. Most of that time is spent waiting: for a
server for the dashboard, also where the dashboard is switched off and it has nothing to do, and for the raylet, for
which Ray looks once a second. A raylet that is gone already is waited for as well, for a minute.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import node, ray_constants, services
from ray._raylet import GcsClient  # type: ignore[attr-defined]

from flowray.errors import FlowrayError

_LOOK_S = 0.02  # between two looks for the raylet
_PATIENCE_S = 30.0  # Ray's own


class RayletGone(FlowrayError):
    """The raylet of a node that this process started has ended before it registered, or never came to do so."""


@contextmanager
def quick() -> Iterator[None]:
    """Make the start of a node in this process faster, while it is entered.

    Raises:
        RayletGone: the node did not come up; its processes are ended.
    """
    get_node, start_api_server = services.get_node, node.Node.start_api_server
    starting: list[node.Node] = []  # none, or the one whose raylet is waited for

    def look_often(gcs_address: str, node_id: str) -> Any:
        if starting:
            started = starting.pop()
            raylets = started.all_processes.get(ray_constants.PROCESS_TYPE_RAYLET, [])
            try:
                _await_raylet(gcs_address, node_id, raylets[0].process if raylets else None)
            except RayletGone:
                started.kill_all_processes(check_alive=False, allow_graceful=False)
                raise
        return get_node(gcs_address, node_id)

    def leave_out(self: node.Node, *, include_dashboard: bool | None, **rest: Any) -> None:
        starting[:] = [self]
        if include_dashboard is not False:  # None leaves it to Ray
            start_api_server(self, include_dashboard=include_dashboard, **rest)

    services.get_node = look_often
    node.Node.start_api_server = leave_out
    try:
        yield
    finally:
        services.get_node, node.Node.start_api_server = get_node, start_api_server


def _await_raylet(gcs_address: str, node_id: str, raylet: subprocess.Popen[bytes] | None) -> None:
    """Return when the raylet has registered. Raises RayletGone."""
    client = GcsClient(address=gcs_address)
    deadline = time.monotonic() + _PATIENCE_S
    while not any(found.hex() == node_id for found in client.get_all_node_info()):
        status = raylet.poll() if raylet is not None else None
        if status is not None:
            raise RayletGone(f"Ray's raylet ended while it started (status {status})")
        if time.monotonic() > deadline:
            raise RayletGone(f"Ray's raylet did not register within {_PATIENCE_S:g} s")
        time.sleep(_LOOK_S)

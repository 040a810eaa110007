"""Starting a head of Ray without waiting for what nobody needs.

`ray.init` and `ray start` start the processes of a node one after another. Most of that time is spent waiting: for a
server for the dashboard, also where the dashboard is switched off and it has nothing to do, and for the raylet, for
which Ray looks once a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import node, services
from ray._raylet import GcsClient  # type: ignore[attr-defined]

_LOOK_S = 0.02  # between two looks for the raylet
_PATIENCE_S = 30.0  # Ray's own, after which its own look says what is wrong


@contextmanager
def quick() -> Iterator[None]:
    """Make the start of a node in this process faster, while it is entered."""
    get_node, start_api_server = services.get_node, node.Node.start_api_server

    def look_often(gcs_address: str, node_id: str) -> Any:
        _await_raylet(gcs_address, node_id)
        return get_node(gcs_address, node_id)

    def leave_out(self: node.Node, *, include_dashboard: bool | None, **rest: Any) -> None:
        if include_dashboard is not False:  # None leaves it to Ray
            start_api_server(self, include_dashboard=include_dashboard, **rest)

    services.get_node = look_often
    node.Node.start_api_server = leave_out
    try:
        yield
    finally:
        services.get_node, node.Node.start_api_server = get_node, start_api_server


def _await_raylet(gcs_address: str, node_id: str) -> None:
    """Return when the raylet has registered, or when it should have."""
    client = GcsClient(address=gcs_address)
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if any(found.hex() == node_id for found in client.get_all_node_info()):
            return
        time.sleep(_LOOK_S)

"""Where what belongs to a journal lives: if that is a file, on the node that has it, and on no other, ever.

Restarted elsewhere a coordinator would begin with an empty journal. A node is known by its id; but a head that its
supervisor has started again on the same machine has another id, and the journal still. Such a head has a label that
stays, and so what lives there comes back with it.

A journal in a database has no home: what belongs to it begins somewhere, and may go on in any other node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

HOME = "flowray-home"  # label of a node that comes back under another id


def pinned(node_id: str) -> dict[str, Any]:
    """Options of an actor that lives on this node, which may have been lost meanwhile. Asks Ray, and blocks."""
    for node in ray.nodes():
        home = node["NodeID"] == node_id and node.get("Labels", {}).get(HOME)
        if home:
            return {"label_selector": {HOME: home}}
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def anywhere(labels: Mapping[str, str]) -> dict[str, Any]:
    """Options of an actor that Ray may start, and start again, on any node that has these labels."""
    return {"label_selector": dict(labels)} if labels else {}

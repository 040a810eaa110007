"""Agents that live on different nodes and ask one another, and programs that use them. Run inside a node:

python node_agents.py start {...}    a runtime that stays, with an agent on either node, and room for nobody else
python node_agents.py use {...}      connects through Ray, from whichever node it runs in
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import flowray as fr


class Node:
    """Says where it is. As a task it asks the agent that it is told to, or waits for a file."""

    def run(self, task: fr.Task, ctx: fr.Context) -> Any:
        gate = task.payload.get("gate")
        if gate:
            Path(gate).with_suffix(".begun").touch()
            while not Path(gate).exists():
                time.sleep(0.01)
        others = [ctx.ask(other, "where", timeout_s=20.0) for other in task.payload["ask"]]
        return {"here": where(), "there": [other.result() for other in others], "attempt": ctx.attempt}

    def on_message(self, message: fr.Message) -> Any:
        return where()


class Near(Node):
    """On the head node."""


class Far(Node):
    """On the other node."""


class Late(Node):
    """On the head node, where warm processes have taken what room there was."""


def where() -> list[Any]:
    """This process: its node's address, and its number there."""
    import ray

    return [ray.util.get_node_ip_address(), os.getpid()]


def start(settings: dict[str, Any]) -> None:
    overrides: dict[str, Any] = {
        "name": "nodes",
        "journal": settings["journal"],
        "store.allow_filesystems": ["overlay", "overlayfs"],  # of a container that runs the tests
        "tiers.primary.labels": {"node": "0"},
        "tiers.secondary.labels": {"node": "1"},
        "tiers.specialist.labels": {"node": "0"},
    }
    # Each of 0.9 CPUs: a second one fits onto the head node, and is warm until the late one comes; a third does not.
    for tier in ("primary", "secondary", "specialist"):
        overrides |= {f"tiers.{tier}.{name}": value for name, value in (("agents", 1), ("memory_share", 0.01))}
        overrides[f"tiers.{tier}.cpu_share"] = 0.225
    rt = fr.Runtime.start(overrides=overrides, keep=True)
    rt.agents.add(Near, tier="primary")
    rt.agents.add(Far, tier="secondary")
    rt.wait_ready()
    say(asked=[rt.ask(agent, "where", timeout_s=20.0).result() for agent in ("near-0", "far-0")])
    rt.disconnect()


def use(settings: dict[str, Any]) -> None:
    with fr.Runtime.connect("nodes", address=os.environ["RAY_ADDRESS"]) as rt:
        said: dict[str, Any] = {"status": {}}
        if settings.get("late"):
            rt.agents.add(Late, tier="specialist")
            rt.wait_ready()
        if settings.get("tasks"):
            handles = rt.submit_many([{"payload": payload, "agent": agent} for agent, payload in settings["tasks"]])
            said["results"] = [handle.result(60.0) for handle in handles]
        said["asked"] = [rt.ask(agent, "where", timeout_s=20.0).result() for agent in settings.get("ask", ())]
        if settings.get("large_bytes"):
            body = os.urandom(settings["large_bytes"])
            handle = rt.submit(payload={"ask": [], "large": body}, agent="far")
            said["large"] = handle.result(60.0)["here"]
        status = rt.status()
        said["status"] = {"epoch": status.epoch, "pid": status.pid, "blocks": dict(status.blocks)}
        said["agents"] = {a.agent_id: [a.state, a.incarnation, a.node, a.pid] for a in status.agents}
        say(**said)


def say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")


if __name__ == "__main__":
    {"start": start, "use": use}[sys.argv[1]](json.loads(sys.argv[2]))

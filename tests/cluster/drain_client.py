"""A runtime whose agents are drained under load: one agent, all of a class, a whole node. Run inside the head node:

python drain_client.py {"directory": ..., "journal": ..., "agents": ..., "open": ...}

The history is writer.jsonl. `said.json` has, when all is over, what was drained, how long it took, and who was where.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from chaos_client import Writer, load_until
from chaos_work import Work
from fr_ledger import Ledger

import flowray as fr


class Worker(Work):
    """Asks nobody."""


class Asker(Writer):
    def request(self, key: str) -> dict[str, Any]:
        asked = super().request(key)
        return {**asked, "payload": {**asked["payload"], "ask": False}}


def main(settings: dict[str, Any]) -> None:
    directory = Path(settings["directory"])
    overrides = {
        "name": "drained",
        "journal": settings["journal"],
        "store.allow_filesystems": ["overlay", "overlayfs"],  # of a container that runs the tests
        "tiers.primary.agents": settings["agents"],
        "tiers.primary.cpu_share": 0.25,
        "tiers.primary.memory_share": 0.1,
        "tiers.primary.agents_per_block": settings["agents"],  # and these are spread over the nodes
        "tiers.secondary.memory_share": 0.02,
        "core.drain.at_once": 0.34,
    }
    with fr.Runtime.start(overrides=overrides) as rt:
        rt.agents.add(Worker, tier="primary", count=settings["agents"])
        rt.agents.add(Ledger, num_cpus=0.05)
        rt.wait_ready()
        writer = Asker(rt, settings)
        loading = threading.Thread(target=load_until, args=(writer, directory / "phase", settings))
        loading.start()
        totals: list[int] = []
        adding = threading.Thread(target=add, args=(rt, directory / "phase", totals))
        adding.start()
        said: dict[str, Any] = {}
        try:
            said = drain_all(rt, directory)
        finally:
            (directory / "phase").write_text("drain")
            loading.join()
            adding.join()
        said |= {"tasks": len(writer.tasks), "missing": writer.missing, "totals": totals, "figures": rt.figures()}
        (directory / "said.json").write_text(json.dumps(said))
        (directory / "drained").touch()
        wait_for(directory / "end")


def drain_all(rt: fr.Runtime, directory: Path) -> dict[str, Any]:
    said: dict[str, Any] = {"took_s": {}}

    def timed(what: str, work: Any) -> Any:
        time.sleep(1.0)  # under load
        began_at = time.monotonic()
        found = work()
        said["took_s"][what] = round(time.monotonic() - began_at, 2)
        return found

    timed("agent", lambda: rt.agents.drain("worker-0"))
    timed("class", lambda: rt.agents.drain("worker"))
    status = rt.status()
    there = sorted({a.node for a in status.agents} - {node_address(status, status.node)})
    node = there[0]
    said["node"], said["had"] = node, sorted(a.agent_id for a in status.agents if a.node == node)
    timed("node", lambda: rt.drain_node(node))
    (directory / "empty").touch()
    wait_for(directory / "looked")
    status = rt.status()
    said["left"] = [a.agent_id for a in status.agents if a.node == node]
    said["shown"] = [one.address for one in status.nodes if one.drained]
    rt.keep_node(node)
    said["kept"] = [one.address for one in rt.status().nodes if one.drained]
    try:
        rt.drain_node(status.node)
    except fr.FlowrayError as error:
        said["refused"] = str(error)
    return said


def add(rt: fr.Runtime, phase: Path, totals: list[int]) -> None:
    """One to the ledger, again and again."""
    while not phase.exists():
        totals.append(rt.submit(1, agent="ledger").result(60.0)[0])


def node_address(status: Any, node_id: str) -> str:
    return next(one.address for one in status.nodes if one.node_id == node_id)


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.05)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""A stateful agent with its standby on two nodes, and a caller who never stops adding one. Run inside the head node:

python ledger_client.py {"directory": ..., "journal": ...}

Each outcome is a line of outcomes.jsonl: when it came (monotonic), the total, and where the process is that said so.
`agents.json` says every 0.1 s where the two processes are. It ends, and waits for what is open, once there is a file
named "end".
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import fr_ledger

import flowray as fr

OPEN = 8  # inputs at a time
EVERY_S = 0.1


def main(settings: dict[str, Any]) -> None:
    directory = Path(settings["directory"])
    overrides: dict[str, Any] = {
        "name": "ledger",
        "journal": settings["journal"],
        "store.allow_filesystems": ["overlay", "overlayfs"],  # of a container that runs the tests
        "tiers.secondary.memory_share": 0.02,
    }
    with fr.Runtime.start(overrides=overrides) as rt, (directory / "outcomes.jsonl").open("w") as out:
        rt.agents.add(fr_ledger.Ledger, num_cpus=0.05)
        rt.wait_ready()
        handles: deque[fr.Handle] = deque()
        told_at = 0.0
        while handles or not (directory / "end").exists():
            if time.monotonic() > told_at + EVERY_S:
                told_at = time.monotonic()
                tell(rt, directory)
            while len(handles) < OPEN and not (directory / "end").exists():
                handles.append(rt.submit(1, agent="ledger"))
            total, ip, pid = handles.popleft().result(120.0)
            out.write(json.dumps([time.monotonic(), total, ip, pid]) + "\n")
            out.flush()
        sys.stdout.write(json.dumps(rt.figures()) + "\n")


def tell(rt: fr.Runtime, directory: Path) -> None:
    status = rt.status()
    found = {a.agent_id: [a.state, a.node, a.pid] for a in status.agents}
    partial = directory / "agents.partial"
    partial.write_text(json.dumps(found))
    partial.rename(directory / "agents.json")


if __name__ == "__main__":
    os.chdir(Path(__file__).parent)
    main(json.loads(sys.argv[1]))

"""The agents of the overload test, and the runtime they run in. As a program it starts that and stays until told.

python overload_work.py '{"directory": ..., "overrides": {...}, "agents": ...}'
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from chaos_work import answer

import flowray as fr

SLOTS = 4


@fr.agent(slots=SLOTS)
class Slow:
    """Waits as told, and answers."""

    async def run(self, task: fr.Task) -> dict[str, Any]:
        key = task.payload["key"]
        await asyncio.sleep(task.payload["wait_s"])
        return {"of": key, "answer": answer(key), "by": os.getpid(), "nonce": secrets.token_hex(4)}


def main(settings: dict[str, Any]) -> None:
    directory = Path(settings["directory"])
    with fr.Runtime.start(overrides=settings["overrides"]) as rt:
        rt.agents.add(Slow, tier="secondary", count=settings["agents"])
        rt.wait_ready()
        status = rt.status()
        pids = {"coordinator": status.pid, **{agent.agent_id: agent.pid for agent in status.agents}}
        (directory / "ready.new").write_text(json.dumps(pids))
        (directory / "ready.new").rename(directory / "ready")
        while not (directory / "end").exists():
            time.sleep(0.05)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

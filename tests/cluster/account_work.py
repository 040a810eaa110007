"""The stateful agent of `account_client`: keeps of each entity what was applied to it, in order."""

from __future__ import annotations

import os
import time
from typing import Any

from chaos_work import answer

import flowray as fr

APPLY_S = 0.003


@fr.agent(standby="warm", snapshot_every=200)
class Account:
    def __init__(self) -> None:
        self.applied: dict[str, list[int]] = {}

    def apply(self, task: fr.Task) -> dict[str, Any]:
        """Where the input came in its entity's order, and who says so; without a number, all that there is."""
        import ray

        entity, number = task.payload["entity"], task.payload["number"]
        if number is None:
            return {"applied": self.applied.get(entity, [])}
        time.sleep(APPLY_S)
        applied = self.applied.setdefault(entity, [])
        applied.append(number)
        key = f"{entity}/{number}"
        where = {"ip": ray.util.get_node_ip_address(), "pid": os.getpid()}
        return {"of": key, "answer": answer(key), "position": len(applied), **where}

    def snapshot(self) -> dict[str, list[int]]:
        return self.applied

    def restore(self, state: dict[str, list[int]]) -> None:
        self.applied = state

"""The agent of `ledger_client`: adds up, and says where it is."""

from __future__ import annotations

import os
import time
from typing import Any

import flowray as fr


@fr.agent(standby="warm", snapshot_every=200)
class Ledger:
    def __init__(self) -> None:
        self.total = 0

    def apply(self, task: fr.Task) -> list[Any]:
        import ray

        time.sleep(0.005)
        self.total += task.payload
        return [self.total, ray.util.get_node_ip_address(), os.getpid()]

    def snapshot(self) -> int:
        return self.total

    def restore(self, state: int) -> None:
        self.total = state

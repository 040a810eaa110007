"""Agents with a state, for the tests on real Ray."""

from __future__ import annotations

import os
import time
from typing import Any

import flowray as fr


class Ledger:
    """Adds up. An answer says in which process, which is no part of the state."""

    def __init__(self) -> None:
        self.total = 0

    def apply(self, task: fr.Task) -> list[int]:
        time.sleep(task.payload.get("takes_s", 0.0))
        if "kill" in task.payload:
            os._exit(1)
        if task.payload["add"] < 0:
            raise ValueError("less than nothing")
        self.total += task.payload["add"]
        return [self.total, os.getpid()]

    def snapshot(self) -> Any:
        return self.total

    def restore(self, state: Any) -> None:
        self.total = state


@fr.agent(standby="warm", snapshot_every=50)
class WarmLedger(Ledger):
    pass


@fr.agent(snapshot_every=20)
class ColdLedger(Ledger):
    pass


@fr.agent(standby="warm", snapshot_every=3)
class Dice(Ledger):
    """Not deterministic."""

    def apply(self, task: fr.Task) -> list[int]:
        self.total += int.from_bytes(os.urandom(5), "big")  # `random` may begin alike in processes that were forked
        return [0, os.getpid()]

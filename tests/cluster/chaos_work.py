"""The agents of the chaos runs: sync code of a few milliseconds, with an answer that follows from the key."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from typing import Any

import flowray as fr


def answer(key: str) -> str:
    """What every agent has to answer for this key."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


class Work:
    """Sleeps as told and answers. `by` and `nonce` differ between two executions of one task, so that readers who
    see two of them can tell."""

    def run(self, task: fr.Task) -> dict[str, Any]:
        key, wait_s = task.payload["key"], task.payload["wait_s"]
        time.sleep(wait_s)
        return {"of": key, "answer": answer(key), "by": os.getpid(), "nonce": secrets.token_hex(4)}


class HeadWork(Work):
    """Of the tier that lives on the head node."""


class FarWork(Work):
    """Of the tier that lives on the other node."""

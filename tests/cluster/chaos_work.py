"""The agents of the chaos runs: sync code of a few milliseconds, with an answer that follows from the key.

Some tasks ask an agent of the other node for that answer. They are to succeed whatever becomes of the question.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from typing import Any

import flowray as fr

ASK_S = 2.0  # how long a task waits for another agent
SCRATCH_MB = 40  # that some tasks need: more than malloc ever keeps (32), so each time the kernel is asked for it


def answer(key: str) -> str:
    """What every agent has to answer for this key."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


class Work:
    """Sleeps as told and answers. `by` and `nonce` differ between two executions of one task, so that readers who
    see two of them can tell; `began` is when this one did, on the machine's monotonic clock."""

    other = ""  # an agent of the other node

    def run(self, task: fr.Task, ctx: fr.Context) -> dict[str, Any]:
        began = time.monotonic()
        key, wait_s = task.payload["key"], task.payload["wait_s"]
        scratch = b"x" * (SCRATCH_MB << 20) if task.payload.get("scratch") else b""
        time.sleep(wait_s)
        del scratch
        said = ""
        if task.payload.get("ask"):
            try:
                said = "answered" if ctx.ask(self.other, key, timeout_s=ASK_S).result() == answer(key) else "wrong"
            except (fr.AskTimeout, fr.AgentUnreachable, fr.NoRoom) as error:
                said = f"{type(error).__name__}: {re.sub('[0-9a-f]{8}', '*', error.detail)}"
        value = {"of": key, "answer": answer(key), "by": os.getpid(), "nonce": secrets.token_hex(4)}
        return value | {"asked": said, "began": began}

    def on_message(self, message: fr.Message) -> str:
        return answer(message.body)


class HeadWork(Work):
    """Of the tier that lives on the head node."""

    other = "farwork-0"


class FarWork(Work):
    """Of the tier that lives on the other node."""

    other = "headwork-0"

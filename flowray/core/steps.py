"""Recorded steps of a task: what `ctx.step(name, fn)` returned, kept until the task ends.

The result of a step is on disk before user code sees it, and the first one of a name stands: a later attempt is given
it and does not run the step again. Only a running attempt may record, so a zombie's steps change nothing. Of two that
run at once (`flowray.core.acting`) either may; the other is told what stands.

The bounds keep what one open task holds below about a megabyte: results over `INLINE_BYTES` are kept in the payload
store and referred to. They are no policy, because an agent must keep them without asking.
"""

from __future__ import annotations

from collections.abc import Mapping

from flowray.core.model import Payload

MAX_STEPS = 256  # of one task
MAX_NAME = 200  # characters of a step's name
INLINE_BYTES = 4096  # of one result in the journal; a larger one is a file, up to `limits.payload_bytes`
_OVERHEAD = 128  # bytes that a step takes besides its name and its value, roughly


def step_bytes(name: str, value: Payload | None) -> int:
    """Memory that a recorded step takes, roughly."""
    inline = len(value.data) if value is not None and value.data is not None else 0
    return _OVERHEAD + len(name) + inline


def no_room(steps: Mapping[str, Payload | None], name: str, value: Payload | None) -> str:
    """Why this step cannot be recorded beside these; "" when it can."""
    if len(steps) >= MAX_STEPS:
        return f"the task has {len(steps)} recorded steps; {MAX_STEPS} is the most: make several small ones one step"
    if not name or len(name) > MAX_NAME:
        return f"a name of {len(name)} characters; there must be 1 to {MAX_NAME}"
    if value is not None and value.data is not None and len(value.data) > INLINE_BYTES:
        return f"a result of {len(value.data)} bytes inline; larger ones than {INLINE_BYTES} are kept as files"
    return ""

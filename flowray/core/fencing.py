"""What outside systems can tell attempts and steps by: a number that only grows, and a key that stays the same.

The fence of an attempt is (epoch, attempt) as one number. Within an epoch the attempts of a task are numbered upwards;
the epoch is on disk before anything is started in it, and only grows. So no two attempts of a task have the same fence
even where the number of an attempt was lost with the journal's tail and is given again, and one that is started later
has the higher one. (A coordinator that was replaced and does not know it yet starts with the lower fence of its own
epoch, which is the point: whoever has seen the higher one refuses it.)
"""

from __future__ import annotations

import hashlib

ATTEMPT_BITS = 32


def fence_of(epoch: int, attempt: int) -> int:
    """The fence of an attempt: higher than that of every attempt of its task that was started before."""
    return (epoch << ATTEMPT_BITS) + attempt


def idempotency_key(task_id: str, step: str) -> str:
    """A key for one side effect of one task: 43 characters of a-z, 0-9 and "-", the same for every attempt."""
    name = task_id.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(len(name).to_bytes(8, "big") + name, digest_size=20, person=b"flowray.step")
    digest.update(step.encode("utf-8", "surrogatepass"))
    return f"fr-{digest.hexdigest()}"

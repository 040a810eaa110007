"""What keeps attempts apart outside: a number that only grows, a key that stays the same, and leases.

The fence of an attempt is (epoch, attempt) as one number. Within an epoch the attempts of a task are numbered upwards;
the epoch is on disk before anything is started in it, and only grows. So no two attempts of a task have the same fence
even where the number of an attempt was lost with the journal's tail and is given again, and one that is started later
has the higher one. (A coordinator that was replaced and does not know it yet starts with the lower fence of its own
epoch, which is the point: whoever has seen the higher one refuses it.)

Attempts of an exclusive task must not run at the same time, even where nobody checks a fence. Where it is not certain
that the last one is over, the next waits for `core.fence_s`; by then the last one's own process has ended it, because
it may run only while it has a lease, and a lease ends `STOP_S` before that. The process measures it from the moment
at which it asked: whoever answers has not given the agent up by then, whatever time the answer takes.
"""

from __future__ import annotations

import hashlib

ATTEMPT_BITS = 32
STOP_S = 1.0  # for a process to end what it has no lease for any more
RENEWALS = 5  # in the time of one lease


def fence_of(epoch: int, attempt: int) -> int:
    """The fence of an attempt: higher than that of every attempt of its task that was started before."""
    return (epoch << ATTEMPT_BITS) + attempt


def idempotency_key(task_id: str, step: str) -> str:
    """A key for one side effect of one task: 43 characters of a-z, 0-9 and "-", the same for every attempt."""
    name = task_id.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(len(name).to_bytes(8, "big") + name, digest_size=20, person=b"flowray.step")
    digest.update(step.encode("utf-8", "surrogatepass"))
    return f"fr-{digest.hexdigest()}"


class Lease:
    """What one agent's process knows of its right to run exclusive attempts. It is told the time."""

    __slots__ = ("_asked", "_number", "ttl_s", "until")

    def __init__(self, ttl_s: float) -> None:
        self.ttl_s = ttl_s
        self.until = float("-inf")  # exclusive work may run before this
        self._number = 0
        self._asked: dict[int, float] = {}  # number of a request -> when it was made; those that may still help

    @property
    def renew_every_s(self) -> float:
        """How often to ask while it is needed."""
        return self.ttl_s / RENEWALS

    def ask(self, now: float) -> int:
        """The number of a new request, which is about to be sent."""
        self._number += 1
        self._asked = {number: at for number, at in self._asked.items() if at + self.ttl_s > now}
        self._asked[self._number] = now
        return self._number

    def granted(self, number: int) -> None:
        """The request of this number was answered. Late answers, and repeated ones, do no harm."""
        at = self._asked.pop(number, None)
        if at is not None:
            self.until = max(self.until, at + self.ttl_s)

    def heard(self, now: float) -> None:
        """The coordinator said something by itself. Only for what need not be over when others begin it."""
        self.until = max(self.until, now + self.ttl_s)

    def valid(self, now: float) -> bool:
        """May exclusive work run?"""
        return now < self.until

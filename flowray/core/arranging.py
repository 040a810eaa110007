"""What the processes that answer for a router shall hold while a version is on trial, and whether to tell them.

They hold the version in force and, beside it, the one on trial; who asks says by its version which of them is meant. So
a promotion takes effect with the next question, and what they are told afterwards only makes it last: for those that
are started later, and for who asks without saying a version. What somebody deploys by hand counts more than a trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Step = Literal["done", "tell", "yield"]
BY_HAND = "another version was deployed meanwhile"  # why nothing is told: `yield`, in words


class Held(NamedTuple):
    """What one of these processes says that it holds."""

    version: str  # that answers whoever says none
    other: str  # beside it; "" for none
    by_trial: bool  # it was told so by a trial, not by hand


def plan_arrangement(live: str, other: str, held: Sequence[Held]) -> Step:
    """What to do so that all of them hold the version in force and the other one ("" for none).

    done: they do | tell: they are to be told | yield: another version was deployed by hand, and is to be followed.
    """
    if any(each.version != live and not each.by_trial for each in held):
        return "yield"
    return "done" if all(each.version == live and each.other == other for each in held) else "tell"

"""The members: what `python -m bench list` lists. A new one is a class and a line in `_PLACES`."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import Protocol

from bench.measure import Measurement

# name -> module:class; loaded when used, for a member may import what another machine lacks.
_PLACES = {
    "tasks": "bench.members.tasks:Tasks",
    "core": "bench.members.core:Core",
    "journal": "bench.members.journal:JournalAlone",
}


class Member(Protocol):
    """Something that can be measured."""

    name: str
    description: str  # one line

    def run(self, quick: bool, repeats: int | None = None) -> list[Measurement]:
        """Measure. `quick` is for seeing that it works, not for figures; `repeats` overrides the member's own."""
        ...


class UnknownMember(Exception):
    """No member has this name."""

    def __init__(self, name: str) -> None:
        close = get_close_matches(name, names(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names())}"
        super().__init__(f"there is no benchmark {name!r}; {hint}")


def names() -> list[str]:
    """All names, in the order in which they are listed."""
    return list(_PLACES)


def find(name: str) -> Member:
    """The member of this name. Raises UnknownMember, with the name that was probably meant."""
    place = _PLACES.get(name)
    if place is None:
        raise UnknownMember(name)
    module, _, attribute = place.partition(":")
    member: Member = getattr(import_module(module), attribute)()
    return member

"""The members: what `python -m bench list` lists. A new one is a class and a line in `_PLACES`."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import Protocol

from bench.measure import Found, Plan

# name -> module:class; loaded when used, for a member may import what another machine lacks.
_PLACES = {
    "messaging": "bench.members.messaging:Messaging",
    "tasks": "bench.members.tasks:Tasks",
    "routing": "bench.members.routing:Routing",
    "scale": "bench.members.scale:Scale",
    "payloads": "bench.members.payloads:Payloads",
    "core": "bench.members.core:Core",
    "journal": "bench.members.journal:JournalAlone",
    "recovery": "bench.members.recovery:Recovery",
    "shift": "bench.members.shift:Shift",
    "rollout": "bench.members.rollout:Rollouts",
}


class Member(Protocol):
    """Something that can be measured."""

    name: str
    description: str  # one line
    peers: tuple[str, ...]  # what it can be held against, the one of the ratio first

    def run(self, plan: Plan) -> Found:
        """Measure. Raises SideFailed when flowray's own side fails."""
        ...


class UnknownMember(Exception):
    """No member has this name."""

    def __init__(self, name: str) -> None:
        close = get_close_matches(name, names(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names())}"
        super().__init__(f"there is no benchmark {name!r}; {hint}")


class UnknownPeer(Exception):
    """The member has no such peer."""

    def __init__(self, name: str, member: Member) -> None:
        close = get_close_matches(name, member.peers, n=1)
        has = f"it has {', '.join(member.peers)}" if member.peers else "it has none"
        hint = f"did you mean {close[0]!r}?" if close else has
        super().__init__(f"--peers: {member.name} has no peer {name!r}; {hint}")


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


def chosen_peers(member: Member, text: str | None) -> tuple[str, ...] | None:
    """The peers that `--peers a,b` names, in the member's order; None for None. "" leaves flowray alone.

    Raises:
        UnknownPeer: the member has no such peer.
    """
    if text is None:
        return None
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted:
        if name not in member.peers:
            raise UnknownPeer(name, member)
    return tuple(name for name in member.peers if name in wanted)

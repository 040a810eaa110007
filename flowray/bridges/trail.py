"""Where a message came in: kept in its id, the one thing that every hop inside flowray passes on.

A bridge that brings in message 17 calls it "via:<its name>/17"; through a second bridge it becomes
"via:<the second>/via:<the first>/17". So each bridge sees whether a message has passed it before, and does not send it
round again. On the other server the sender's name stands in the header or field `ORIGIN` besides, for messages that
began inside flowray. Two bridges that meet at one server must therefore have different names.
"""

from __future__ import annotations

ORIGIN = "flowray-origin"
_MARK = "via:"


def arrived(bridge: str, message_id: str) -> str:
    """The id inside flowray of what this bridge brings in."""
    return f"{_MARK}{bridge}/{message_id}"


def passed(bridge: str, message_id: str) -> bool:
    """Has a message of this id come in through that bridge, however many bridges ago?"""
    rest = message_id
    while rest.startswith(_MARK):
        name, _, rest = rest[len(_MARK) :].partition("/")
        if name == bridge:
            return True
    return False

"""Which drivers have subscribed to what, kept for the coordinator after this one in a file beside the journal.

A new coordinator asks all agents what they hear before it tells anyone who is where. Drivers it cannot ask: they come
back by themselves, each in its own time, and what agents publish until then must not miss them.

The file is written before anyone is told of a subscription, so the next coordinator knows of all that anyone could
know. It is not synced: when the machine goes down, so do the agents on it, and only drivers elsewhere are not known
until they are back.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from flowray.mesh.topics import Listing
from flowray.runtime.saying import say


class _Saved(Struct, frozen=True, array_like=True):
    life: str
    listings: list[Listing]


class SubscriberFile:
    """See the module."""

    def __init__(self, path: Path, life: str) -> None:
        """`life` of the runtime: what another life of it has left there is of no use."""
        self._path = path
        self._life = life

    def load(self) -> list[Listing]:
        """What the coordinator before this one saved; nothing where there was none."""
        try:
            saved = msgspec.msgpack.decode(self._path.read_bytes(), type=_Saved)
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:  # then they are missed until they are back
            self._complain("read", error)
            return []
        return saved.listings if saved.life == self._life else []

    def save(self, listings: Iterable[Listing]) -> None:
        """Replace what is there."""
        part = self._path.with_name(f"{self._path.name}.part")
        try:
            part.write_bytes(msgspec.msgpack.encode(_Saved(self._life, list(listings))))
            part.replace(self._path)
        except OSError as error:  # a full disk, for example: everything else goes on
            self._complain("write", error)

    def _complain(self, verb: str, error: Exception) -> None:
        say(f"cannot {verb} {self._path}: {error}")

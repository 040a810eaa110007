"""The last ids seen, in memory."""

from __future__ import annotations

from collections.abc import Iterable


class Recent:
    """A bounded set that forgets the oldest first."""

    def __init__(self, max_ids: int) -> None:
        self._max_ids = max_ids
        self._ids: dict[str, None] = {}  # in the order of their arrival

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: Iterable[str]) -> None:
        """Remember these; one known already counts as new again."""
        for message_id in ids:
            self._ids.pop(message_id, None)
            self._ids[message_id] = None
        while len(self._ids) > self._max_ids:
            del self._ids[next(iter(self._ids))]

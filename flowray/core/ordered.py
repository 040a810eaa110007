"""A set that can be sampled by position in constant time, and whose order depends on nothing but its history."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class IndexedSet(Generic[T]):
    """Add, discard, membership and `self[i]` in O(1). Discarding moves the last member into the gap."""

    __slots__ = ("_items", "_position")

    def __init__(self) -> None:
        self._items: list[T] = []
        self._position: dict[T, int] = {}

    def add(self, item: T) -> bool:
        """Add; False if it was there already."""
        if item in self._position:
            return False
        self._position[item] = len(self._items)
        self._items.append(item)
        return True

    def discard(self, item: T) -> bool:
        """Remove; False if it was not there."""
        at = self._position.pop(item, None)
        if at is None:
            return False
        last = self._items.pop()
        if at < len(self._items):
            self._items[at] = last
            self._position[last] = at
        return True

    def __getitem__(self, index: int) -> T:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item: T) -> bool:
        return item in self._position

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

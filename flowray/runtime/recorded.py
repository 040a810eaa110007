"""What an earlier run left in a journal: which tasks it has already done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flowray.store.config import StoreConfig
from flowray.store.reader import Reader
from flowray.store.reading import has_journal


class Recorded:
    """Outcomes of earlier runs, for reading only. Beside a coordinator that writes, it sees what is committed."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    @classmethod
    def of(cls, journal: Path, config: StoreConfig) -> Recorded | None:
        """None when there was no earlier run. Raises StoreError when there was and it cannot be read."""
        return cls(Reader(journal, config)) if has_journal(journal, config) else None

    def known(self, keys: Sequence[str]) -> set[str]:
        """Those of the idempotency keys that have an outcome."""
        return {outcome.key for outcome in self._reader.outcomes("key", keys)}

    def count(self) -> int:
        """Outcomes kept, of whatever keys."""
        return sum(self._reader.counts().values())

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()

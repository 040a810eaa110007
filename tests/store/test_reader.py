"""Reading every outcome beside a coordinator that goes on writing."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from flowray.errors import StoreError
from flowray.store import reader
from flowray.store.reader import Reader

from .builders import config, dead, opened, outcome, resolve, write


def test_all_outcomes_come_in_the_order_of_commit_and_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_BATCH", 4)
    store = opened(tmp_path)
    numbers = [5, 3, 8, 1, 9, 2, 7, 4]
    assert write(store, [resolve(number) for number in numbers]) is None
    with closing(Reader(tmp_path, config())) as reading:
        found = reading.all_outcomes()
        assert [next(found) for _ in range(3)] == [outcome(number) for number in numbers[:3]]
        assert write(store, [dead(10)]) is None  # committed meanwhile
        assert [one.task_id for one in found] == [f"t-{number:06d}" for number in (*numbers[3:], 10)]
    store.close()


def test_a_store_that_nobody_holds_is_read_and_left_as_it_was(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert write(store, [resolve(1)]) is None
    store.close()
    with closing(Reader(tmp_path, config())) as reading:
        assert list(reading.all_outcomes()) == [outcome(1)]
    with pytest.raises(StoreError, match="open"):
        Reader(tmp_path / "nowhere", config())

"""Reading every outcome beside a coordinator that goes on writing."""

from __future__ import annotations

from contextlib import closing

import pytest

from flowray.errors import StoreError
from flowray.store import reader

from .builders import dead, outcome, resolve, write
from .places import Place


def test_all_outcomes_come_in_the_order_of_commit_and_a_few_at_a_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_BATCH", 4)
    store = place.opened()
    numbers = [5, 3, 8, 1, 9, 2, 7, 4]
    assert write(store, [resolve(number) for number in numbers]) is None
    with closing(place.reader()) as reading:
        found = reading.all_outcomes()
        assert [next(found) for _ in range(3)] == [outcome(number) for number in numbers[:3]]
        assert write(store, [dead(10)]) is None  # committed meanwhile
        assert [one.task_id for one in found] == [f"t-{number:06d}" for number in (*numbers[3:], 10)]
    store.close()


def test_a_store_that_nobody_holds_is_read_and_left_as_it_was(place: Place) -> None:
    store = place.opened()
    assert write(store, [resolve(1)]) is None
    store.close()
    with closing(place.reader()) as reading:
        assert list(reading.all_outcomes()) == [outcome(1)]
    with pytest.raises(StoreError, match=r"open|there is no journal"):
        place.another().reader()

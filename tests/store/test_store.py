from __future__ import annotations

import threading

import pytest

from flowray.core.commands import ResolveTask
from flowray.core.states import TaskState
from flowray.errors import StoreCorrupt, StoreError, StoreFenced, StoreUnsupported, UnknownTask

from .builders import Answers, accept, dead, life, outcome, resolve, save, snapshot, start, task, write
from .places import Place


def test_what_was_acknowledged_is_recovered_in_order(place: Place) -> None:
    store = place.opened()
    commands = [command for number in range(20) for command in life(number)]
    for at in range(0, len(commands), 7):
        assert write(store, commands[at : at + 7]) is None
    store.close()

    again = place.open()
    recovery = again.begin_epoch("second")
    assert recovery.epoch == 2
    assert recovery.snapshot is None
    assert recovery.commands == commands
    assert recovery.last_at == 19.5
    assert again.commands_since_snapshot == len(commands)
    again.close()


def test_an_unclosed_store_is_recovered_from_its_log(place: Place) -> None:
    store = place.opened()
    assert write(store, life(1)) is None

    again = place.open()
    assert again.begin_epoch("second").commands == life(1)
    again.close()
    store.close()


def test_a_snapshot_replaces_what_was_appended_before_it(place: Place) -> None:
    store = place.opened()
    answers = Answers()
    store.append([accept(1), accept(2)], answers)
    store.save_snapshot(snapshot(1, 2, at=50.0), answers)
    store.append([start(1)], answers)
    assert store.commands_since_snapshot == 1
    assert answers.wait(3) == [None, None, None]
    store.close()

    again = place.open()
    recovery = again.begin_epoch("second")
    assert recovery.snapshot == snapshot(1, 2, at=50.0)
    assert recovery.commands == [start(1)]
    assert recovery.last_at == 50.0
    again.close()
    assert place.change("SELECT count(*) FROM journal") == [(1,)]


def test_a_large_snapshot_and_an_empty_one_come_back_whole(place: Place) -> None:
    store = place.opened()
    large = snapshot(*range(1000))
    assert save(store, large) is None
    store.close()
    again = place.open()
    # Nothing was appended before it: it covers no row, and yet it is the state to begin from.
    assert again.begin_epoch("second").snapshot == large
    assert save(again, snapshot()) is None
    again.close()
    last = place.open()
    assert last.begin_epoch("third").snapshot == snapshot()
    last.close()


def test_outcomes_are_found_by_id_and_by_key(place: Place) -> None:
    store = place.opened()
    assert write(store, [resolve(number) for number in range(1200)]) is None
    ids = [f"t-{number:06d}" for number in range(1190, 1210)]
    assert store.outcome("t-000007") == outcome(7)
    assert store.outcome("nobody") is None
    assert store.outcomes(ids) == {f"t-{number:06d}": outcome(number) for number in range(1190, 1200)}
    assert store.outcomes([f"t-{number:06d}" for number in range(1200)]).keys() >= {"t-000000", "t-001199"}
    assert store.by_key(["k-000003", "", "k-x"]) == {"k-000003": outcome(3)}
    assert store.outcomes([]) == {}
    assert [found.task_id for found in store.recent_outcomes(2)] == ["t-001199", "t-001198"]
    assert store.counts() == {TaskState.SUCCEEDED: 1200}
    store.close()


def test_outcomes_without_a_key_do_not_conflict(place: Place) -> None:
    store = place.opened()
    assert write(store, [ResolveTask(outcome(number, key="")) for number in range(3)]) is None
    assert store.by_key([""]) == {}
    store.close()


def test_a_second_outcome_of_a_task_is_an_error_and_the_first_stands(place: Place) -> None:
    store = place.opened()
    assert write(store, [resolve(1)]) is None
    error = write(store, [accept(2), dead(1)])
    assert type(error) is StoreError
    assert "t-000001" in str(error)
    assert store.outcome("t-000001") == outcome(1)
    assert store.dead_letters() == []
    with pytest.raises(StoreError, match="the first one stands"):
        store.append([accept(3)], Answers())
    store.close()
    assert place.verify().commands == 1


def test_dead_letters_come_newest_first_in_pages(place: Place) -> None:
    store = place.opened()
    assert write(store, [dead(number) for number in range(7)]) is None
    assert [letter.id for letter, _ in store.dead_letters(limit=3)] == ["t-000006", "t-000005", "t-000004"]
    answers = Answers()
    store.purge_dead_letter("t-000004", answers)
    assert answers.wait() == [None]
    # Its place is still known, so a page that ended there goes on.
    page = store.dead_letters(limit=3, after="t-000004")
    assert page == [(task(number), outcome(number, state=TaskState.DEAD)) for number in (3, 2, 1)]
    assert store.dead_letter("t-000004") is None
    assert store.outcome("t-000004") is not None
    assert store.dead_letter("t-000005") == (task(5), outcome(5, state=TaskState.DEAD))
    with pytest.raises(UnknownTask):
        store.dead_letters(after="nobody")
    store.close()


def test_trim_deletes_old_outcomes_and_keeps_dead_letters_for_their_own_time(place: Place) -> None:
    store = place.opened(trim_rows=3)
    assert write(store, [command for number in range(20) for command in life(number)[2:]]) is None
    answers = Answers()
    store.trim(10.0, answers)
    assert answers.wait() == [None]
    assert store.counts() == {TaskState.DEAD: 4, TaskState.SUCCEEDED: 8}
    assert store.outcome("t-000003") is None
    assert store.dead_letter("t-000004") is not None
    store.trim(10.0, answers, dead_letters_older_than_at=9.0)
    assert answers.wait(2) == [None, None]
    assert store.dead_letter("t-000004") is None
    assert store.outcome("t-000004") is None
    assert store.dead_letter("t-000009") is not None
    store.close()
    report = place.verify()
    assert report.ok
    assert (report.outcomes, report.dead_letters) == (11, 3)


def test_a_later_epoch_fences_the_earlier_store(place: Place) -> None:
    first = place.opened("first")
    assert write(first, [accept(1)]) is None
    second = place.open()
    assert second.owner() == (1, "first")
    assert second.begin_epoch("second").commands == [accept(1)]

    error = write(first, [accept(2), resolve(2)])
    assert isinstance(error, StoreFenced)
    assert "second" in str(error)
    with pytest.raises(StoreFenced):
        first.append([accept(3)], Answers())
    assert second.outcome("t-000002") is None
    assert write(second, [accept(4)]) is None
    first.close()
    second.close()
    third = place.open()
    assert third.begin_epoch("third").commands == [accept(1), accept(4)]
    third.close()


@pytest.mark.parametrize("work", ["snapshot", "trim", "purge", "confirm"])
def test_a_fenced_store_changes_nothing_by_other_means_either(place: Place, work: str) -> None:
    first = place.opened("first")
    assert write(first, [dead(1)]) is None
    second = place.opened("second")
    answers = Answers()
    if work == "snapshot":
        first.save_snapshot(snapshot(1), answers)
    elif work == "trim":
        first.trim(100.0, answers, dead_letters_older_than_at=100.0)
    elif work == "confirm":
        second.confirm_epoch(answers)
        assert answers.wait() == [None]
        answers = Answers()
        first.confirm_epoch(answers)
    else:
        first.purge_dead_letter("t-000001", answers)
    assert isinstance(answers.wait()[0], StoreFenced)
    assert second.dead_letter("t-000001") is not None
    first.close()
    second.close()
    assert place.verify().commands == 1


def test_nothing_is_written_before_an_epoch_or_after_close(place: Place) -> None:
    store = place.open()
    with pytest.raises(StoreError, match="begin_epoch"):
        store.append([accept(1)], Answers())
    store.begin_epoch("test")
    with pytest.raises(StoreError, match="already"):
        store.begin_epoch("test")
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.append([accept(1)], Answers())


def test_a_newer_schema_is_refused(place: Place) -> None:
    place.opened().close()
    place.set_meta("schema", 99)
    with pytest.raises(StoreUnsupported, match="version 99"):
        place.open()
    assert "version 99" in place.verify().problems[0]


def test_a_damaged_outcome_is_not_returned(place: Place) -> None:
    store = place.opened()
    assert write(store, [resolve(1), dead(2)]) is None
    [(body,)] = place.change("SELECT body FROM outcomes WHERE task_id = 't-000001'")
    place.change("UPDATE outcomes SET body = ? WHERE task_id = 't-000001'", body.replace(b"y", b"z"))
    place.change("UPDATE dead_letters SET body = ?", b"\x80")
    with pytest.raises(StoreCorrupt, match="t-000001"):
        store.outcome("t-000001")
    with pytest.raises(StoreCorrupt, match="t-000002"):
        store.dead_letters()
    assert len(place.verify().problems) == 2
    store.close()


@pytest.mark.parametrize("statement", ["DELETE FROM journal WHERE seq = 3", "DELETE FROM journal WHERE seq = 2"])
def test_a_missing_journal_row_stops_recovery(place: Place, statement: str) -> None:
    store = place.opened()
    for number in range(3):
        assert write(store, [accept(number)]) is None
    store.close()
    place.change(statement)
    again = place.open()
    with pytest.raises(StoreCorrupt, match=r"row [23]"):
        again.begin_epoch("second")
    again.close()


def test_a_row_of_another_history_is_noticed(place: Place) -> None:
    """Intact in itself, in the right place, and yet not what this journal wrote: only the chain can tell."""
    theirs = place.another()
    for where, first in ((place, 0), (theirs, 10)):
        store = where.opened()
        for number in range(first, first + 3):
            assert write(store, [accept(number)]) is None
        store.close()
    [(body, sha)] = theirs.change("SELECT body, sha FROM journal WHERE seq = 2")
    place.change("UPDATE journal SET body = ?, sha = ? WHERE seq = 2", body, sha)
    with pytest.raises(StoreCorrupt, match="journal row 2"):
        place.opened()


def test_a_damaged_journal_row_stops_recovery_and_changes_nothing(place: Place) -> None:
    store = place.opened()
    for number in range(3):
        assert write(store, [accept(number)]) is None
    store.close()
    place.change("UPDATE journal SET body = ? WHERE seq = 2", b"\xc0")
    again = place.open()
    with pytest.raises(StoreCorrupt, match="journal row 2"):
        again.begin_epoch("second")
    assert again.owner() == (1, "test")
    again.close()
    assert "journal row 2" in place.verify().problems[0]


def test_keys_and_names_may_have_any_character(place: Place) -> None:
    """PostgreSQL's texts cannot hold all of them."""
    keys = ["\0", "a\0b\x01", "\x010", "\x01", "ü\U0001f600", "%s ? $1 '\" \\", "k" * 512, "\U0001f600" * 512]
    store = place.opened("own\ter")
    assert write(store, [ResolveTask(outcome(number, key=key)) for number, key in enumerate(keys)]) is None
    assert store.by_key(keys) == {key: outcome(number, key=key) for number, key in enumerate(keys)}
    assert {one.outcome.key for one in store.recorded()} == set(keys)
    store.close()
    assert place.verify().problems == ()


@pytest.mark.parametrize(
    "damage",
    [
        ("epoch", 1),
        ("owner", "nobody"),
        "UPDATE head SET last_at = 0",
        "UPDATE head SET snapshot_seq = 1",
        "DELETE FROM head",
        ("epoch", None),
    ],
)
def test_a_changed_head_is_noticed(place: Place, damage: str | tuple[str, object]) -> None:
    """An epoch that went back would be handed out twice, and fence nobody."""
    place.opened().close()
    store = place.opened()
    assert write(store, [accept(1)]) is None
    store.close()
    (place.directory / "witness").unlink(missing_ok=True)
    if isinstance(damage, str):
        place.change(damage)
    else:
        place.set_meta(*damage)
    with pytest.raises(StoreCorrupt, match="head of the journal"):
        place.opened()


def test_reads_go_on_while_another_thread_writes(place: Place) -> None:
    store = place.opened()
    answers = Answers()
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(len(store.outcomes([f"t-{number:06d}" for number in range(50)])))

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(50):
        store.append(life(number), answers)
    answers.wait(50)
    stop.set()
    thread.join()
    assert answers.errors == [None] * 50
    assert seen == sorted(seen)
    assert len(store.outcomes([f"t-{number:06d}" for number in range(50)])) == 50
    store.close()

"""What lies beside outcomes, texts and grades: written with them, found with them, gone with them."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from msgspec import structs

from flowray.core.commands import GradeTask, ResolveTask
from flowray.core.model import Asked, Grade, Recorded, TaskId
from flowray.core.states import TaskState
from flowray.errors import StoreCorrupt, StoreFenced
from flowray.store import SqliteStore, schema, verify
from flowray.store.reader import Reader

from .builders import Answers, accept, config, dead, life, opened, outcome, resolve, task, write
from .places import Place

OLD = Path(__file__).with_name("journal_v1.sql")


def asked(number: int) -> Asked:
    return Asked(f"Question {number}: " + "ü" * (number % 7), "yes\nno" if number % 2 else "")


def routed(number: int) -> ResolveTask:
    return structs.replace(resolve(number), asked=asked(number))


def grade(number: int, quality: float, at: float = 50.0, by: str = "") -> GradeTask:
    return GradeTask(TaskId(f"t-{number:06d}"), quality, at, by)


@contextlib.contextmanager
def changing(directory: Path):
    connection = sqlite3.connect(directory / schema.FILE_NAME)
    yield connection
    connection.commit()
    connection.close()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A journal that flowray wrote when its schema was 1: 14 outcomes, two dead letters, two open tasks, and a spec.

    A snapshot and two rows after it. Written by the code of commit 6b652c3, as `iterdump` gives it.
    """
    schema_file = tmp_path / schema.FILE_NAME
    connection = sqlite3.connect(schema_file)
    connection.executescript(OLD.read_text())
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    return tmp_path


def test_a_journal_of_schema_1_is_read_as_it_is(old: Path) -> None:
    """By `flowray router export` and `flowray journal verify`, which must not write."""
    assert verify(old).problems == ()
    with contextlib.closing(Reader(old, config())) as reader:
        recorded = list(reader.all_recorded())
        assert [one.outcome for one in recorded] == list(reader.all_outcomes())
        assert len(recorded) == 14
        assert all(one.asked is None and one.grade is None for one in recorded)
        assert reader.grade("t-000000") is None
        assert list(reader.specs()) == ["strong"]
    with changing(old) as connection:
        assert schema.version(connection) == 1


def test_a_journal_of_schema_1_goes_on(old: Path) -> None:
    store = SqliteStore.open(old, config())
    recovery = store.begin_epoch("next")
    assert recovery.epoch == 2
    assert recovery.snapshot is not None and [one.task.id for one in recovery.snapshot.tasks] == [
        "t-000020",
        "t-000021",
    ]
    assert len(recovery.commands) == 5
    receipt = store.outcomes(["t-000000"])["t-000000"].choices[0].receipt
    assert receipt is not None and receipt.waits_s is None and receipt.remaining_s is None
    assert write(store, [routed(30), grade(30, 0.5), grade(0, 0.25)]) is None
    found = {one.outcome.task_id: one for one in store.recorded()}
    assert len(found) == 15
    assert found["t-000030"].asked == asked(30)
    assert found["t-000000"].grade == Grade(TaskId("t-000000"), 0.25, 50.0)
    assert found["t-000000"].asked is None
    store.close()
    report = verify(old)
    assert (report.problems, report.outcomes, report.texts, report.grades) == ((), 15, 1, 2)
    again = SqliteStore.open(old, config())
    assert again.begin_epoch("again").epoch == 3
    assert again.grade("t-000000") == Grade(TaskId("t-000000"), 0.25, 50.0)
    again.close()


def test_texts_are_found_with_their_outcomes_whatever_the_size_of_the_group(place: Place) -> None:
    store = place.opened()
    for first, last in ((0, 1), (1, 4), (4, 80), (80, 800)):
        group = [routed(n) if n % 3 else resolve(n) for n in range(first, last)]
        assert write(store, group) is None
    expected = [Recorded(outcome=outcome(n), asked=asked(n) if n % 3 else None) for n in range(800)]
    assert list(store.recorded()) == expected
    assert store.outcome("t-000001") == outcome(1)
    store.close()
    report = place.verify()
    assert (report.problems, report.texts) == ((), sum(n % 3 > 0 for n in range(800)))


def test_the_journal_itself_has_no_second_copy_of_a_text(place: Place) -> None:
    store = place.opened()
    assert write(store, [routed(1)]) is None
    store.close()
    again = place.open()
    assert again.begin_epoch("next").commands == [resolve(1)]
    assert next(again.recorded()).asked == asked(1)
    again.close()
    kept = [body for table in ("journal", "outcomes", "asked") for (body,) in place.change(f"SELECT body FROM {table}")]
    assert b"".join(kept).count(b"Question 1") == 1


def test_trim_takes_texts_and_grades_along(place: Place) -> None:
    store = place.opened(trim_rows=3)
    assert write(store, [routed(n) for n in range(20)] + [grade(n, 0.5) for n in range(20)]) is None
    answers = Answers()
    store.trim(10.0, answers)
    assert answers.wait() == [None]
    assert [one.asked for one in store.recorded()] == [asked(n) for n in range(10, 20)]
    # Ids that were taken once are given again after everything was trimmed: nothing old may come back with them.
    store.trim(100.0, answers)
    assert answers.wait(2) == [None, None]
    assert write(store, [resolve(100), routed(101)]) is None
    assert list(store.recorded()) == [Recorded(outcome=outcome(100)), Recorded(outcome=outcome(101), asked=asked(101))]
    store.close()
    report = place.verify()
    assert (report.problems, report.texts, report.grades) == ((), 1, 0)


def test_trimmed_texts_are_overwritten_on_disk(tmp_path: Path) -> None:
    store = opened(tmp_path)
    secret = structs.replace(resolve(1), asked=Asked("the launch code is 4711"))
    assert write(store, [secret]) is None
    answers = Answers()
    store.trim(100.0, answers)
    assert answers.wait() == [None]
    store.close()
    assert b"4711" not in (tmp_path / schema.FILE_NAME).read_bytes()


def test_purging_a_dead_letter_takes_its_text_along_and_leaves_other_texts(place: Place) -> None:
    store = place.opened()
    assert write(store, [structs.replace(dead(1), asked=asked(1)), routed(2)]) is None
    answers = Answers()
    store.purge_dead_letter("t-000002", answers)  # no dead letter
    store.purge_dead_letter("t-000001", answers)
    assert answers.wait(2) == [None, None]
    left = {one.outcome.task_id: one.asked for one in store.recorded()}
    assert left == {"t-000001": None, "t-000002": asked(2)}
    store.close()


def test_the_newest_grade_of_a_task_counts(place: Place) -> None:
    store = place.opened()
    assert write(store, [*life(1), *life(2)]) is None
    assert store.grade("t-000001") is None
    assert write(store, [grade(1, 0.2, 5.0, "alice"), grade(1, 0.9, 6.0, "bob"), grade(2, 0.0, 6.0)]) is None
    assert write(store, [grade(1, 0.9, 6.0, "bob")]) is None  # the same again
    assert store.grade("t-000001") == Grade(TaskId("t-000001"), 0.9, 6.0, "bob")
    assert store.outcome("t-000001") == outcome(1)
    store.close()
    again = place.opened()
    assert again.grade("t-000001") == Grade(TaskId("t-000001"), 0.9, 6.0, "bob")
    assert again.grade("t-000002") == Grade(TaskId("t-000002"), 0.0, 6.0)
    again.close()
    assert place.verify().grades == 2


def test_a_grade_whose_outcome_was_trimmed_meanwhile_goes_nowhere(place: Place) -> None:
    store = place.opened()
    assert write(store, [accept(1), grade(7, 0.5)]) is None
    assert store.grade("t-000007") is None
    store.close()
    assert place.verify().ok


def test_a_fenced_store_grades_nothing(place: Place) -> None:
    first = place.opened("first")
    assert write(first, [resolve(1)]) is None
    second = place.opened("second")
    assert isinstance(write(first, [grade(1, 0.5)]), StoreFenced)
    assert second.grade("t-000001") is None
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE asked SET body = sha", "the text of task t-000001"),
        ("UPDATE asked SET id = 2", "the text of task t-000002"),  # another task's
        ("UPDATE asked SET id = 9", "row 9 of asked belongs to no outcome"),
        ("UPDATE grades SET body = sha", "the grade of task t-000001"),
        ("UPDATE grades SET id = 2", "the grade of task t-000002"),
    ],
)
def test_damage_is_found(place: Place, statement: str, words: str) -> None:
    store = place.opened()
    assert write(store, [routed(1), resolve(2), grade(1, 0.5)]) is None
    place.change(statement)
    assert [problem for problem in place.verify().problems if words in problem]
    if "no outcome" not in words:
        with pytest.raises(StoreCorrupt, match=words):
            list(store.recorded())
    store.close()


def test_a_dead_letter_still_has_its_task_and_its_text(place: Place) -> None:
    store = place.opened()
    assert write(store, [structs.replace(dead(1), asked=asked(1))]) is None
    assert store.dead_letter("t-000001") == (task(1), outcome(1, state=TaskState.DEAD))
    assert next(store.recorded()).asked == asked(1)
    store.close()

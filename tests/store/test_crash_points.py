"""Some of the crash points and damages that `make crash-points` tries in full; and that the checks can fail."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowray.errors import StoreCorrupt
from flowray.store import SqliteStore

from .builders import Answers
from .crash_points import Images, Point, Tally, points, sample, tried, try_point
from .damage import damaged, images
from .faults import Call, Life, NoTracing, early, scratch, synced_after_failure
from .script import CONFIG, TASKS, is_between, opened, script

pytestmark = pytest.mark.slow
SEED = 1
STEPS = (0, 3, 5, 10, 23)  # the points of these: a purge, a snapshot, a trim, and copies of the log


@pytest.fixture(scope="module")
def prepared() -> Iterator[Images]:
    with scratch() as directory:
        try:
            yield Images(directory, STEPS)
        except NoTracing as error:
            pytest.skip(str(error))


def test_the_script_has_all_that_a_journal_can_hold() -> None:
    steps = script().steps
    assert {step.kind for step in steps} == {"append", "snapshot", "trim", "purge"}
    commands = [command for step in steps for command in step.commands]
    assert {type(command).__name__ for command in commands} == {
        "AcceptTask",
        "AddAgents",
        "RecordChunks",
        "RequeueTask",
        "ResolveTask",
        "StartAgent",
        "StartAttempt",
        "WakeTask",
    }
    assert sum(type(command).__name__ == "AcceptTask" for command in commands) == TASKS
    assert script().states[-1].outcomes and script().states[-1].dead


def test_a_sample_of_all_crash_points(prepared: Images) -> None:
    every = points(prepared.counts)
    assert len(every) > 500
    found = tried(sample(every, 40, SEED), prepared)
    assert [problem for tally in found.values() for problem in tally.problems] == []
    assert sum(tally.points for tally in found.values()) == 40
    assert sum(tally.stopped for tally in found.values()) > 20


def test_a_store_that_forgets_is_found_out(prepared: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself: a store from before the last step does not pass for one after it."""
    place, last = prepared.place, len(script().steps) - 1
    monkeypatch.setattr(prepared, "place", lambda part, name: place(str(last), name))
    tally = Tally()
    try_point(Point("again", "pwrite64", "signal=KILL", 1), prepared, tally)
    assert (tally.lost, tally.twice) != (0, 0)


def test_a_promise_given_too_early_is_found_out() -> None:
    def life(*lines: tuple[str, str]) -> Life:
        calls = [Call(1, name, text, at, at) for at, (name, text) in enumerate(lines)]
        return Life(0, (), tuple(calls))

    write, sync = ("pwrite64", "3</d/flowray.db-wal>, ..."), ("fdatasync", "3</d/flowray.db-wal>) = 0")
    failed, ack = ("fdatasync", "3</d/flowray.db-wal>) = -1 EIO"), ("writev", '6</d/said>, [{iov_base="ack 1\\n"')
    assert early(life(write, sync, ack)) == []
    assert early(life(write, ack, sync)) == [ack[1]]
    assert early(life(write, sync, write, ack)) == [ack[1]]
    assert early(life(write, failed, ack)) == [ack[1]]
    assert early(life(write, failed, sync, ack)) == [ack[1]]
    assert synced_after_failure(life(write, failed, ack)) == []
    assert len(synced_after_failure(life(write, failed, sync))) == 1


def test_what_may_lie_between_two_steps() -> None:
    states = script().states
    trims = [number for number, step in enumerate(script().steps) if step.kind == "trim"]
    before, after = states[trims[-1]], states[trims[-1] + 1]
    assert before != after
    assert is_between(before, before, after) and is_between(after, before, after)
    assert not is_between(states[trims[-1] - 1], before, after)
    assert not is_between(states[trims[-1] + 2], before, after)


def test_a_damaged_store_says_so_or_is_as_it_was(tmp_path: Path) -> None:
    found = damaged(tmp_path, images(tmp_path), 100, SEED)
    assert found.problems == []
    assert found.detected > 20
    assert found.harmless > 10


def test_an_outcome_whose_age_is_damaged_is_not_trimmed(tmp_path: Path) -> None:
    """Its column says that it is old, its body does not: it stays, and whoever asks is told."""
    source = images(tmp_path)[-1]
    connection = sqlite3.connect(source / "flowray.db")
    task_id = connection.execute("SELECT task_id FROM outcomes ORDER BY id DESC LIMIT 1").fetchone()[0]
    connection.execute("UPDATE outcomes SET resolved_at = 0.5 WHERE task_id = ?", (task_id,))
    connection.commit()
    connection.close()
    store = SqliteStore.open(source, CONFIG)
    store.begin_epoch("test")
    answers = Answers()
    store.trim(1.0, answers, dead_letters_older_than_at=1.0)
    assert answers.wait() == [None]
    with pytest.raises(StoreCorrupt, match=task_id):
        store.outcome(task_id)
    store.close()


def test_what_the_log_had_is_copied_before_anything_more_is_acknowledged(tmp_path: Path) -> None:
    """It may have been written by a process whose sync failed: only what is written anew reaches the disk for sure."""
    image = images(tmp_path)[1]
    before = (image / "flowray.db").read_bytes()
    store = SqliteStore.open(image, CONFIG)
    store.begin_epoch("test")
    answers = Answers()
    store.append([], answers)
    assert answers.wait() == [None]
    assert (image / "flowray.db").read_bytes() != before
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(image / "flowray.db", alone)
    store.close()
    with opened(alone) as (state, _):
        assert state == script().states[-1]

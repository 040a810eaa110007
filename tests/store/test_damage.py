"""Bits flip and files are cut: every such fault is noticed, or makes no difference. Never a wrong answer."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from flowray.errors import StoreCorrupt, StoreError
from flowray.store import SqliteStore

from .builders import config, life, opened, save, snapshot, write
from .test_chunks import chunks

pytestmark = pytest.mark.slow

FILES = ("flowray.db", "flowray.db-wal", "witness")
TASKS = 60


def content(directory: Path) -> dict[str, Any]:
    """Everything that a coordinator or its callers can learn from a store."""
    store = SqliteStore.open(directory, config())
    try:
        recovery = store.begin_epoch("reader")
        ids = [f"t-{number:06d}" for number in range(TASKS)]
        return {
            "epoch": recovery.epoch,
            "snapshot": recovery.snapshot,
            "commands": recovery.commands,
            "last_at": recovery.last_at,
            "outcomes": store.outcomes(ids),
            "single": store.outcome(ids[7]),
            "keys": store.by_key([f"k-{number:06d}" for number in range(TASKS)]),
            "recent": store.recent_outcomes(),
            "dead": store.dead_letters(),
            "counts": store.counts(),
            "chunks": [store.chunks(task_id, 0, restarts=9) for task_id in ids],
        }
    finally:
        store.close()


def image(directory: Path, kind: str) -> Path:
    """A store as a crash leaves it: the files of a running one, copied while it rests."""
    running, copy = directory / "running", directory / "image"
    store = opened(running)
    for number in range(0, TASKS, 2):
        accepted, started, ended = life(number)
        given = [chunks(0, "abc" * number, number=number), chunks(1, "xy", restarts=1, number=number)]
        assert write(store, [accepted, started, *given, ended, *life(number + 1)]) is None
        if number == 20:
            assert save(store, snapshot(*range(300))) is None
            if kind == "database and log":
                store.close()
                store = opened(running)
    if kind == "database":
        store.close()
    copy.mkdir()
    for name in FILES:
        if (running / name).exists():
            shutil.copy(running / name, copy)
    store.close()
    return copy


@pytest.mark.parametrize("kind", ["log", "database and log", "database"])
def test_a_flipped_bit_or_a_cut_is_detected_or_harmless(tmp_path: Path, kind: str) -> None:
    source = image(tmp_path, kind)
    copied = tmp_path / "sound"
    shutil.copytree(source, copied)
    expected = content(copied)
    assert len(expected["outcomes"]) == TASKS
    assert len(expected["recent"]) == TASKS
    rng = random.Random(f"damage {kind}")
    detected = harmless = 0
    for round_number in range(150):
        target = tmp_path / f"damaged-{round_number}"
        shutil.copytree(source, target)
        names = [name for name in FILES[:2] if (target / name).exists() and (target / name).stat().st_size]
        path = target / (rng.choice(names) if round_number % 25 else "witness")
        data = bytearray(path.read_bytes())
        position = rng.randrange(len(data))
        if rng.random() < 0.2:
            del data[position:]
        else:
            data[position] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            found = content(target)
        except StoreError:
            detected += 1
        else:
            assert found == expected, f"silent wrong data: {path.name} at {position}, round {round_number}"
            harmless += 1
        shutil.rmtree(target)
    assert detected > 20
    assert harmless > 0


def test_a_flipped_bit_in_an_index_is_detected(tmp_path: Path) -> None:
    """A lookup through it would miss the row: the task would look unknown, although its outcome is there."""
    source = image(tmp_path, "database")
    sound = (source / "flowray.db").read_bytes()
    shutil.copytree(source, tmp_path / "sound")
    expected = content(tmp_path / "sound")
    detected = 0
    for number, text in enumerate((b"t-000007", b"k-000007", b"t-000034", b"k-000034")):
        position = sound.find(text)
        while position >= 0:
            target = tmp_path / f"damaged-{number}-{position}"
            shutil.copytree(source, target)
            (target / "flowray.db").write_bytes(sound[:position] + b"\x00" + sound[position + 1 :])
            try:
                assert content(target) == expected, f"silent wrong data: {text!r} at {position}"
            except StoreError:
                detected += 1
            position = sound.find(text, position + 1)
    assert detected >= 8


def test_a_text_that_is_none_any_more_is_called_damage(tmp_path: Path) -> None:
    """sqlite3 has no code for a text that cannot be read, and no error of its own for such a name in the schema."""
    target = image(tmp_path, "database")
    with contextlib.closing(sqlite3.connect(target / "flowray.db")) as database, database:
        database.execute("UPDATE outcomes SET fingerprint = CAST(X'30FF30' AS TEXT) WHERE task_id = 't-000007'")
    with pytest.raises(StoreCorrupt, match="read from the store: a text in the database is damaged"):
        content(target)

    target = image(tmp_path / "another", "database")
    sound = (target / "flowray.db").read_bytes()
    at = sound.index(b"tablechunkschunks") + 8
    (target / "flowray.db").write_bytes(sound[:at] + bytes([sound[at] | 0x80]) + sound[at + 1 :])
    with pytest.raises(StoreCorrupt, match="a text in the database is damaged"):
        content(target)

"""Chunks in the store: in rows beside the journal, shorter after a restart, gone with their outcome."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from pathlib import Path

import pytest
from msgspec import structs

from flowray.chunks import chunk_digest, decode_chunks, encode_chunks
from flowray.core.book import Book
from flowray.core.commands import RecordChunks, ResolveTask
from flowray.core.model import TaskId
from flowray.core.streaming import DIGEST_BYTES
from flowray.errors import StoreCorrupt, StoreFenced
from flowray.store import SqliteStore, Store, schema, verify

from .builders import Answers, accept, config, dead, opened, outcome, start, write
from .places import Place
from .test_beside import changing, old

assert old  # a fixture
NAME = "t-000001"


def chunks(first: int, texts: str, *, restarts: int = 0, skip: int = 0, number: int = 1) -> RecordChunks:
    """One chunk for each letter; the first `skip` of the body stand already."""
    pieces = [("msgpack", letter.encode()) for letter in texts]
    digests = b"".join(chunk_digest(*piece) for piece in pieces[skip:])
    body = encode_chunks(pieces)
    task_id = TaskId(f"t-{number:06d}")
    return RecordChunks(task_id, 1, 1, first, number + 0.2, restarts, digests, len(body), skip, body)


def ended(count: int, *restarts: int, number: int = 1) -> ResolveTask:
    return ResolveTask(structs.replace(outcome(number), chunks=count, restarts=restarts))


def text(store: Store, first: int = 0, *, restarts: int = 9, most_bytes: int = 1 << 20, name: str = NAME) -> str:
    found = ""
    for row in store.chunks(name, first, restarts=restarts, most_bytes=most_bytes):
        pieces = decode_chunks(row.body)[row.skip : row.skip + row.count]
        assert len(pieces) == row.count
        found += "".join(data.decode() for _, data in pieces)[max(0, first - row.first) :]
    return found


def test_chunks_are_found_from_any_number_on(place: Place) -> None:
    store = place.opened()
    assert text(store) == ""
    assert write(store, [accept(1), start(1), chunks(0, "a"), chunks(1, "bcd"), chunks(4, "dex", skip=1)]) is None
    assert [text(store, first) for first in range(8)] == ["abcdex"[first:] for first in range(8)]
    assert text(store, most_bytes=1) == "a", "one row at least"
    assert text(store, 2, most_bytes=1) == "cd"
    assert text(store, name="t-000002") == ""
    store.close()
    again = place.opened()
    assert text(again) == "abcdex"
    again.close()
    assert (place.verify().problems, place.verify().chunks) == ((), 6)


def test_more_rows_than_are_read_at_once(place: Place) -> None:
    store = place.opened()
    stands = "".join("abcdefg"[number % 7] for number in range(1_100))
    assert write(store, [accept(1), start(1), *(chunks(first, letter) for first, letter in enumerate(stands))]) is None
    assert stands.startswith(text(store)) and len(text(store)) >= 100
    found = ""
    while more := text(store, len(found), most_bytes=1_000):
        assert len(more) < 1_000, "about as many bytes as were asked for"
        found += more
    assert found == stands
    assert write(store, [ended(len(stands))]) is None
    assert (place.verify().problems, place.verify().chunks) == ((), 1_100)
    store.close()


def test_the_journal_keeps_digests_and_no_second_copy(place: Place) -> None:
    store = place.opened()
    secret = chunks(0, "launch code 4711")
    assert write(store, [accept(1), start(1), secret]) is None
    store.close()
    again = place.open()
    commands = again.begin_epoch("next").commands
    assert commands[2] == structs.replace(secret, body=b"")
    book = Book()
    for command in commands:
        book.apply(command)
    stream = book.open[TaskId(NAME)].stream
    assert stream is not None and (stream.count, stream.size_bytes) == (16, len(secret.body))
    again.close()


@pytest.mark.parametrize("together", [True, False])
def test_a_restart_withdraws_rows_and_parts_of_rows(place: Place, together: bool) -> None:
    store = place.opened()
    first, second = (
        [accept(1), start(1), chunks(0, "ab"), chunks(2, "cde"), chunks(5, "f")],
        [
            chunks(3, "abxy", restarts=1, skip=2),
            chunks(5, "z", restarts=1),
        ],
    )
    for group in [[*first, *second]] if together else [first, second]:
        assert write(store, group) is None
    assert text(store) == "abcxyz"
    assert text(store, restarts=0) == "abc", "who does not know of the restart is not shown what came after it"
    assert write(store, [chunks(0, "", restarts=2)]) is None
    assert text(store) == ""
    store.close()
    assert place.verify().ok


def test_any_history_ends_with_what_stands(place: Place) -> None:
    rng = random.Random(7)
    store = place.opened()
    assert write(store, [accept(1), start(1)]) is None
    stands, restarts = "", 0
    for _ in range(300):
        first = len(stands) if rng.random() < 0.8 else rng.randrange(len(stands) + 1)
        new = "".join(rng.choice("abc") for _ in range(rng.randrange(1, 5)))
        restarts += first < len(stands)
        stands = stands[:first] + new
        assert write(store, [chunks(first, new, restarts=restarts)]) is None
        at = rng.randrange(len(stands) + 1)
        assert text(store, at, restarts=restarts) == stands[at:]
    assert write(store, [ended(len(stands))]) is None
    store.close()
    assert place.verify().ok


def test_chunks_go_with_their_outcome(place: Place) -> None:
    store = place.opened()
    for number in (1, 2):
        group = [accept(number), start(number), chunks(0, "4711x", number=number), ended(5, number=number)]
        assert write(store, group) is None
    assert write(store, [accept(3), start(3), chunks(0, "open", number=3)]) is None
    answers = Answers()
    store.trim(2.0, answers)
    assert answers.wait() == [None]
    assert [text(store, name=f"t-00000{n}") for n in (1, 2, 3)] == ["", "4711x", "open"]
    store.close()
    assert (place.verify().problems, place.verify().chunks) == ((), 9)


def test_purging_a_dead_letter_takes_its_chunks_along(place: Place) -> None:
    store = place.opened()
    letter = dead(1)
    letter = structs.replace(letter, outcome=structs.replace(letter.outcome, chunks=2))
    assert write(store, [accept(1), start(1), chunks(0, "ab"), letter, accept(2), start(2)]) is None
    assert write(store, [chunks(0, "ab", number=2)]) is None
    answers = Answers()
    store.purge_dead_letter(NAME, answers)
    assert answers.wait() == [None]
    assert (text(store), text(store, name="t-000002")) == ("", "ab")
    store.close()
    assert place.verify().ok


def test_a_fenced_store_records_none(place: Place) -> None:
    first = place.opened("first")
    assert write(first, [accept(1), start(1), chunks(0, "ab")]) is None
    second = place.opened("second")
    assert isinstance(write(first, [chunks(2, "c")]), StoreFenced)
    assert text(second) == "ab"
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE chunks SET body = sha", "do not match their checksum"),
        ("UPDATE chunks SET count = 1 WHERE first = 0", "do not match their checksum"),
        ("UPDATE chunks SET skip = 1 WHERE first = 0", "do not match their checksum"),
        ("UPDATE chunks SET restarts = 1", "do not match their checksum"),
        ("UPDATE chunks SET task_id = 't-000009'", "do not match their checksum"),
        ("DELETE FROM chunks WHERE first = 0", "chunk 0 of task t-000001 is missing"),
        ("DELETE FROM chunks WHERE first = 2", "there are 2 chunks of task t-000001"),
    ],
)
def test_damage_is_found(place: Place, statement: str, words: str) -> None:
    store = place.opened()
    assert write(store, [accept(1), start(1), chunks(0, "ab"), chunks(2, "c"), ended(3)]) is None
    place.change(statement)
    assert [problem for problem in place.verify().problems if words in problem]
    if "checksum" in words and "task_id" not in statement:
        with pytest.raises(StoreCorrupt, match=words):
            text(store)
    store.close()


def test_journals_of_earlier_schemas_get_the_table(old: Path) -> None:
    with contextlib.closing(SqliteStore.open(old, config())) as store:
        assert text(store) == "", "before the upgrade there is nothing to read"
        store.begin_epoch("next")
        assert write(store, [accept(1), start(1), chunks(0, "ab")]) is None
        assert text(store) == "ab"
    with contextlib.closing(sqlite3.connect(old / schema.FILE_NAME)) as connection:
        assert schema.version(connection) == 3


def test_a_journal_of_schema_2_goes_on(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with changing(tmp_path) as connection:
        connection.execute("DROP TABLE chunks")
        connection.execute("UPDATE meta SET v = 2 WHERE k = 'schema'")
    assert verify(tmp_path).ok
    store = opened(tmp_path)
    assert write(store, [accept(1), start(1), chunks(0, "ab"), ended(2)]) is None
    assert text(store) == "ab" and store.outcome(NAME) == structs.replace(outcome(1), chunks=2)
    store.close()
    assert verify(tmp_path).ok


def test_a_digest_tells_codecs_and_bytes_apart() -> None:
    told = {chunk_digest(codec, data) for codec in ("msgpack", "pickle") for data in (b"", b"a", b"b")}
    assert len(told) == 6 and all(len(digest) == DIGEST_BYTES for digest in told)
    pieces = [("msgpack", b"\xc0"), ("pickle", b"x"), ("msgpack", b"")]
    assert decode_chunks(encode_chunks(pieces)) == pieces

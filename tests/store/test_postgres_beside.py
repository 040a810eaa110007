"""What else a runtime keeps in PostgreSQL: large payloads, and the few files that a coordinator needs elsewhere."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowray.errors import StoreCorrupt, StoreError, StoreFenced
from flowray.mesh.authority import Authority
from flowray.mesh.tokens import Tokens
from flowray.runtime.belongings import DIRECTORY, Belongings, fetched
from flowray.runtime.places import shared_token
from flowray.store.postgres import PostgresStore
from flowray.store.postgres_payloads import PostgresPayloads
from flowray.testing.postgres import PostgresServer

from .builders import Answers
from .places import PostgresPlace

MIB = 1 << 20


@pytest.fixture
def payloads(postgres_place: PostgresPlace) -> Iterator[PostgresPayloads]:
    postgres_place.open().close()
    payloads = PostgresPayloads(postgres_place.config())
    yield payloads
    payloads.close()


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 17])
def test_a_payload_comes_back_whatever_its_size(payloads: PostgresPayloads, size: int) -> None:
    data = os.urandom(size)
    ref = payloads.put(data)
    assert payloads.get(ref) == data
    assert bytes(payloads.map(ref)) == data
    assert payloads.put(data[: size // 3], memoryview(data)[size // 3 :]) == ref


def test_many_threads_may_put_the_same_payload(payloads: PostgresPayloads, postgres_place: PostgresPlace) -> None:
    data, refs = os.urandom(2 * MIB), []
    threads = [threading.Thread(target=lambda: refs.append(payloads.put(data))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(refs) == 4 and len(set(refs)) == 1
    assert postgres_place.change("SELECT count(*) FROM payload_pieces") == [(2,)]
    assert payloads.get(refs[0]) == data


def test_payloads_outlive_a_lost_connection_and_a_restarted_server(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    """Their keeper has connections that it does not know to be dead."""
    place = PostgresPlace(tmp_path, own_postgres.url)
    place.open().close()
    payloads = PostgresPayloads(place.config())
    ref = payloads.put(b"x" * 1000)
    own_postgres.kill()
    found: list[bytes] = []
    reading = threading.Thread(target=lambda: found.extend((payloads.get(ref), payloads.get(payloads.put(b"y")))))
    reading.start()
    reading.join(0.5)  # it finds out that nobody is there
    own_postgres.start()  # in this thread: the server goes with the one that started it
    reading.join(60)
    assert found == [b"x" * 1000, b"y"]
    payloads.close()


def test_damage_and_absence_are_said(payloads: PostgresPayloads, postgres_place: PostgresPlace) -> None:
    with pytest.raises(StoreError, match="deleted, or never written"):
        payloads.get(f"sha256:{'0' * 64}")
    ref = payloads.put(b"x" * (MIB + 5))
    postgres_place.change("UPDATE payload_pieces SET body = ? WHERE number = 1", b"xxxxy")
    with pytest.raises(StoreCorrupt, match="does not match its digest"):
        payloads.get(ref)
    postgres_place.change("DELETE FROM payload_pieces WHERE number = 1")
    with pytest.raises(StoreCorrupt, match="lacks its piece 1"):
        payloads.get(ref)


def test_what_is_unused_and_old_is_deleted_with_its_pieces(
    payloads: PostgresPayloads, postgres_place: PostgresPlace
) -> None:
    used, old, young = payloads.put(b"used"), payloads.put(b"old"), payloads.put(b"young")
    postgres_place.change("UPDATE payloads SET written_at = written_at - 100 WHERE ref <> ?", young)
    assert payloads.delete_unused(lambda ref: ref == used, older_than_s=50.0, now_s=time.time()) == 1
    assert payloads.get(used) == b"used"
    assert payloads.get(young) == b"young"
    with pytest.raises(StoreError):
        payloads.get(old)
    assert postgres_place.change("SELECT count(*) FROM payload_pieces") == [(2,)]
    # Put again, it is young again.
    postgres_place.change("UPDATE payloads SET written_at = written_at - 100")
    payloads.put(b"young")
    assert payloads.delete_unused(lambda _: False, older_than_s=50.0, now_s=time.time()) == 1


def begun(place: PostgresPlace, owner: str) -> PostgresStore:
    store = place.opened(owner)
    assert isinstance(store, PostgresStore)
    return store


async def test_the_authority_and_the_tokens_go_where_the_coordinator_goes(
    postgres_place: PostgresPlace, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    first = begun(postgres_place, "first")
    belongings = fetched(first, here)
    secret = shared_token(here)
    roots = Authority.open(here / DIRECTORY, runtime="r").roots_pem
    token, grant = Tokens(here / DIRECTORY).create("client")
    await belongings.keep()
    first.close()

    second = begun(postgres_place, "second")
    elsewhere = fetched(second, there)
    assert shared_token(there) == secret
    assert Authority.open(there / DIRECTORY, runtime="r").roots_pem == roots
    assert Tokens(there / DIRECTORY).check(token).token_id == grant.token_id
    for path in (there / "mesh_token", there / DIRECTORY / "authority.json", there / DIRECTORY / "tokens.json"):
        assert path.stat().st_mode & 0o777 == 0o600
    Tokens(there / DIRECTORY).revoke(grant.token_id)
    await elsewhere.keep()
    second.close()

    third = begun(postgres_place, "third")
    fetched(third, here)  # back on the first node, where the token is still good
    assert Tokens(here / DIRECTORY).grants()[0].revoked_at_utc is not None
    third.close()


async def test_what_was_revoked_while_no_coordinator_ran_stays_revoked(
    postgres_place: PostgresPlace, tmp_path: Path
) -> None:
    first = begun(postgres_place, "first")
    belongings = fetched(first, tmp_path)
    tokens = Tokens(tmp_path / DIRECTORY)
    _, grant = tokens.create("client")
    await belongings.keep()
    first.close()
    tokens.revoke(grant.token_id)
    second = begun(postgres_place, "second")
    await fetched(second, tmp_path).keep()
    assert Tokens(tmp_path / DIRECTORY).grants()[0].revoked_at_utc is not None
    assert b'"revoked_at_utc":null' not in second.files()[f"{DIRECTORY}/tokens.json"]
    second.close()


async def test_a_coordinator_that_is_over_keeps_nothing(postgres_place: PostgresPlace, tmp_path: Path) -> None:
    first = begun(postgres_place, "first")
    belongings = Belongings(first, tmp_path)
    belongings.fetch()
    second = begun(postgres_place, "second")
    (tmp_path / "mesh_token").write_text("of a zombie")
    with pytest.raises(StoreFenced):
        await belongings.keep()
    assert second.files() == {}
    first.close()
    second.close()


def test_a_damaged_file_is_not_believed(postgres_place: PostgresPlace, tmp_path: Path) -> None:
    store = begun(postgres_place, "first")
    answers = Answers()
    store.keep_files({"mesh_token": b"secret"}, answers)
    assert answers.wait() == [None]
    postgres_place.change("UPDATE files SET body = ?", b"other")
    with pytest.raises(StoreCorrupt, match="mesh_token"):
        fetched(store, tmp_path)
    store.close()

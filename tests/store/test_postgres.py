"""What only a store in PostgreSQL can meet: a server that dies, refuses or is full, and a connection that is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from polling import eventually

from flowray.errors import ConfigError, StoreCorrupt, StoreError, StoreFenced, StoreUnsupported
from flowray.store import StoreConfig, open_store, verify
from flowray.store.postgres_session import Session
from flowray.testing.postgres import DATABASE, PASSWORD, QUOTED, USER, PostgresServer

from .builders import Answers, accept, config, life, outcome, resolve, write
from .places import PostgresPlace
from .test_crash import ENVIRONMENT, ROOT, acknowledged, check, child, recorded
from .test_takeover import stopped


def config_of(url: str, **fields: object) -> StoreConfig:
    return config(url=url, schema="t", **fields)


def begun(lines: Iterator[str]) -> int:
    """The epoch that a child said it began."""
    return int(next(lines).removeprefix("began "))


@pytest.mark.slow
def test_a_server_killed_under_load_loses_nothing_acknowledged(own_postgres: PostgresServer, tmp_path: Path) -> None:
    """Three crashes of the server: its clients end with an error, and the next life reads all that was acknowledged."""
    place = PostgresPlace(tmp_path, own_postgres.url)
    rng = random.Random(3)
    acks: list[int] = []
    for number in range(1, 4):
        process = subprocess.Popen(
            child(place.argument, 10**6, "rushing"), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT
        )
        assert process.stdout is not None
        assert begun(process.stdout) == number
        lines = [process.stdout.readline() for _ in range(rng.randrange(1, 600))]
        own_postgres.kill()
        rest = process.stdout.read()
        process.stdout.close()
        assert process.wait(60) == 0
        assert "closed\n" in rest
        assert "fail" in rest
        own_postgres.start()
        acks = recorded(place, acks + acknowledged("".join(lines) + rest))
    check(place, acks, unknown=0)


@pytest.mark.slow
def test_a_process_stopped_in_a_transaction_is_ended_by_its_successor(postgres_place: PostgresPlace) -> None:
    """Its session, that is: the process may be on a machine that nobody can reach."""
    with stopped(postgres_place.argument, "write") as zombie:
        store = postgres_place.open(takeover_wait_s=0.05)
        recovery = store.begin_epoch("successor")
        assert (recovery.epoch, recovery.commands) == (2, [accept(1)])
        assert write(store, [accept(3)]) is None
        zombie.send_signal(signal.SIGCONT)
        assert zombie.stdout is not None
        said = zombie.stdout.read()
        assert "StoreFenced" in said or zombie.wait(10) != 0
        store.close()
    assert postgres_place.verify().commands == 2


@pytest.mark.slow
def test_a_process_stopped_between_transactions_is_fenced(postgres_place: PostgresPlace) -> None:
    with stopped(postgres_place.argument, "nothing") as zombie:
        store = postgres_place.opened("successor")
        assert write(store, [accept(3)]) is None
        zombie.send_signal(signal.SIGCONT)
        assert zombie.stdout is not None
        assert zombie.stdout.readline() == "StoreFenced\n"
        store.close()


@pytest.mark.slow
def test_the_server_ends_who_is_silent_with_a_lock(postgres_place: PostgresPlace) -> None:
    """Nobody has to be there for that."""
    store = postgres_place.opened(idle_transaction_s=0.2)
    with pytest.raises(StoreError, match=r"\(25P03\): this process was stopped"), store._journal._transaction("wait"):
        threading.Event().wait(1.0)
    assert "whether" not in str(write(store, [accept(1)]))
    store.close()
    assert postgres_place.verify().commands == 0


def test_an_epoch_that_began_during_a_transaction_waits_for_it(postgres_place: PostgresPlace) -> None:
    """The lock of a writer's transaction keeps its epoch in force until it is over."""
    first = postgres_place.opened("first")
    second = postgres_place.open(takeover_wait_s=20.0)
    with first._journal._transaction("write slowly"):
        taking = threading.Thread(target=second.begin_epoch, args=("second",))
        taking.start()
        taking.join(0.3)
        assert taking.is_alive()
        first._journal._advance(first._journal.head)
    taking.join(20)
    assert second.owner() == (2, "second")
    first.close()
    second.close()


def test_the_former_writers_session_is_ended(postgres_place: PostgresPlace, postgres: PostgresServer) -> None:
    first = postgres_place.opened("first")
    [(pid,)] = postgres_place.change("SELECT writer_pid FROM epoch")
    second = postgres_place.opened("second")
    assert postgres.psql(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}") == "0"
    first.close()
    second.close()


class Relay:
    """Between a client and the server's socket: it can swallow what the server answers."""

    def __init__(self, target: str, directory: Path, port: int) -> None:
        self._target = target
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / f".s.PGSQL.{port}"))
        self._listener.listen()
        self.cut_after: bytes | None = None  # the server's next answer to what contains this is lost with the stream
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(ours,), daemon=True).start()

    def _carry(self, ours: socket.socket) -> None:
        theirs = socket.socket(socket.AF_UNIX)
        theirs.connect(self._target)
        lose = threading.Event()

        def back() -> None:
            with contextlib.suppress(OSError):
                while data := theirs.recv(1 << 16):
                    if lose.is_set():
                        break
                    ours.sendall(data)
            for one in (ours, theirs):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

        threading.Thread(target=back, daemon=True).start()
        with contextlib.suppress(OSError):
            while data := ours.recv(1 << 16):
                if self.cut_after is not None and self.cut_after in data:
                    self.cut_after = None
                    lose.set()
                theirs.sendall(data)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def relay(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Relay, str]]:
    import tempfile

    directory = Path(tempfile.mkdtemp(prefix="relay-"))  # short, for a socket
    relay = Relay(f"{postgres.directory}/.s.PGSQL.{postgres.port}", directory, postgres.port)
    yield relay, f"postgresql://root@/{DATABASE}?host={directory}&port={postgres.port}"
    relay.close()


def test_a_connection_lost_during_commit_leaves_it_open_and_ends_the_store(
    relay: tuple[Relay, str], tmp_path: Path
) -> None:
    """The server has committed, and its answer is lost: neither failed nor done, and nothing is tried again."""
    between, url = relay
    place = PostgresPlace(tmp_path, url)
    store = place.opened()
    assert write(store, [accept(1)]) is None
    between.cut_after = b"COMMIT"
    error = write(store, [accept(2)])
    assert type(error) is StoreError
    assert "Whether this was committed is not known" in str(error)
    with pytest.raises(StoreError, match="not known"):
        store.append([accept(3)], Answers())
    store.close()
    again = place.open()
    assert again.begin_epoch("next").commands == [accept(1), accept(2)]
    again.close()


def test_a_connection_lost_before_commit_changes_nothing(relay: tuple[Relay, str], tmp_path: Path) -> None:
    between, url = relay
    place = PostgresPlace(tmp_path, url)
    store = place.opened()
    between.cut_after = b"INSERT INTO journal"
    error = write(store, [accept(2)])
    assert type(error) is StoreError
    assert "not known" not in str(error)
    store.close()
    again = place.open()
    assert again.begin_epoch("next").commands == []
    again.close()


def test_a_transaction_that_failed_is_not_taken_for_committed(postgres_place: PostgresPlace) -> None:
    """The server answers such a COMMIT with a rollback, and with no error."""
    store = postgres_place.opened()
    session = store._journal._connection
    with pytest.raises(StoreError, match="was rolled back"), store._journal._transaction("write"):
        session.execute("SELECT 1")
        with contextlib.suppress(StoreError):
            session.execute("SELECT 1 / 0")
    assert write(store, [accept(1)]) is None
    store.close()


def test_reads_go_on_after_a_lost_connection(postgres_place: PostgresPlace, postgres: PostgresServer) -> None:
    store = postgres_place.opened()
    assert write(store, [resolve(1)]) is None
    name = f"flowray {postgres_place.config().schema} reader"
    postgres.psql(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = '{name}'")
    assert store.outcome("t-000001") == outcome(1)
    assert store.counts()
    store.close()


# ── what the server says, in words that help ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("tcp:locked:wrong", r"password authentication failed .*PGPASSWORD"),
        ("tcp:nobody:", r"no password supplied.*PGPASSWORD"),
        ("tcp:locked:right/nowhere", r'database "nowhere" does not exist'),
        ("postgresql://127.0.0.1:1/x", "refused"),
        ("postgresql:///x?host=/nowhere", "No such file"),
    ],
)
def test_whoever_is_not_let_in_is_told_why(postgres: PostgresServer, url: str, words: str) -> None:
    if url.startswith("tcp:"):
        _, user, secret = url.split(":")
        password, _, database = secret.partition("/")
        url = postgres.tcp_url(user=user, password=QUOTED if password == "right" else password)
        if database:
            url = url.replace(f"/{DATABASE}", f"/{database}")
    reference = url
    if "@" in url:
        os.environ["STORE_TEST_URL"] = url
        reference = "env:STORE_TEST_URL"
    with pytest.raises(StoreError, match=words) as caught:
        open_store(Path(), config_of(reference))
    for secret in (PASSWORD, QUOTED, "wrong"):
        assert secret not in str(caught.value)
        assert secret not in repr(caught.value)


def test_a_role_without_the_right_to_make_a_schema_is_told_so(postgres: PostgresServer, tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text(postgres.tcp_url() + "\n")
    with pytest.raises(StoreError, match=r"permission denied.*GRANT CREATE ON DATABASE"):
        open_store(tmp_path, config_of(f"file:{secret}"))


def test_a_schema_made_for_the_role_is_enough(postgres: PostgresServer, tmp_path: Path, monkeypatch) -> None:
    """And the password may come as libpq takes it."""
    postgres.psql(f"CREATE SCHEMA mine AUTHORIZATION {USER}")
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    ours = config(url=postgres.tcp_url(password=""), schema="mine")
    store = open_store(tmp_path, ours)
    store.begin_epoch("first")
    assert write(store, life(1)) is None
    other = open_store(tmp_path, ours)
    assert other.begin_epoch("second").commands == life(1)
    assert isinstance(write(store, [accept(2)]), StoreFenced)
    store.close()
    other.close()
    monkeypatch.delenv("PGPASSWORD")
    secret = tmp_path / "pass"
    secret.write_text(f"*:*:*:{USER}:{PASSWORD}\n")
    secret.chmod(0o600)
    again = config(url=postgres.tcp_url(password="") + f"?passfile={secret}", schema="mine")
    assert verify(tmp_path, again).problems == ()


def test_a_statement_that_takes_too_long_is_an_error_that_says_so(postgres_place: PostgresPlace) -> None:
    store = postgres_place.opened()
    store._journal._connection.execute("SET statement_timeout = '50ms'")
    with pytest.raises(StoreError, match=r"statement_timeout too short"), store._journal._transaction("sleep"):
        store._journal._connection.execute("SELECT pg_sleep(1)")
    assert write(store, [accept(1)]) is None  # nothing was written, and the connection is as good as before
    store.close()


def test_a_full_disk_is_said_and_loses_nothing(postgres_place: PostgresPlace) -> None:
    """The server's error for it, made by a trigger; what was acknowledged before stays."""
    store = postgres_place.opened()
    assert write(store, [accept(1)]) is None
    name = postgres_place.config().schema
    postgres_place.change(
        f'CREATE FUNCTION "{name}".full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '
        "'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$"
    )
    postgres_place.change("CREATE TRIGGER full_disk BEFORE INSERT ON journal EXECUTE FUNCTION full()")
    error = write(store, [accept(2)])
    assert type(error) is StoreError
    assert "the server's disk is full" in str(error)
    assert store.failure is not None
    postgres_place.change("CREATE TRIGGER full_disk BEFORE INSERT ON snapshots EXECUTE FUNCTION full()")
    again = postgres_place.open()
    with pytest.raises(StoreError, match="disk is full"):
        again.require_room(1000)
    postgres_place.change("DROP TRIGGER full_disk ON snapshots")
    again.require_room(1000)
    assert again.begin_epoch("next").commands == [accept(1)]
    store.close()
    again.close()


def test_a_server_that_does_not_sync_is_refused(postgres: PostgresServer, tmp_path: Path) -> None:
    try:
        set_fsync(postgres, "off")
        with pytest.raises(StoreUnsupported, match="fsync=off"):
            open_store(tmp_path, config_of(postgres.url))
        open_store(tmp_path, config_of(postgres.url, allow_volatile=True)).close()
    finally:
        set_fsync(postgres, "on")


def set_fsync(server: PostgresServer, value: str) -> None:
    server.psql(f"ALTER SYSTEM SET fsync = {value}")
    server.psql("SELECT pg_reload_conf()")
    eventually(lambda: server.psql("SHOW fsync") == value, f"fsync = {value}")


def test_commits_wait_for_the_disk_whatever_the_role_is_set_to(postgres_place: PostgresPlace) -> None:
    for setting, expected in (("off", "on"), ("remote_apply", "remote_apply")):
        postgres_place.change(f"ALTER ROLE root SET synchronous_commit = {setting}")
        try:
            with contextlib.closing(Session(postgres_place.config(), reads=False)) as session:
                assert session.execute("SHOW synchronous_commit").fetchone() == (expected,)
        finally:
            postgres_place.change("ALTER ROLE root RESET synchronous_commit")


def test_runtimes_have_schemas_of_their_own(postgres_place: PostgresPlace) -> None:
    ours, theirs = postgres_place.opened("ours"), postgres_place.another().opened("theirs")
    assert write(ours, life(1)) is None
    assert theirs.outcome("t-000001") is None
    assert write(theirs, life(1)) is None
    ours.close()
    theirs.close()


def test_two_processes_that_make_the_schema_at_once_make_one(postgres_place: PostgresPlace) -> None:
    failed: list[BaseException] = []

    def make() -> None:
        try:
            postgres_place.open().close()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failed == []
    assert postgres_place.verify().epoch == 0


def test_a_schema_that_was_never_kept_there_is_refused(postgres_place: PostgresPlace) -> None:
    postgres_place.opened().close()
    postgres_place.set_meta("schema", 2)
    with pytest.raises(StoreCorrupt, match="no row in epoch that flowray wrote"):
        postgres_place.open()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"url": "mysql://x"}, "store.url: is not a URL of PostgreSQL"),
        ({"url": "postgresql://me:hidden@host/db"}, "store.url: holds a password"),
        ({"url": "postgresql://me@host/db?password=hidden"}, "store.url: holds a password"),
        ({"url": "postgresql://me:hidden@one:1,two:2/db"}, "store.url: holds a password"),
        ({"url": "env:"}, "store.url: names nothing"),
        ({"url": "env:X", "schema": 'a"b'}, "store.schema: wants 1 to 63"),
        ({"url": "env:X", "schema": "s" * 64}, "store.schema: wants 1 to 63"),
        ({"idle_transaction_s": 0}, "store.idle_transaction_s: must be within"),
    ],
)
def test_what_cannot_be_a_place_is_refused_by_the_configuration(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        config(**fields)
    assert "hidden" not in str(caught.value)


def test_a_url_that_is_not_there_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another node, for example: the coordinator says so and tries again."""
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(StoreError, match="NOT_SET is not set here"):
        open_store(tmp_path, config_of("env:NOT_SET"))
    with pytest.raises(StoreError, match="cannot be read"):
        open_store(tmp_path, config_of(f"file:{tmp_path}/nothing"))


def test_the_store_needs_psycopg_and_says_so() -> None:
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from pathlib import Path; from flowray.store import StoreConfig, open_store\n"
        "try: open_store(Path(), StoreConfig(url='postgresql://h/d', schema='s'))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert "StoreUnsupported" in done.stdout and "pip install 'flowray[postgres]'" in done.stdout

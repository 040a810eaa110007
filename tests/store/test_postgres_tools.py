"""The command line and a store in PostgreSQL: what it says of one, and what it reads of one that nobody runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from msgspec import structs
from typer.testing import CliRunner

from flowray.cli.app import app
from flowray.config import load
from flowray.core.model import Asked
from flowray.doctor import _journal
from flowray.errors import ConfigError
from flowray.runtime.recorded import Recorded
from flowray.testing.postgres import DATABASE, PASSWORD, PostgresServer

from .builders import life, resolve, write
from .places import PostgresPlace


@pytest.fixture
def file(postgres_place: PostgresPlace, tmp_path: Path) -> Path:
    """A configuration for this place."""
    store = postgres_place.config()
    path = tmp_path / "team.yaml"
    path.write_text(json.dumps({"store": {"url": store.url, "schema": store.schema}}))
    return path


def test_a_runtimes_schema_has_its_name() -> None:
    config = load(None, {}, {"name": "audit-2", "store.url": "env:STORE"})
    assert config.store.schema == "flowray_audit-2"
    assert load(None, {}, {"store.url": "env:STORE", "store.schema": "mine"}).store.schema == "mine"
    assert load(None, {}, {}).store.schema == ""
    with pytest.raises(ConfigError, match=r"store\.schema: must be given for a runtime called"):
        load(None, {}, {"name": "straße", "store.url": "env:STORE"})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"store.url": "postgresql://me:hidden@host/db"}, r"store\.url: holds a password"),
        ({"ray.coordinator_labels": {"may": "coordinate"}}, r"ray\.coordinator_labels: .*needs store\.url"),
        (
            {"store.url": "env:X", "router.artifact": "/r", "router.retrain.enabled": True},
            r"router\.retrain\.enabled: leaves candidates beside",
        ),
    ],
)
def test_what_cannot_be_is_refused(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load(None, {}, overrides)
    assert "hidden" not in str(caught.value)


def test_a_url_with_its_password_may_come_from_the_environment(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIT_STORE", postgres.tcp_url())
    config = load(None, {"FLOWRAY_STORE__URL": "env:AUDIT_STORE"}, {})
    found = _journal(config, Path.home())
    assert (found.state, found.text) == (
        "ok",
        "PostgreSQL (env:AUDIT_STORE), schema flowray_default can be reached, and has no journal yet",
    )
    shown = CliRunner().invoke(app, ["config", "show", "--set", "store.url=env:AUDIT_STORE"])
    assert shown.exit_code == 0 and "env:AUDIT_STORE" in shown.output and PASSWORD not in shown.output


def test_doctor_says_that_there_is_a_journal(postgres_place: PostgresPlace, file: Path) -> None:
    postgres_place.opened().close()
    found = _journal(load(file), Path.home())
    assert found.state == "ok" and found.text.endswith("has a journal")


def test_doctor_says_why_it_cannot_be_reached(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIT_STORE", postgres.tcp_url(password="hidden"))
    found = _journal(load(None, {}, {"store.url": "env:AUDIT_STORE"}), Path.home())
    assert found.state == "fail" and "password authentication failed" in found.text
    assert "hidden" not in found.text + found.way_out
    gone = load(None, {}, {"store.url": f"postgresql://root@127.0.0.1:1/{DATABASE}"})
    assert "refused" in _journal(gone, Path.home()).text


def test_receipts_and_versions_are_read_without_a_runtime(
    postgres_place: PostgresPlace, file: Path, tmp_path: Path
) -> None:
    store = postgres_place.opened()
    assert write(store, [structs.replace(resolve(n), asked=Asked(f"question {n}")) for n in range(3)]) is None
    runner = CliRunner()
    out = tmp_path / "receipts.parquet"
    done = runner.invoke(app, ["router", "export", "--journal", str(file), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert out.exists()
    assert runner.invoke(app, ["router", "versions", "--journal", str(file)]).exit_code == 0
    store.close()
    empty = tmp_path / "empty.yaml"
    empty.write_text(json.dumps({"store": {"url": postgres_place.config().url, "schema": "nobodys"}}))
    refused = runner.invoke(app, ["router", "versions", "--journal", str(empty)])
    assert refused.exit_code != 0
    assert "there is no journal" in f"{refused.output} {refused.exception}"


def test_an_earlier_run_is_found(postgres_place: PostgresPlace, tmp_path: Path) -> None:
    assert Recorded.of(tmp_path, postgres_place.config()) is None
    store = postgres_place.opened()
    assert write(store, [*life(1), *life(4)]) is None
    store.close()
    recorded = Recorded.of(tmp_path, postgres_place.config())
    assert recorded is not None
    assert (recorded.known(["k-000001", "k-9"]), recorded.count()) == ({"k-000001"}, 2)
    recorded.close()
    assert not os.listdir(tmp_path)  # noqa: PTH208

"""A store is tested in both places where it can be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flowray.testing.postgres import PostgresServer, missing, started

from .places import Place, PostgresPlace, SqlitePlace


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    if reason := missing():
        pytest.skip(reason)
    with started() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server to be killed."""
    if reason := missing():
        pytest.skip(reason)
    with started() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return SqlitePlace(tmp_path)
    return PostgresPlace(tmp_path, request.getfixturevalue("postgres").url)


@pytest.fixture
def postgres_place(postgres: PostgresServer, tmp_path: Path) -> PostgresPlace:
    return PostgresPlace(tmp_path, postgres.url)

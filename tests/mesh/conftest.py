"""Endpoints for tests: made on the test's loop, closed after it, and nothing may be logged as unhandled."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from clocks import Clock
from nodes import Network, Node


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for sockets: private, with a path short enough."""
    directory = Path(tempfile.mkdtemp(prefix="fm-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
async def node(place: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Callable[..., Awaitable[Node]]]:
    """`await node("a")`: listening on `place / "a"`. All are closed at the end."""
    made: list[Node] = []

    async def make(name: str, *, listens: bool = True, **settings: object) -> Node:
        one = Node(name, **settings)
        made.append(one)
        if listens:
            await one.endpoint.listen_unix(place / name)
        return one

    with caplog.at_level(logging.WARNING):
        yield make
        for one in made:
            await one.endpoint.close(0)
    unhandled = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    # grpcio says this when one process has had several event loops, as tests have; it reads again and goes on.
    assert [text for text in unhandled if "PollerCompletionQueue._handle_events" not in text] == []


@pytest.fixture
async def network(place: Path) -> AsyncIterator[Callable[[str], Awaitable[Network]]]:
    """`await network("b")`: a way to b's socket at `place / "b-net"` that can be spoilt."""
    made: list[Network] = []

    async def make(name: str) -> Network:
        one = Network(place / f"{name}-net", place / name)
        await one.open()
        made.append(one)
        return one

    yield make
    for one in made:
        await one.close()

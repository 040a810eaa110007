"""Simulations make much garbage and live in a process that has imported everything: looking for it takes a quarter."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from flowray.testing.swarm import collect_rarely


@pytest.fixture(autouse=True, scope="package")
def seldom_collected() -> Iterator[None]:
    """As in a process that does nothing but simulate."""
    before = gc.get_threshold()
    collect_rarely()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)
    gc.collect()

"""One embedded Ray for all tests of this directory, and a runtime of its own for each module."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polling
import pytest

CPUS = 4
# Shares add up to less than one, so that several runtimes fit beside each other.
SMALL_TIERS = {f"tiers.{name}.cpu_share": 0.1 for name in ("orchestrator", "primary", "secondary", "specialist")}
SMALL_TIERS |= {f"tiers.{name}.memory_share": 0.02 for name in ("orchestrator", "primary", "secondary", "specialist")}


@pytest.fixture(scope="session")
def ray_token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A token file for this session: the user's own is left alone."""
    path = tmp_path_factory.mktemp("token") / "nested" / "auth_token"
    saved = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("RAY_")}
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    yield path
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    os.environ.update(saved)


@pytest.fixture(scope="session")
def ray_address(ray_token: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an embedded Ray that flowray has started."""
    import ray

    from flowray.config import load
    from flowray.runtime.cluster import join_or_start

    assert join_or_start(load(None, {}, {"ray.num_cpus": CPUS, "ray.object_store_mb": 256, "ray.agent_output": False}))
    yield str(ray.get_runtime_context().gcs_address)
    ray.shutdown()


@pytest.fixture(scope="session")
def start_runtime(ray_address: str) -> Callable[..., Any]:
    """Start a runtime in the session's cluster; keyword arguments are overrides with `__` for the dots."""
    import flowray as fr

    def start(name: str, **changes: Any) -> fr.Runtime:
        overrides = {"name": name, **SMALL_TIERS, **{key.replace("__", "."): value for key, value in changes.items()}}
        return fr.Runtime.start(overrides=overrides)

    return start


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """See `polling`."""
    return polling.eventually


@pytest.fixture
def lines(tmp_path: Path) -> Callable[[str], list[str]]:
    """What agents noted in a file of the test's directory."""

    def read(name: str) -> list[str]:
        path = tmp_path / name
        return path.read_text().split() if path.exists() else []

    return read

"""One cluster of two nodes for the tests that look at it rather than break it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from flowray.testing.cluster import NamespaceCluster, cluster_missing


@pytest.fixture(scope="session")
def missing() -> str:
    """Why there can be no cluster here; "" where there can."""
    return cluster_missing()


@pytest.fixture(autouse=True)
def _possible(request: pytest.FixtureRequest, missing: str) -> None:
    """Tests that need a cluster are skipped where there can be none."""
    if missing and request.node.get_closest_marker("cluster"):
        pytest.skip(missing)


@pytest.fixture(scope="package")
def cluster(missing: str) -> Iterator[NamespaceCluster]:
    if missing:
        pytest.skip(missing)
    with NamespaceCluster(nodes=2, cpus=2, labels=[{}, {"zone": "far"}]) as running:
        yield running


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Tell whoever watches, past pytest's capturing: what was measured is worth reading when all is well, too."""

    def told(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    return told

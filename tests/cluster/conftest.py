"""One cluster of two nodes for the tests that look at it rather than break it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flowray.testing.cluster import NamespaceCluster, cluster_missing


@pytest.fixture(scope="package")
def cluster() -> Iterator[NamespaceCluster]:
    if cluster_missing():
        pytest.skip(cluster_missing())
    with NamespaceCluster(nodes=2, cpus=2, labels=[{}, {"zone": "far"}]) as running:
        yield running

"""Ray as the peers have it: as it comes, on this machine alone.

Only what would make the comparison unfair is as in flowray: the number of CPUs and the size of the object store, the
token that both ask for (Ray's default), no dashboard, no usage report, and workers that are not `nice` (Ray 2.60 runs
them at 15).
"""

from __future__ import annotations

import os

import ray

from flowray.config import load
from flowray.runtime.cluster import ensure_token


def start_ray() -> None:
    config = load(None, {}, {}).ray
    ensure_token()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # read by the processes it starts
    ray.init(
        address="local",
        num_cpus=config.num_cpus,
        object_store_memory=config.object_store_mb << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
    )

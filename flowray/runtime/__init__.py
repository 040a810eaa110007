"""The Ray shell: performs the core's commands and turns what happens into events. Ray is imported only below here."""

import os
import sys

# Ray reads these once, while it is imported. Token authentication is its default for clusters that it starts itself;
# said explicitly, it holds for clusters that are joined too. A process that imported Ray before keeps what it has.
if "ray" not in sys.modules:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    # As `ray.reconnect_s`: Ray ends a process, without an exception, that misses the control store for longer.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "120")

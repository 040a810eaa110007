"""gRPC as this package wants it: imported once, here, with the settings that its library reads only at import.

grpcio's event engine hands each read and write over between threads of its own. For one long stream between two
processes of a machine the older poller does the same in one thread: half the latency and a third less processor time
(a 100-byte round trip over a Unix socket on two cores: 0.26 ms with it, 0.13 to 0.19 ms without; grpcio 1.85). A
process that has imported grpc before keeps what it has: slower, not wrong.
"""

from __future__ import annotations

import os
import sys

_SETTINGS = {
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener",
    "GRPC_VERBOSITY": "ERROR",  # that a peer went away is said by this package, where it matters
}

_mine = {} if "grpc" in sys.modules else {name: v for name, v in _SETTINGS.items() if name not in os.environ}
os.environ.update(_mine)
try:
    import grpc
finally:
    # Not left in the environment: child processes with another gRPC inside (Ray's) would read it too.
    for _name in _mine:
        del os.environ[_name]

import grpc.aio  # noqa: E402 - after the choice above

__all__ = ["grpc"]

"""gRPC as this package wants it: imported once, here, with the settings that its library reads only at import.

grpcio's event engine hands each read and write over between threads of its own. For one long stream between two
processes of a machine the older poller does the same in one thread: half the latency and a third less processor time
(a 100-byte round trip over a Unix socket on two cores: 0.26 ms with it, 0.13 to 0.19 ms without; grpcio 1.85). A
process that has imported grpc before keeps what it has: slower, not wrong.
"""

from __future__ import annotations

import os
import sys

_NAME = "GRPC_EXPERIMENTS"
_SETTING = "-event_engine_client,-event_engine_listener"

if "grpc" not in sys.modules and _NAME not in os.environ:
    # Not left in the environment: child processes with another gRPC inside (Ray's) would read it too.
    os.environ[_NAME] = _SETTING
    try:
        import grpc
    finally:
        del os.environ[_NAME]
else:
    import grpc

import grpc.aio  # noqa: E402 - after the choice above

__all__ = ["grpc"]

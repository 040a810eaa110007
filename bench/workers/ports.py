"""A free TCP port, for peers that cannot choose one by themselves."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Free at this moment; whoever takes it in between makes the side fail, and the run says so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

"""Who may talk to a process."""

from __future__ import annotations

import secrets
from typing import Protocol

from flowray.mesh.frames import Hello


class Gate(Protocol):
    """Who may talk to this process."""

    def refusal(self, hello: Hello, certified: str | None, source: str) -> str:
        """Why this peer may not; "" if it may. `certified` is the name that its TLS certificate proves, if any."""
        ...


class SharedSecret:
    """A gate for processes that were given the same secret, or whose certificate says who they are."""

    def __init__(self, token: str) -> None:
        self._token = token

    def refusal(self, hello: Hello, certified: str | None, source: str) -> str:
        if certified is not None:
            return "" if certified == hello.name else f"its certificate says {certified!r}"
        return "" if secrets.compare_digest(hello.token.encode(), self._token.encode()) else "a wrong token"

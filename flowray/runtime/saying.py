"""What the coordinator's process tells whoever reads its log."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """A line in the log of the coordinator's process."""
    print(f"flowray coordinator: {text}", file=sys.stderr, flush=True)  # noqa: T201

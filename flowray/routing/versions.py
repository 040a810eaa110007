"""Which router made an estimate: its weights, and the outcomes that it went by.

A version is `<16 hex digits>` of the weights' SHA-256 and, where there is a history, `.<16 hex digits>` of the
history's: the same version gives the same estimates, wherever its files lie.
"""

from __future__ import annotations

from pathlib import Path

from flowray.routing import artifacts, data

_DIGITS = 16


def version_of(router: Path | str, history: Path | str = "") -> str:
    """The version that a router's card and a history's files make.

    Raises:
        ArtifactError: there is no card.
        OSError: the history cannot be read.
    """
    version = str(artifacts.card(router).get("sha256", ""))[:_DIGITS]
    return f"{version}.{data.digest_of(Path(history))[:_DIGITS]}" if str(history) else version


def check(router: Path | str, history: Path | str = "") -> str:
    """Read both, without building a network; gives the version.

    Raises:
        ArtifactError: the router is missing, torn, tampered with, or of another format.
        SchemaError: the history does not follow the schema, or has no agents.
    """
    artifacts.load(router)
    if str(history):
        data.team(history)
    return version_of(router, history)

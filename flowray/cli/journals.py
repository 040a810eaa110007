"""Which journal a command reads that needs no running runtime: a directory, or what a configuration names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from flowray.config import load
from flowray.errors import ConfigError
from flowray.store import StoreConfig
from flowray.store.reading import describe, has_journal

Journal = Annotated[
    Path,
    typer.Option(
        "--journal",
        metavar="DIR|FILE",
        help="The journal's directory, or a configuration with store.url; a runtime may be using it.",
    ),
]


def journal_of(place: Path) -> tuple[Path, StoreConfig]:
    """What a reader is opened with.

    Raises:
        ConfigError: there is no journal, or the file is no configuration.
        StoreError: it cannot be found out.
    """
    directory, store = place, StoreConfig()
    if place.is_file():
        config = load(place, os.environ)
        store = config.store
        directory = Path(config.journal).expanduser()
        if not store.url and not config.journal:
            raise ConfigError("--journal", f"{place} names no journal", "with `journal` or `store.url`")
    if not has_journal(directory, store):
        where = describe(directory, store)
        raise ConfigError("--journal", f"there is no journal in {where}", "name the directory of a runtime's journal")
    return directory, store

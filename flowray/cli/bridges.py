"""The command that runs bridges: topics of a runtime to and from Redis or RabbitMQ, until it is interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from flowray.cli.lifecycle import connected
from flowray.cli.screen import Address, Json, Screen, Settings, overrides
from flowray.config import load
from flowray.errors import ConfigError

_LOOK_S = 0.5


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(bridge)


def bridge(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Configuration file (YAML) with a section `bridges`.")],
    set_: Settings = None,
    address: Address = "",
    as_json: Json = False,
) -> None:
    """Run the bridges of a configuration beside the runtime of its name, until Ctrl-C; then show what they carried."""
    screen = Screen(as_json=as_json)
    config = load(file, os.environ, overrides(set_))
    if not config.bridges:
        raise ConfigError("bridges", f"{file} has none", "see `flowray config schema`")
    ended = threading.Event()
    with connected(config.name, address, screen) as runtime, contextlib.ExitStack() as running:
        bridges = [running.enter_context(runtime.bridge(one)) for one in config.bridges]
        screen.say(f"{len(bridges)} bridges of runtime {config.name!r} run; Ctrl-C ends them")
        before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
        try:
            while not ended.wait(_LOOK_S):
                for one in bridges:
                    one.check()
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGTERM, before)
        rows = {one.name: one.figures() for one in bridges}
    screen.answer("\n".join(f"{name}: {figures}" for name, figures in rows.items()), rows)

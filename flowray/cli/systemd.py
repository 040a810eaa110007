"""The unit by which systemd keeps a runtime: `flowray up FILE --systemd`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from getpass import getuser
from pathlib import Path

_UNIT = """\
[Unit]
Description=flowray runtime {name}
Wants=network-online.target
After=network-online.target

[Service]
User={user}
WorkingDirectory={directory}
ExecStart={command}
# The head's supervisor starts again what dies of Ray; this does so for the supervisor itself, on the same store.
Restart=always
RestartSec=1
# SIGTERM is for the command alone, which takes the runtime down; what is left after it is killed.
KillMode=mixed
TimeoutStopSec=60
# An agent that the kernel ends for its memory is started again by the runtime, and no reason to stop the rest.
OOMPolicy=continue

[Install]
WantedBy=multi-user.target
"""


def unit_of(name: str, arguments: Sequence[str]) -> str:
    """A unit that runs `flowray` with these arguments in this directory, as this user."""
    command = " ".join(_quoted(word) for word in (sys.executable, "-m", "flowray.cli", *arguments))
    directory = str(Path.cwd()).replace("%", "%%")
    return _UNIT.format(name=name, user=getuser(), directory=directory, command=command)


def _quoted(word: str) -> str:
    """As systemd.service(5) wants it: `%` and `$` mean something there."""
    plain = word.replace("%", "%%").replace("$", "$$")
    if plain and not any(char in plain for char in " \t\n\"'\\;"):
        return plain
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'

"""Ray's own command line in a process where the launcher is in place: `python -m flowray.runtime.template.cli start`.

Nodes that it starts fork their workers. Everything else is as with `ray`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from flowray.runtime.template import setup


def command(arguments: Sequence[str]) -> list[str]:
    """The command that runs this with the arguments of `ray`."""
    return [sys.executable, "-m", "flowray.runtime.template.cli", *arguments]


def become(arguments: Sequence[str], environment: dict[str, str]) -> None:
    """Replace this process by Ray's command line. Settings of flowray's nodes are added where the environment has none.

    Failure detection and tokens must be the same on every node, and Ray reads them when it is imported.
    """
    from flowray.config import Config
    from flowray.runtime.cluster import ensure_token, ray_environment

    if "--head" in arguments and "RAY_AUTH_TOKEN" not in environment:
        ensure_token()  # a node that joins needs the token of its head, not a new one
    os.execve(sys.executable, command(arguments), {**ray_environment(Config()), **environment})


def main() -> None:
    """Run `ray` with this process's arguments."""
    with ExitStack() as stack:
        try:
            stack.enter_context(setup.in_place(setup.install()))
        except setup.NoTemplate as error:
            sys.stderr.write(f"flowray: workers of this node start the slow way: {error}\n")
        from flowray.runtime.template.quick import quick

        stack.enter_context(quick())
        from ray.scripts.scripts import main as ray_main

        ray_main()


if __name__ == "__main__":
    main()

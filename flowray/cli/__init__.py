"""The command line: `flowray`. Thin: every command asks one thing of the library and shows the answer."""

from flowray.cli.app import main

__all__ = ["main"]

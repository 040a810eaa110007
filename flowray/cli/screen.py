"""Where a command's answer goes: tables on a terminal, plain lines in a pipe, one JSON document if asked; and the rest
to stderr."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import msgspec
import typer
from msgspec import Struct

from flowray.errors import ConfigError

if TYPE_CHECKING:
    from flowray.runtime.views import View

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Name = Annotated[str, typer.Option("--name", help="Name of the runtime.")]
Address = Annotated[
    str, typer.Option("--address", help="Ray cluster, host:port. Left out: the one that `flowray up` started.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override one setting; may be repeated.")
]


class Screen:
    """One command's way of talking."""

    def __init__(self, *, as_json: bool, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._out = sys.stdout  # kept: while Ray is at work, sys.stdout is somewhere else

    @contextmanager
    def alone(self, others: TextIO | None = None) -> Iterator[None]:
        """Keep stdout for the answer: Ray prints what it has to say there, from threads of its own.

        Who joined a cluster meanwhile leaves it before stdout is stdout again: what agents say would follow the answer.
        """
        before = _in_a_cluster()
        with redirect_stdout(others or sys.stderr):
            try:
                yield
            finally:
                if _in_a_cluster() and not before:
                    from flowray.runtime.cluster import leave

                    leave()

    def view(self, view: View) -> None:
        """Show a view."""
        if self.as_json:
            self.document(view)
        elif self._out.isatty():
            from rich.console import Console

            Console(file=self._out, highlight=False).print(view)
        else:
            from flowray.runtime import render

            self.line(render.plain(view))

    def document(self, document: Any) -> None:
        """The answer as JSON. A command calls it once."""
        self._out.write(json.dumps(plain_data(document), indent=2, ensure_ascii=False) + "\n")
        self._out.flush()

    def answer(self, text: str, document: Any) -> None:
        """The answer: as text, or as JSON."""
        if self.as_json:
            self.document(document)
        else:
            self.line(text)

    def item(self, text: str, document: Any) -> None:
        """One of several answers, on a line of its own: as text, or as JSON."""
        if self.as_json:
            self._out.write(json.dumps(plain_data(document), ensure_ascii=False) + "\n")
            self._out.flush()
        else:
            self.line(text)

    def line(self, text: str) -> None:
        """Text on stdout."""
        if not self.as_json:
            self._out.write(text + "\n")
            self._out.flush()

    def say(self, text: str) -> None:
        """What goes on, on stderr."""
        if not self.quiet:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def _in_a_cluster() -> bool:
    """Is this process part of Ray's cluster? Asked without loading Ray, which most commands do without."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def plain_data(value: Any) -> Any:
    """Structs, enums, paths and bytes as what JSON knows. Fields at their default are not left out."""
    if isinstance(value, Struct):
        return {name: plain_data(getattr(value, name)) for name in value.__struct_fields__}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_data(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain_data(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_data(one) for one in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Path):
        return str(value)
    tolist = getattr(value, "tolist", None)  # numpy
    return plain_data(tolist()) if callable(tolist) else str(value)


def overrides(settings: list[str] | None) -> dict[str, Any]:
    """--set a.b=c as what `config.load` takes; values are YAML, so 3 is a number and [a, b] a list."""
    found = {}
    for setting in settings or []:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise ConfigError(
                "--set", f"wants A.B=VALUE, got {setting!r}", "for example --set tiers.secondary.agents=8"
            )
        try:
            found[path.strip()] = msgspec.yaml.decode(text) if text.strip() else ""
        except msgspec.DecodeError as error:
            raise ConfigError(f"--set {path}", f"is not a YAML value: {text!r}") from error
    return found

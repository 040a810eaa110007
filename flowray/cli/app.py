"""The entry point: commands by name, errors as sentences, exit codes 0 (done), 1 (failed), 2 (wrong usage)."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Annotated

import typer

from flowray import errors
from flowray.cli import bridges, lifecycle, router, run, settings, tasks, tokens
from flowray.errors import FlowrayError

_HINTS: tuple[tuple[type[FlowrayError], str], ...] = (
    (errors.NotConnected, "start one with `flowray up`, or name its cluster with --address"),
    (errors.UnknownCapability, "`flowray agents` shows what the team can do"),
    (
        errors.AgentStartFailed,
        "`flowray agents` shows the reason; --set core.restart.max_start_failures=1 to see it sooner",
    ),
    (errors.StoreFenced, "another coordinator took the journal over"),
    (errors.QueueFull, "raise core.admission.max_open_tasks, or wait"),
)

app = typer.Typer(
    name="flowray",
    help="Run teams of agents on Ray: start a runtime, give it tasks, see what it does and why.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help is plain text: it loads faster and can be piped
)


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; works anywhere on the line.")] = False,
) -> None:
    """Run teams of agents on Ray."""


settings.add_to(app)
lifecycle.add_to(app)
tasks.add_to(app)
run.add_to(app)
tokens.add_to(app)
bridges.add_to(app)
router.add_to(app)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    own = given[: given.index("--")] if "--" in given else given
    debug, as_json = "--debug" in own, "--json" in own
    while "--debug" in own:  # allowed behind the command too, where people put it
        own.remove("--debug")
    given = own + given[len(own) + debug :] if own is not given else own
    try:
        app(args=given, prog_name="flowray")
    except FlowrayError as error:
        _tell(error, as_json=as_json, debug=debug)
        sys.exit(exit_code(error))
    except BrokenPipeError:
        # Whoever read our output went away. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug of ours, told in one line
        if debug:
            traceback.print_exc()
        else:
            what = f"{type(error).__name__}: {error}"
            sys.stderr.write(f"flowray: this is a bug: {what}\n  run the command again with --debug, and report it\n")
        sys.exit(1)


def exit_code(error: FlowrayError) -> int:
    """2 for what the caller must change in the command or the configuration, else 1."""
    return 2 if isinstance(error, (errors.ConfigError, errors.InvalidTask)) else 1


def hint_for(error: FlowrayError) -> str:
    """What the reader can do about it."""
    if isinstance(error, errors.TaskError):
        return f"`flowray story {error.task_id}` tells what happened"
    own = getattr(error, "hint", "")
    return own or next((hint for kind, hint in _HINTS if isinstance(error, kind)), "")


def _tell(error: FlowrayError, *, as_json: bool, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    text = error.detail if isinstance(error, errors.TaskError) else str(error)
    hint = hint_for(error)
    if hint and hint not in text:
        text_with_hint = f"{text}\n  {hint}"
    else:
        text_with_hint = text
    if as_json:
        document = {"error": {"type": type(error).__name__, "message": text, "hint": hint}}
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    sys.stderr.write(f"flowray: {text_with_hint}\n")

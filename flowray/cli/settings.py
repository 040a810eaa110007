"""Commands about the configuration and this machine: config, doctor, version."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from flowray import config as configuration
from flowray.cli.screen import Json, Screen, Settings, overrides, plain_data

_File = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Configuration file (YAML).")]
_TONES = {"ok": "32", "warn": "33", "fail": "31"}


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    group = typer.Typer(help="Check, show and describe configurations.", no_args_is_help=True, rich_markup_mode=None)
    group.command("validate")(validate)
    group.command("show")(show)
    group.command("schema")(schema)
    app.add_typer(group, name="config")
    app.command()(doctor)
    app.command()(version)


def validate(file: _File = None, set_: Settings = None, as_json: Json = False) -> None:
    """Check a configuration file, with the environment and --set over it."""
    config = configuration.load(file, os.environ, overrides(set_))
    agents = sum(agent.count for agent in config.agents)
    text = f"{file or 'the defaults'}: valid (runtime {config.name!r}, {agents} agents in {len(config.tiers)} tiers)"
    Screen(as_json=as_json).answer(text, {"valid": True, "name": config.name, "agents": agents})


def show(file: _File = None, set_: Settings = None, as_json: Json = False) -> None:
    """Print the configuration that would be used: file, environment, --set and defaults, merged."""
    data = plain_data(configuration.load(file, os.environ, overrides(set_)))
    Screen(as_json=as_json).answer(msgspec.yaml.encode(data).decode().rstrip(), data)


def schema(as_json: Json = False) -> None:
    """Print the JSON Schema of configuration files, for editors."""
    from flowray.schema import text

    sys.stdout.write(text())


def doctor(file: _File = None, set_: Settings = None, as_json: Json = False) -> None:
    """Look for what usually goes wrong on a machine. Exit code 1 when something will."""
    from flowray.doctor import examine

    findings = examine(configuration.load(file, os.environ, overrides(set_)), os.environ, Path.home())
    failed = any(finding.state == "fail" for finding in findings)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    lines = []
    for one in findings:
        mark = f"\x1b[{_TONES[one.state]}m{one.state:<4}\x1b[0m" if colour else f"{one.state:<4}"
        lines.append(f"{mark}  {one.name:<10}  {one.text}" + (f"\n{'':18}-> {one.way_out}" if one.way_out else ""))
    Screen(as_json=as_json).answer("\n".join(lines), {"ok": not failed, "findings": findings})
    if failed:
        raise typer.Exit(1)


def version(as_json: Json = False) -> None:
    """Print the versions of flowray, Ray and Python."""
    versions = {"flowray": metadata.version("flowray"), "ray": metadata.version("ray")}
    versions["python"] = ".".join(map(str, sys.version_info[:3]))
    text = f"flowray {versions['flowray']} (Ray {versions['ray']}, Python {versions['python']})"
    Screen(as_json=as_json).answer(text, versions)

"""Commands about a runtime that stays: up, down, status, agents, drain."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowray.cli.screen import Address, Json, Name, Screen, Settings, overrides
from flowray.cli.systemd import unit_of
from flowray.config import load
from flowray.errors import ConfigError, NotConnected

if TYPE_CHECKING:
    from flowray.runtime.runtime import Runtime


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(agents)
    app.command()(drain)
    app.command(
        "ray", add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
    )(ray)


@contextmanager
def connected(name: str, address: str, screen: Screen) -> Iterator[Runtime]:
    """A running runtime, joined for the length of one command."""
    from flowray.runtime import service
    from flowray.runtime.runtime import Runtime

    with screen.alone():
        if address:
            runtime = Runtime.connect(name, address=service.checked(address))
        else:
            try:
                runtime = Runtime.connect(name)
            except NotConnected:  # no ticket, or one that opens nothing: there may be a cluster all the same
                runtime = Runtime.connect(name, address=service.address_of(name, os.environ))
        with runtime:
            yield runtime


def up(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Configuration file (YAML).")] = None,
    set_: Settings = None,
    host: Annotated[
        str, typer.Option("--host", help="Address under which other nodes reach this one. Ray's token guards it.")
    ] = "127.0.0.1",
    dashboard: Annotated[
        bool, typer.Option("--dashboard/--no-dashboard", help="Ray's dashboard on loopback: `ray job submit` needs it.")
    ] = True,
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", help="How long to wait until all agents are ready.")
    ] = 120.0,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay until the head ends, or SIGTERM takes it down: for systemd.")
    ] = False,
    systemd: Annotated[
        bool, typer.Option("--systemd", help="Print a systemd unit that does this at each boot, and start nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start a runtime that stays, until `flowray down`. Its head is started again when it dies."""
    from flowray.team import resolved

    screen = Screen(as_json=as_json)
    config = load(file, os.environ, overrides(set_))
    config = resolved(config, file.parent if file is not None else Path())
    if systemd:
        settings = [part for one in set_ or [] for part in ("--set", one)]
        asked = [*([str(file.absolute())] if file is not None else []), *settings, "--host", host]
        asked += ["--dashboard" if dashboard else "--no-dashboard", "--timeout-s", f"{timeout_s:g}", "--foreground"]
        text = unit_of(config.name, ["up", *asked])
        screen.answer(text, {"unit": text})
        return
    screen.say(f"starting runtime {config.name!r} ...")
    from flowray.runtime import service

    with screen.alone():
        there, started, took_s = service.up(config, host=host, dashboard=dashboard, wait_s=timeout_s)
    lines = [
        f"runtime {config.name!r} is up" + (f" ({took_s:.1f} s)" if started else " already; its agents were added")
    ]
    lines += [f"  Ray        {there.address}", f"  journal    {there.journal}"]
    if there.dashboard:
        lines.append(f"  dashboard  http://{there.dashboard} (token: ray get-auth-token)")
    lines.append(f"  log        {there.log}")
    document = {
        "name": config.name,
        "started": started,
        "address": there.address,
        "dashboard": f"http://{there.dashboard}" if there.dashboard else None,
        "journal": there.journal,
        "log": there.log,
        "pid": there.head.pid,
        "took_s": round(took_s, 3),
    }
    screen.answer("\n".join(lines), document)
    if foreground:
        sys.stdout.flush()
        status = service.keep(there)
        if status:
            screen.say(f"the head of runtime {config.name!r} has ended; the end of its log is in {there.log}")
        raise typer.Exit(status)


def down(name: Name = "default", as_json: Json = False) -> None:
    """Stop a runtime that `flowray up` started. Accepted tasks stay in its journal."""
    from flowray.runtime import service

    screen = Screen(as_json=as_json)
    with screen.alone():
        ended = service.down(name)
    text = (
        f"runtime {name!r} is down ({ended} processes ended)" if ended else f"runtime {name!r} was not running any more"
    )
    screen.answer(text, {"name": name, "processes_ended": ended})


def status(name: Name = "default", address: Address = "", as_json: Json = False) -> None:
    """Show what a runtime is doing."""
    screen = Screen(as_json=as_json)
    with connected(name, address, screen) as runtime:
        screen.view(runtime.status())


def agents(name: Name = "default", address: Address = "", as_json: Json = False) -> None:
    """Show a runtime's agents, by tier."""
    screen = Screen(as_json=as_json)
    with connected(name, address, screen) as runtime:
        screen.view(runtime.agents.view())


def drain(
    what: Annotated[
        list[str], typer.Argument(metavar="NODE|AGENT|CLASS...", help="A node, by its address or id; or agents.")
    ],
    keep: Annotated[bool, typer.Option("--keep", help="Take it back: nodes may have agents again.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout-s", help="How long to wait until all have left.")] = 120.0,
    name: Name = "default",
    address: Address = "",
    as_json: Json = False,
) -> None:
    """Have agents leave a node, or their processes, without any task failing. They start again elsewhere."""
    screen = Screen(as_json=as_json)
    with connected(name, address, screen) as runtime:
        known = {word for agent in runtime.status().agents for word in (agent.agent_id, agent.name)}
        names, nodes = [one for one in what if one in known], [one for one in what if one not in known]
        if keep and names:
            raise ConfigError("--keep", f"is for nodes, and {names[0]!r} is an agent, or a class of agents")
        done = [runtime.keep_node(one) if keep else runtime.drain_node(one, timeout_s=timeout_s) for one in nodes]
        back = runtime.agents.drain(*names, timeout_s=timeout_s) if names else []
        said = [f"node {one} {'may have agents again' if keep else 'is empty, and gets no agents'}" for one in done]
        said += [f"{one} is back" for one in back]
        screen.answer("\n".join(said), {"nodes": done, "kept": keep, "agents": back})


def ray(context: typer.Context) -> None:
    """Ray's own command line, for nodes whose agents start fast: `flowray ray start --address=HOST:PORT`.

    All arguments are Ray's. Nodes get the settings that flowray's own nodes have, where the environment has none.
    """
    from flowray.runtime.template import cli

    cli.become(context.args, dict(os.environ))

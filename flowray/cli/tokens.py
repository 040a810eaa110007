"""Commands about who may reach a runtime from outside its cluster: token create, list, revoke; ticket."""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import structs

from flowray.cli.screen import Json, Name, Screen
from flowray.errors import ConfigError, NotConnected

if TYPE_CHECKING:
    from flowray.mesh.tokens import Grant, Tokens

_Journal = Annotated[
    Path | None,
    typer.Option("--journal", help="The runtime's journal, where it was not started with `flowray up` by this user."),
]
_Hours = Annotated[float, typer.Option("--hours", help="How long it is valid; at most 24.")]


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    group = typer.Typer(
        help="Make, list and revoke tokens, while the runtime runs.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("create")(create)
    group.command("list")(list_)
    group.command("revoke")(revoke)
    app.add_typer(group, name="token")
    app.command()(ticket)


def create(
    name: Name = "default",
    scope: Annotated[str, typer.Option("--scope", help="client (tasks) or admin (everything).")] = "client",
    hours: _Hours = 8.0,
    label: Annotated[str, typer.Option("--label", help="For whom it is; shown in the list.")] = "",
    journal: _Journal = None,
    as_json: Json = False,
) -> None:
    """Make a token and print it, this once. `flowray ticket` gives all that a client needs, token included."""
    from flowray.mesh.tokens import check_scope

    token, grant = _tokens(name, journal).create(check_scope(scope), hours=hours, label=label)
    screen = Screen(as_json=as_json)
    screen.say(f"token {grant.token_id} for runtime {name!r}, {grant.scope}, until {_moment(grant.expires_at_utc)}")
    screen.answer(token, {**_row(grant, time.time()), "token": token})


def list_(name: Name = "default", journal: _Journal = None, as_json: Json = False) -> None:
    """Show the tokens of a runtime; never the secrets, which are not kept."""
    now = time.time()
    rows = [_row(grant, now) for grant in _tokens(name, journal).grants()]
    lines = [
        f"{row['token_id']}  {row['state']:<7}  {row['scope']:<6}  until {row['expires_at_utc']}  {row['label']}"
        for row in rows
    ]
    Screen(as_json=as_json).answer(
        "\n".join(line.rstrip() for line in lines) or f"runtime {name!r} has no tokens", rows
    )


def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `flowray token list` shows it.")],
    name: Name = "default",
    journal: _Journal = None,
    as_json: Json = False,
) -> None:
    """Refuse a token from now on."""
    grant = _tokens(name, journal).revoke(token_id)
    Screen(as_json=as_json).answer(f"token {grant.token_id} is revoked", _row(grant, time.time()))


def ticket(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the runtime.")] = "default",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write it there, readable by you alone.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address under which the other machine reaches this one.")] = "",
    hours: _Hours = 8.0,
    label: Annotated[str, typer.Option("--label", help="For whom it is; shown by `flowray token list`.")] = "",
    journal: _Journal = None,
    as_json: Json = False,
) -> None:
    """Make a ticket for another machine, with a token of its own: whoever has it is a client of the runtime."""
    from flowray.mesh.tickets import Ticket, split_address

    own = Ticket.load(name)
    if not own.address:
        raise NotConnected(f"runtime {own.runtime!r} listens on a Unix socket only: other machines cannot reach it")
    there, port = split_address("address", own.address)
    try:
        if host:
            there, _ = split_address("--host", f"{_bracketed(host)}:{port}")
    except ValueError as error:
        raise ConfigError("--host", f"wants a host name or an IP address, got {host!r}") from error
    screen = Screen(as_json=as_json)
    if _is_loopback(there):
        screen.say(f"{there} is this machine alone: name the address that others use with --host")
    if out is not None and out.is_dir():
        raise ConfigError("--out", f"{out} is a directory", f"for example -o {out / f'{name}.json'}")
    tokens = _tokens(name, journal)
    token, grant = tokens.create("client", hours=hours, label=label or "ticket")
    made = structs.replace(
        own, socket="", address=f"{_bracketed(there)}:{port}", token=token, expires_at_utc=grant.expires_at_utc
    )
    if out is None:
        screen.say(f"token {grant.token_id}, until {_moment(grant.expires_at_utc)}; keep what follows to yourself")
        screen.answer(made.encoded().decode().rstrip(), made)
        return
    try:
        made.save(out)
    except BaseException:
        tokens.revoke(grant.token_id)  # nobody has it
        raise
    text = f"{out}: a ticket to runtime {made.runtime!r} at {made.address}, until {_moment(grant.expires_at_utc)}"
    document = {"file": str(out), "address": made.address, **_row(grant, time.time())}
    screen.answer(f"{text}\n  revoke it with: flowray token revoke {grant.token_id} --name {name}", document)


def _tokens(name: str, journal: Path | None) -> Tokens:
    """The tokens of a runtime, whose file lies below its journal."""
    from flowray.mesh.private_files import DIRECTORY
    from flowray.mesh.tokens import Tokens
    from flowray.runtime import service
    from flowray.runtime.belongings import COPIES

    if journal is None:
        up = service.read(name)
        if up is None or not up.journal:
            problem = f"no runtime {name!r} was started with `flowray up` by this user"
            raise ConfigError("--name", problem, "name the directory of its journal with --journal")
        journal = Path(up.journal)
    journal = journal.expanduser()
    if not journal.is_dir():
        raise ConfigError("--journal", f"there is no directory {journal}")
    if (journal / COPIES).exists():
        # These files are copies: on a node that the coordinator has left, a change would take effect when it is back.
        typer.echo("the journal is in PostgreSQL: this counts on the node where the coordinator is", err=True)
    return Tokens(journal / DIRECTORY)


def _row(grant: Grant, now_utc: float) -> dict[str, Any]:
    """What may be shown of a token; the digest would only help somebody who has guessed it."""
    return {
        "token_id": grant.token_id,
        "state": grant.state(now_utc),
        "scope": grant.scope,
        "label": grant.label,
        "made_at_utc": _moment(grant.made_at_utc),
        "expires_at_utc": _moment(grant.expires_at_utc),
    }


def _moment(at_utc: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at_utc))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

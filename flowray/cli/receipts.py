"""Commands about what a router chose, and which version of it: router export, replay, report, versions."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowray.cli.screen import Json, Screen, plain_data
from flowray.errors import ConfigError

if TYPE_CHECKING:
    from flowray.routing.decisions import Decisions

_File = Annotated[
    Path, typer.Option("--receipts", metavar="FILE", help="Receipts, as `flowray router export` writes them.")
]


def add_to(group: typer.Typer) -> None:
    """Register these commands."""
    group.command("export")(export)
    group.command("replay")(replay)
    group.command("report")(report)
    group.command("versions")(versions)


def export(
    journal: Annotated[
        Path, typer.Option("--journal", metavar="DIR", help="The journal's directory; a runtime may be using it.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The Parquet file to write.")],
    as_json: Json = False,
) -> None:
    """Write the receipts of a journal, with what came of each attempt, to a Parquet file."""
    from flowray.routing import receipts
    from flowray.store import StoreConfig, schema
    from flowray.store.reader import Reader

    if not (journal / schema.FILE_NAME).is_file():
        raise ConfigError("--journal", f"there is no journal in {journal}", "name the directory of a runtime's journal")
    _check_place(out)
    with contextlib.closing(Reader(journal, StoreConfig())) as reader:
        rows = receipts.write(out, reader.all_outcomes())
    Screen(as_json=as_json).answer(f"{out}: {rows:,} receipts", {"receipts": str(out), "rows": rows})


def replay(
    receipts: _File,
    policy: Annotated[
        str,
        typer.Option("--policy", metavar="POLICY", help="greedy, cheapest:SHARE (of the best success) or always:NAME."),
    ] = "greedy",
    clip: Annotated[float, typer.Option("--clip", help="The least that a propensity counts as.")] = 0.01,
    resamples: Annotated[int, typer.Option("--resamples", help="Bootstrap draws behind an interval.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Say what another policy would have chosen in place of the one in force, and what that would have earned."""
    from flowray.routing import policies
    from flowray.routing import replay as replaying
    from flowray.routing.offpolicy import OffPolicyConfig

    config = OffPolicyConfig(clip=clip, resamples=resamples, seed=seed)
    found = replaying.replay(_decisions(receipts), policies.named(policy), policy, config=config)
    Screen(as_json=as_json).answer(replaying.as_text(found), _without_nan(plain_data(found)))


def report(
    receipts: _File,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write an HTML page with diagrams there.")
    ] = None,
    windows: Annotated[int, typer.Option("--windows", min=2, max=200, help="Into how many the time is cut.")] = 20,
    as_json: Json = False,
) -> None:
    """Say how good a router's estimates and choices were over time, what they cost, and where they drift."""
    from flowray.routing import analytics, receipts_report

    if out is not None:
        _check_place(out)
    found = analytics.analyse(_decisions(receipts), analytics.AnalyticsConfig(windows=windows))
    screen = Screen(as_json=as_json)
    if out is not None:
        out.write_text(receipts_report.as_html(found), encoding="utf-8")
        screen.say(f"report: {out}")
    screen.answer(receipts_report.as_text(found), _without_nan(plain_data(found)))


def _decisions(file: Path) -> Decisions:
    from flowray.routing import receipts
    from flowray.routing.decisions import Decisions

    return Decisions.of_table(receipts.read(file), str(file))


def _check_place(out: Path) -> None:
    if not out.parent.is_dir():
        raise ConfigError("--out", f"there is no directory {out.parent}", "make it first")


def versions(
    journal: Annotated[
        Path, typer.Option("--journal", metavar="DIR", help="The journal's directory; a runtime may be using it.")
    ],
    as_json: Json = False,
) -> None:
    """Show which version of the router was in force when, what was tried beside it, and why that ended as it did."""
    from flowray.runtime.views import RouterVersions
    from flowray.store import schema
    from flowray.store.decisions import router_records

    if not (journal / schema.FILE_NAME).is_file():
        raise ConfigError("--journal", f"there is no journal in {journal}", "name the directory of a runtime's journal")
    Screen(as_json=as_json).view(RouterVersions(records=router_records(journal)))


def _without_nan(value: Any) -> Any:
    """What is not known is null in JSON, which has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

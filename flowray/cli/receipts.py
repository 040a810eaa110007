"""Commands about what a router chose, and which version of it: router export, replay, report, versions."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowray.cli.journals import Journal, journal_of
from flowray.cli.screen import Json, Screen, plain_data
from flowray.errors import ConfigError

if TYPE_CHECKING:
    from flowray.core.routing import RoutingPolicy
    from flowray.routing.decisions import Decisions
    from flowray.routing.live import LiveRouter

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
    journal: Journal,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="The Parquet file to write: a row per attempt.")
    ] = None,
    as_set: Annotated[
        Path | None,
        typer.Option("--as-set", metavar="DIR", help="Write a set of outcomes, for `flowray router train --data DIR`."),
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Tasks in the set at most: the newest.")] = 100_000,
    as_json: Json = False,
) -> None:
    """Write the receipts of a journal, with what came of each attempt, to a Parquet file; or a set to train on."""
    from flowray.store.reader import Reader

    directory, store = journal_of(journal)
    if out is None and as_set is None:
        raise ConfigError(
            "--out", "is missing", "say -o FILE for receipts, --as-set DIR for a set of outcomes, or both"
        )
    for place in filter(None, (out, as_set)):
        _check_place(place)
    said: list[str] = []
    document: dict[str, Any] = {}
    with contextlib.closing(Reader(directory, store)) as reader:
        if out is not None:
            from flowray.routing import receipts

            rows = receipts.write(out, reader.all_recorded())
            said.append(f"{out}: {rows:,} receipts")
            document |= {"receipts": str(out), "rows": rows}
        if as_set is not None:
            from flowray.routing import exporting

            tasks = exporting.write_set(as_set, reader.all_recorded(), specs=reader.specs(), most=most)
            if not tasks:
                problem = f"no outcome in {journal} has a text"
                raise ConfigError("--as-set", problem, "texts are kept of routed tasks, up to core.routing.keep_text")
            said.append(f"{as_set}: {tasks:,} tasks")
            document |= {"set": str(as_set), "tasks": tasks}
    Screen(as_json=as_json).answer("\n".join(said), document)


def replay(
    receipts: _File,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="POLICY",
            help="greedy, cheapest:SHARE (of the best success), always:NAME, or routed: as a coordinator chooses. "
            "Left out: routed with --router, else greedy.",
        ),
    ] = None,
    router: Annotated[
        Path | None,
        typer.Option("--router", metavar="DIR", help="Another router, which reads the texts that were kept."),
    ] = None,
    history: Annotated[
        Path | None, typer.Option("--history", metavar="DIR", help="The outcomes that it goes by, as `router.history`.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Whose core.routing a routed policy follows; else the defaults."),
    ] = None,
    clip: Annotated[float, typer.Option("--clip", help="The least that a propensity counts as.")] = 0.01,
    resamples: Annotated[int, typer.Option("--resamples", help="Bootstrap draws behind an interval.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Say what another policy or router would have chosen in place of the one in force, and what that would earn."""
    from flowray.routing import policies
    from flowray.routing import receipts as recorded
    from flowray.routing import replay as replaying
    from flowray.routing.decisions import Decisions
    from flowray.routing.offpolicy import OffPolicyConfig
    from flowray.routing.rerouting import reroute, with_column

    if history is not None and router is None:
        raise ConfigError("--history", "says what a router goes by, and there is none", "say --router DIR too")
    judging = OffPolicyConfig(clip=clip, resamples=resamples, seed=seed)
    name = policy or ("greedy" if router is None else "routed")
    rules = _rules(config)
    policies.named(name)  # what is wrong with it shows before the router is loaded
    table, without_waits, without_text = recorded.read(receipts), 0, 0
    if name == "routed":
        table, without_waits = with_column(table, "waits_s")
    if router is None:
        decisions, estimates, deviations, called = Decisions.of_table(table, str(receipts)), None, None, name
    else:
        table, without_text = with_column(table, "prompt")
        if without_text and not table.num_rows:
            hint = "texts are kept up to core.routing.keep_text, by this flowray or a newer one"
            raise ConfigError("--router", f"no receipt in {receipts} has the text of its task", hint)
        again = reroute(table, _router(router, history), str(receipts))
        decisions, estimates, deviations = again.decisions, again.estimates, again.deviations
        called = f"{name} by router {again.version}"
    chosen = policies.named(name, rules, deviations)
    found = replaying.replay(decisions, chosen, called, estimates=estimates, config=judging)
    found = replace(found, without_text=without_text, without_waits=without_waits)
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


def _rules(file: Path | None) -> RoutingPolicy | None:
    if file is None:
        return None
    from flowray.config import load

    return load(file, os.environ).core.routing


def _router(artifact: Path, history: Path | None) -> LiveRouter:
    from flowray.routing import live

    return live.load(str(artifact), str(history) if history is not None else "")


def _decisions(file: Path) -> Decisions:
    from flowray.routing import receipts
    from flowray.routing.decisions import Decisions

    return Decisions.of_table(receipts.read(file), str(file))


def _check_place(out: Path) -> None:
    if not out.parent.is_dir():
        raise ConfigError("--out", f"there is no directory {out.parent}", "make it first")


def versions(
    journal: Journal,
    as_json: Json = False,
) -> None:
    """Show which version of the router was in force when, what was tried beside it, and why that ended as it did."""
    from flowray.runtime.views import RouterVersions
    from flowray.store.decisions import router_records

    Screen(as_json=as_json).view(RouterVersions(records=router_records(*journal_of(journal))))


def _without_nan(value: Any) -> Any:
    """What is not known is null in JSON, which has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

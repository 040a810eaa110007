"""Commands about the routing network: router evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowray.cli.screen import Json, Screen
from flowray.errors import ConfigError

DATA = Path("../shared/data")  # where the public sets lie beside a checkout

_Data = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="DIR", help="A set of outcomes, or a directory of such sets; may be repeated."),
]
_History = Annotated[
    Path, typer.Option("--history", metavar="DIR", help="Sets whose train outcomes are the agents' histories, by name.")
]
_Seed = Annotated[int, typer.Option("--seed", help="Of every random draw.")]


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    group = typer.Typer(
        help="Train, judge and look into the routing network.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("evaluate")(evaluate)
    app.add_typer(group, name="router")


def evaluate(
    more: Annotated[list[Path] | None, typer.Argument(metavar="[DIR]...", help="More directories for --data.")] = None,
    data: _Data = None,
    split: Annotated[str, typer.Option("--split", help="The tasks to judge on.")] = "test",
    history: _History = DATA,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write an HTML page with curves and diagrams there.")
    ] = None,
    with_router: Annotated[
        bool, typer.Option("--router/--no-router", help="Judge the router, or the baselines alone.")
    ] = True,
    with_baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Fit the baselines beside it (a minute or two).")
    ] = True,
    resamples: Annotated[int, typer.Option("--resamples", min=0, help="Bootstrap draws behind an interval.")] = 1000,
    seed: _Seed = 0,
    as_json: Json = False,
) -> None:
    """Judge the router on sets of outcomes, beside the baselines."""
    from flowray.routing import evaluation
    from flowray.routing.report import as_html, as_text

    directories = [*(data or ()), *(more or ())] or [DATA]
    if not (with_router or with_baselines):
        raise ConfigError("--no-router", "leaves nothing to judge together with --no-baselines")
    screen = Screen(as_json=as_json)
    reports = evaluation.evaluate_all(
        None,
        directories,
        history=history if history.is_dir() else None,
        split=split,
        with_baselines=with_baselines,
        resamples=resamples,
        seed=seed,
        started=lambda name: screen.say(f"{name} ..."),
    )
    if report is not None:
        report.write_text(as_html(reports), encoding="utf-8")
        screen.say(f"report: {report}")
    screen.answer(as_text(reports), evaluation.as_json(reports))

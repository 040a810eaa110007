"""Commands about the routing network: router train, prune, quantize, evaluate, ablate, inspect, explain.

Those about what it chose, export, replay, report and versions, are in `flowray.cli.receipts`.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowray.cli import receipts
from flowray.cli.screen import Json, Screen
from flowray.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from flowray.routing.data import OutcomeSet
    from flowray.routing.training import Progress

DATA = Path("../shared/data")  # where the public sets lie beside a checkout
SHIPPED = Path("models/router")  # one directory per version, in a checkout

_Data = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="DIR", help="A set of outcomes, or a directory of such sets; may be repeated."),
]
_More = Annotated[list[Path] | None, typer.Argument(metavar="[DIR]...", help="More directories for --data.")]
_Out = Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the new router goes.")]
_Model = Annotated[
    Path | None, typer.Option("--model", metavar="DIR", help="A trained router. Left out: the newest that is shipped.")
]
_Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="cpu, cuda, or auto: a GPU where torch finds one.")
]
_Seed = Annotated[int, typer.Option("--seed", min=0, help="Of every random draw.")]


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    group = typer.Typer(
        help="Train, judge and look into the routing network.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("train")(train)
    group.command("quantize")(quantize)
    group.command("evaluate")(evaluate)
    group.command("prune")(prune)
    group.command("ablate")(ablate)
    group.command("inspect")(inspect)
    group.command("explain")(explain)
    receipts.add_to(group)
    app.add_typer(group, name="router")


def train(
    out: _Out,
    more: _More = None,
    data: _Data = None,
    device: _Device = "auto",
    seed: _Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a router on sets of outcomes: `train` tasks to learn from, `val` tasks to choose by."""
    _need_torch()
    from flowray.routing import devices, estimator, training

    on = devices.chosen(device, "--device")
    sets = _to_learn_from(data, more)
    screen = Screen(as_json=as_json)
    trained = training.train(sets, training.TrainingConfig(seed=seed, device=on), report=partial(_tell, screen))
    digest = estimator.save(out, trained)
    learned = {"seconds": trained.seconds, "device": on, "data": dict(trained.digests)}
    said = f"{out}: trained on {len(sets)} sets in {trained.seconds:.0f} s, on {on}"
    screen.answer(said, {"model": str(out), "sha256": digest, **learned})


def prune(
    out: _Out,
    keep: Annotated[float, typer.Option("--keep", help="Share of the n-grams that stays, above 0 and at most 1.")],
    more: _More = None,
    data: _Data = None,
    model: _Model = None,
    device: _Device = "auto",
    seed: _Seed = 0,
    as_json: Json = False,
) -> None:
    """Leave out the n-grams that say least, and train what is left a little further."""
    if not 0 < keep <= 1:
        raise ConfigError("--keep", f"is a share above 0 and at most 1, got {keep:g}")
    _need_torch()
    from flowray.routing import devices, estimator, pruning, training
    from flowray.routing.features import featurise

    how = training.TrainingConfig(seed=seed, device=devices.chosen(device, "--device"))
    sets = _to_learn_from(data, more)
    screen = Screen(as_json=as_json)
    whole = estimator.load(model or _shipped()).network
    small = pruning.pruned(whole, [featurise(one.split("train").tasks) for one in sets], keep)
    trained = training.train(sets, how, start=small, report=partial(_tell, screen))
    digest = estimator.save(out, trained, pruned={"keep": keep})
    sizes = [sum(values.numel() for values in network.parameters()) for network in (whole, trained.network)]
    document = {"model": str(out), "sha256": digest, "parameters_before": sizes[0], "parameters_after": sizes[1]}
    screen.answer(f"{out}: {sizes[0]:,} parameters became {sizes[1]:,}", document)


def quantize(out: _Out, more: _More = None, data: _Data = None, model: _Model = None, as_json: Json = False) -> None:
    """Write a router again with weights of eight bits, and say what that changes."""
    _need_torch()
    from flowray.routing import estimator
    from flowray.routing.data import load_all

    sets = [one for one in load_all(_directories(data, more)) if "val" in one.splits]
    screen = Screen(as_json=as_json)
    fidelity = estimator.quantize(model or _shipped(), out, sets)
    screen.answer(
        f"{out}: {fidelity.reduction:.1%} smaller; on {fidelity.n_tasks:,} tasks of val a probability of success is "
        f"off by {fidelity.mean_error:.4f} on average and {fidelity.largest_error:.4f} at most, "
        f"{fidelity.decisions_changed:.2%} of choices and {fidelity.labels_changed:.2%} of labels are others",
        fidelity,
    )


def evaluate(
    more: _More = None,
    data: _Data = None,
    split: Annotated[str, typer.Option("--split", help="The tasks to judge on.")] = "test",
    history: Annotated[
        Path,
        typer.Option("--history", metavar="DIR", help="Where sets without train outcomes of their own find them."),
    ] = DATA,
    history_tasks: Annotated[
        int | None,
        typer.Option("--history-tasks", min=1, help="Let agents have a past of so many tasks only, drawn at random."),
    ] = None,
    model: _Model = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write an HTML page with curves and diagrams there.")
    ] = None,
    with_router: Annotated[
        bool, typer.Option("--router/--no-router", help="Judge the router, or the baselines alone.")
    ] = True,
    with_baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Fit the baselines beside it (some minutes).")
    ] = True,
    resamples: Annotated[int, typer.Option("--resamples", min=0, help="Bootstrap draws behind an interval.")] = 1000,
    seed: _Seed = 0,
    as_json: Json = False,
) -> None:
    """Judge a router on sets of outcomes, beside the baselines."""
    from flowray.routing import evaluation
    from flowray.routing.report import as_html, as_text

    if not (with_router or with_baselines):
        raise ConfigError("--no-router", "leaves nothing to judge together with --no-baselines")
    router = None
    if with_router:
        _need_torch()
        from flowray.routing import estimator

        router = estimator.load(model or _shipped())
    screen = Screen(as_json=as_json)
    reports = evaluation.evaluate_all(
        router,
        _directories(data, more),
        history=history if history.is_dir() else None,
        split=split,
        with_baselines=with_baselines,
        resamples=resamples,
        seed=seed,
        history_tasks=history_tasks,
        started=lambda name: screen.say(f"{name} ..."),
    )
    if report is not None:
        report.write_text(as_html(reports), encoding="utf-8")
        screen.say(f"report: {report}")
    screen.answer(as_text(reports), evaluation.as_json(reports))


def ablate(
    more: _More = None,
    data: _Data = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How often each variant is trained.")] = 3,
    seed: _Seed = 0,
    as_json: Json = False,
) -> None:
    """Train without each part in turn, and say on val what that part brings or costs (half an hour on two cores)."""
    _need_torch()
    from flowray.routing import ablation, training

    sets = _to_learn_from(data, more)
    screen = Screen(as_json=as_json)
    rows = ablation.ablate(sets, training.TrainingConfig(seed=seed), seeds=seeds, report=screen.say)
    screen.answer(ablation.as_text(rows), {"rows": rows})


def inspect(model: _Model = None, as_json: Json = False) -> None:
    """Show a router's card: what it was trained on, how, with what result."""
    from flowray.routing import artifacts

    card = artifacts.card(model or _shipped())
    Screen(as_json=as_json).answer("\n".join(_outlined(card)), card)


def explain(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The task.")],
    agents: Annotated[
        Path,
        typer.Option("--agents", metavar="DIR", help="A set: its agents, and what they did at its train tasks."),
    ],
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="AGENT", help="Choose from these alone; may be repeated.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many candidates to show.")] = 5,
    model: _Model = None,
    as_json: Json = False,
) -> None:
    """Say which agents the router prefers for a task, and why."""
    _need_torch()
    from flowray.routing import estimator, explanation
    from flowray.routing.data import team
    from flowray.routing.estimates import TaskBatch

    batch, histories = team(agents)
    if only:
        unknown = sorted(set(only) - set(batch.agent_ids))
        if unknown:
            raise ConfigError("--only", f"{agents} has no agent {unknown[0]!r}", f"it has {', '.join(batch.agent_ids)}")
        rows = [batch.agent_ids.index(agent_id) for agent_id in dict.fromkeys(only)]
        batch, histories = batch.take(rows), histories.take(agents=rows)
    router = estimator.load(model or _shipped())
    found = explanation.explain(router, TaskBatch.of_texts([text]), batch, histories, top)
    Screen(as_json=as_json).answer(found.as_text(), found)


def _to_learn_from(data: list[Path] | None, more: list[Path] | None) -> list[OutcomeSet]:
    from flowray.routing.data import load_all

    sets = load_all(_directories(data, more))
    if not any("train" in one.splits for one in sets):
        raise ConfigError("--data", "no set has tasks in 'train'", "name sets with a train split")
    return sets


def _tell(screen: Screen, step: Progress) -> None:
    val = ", ".join(f"{name} {value:.4f}" for name, value in step.val.items())
    screen.say(f"{step.phase} {step.epoch}/{step.epochs}  {step.elapsed_s:.0f} s  loss {step.loss:.4f}  {val}")


def _directories(data: list[Path] | None, more: list[Path] | None) -> list[Path]:
    given = [*(data or ()), *(more or ())]
    if not given and not DATA.is_dir():
        raise ConfigError("--data", f"there is no {DATA} here", "name a directory of sets")
    return given or [DATA]


def _shipped() -> Path:
    """The newest router below `models/router`, of the working directory or of the checkout that this is part of."""
    for place in (SHIPPED, Path(__file__).parents[2] / SHIPPED):
        cards = sorted(place.glob("*/card.json"), key=lambda card: _numbers(card.parent.name))
        if cards:
            return cards[-1].parent
    raise ConfigError("--model", f"there is no router in {SHIPPED}", "make one with `make router`, or name one")


def _numbers(version: str) -> tuple[tuple[int, str], ...]:
    """A version's parts, in an order where 10 comes after 9."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in version.removeprefix("v").split("."))


def _need_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra("the router needs torch: pip install 'flowray[router]'")


def _outlined(value: object, indent: str = "") -> list[str]:
    """A card as indented lines."""
    if not isinstance(value, dict):
        return [f"{indent}{value}"]
    lines = []
    for name, inner in value.items():
        if isinstance(inner, dict):
            lines += [f"{indent}{name}:", *_outlined(inner, indent + "  ")]
        elif isinstance(inner, list) and len(inner) > 12:
            lines.append(f"{indent}{name}: {', '.join(map(str, inner[:12]))}, ... ({len(inner)})")
        else:
            shown = ", ".join(map(str, inner)) if isinstance(inner, list) else inner
            lines.append(f"{indent}{name}: {shown}")
    return lines

"""What each part of the routing network brings or costs: the same lesson learned without it, judged on val.

What was found to bring nothing is off by default, and its line is of the network with it.

Labels are learned once (see `lessons.Lesson`); what differs is how outcomes are learned, or what is read of the past.
Each variant is trained with several seeds, and its figures are held against those of the whole with the same seeds: a
difference within two standard errors of these pairs is no difference. Quantization and pruning change a trained
network and are not trained from the beginning.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from flowray.routing import lessons, metrics, pruning, quantization, training
from flowray.routing.data import OutcomeSet
from flowray.routing.features import Features
from flowray.routing.lessons import Lesson, Prepared
from flowray.routing.memory import Views
from flowray.routing.network import RoutingNetwork
from flowray.routing.training import TrainingConfig

WHOLE = "whole"
FIGURES = ("auc", "log_loss", "routed_success")
PRUNED = 0.5  # share of the n-grams that stays


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to leave something out."""

    name: str
    network: Mapping[str, Any] = field(default_factory=dict)  # fields of NetworkConfig
    training: Mapping[str, Any] = field(default_factory=dict)  # fields of TrainingConfig
    lesson: Callable[[Lesson, Sequence[OutcomeSet]], Lesson] | None = None  # another past
    finish: Callable[[Lesson, RoutingNetwork, TrainingConfig], RoutingNetwork] | None = None  # of a trained network


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table: means over seeds and sets, differences from the whole and their standard errors."""

    name: str
    figures: Mapping[str, float]
    differences: Mapping[str, float]
    errors: Mapping[str, float]  # NaN with a single seed
    by_set: Mapping[str, Mapping[str, float]]  # set -> figures


VARIANTS: tuple[Variant, ...] = (
    Variant(name=WHOLE),
    Variant(name="with attention", network={"attention": True}),
    Variant(name="with batch normalisation", network={"batch_norm": True}),
    Variant(name="without clipping", training={"clip": None}),
    Variant(name="with dear agents counting more", training={"price_weighting": 0.5}),
    Variant(name="records alone (no residual)", network={"residual": False}),
    Variant(name="without n-grams in the residual", training={"bag_rate": 0.0}),
    Variant(name="records with the task itself", lesson=lambda lesson, sets: _recalled(
        lesson, sets, leave_one_out=False)),
    Variant(name="without kinds in memory", lesson=lambda lesson, sets: _recalled(
        lesson, sets, kinds=False)),
    Variant(name="without sense in memory", lesson=lambda lesson, sets: _recalled(
        lesson, sets, sense=False)),
    Variant(name="without history (priors alone)", lesson=lambda lesson, sets: _forgetful(lesson)),
    Variant(name="eight bits", finish=lambda lesson, router, config: _eight_bits(router)),
    Variant(name=f"pruned to {PRUNED:.0%} of n-grams", finish=lambda lesson, router, config: _pruned(
        lesson, router, PRUNED)),
    Variant(name=f"pruned to {PRUNED:.0%}, tuned again", finish=lambda lesson, router, config: _tuned(
        lesson, _pruned(lesson, router, PRUNED), config)),
)  # fmt: skip


def ablate(
    sets: Sequence[OutcomeSet],
    config: TrainingConfig | None = None,
    network: Mapping[str, Any] | None = None,
    *,
    seeds: int = 3,
    variants: Sequence[Variant] = VARIANTS,
    lesson: Lesson | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Train every variant with every seed; `lesson` is that of the sets, where it was learned before.

    Raises:
        ValueError: no set has outcomes.
    """
    config = config or TrainingConfig()
    whole = lesson if lesson is not None else training.learn_labels(sets, config, network)
    if not whole.check:
        raise ValueError("none of the sets has outcomes of agents in 'train' and 'val'")
    report("labels are learned")
    found: dict[str, list[dict[str, dict[str, float]]]] = {}
    trained: list[RoutingNetwork] = []
    for variant in variants:
        told = variant.lesson(whole, sets) if variant.lesson else whole
        for seed in range(seeds):
            changed = replace(config, seed=config.seed + seed, **variant.training)
            if variant.finish is not None:
                router = variant.finish(told, trained[seed], changed)
            else:
                router = training.learn_outcomes(told, changed, variant.network)
            if variant.name == WHOLE:
                trained.append(router)
            found.setdefault(variant.name, []).append(dict(_judged(router, told)))
        report(f"{variant.name}: log loss {_over_sets(found[variant.name], 'log_loss').mean():.4f}")
    return [_row(name, of_seeds, found[WHOLE]) for name, of_seeds in found.items()]


def as_text(rows: Sequence[Row]) -> str:
    """The table for a person."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'':<{width}}  {'AUC':>21}  {'log loss':>21}  {'routed success':>21}"]
    for row in rows:
        cells = [f"{row.figures[name]:.4f}" for name in FIGURES]
        if row.name != WHOLE:
            differences = [f" {row.differences[name]:+.4f} ±{2 * row.errors[name]:.4f}" for name in FIGURES]
            cells = [cell + difference for cell, difference in zip(cells, differences, strict=True)]
        lines.append(f"{row.name:<{width}}  " + "  ".join(f"{cell:>21}" for cell in cells))
    return "\n".join(lines)


def _judged(router: RoutingNetwork, lesson: Lesson) -> Iterator[tuple[str, dict[str, float]]]:
    """Figures of each set on val."""
    for part in lesson.check:
        with torch.inference_mode():
            logits = training.judged(router, part).numpy()
        success = part.success.numpy()
        known = np.isfinite(success)
        chosen = np.where(known, logits, -np.inf).argmax(axis=1)
        surprise = np.logaddexp(0.0, np.where(success > 0.5, -logits, logits))
        ones = np.ones((1, len(success)), np.float32)
        yield (
            part.name,
            {
                "auc": float(metrics.auc((1 / (1 + np.exp(-logits))).astype(np.float32), success)(ones)[0]),
                "log_loss": float(surprise[known].mean()),
                "routed_success": float(np.nanmean(success[np.arange(len(success)), chosen])),
            },
        )


def _over_sets(of_seeds: Sequence[Mapping[str, Mapping[str, float]]], figure: str) -> np.ndarray[Any, Any]:
    """[seeds] means over sets."""
    return np.array([np.mean([of_set[figure] for of_set in sets.values()]) for sets in of_seeds])


def _row(name: str, of_seeds: Sequence[dict[str, dict[str, float]]], whole: Sequence[Any]) -> Row:
    pairs = {figure: _over_sets(of_seeds, figure) - _over_sets(whole, figure) for figure in FIGURES}
    n_seeds = len(of_seeds)
    return Row(
        name=name,
        figures={figure: float(_over_sets(of_seeds, figure).mean()) for figure in FIGURES},
        differences={figure: float(pair.mean()) for figure, pair in pairs.items()},
        errors={
            figure: float(pair.std(ddof=1) / n_seeds**0.5) if n_seeds > 1 else float("nan")
            for figure, pair in pairs.items()
        },
        by_set={
            of_set: {figure: float(np.mean([seed[of_set][figure] for seed in of_seeds])) for figure in FIGURES}
            for of_set in of_seeds[0]
        },
    )


def _recalled(
    lesson: Lesson,
    sets: Sequence[OutcomeSet],
    *,
    leave_one_out: bool = True,
    kinds: bool = True,
    sense: bool = True,
) -> Lesson:
    """What the agents' records say, read otherwise."""
    other = Lesson(
        router=lesson.router, learn=[copy.copy(p) for p in lesson.learn], check=[copy.copy(p) for p in lesson.check]
    )
    by_name = {of_set.name: of_set for of_set in sets}

    def views(features: Features) -> Views:
        seen = lessons.views_of(lesson.router, features)
        return seen if sense else replace(seen, sense=seen.sense[:, :0])

    for past, new in zip(other.learn, other.check, strict=True):
        lessons.recall(
            lesson.router, by_name[past.name], past, new, leave_one_out=leave_one_out, views=views, kinds=kinds
        )
    return other


def _forgetful(lesson: Lesson) -> Lesson:
    """Of each agent only how often it succeeds at all."""

    def bare(part: Prepared) -> Prepared:
        part = copy.copy(part)
        part.records = part.records[:, :, :1].expand_as(part.records).clone()
        part.profiles = torch.zeros_like(part.profiles)
        return part

    return Lesson(
        router=lesson.router, learn=[bare(part) for part in lesson.learn], check=[bare(p) for p in lesson.check]
    )


def _eight_bits(router: RoutingNetwork) -> RoutingNetwork:
    """The network as it comes back from an artifact of eight bits."""
    return quantization.network_of(router.config, quantization.compressed(quantization.arrays_of(router))).eval()


def _pruned(lesson: Lesson, router: RoutingNetwork, keep: float) -> RoutingNetwork:
    return pruning.pruned(router, [part.features for part in lesson.learn], keep)


def _tuned(lesson: Lesson, router: RoutingNetwork, config: TrainingConfig) -> RoutingNetwork:
    """Outcomes learned further, for half as long."""
    tuned = replace(config, outcome_epochs=max(config.outcome_epochs // 2, 1))
    return training.learn_outcomes(Lesson(router=router, learn=lesson.learn, check=lesson.check), tuned)

"""Training: first the labels, then the outcomes; one loop for both.

Before both, what needs no learning is computed: which n-grams are read, and the bag of sense. Labels come first because
the agents' records are kept by them: the classifier must stand before a table can be made. Outcomes are then learned as
a residual on the records, each pair's without its own outcome (leave-one-out), or the network would learn to read the
answer off the table. Batches hold tasks of one set, with all its agents that may be trained on.

The same seed on the same machine's CPU gives the same weights, bit for bit; on another machine, and from run to run on
a GPU (`flowray.routing.devices`), sums may be rounded otherwise.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from flowray.routing import devices, sense, vocabulary
from flowray.routing.alignment import aligned
from flowray.routing.calibration import temperature
from flowray.routing.data import OutcomeSet
from flowray.routing.lessons import (
    UNTABLED,
    Lesson,
    Prepared,
    heads_of,
    prepared,
    recall,
    shares_of,
    sums_of,
)
from flowray.routing.network import NetworkConfig, RoutingNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How long and how fast."""

    seed: int = 0
    device: str = "cpu"  # or "cuda", or "auto": a GPU where there is one
    batch: int = 128  # tasks
    label_epochs: int = 5  # and `align_epochs` before them
    label_rate: float = 5e-3
    label_smoothing: float = 0.05
    align_epochs: int = 2  # after which heads of other sets are taught what says the same; 0: they are not
    folds: int = 3  # the labels of training tasks are guessed by networks that have not seen them; 1: by the network
    fold_epochs: int = 5
    outcome_epochs: int = 6
    outcome_rate: float = 1e-3
    bag_rate: float = 5e-4  # a faster one learns single tasks by heart; 0: outcomes are learned without n-grams
    weight_decay: float = 0.02
    clip: float | None = 1.0  # norm that gradients are clipped to
    patience: int = 3  # epochs without a better val before training stops
    agents_kept: float = 1.0  # share of a set's agents in a batch
    leave_one_out: bool = True  # False leaks the label; for ablations only
    quality_weight: float = 0.2
    class_weighting: float = 0.0  # power of a label's rarity that its tasks count by; 0: all count alike
    price_weighting: float = 0.0  # power of an agent's price, among its set's, that its outcomes count by; 0: alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One epoch."""

    phase: str  # "labels" or "outcomes"
    epoch: int
    epochs: int
    loss: float
    val: Mapping[str, float]  # what it came to on val
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A network and how it came to be."""

    network: RoutingNetwork
    config: TrainingConfig
    progress: tuple[Progress, ...]
    digests: Mapping[str, str]  # set -> SHA-256 of its files
    seconds: float


def train(
    sets: Sequence[OutcomeSet],
    config: TrainingConfig | None = None,
    network: Mapping[str, Any] | None = None,
    *,
    start: RoutingNetwork | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Trained:
    """Train on the `train` tasks of the sets, choose by their `val` tasks.

    `network` overrides fields of `NetworkConfig`. `start` is a network to go on from, with its n-grams and labels.

    Raises:
        ValueError: there is nothing to learn from.
        ConfigError: there is no such device.
    """
    config = config or TrainingConfig()
    config = replace(config, device=devices.chosen(config.device))
    begun = time.monotonic()
    done: list[Progress] = []

    def note(progress: Progress) -> None:
        done.append(progress)
        report(progress)

    lesson = learn_labels(sets, config, network, start=start, report=note)
    router = learn_outcomes(lesson, config, report=note)
    return Trained(
        network=router,
        config=config,
        progress=tuple(done),
        digests={of_set.name: of_set.digest for of_set in sets},
        seconds=time.monotonic() - begun,
    )


def learn_labels(
    sets: Sequence[OutcomeSet],
    config: TrainingConfig,
    network: Mapping[str, Any] | None = None,
    *,
    start: RoutingNetwork | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Lesson:
    """The first half of `train`: words, sense and labels, and what the agents' records say of each task."""
    heads = start.config.heads if start else heads_of(sets)
    tables = start.config.tables if start else tuple(name for name in heads if name not in UNTABLED)
    sums = start.config.sums if start else sums_of(sets, heads)
    plain = NetworkConfig(heads=heads, tables=tables, sums=sums)
    shape = start.config if start else replace(plain, **dict(network or {}))
    torch.manual_seed(config.seed)
    generator = np.random.default_rng(config.seed)
    router = copy.deepcopy(start) if start else RoutingNetwork(shape)
    learn = [prepared(of_set.split("train"), shape) for of_set in sets]
    check = [prepared(of_set.split("val"), shape) for of_set in sets]
    if not any(len(part.features) for part in learn):
        raise ValueError("none of the sets has a task in the split 'train'")
    if start is None:
        labelled = [(part.features, target.numpy()) for part in learn for target in part.targets.values()]
        router.learn_words(torch.from_numpy(vocabulary.choose(labelled, shape.rows - 1)))
        _standardise(router, learn)
        features = [part.features for part in learn]
        router.sense_bag.weight.data.copy_(
            sense.rows_of(features, router.row_of, shape.rows, shape.sense_width, config.seed)
        )
    if config.align_epochs and _unaligned(router, learn):
        if start is None:
            _train_labels(router, learn, check, replace(config, label_epochs=config.align_epochs), generator, report)
        _align(router, learn)
    _train_labels(router, learn, check, config, generator, report)
    if config.folds > 1:
        _cross_fit(router, [part for part in learn if part.success.numel()], config, generator, report)
    for of_set, past, new in zip(sets, learn, check, strict=True):
        if len(of_set.agents):
            recall(router, of_set, past, new, leave_one_out=config.leave_one_out)
    return Lesson(
        router=router,
        learn=[part for part in learn if part.success.numel()],
        check=[part for part in check if part.success.numel()],
    )


def learn_outcomes(
    lesson: Lesson,
    config: TrainingConfig,
    network: Mapping[str, Any] | None = None,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
) -> RoutingNetwork:
    """The second half of `train`: a network that knows the outcomes too. The lesson stays as it is.

    `network` overrides fields of `NetworkConfig` that the labels do not depend on: another shape for the same lesson.
    """
    torch.manual_seed(config.seed)
    router = copy.deepcopy(lesson.router)
    if network:
        router = RoutingNetwork(replace(router.config, **network))
        learned = {name: values for name, values in lesson.router.state_dict().items() if _of_labels(name)}
        router.load_state_dict(learned, strict=False)
    if lesson.learn:
        generator = np.random.default_rng(config.seed)
        _train_outcomes(router, lesson.learn, lesson.check, config, generator, report)
        _calibrate(router, lesson.check)
    return router.eval()


def _of_labels(name: str) -> bool:
    """Whether a tensor of the network's state is settled before outcomes are learned."""
    return name.startswith(("vocabulary", "label_", "heads.", "sense_", "trait_"))


def _train_labels(
    router: RoutingNetwork,
    learn: Sequence[Prepared],
    check: Sequence[Prepared],
    config: TrainingConfig,
    generator: np.random.Generator,
    note: Callable[[Progress], None],
) -> None:
    learn = [part for part in learn if part.targets]
    if not learn:
        return
    learner = devices.learner_of(router, config.device)
    parameters = [p for part in learner.label_parts() for p in part.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=config.label_rate, weight_decay=1e-4)

    weights = {
        (part.name, head): _rarity(target, len(router.config.heads[head]), config.class_weighting)
        for part in learn
        for head, target in part.targets.items()
    }

    def loss_of(part: Prepared, rows: npt.NDArray[np.intp]) -> Tensor:
        of_part = {head: weights[part.name, head] for head in part.targets}
        return label_loss(learner, part, rows, config, of_part)

    def value() -> dict[str, float]:
        right: dict[str, float] = {}
        for part in check:
            if len(part.features):
                logits = router.read_labels(part.features)
                for head, target in part.targets.items():
                    known = target >= 0
                    right[head] = float((logits[head].argmax(dim=1) == target)[known].float().mean())
        return right

    _loop("labels", router, learner, learn, optimiser, loss_of, value, config.label_epochs, config, generator, note)


def label_loss(
    learner: RoutingNetwork,
    part: Prepared,
    rows: npt.NDArray[np.intp],
    config: TrainingConfig,
    weights: Mapping[str, Tensor | None],
) -> Tensor:
    """What the labels of some tasks of a set cost the learner, on its device; `weights` as `_rarity` has them."""
    device = learner.device
    logits = learner.labels(*part.inputs(rows, device))
    losses = []
    for head, target in part.targets.items():
        wanted, weight = target[rows], weights.get(head)
        if head not in learner.config.sums and (wanted >= 0).any():
            loss = functional.cross_entropy(
                logits[head],
                wanted.to(device),
                weight=None if weight is None else weight.to(device),
                ignore_index=-1,
                label_smoothing=config.label_smoothing,
            )
            losses.append(loss)
    return torch.stack(losses).sum()


def _rarity(target: Tensor, n_labels: int, power: float) -> Tensor | None:
    """[labels] what a task of each label counts, 0.1 to 10: how much rarer than the mean it is, to some power."""
    if not power:
        return None
    counts = torch.bincount(target[target >= 0], minlength=n_labels).float()
    there = counts > 0
    weights = torch.ones(n_labels)
    weights[there] = (counts[there].mean() / counts[there]).pow(power).clamp(0.1, 10.0)
    return weights


def _unaligned(router: RoutingNetwork, learn: Sequence[Prepared]) -> list[tuple[Prepared, str, str]]:
    """(set, head, own) where a set might teach a head that it has no labels of with finer labels of its own."""
    heads = router.config.heads
    return [
        (part, head, own)
        for part in learn
        for head in router.heads
        for own in part.targets
        if head not in part.targets and own in router.heads and len(heads[own]) > len(heads[head])
    ]


def _align(router: RoutingNetwork, learn: Sequence[Prepared]) -> None:
    """Add targets to sets that say the same in finer words as a head of another set."""
    found = []
    for part, head, own in _unaligned(router, learn):
        with torch.no_grad():
            shares = torch.softmax(router.read_labels(part.features)[head], dim=1).numpy()
        partners = aligned(part.targets[own].numpy(), shares)
        if partners is not None:
            found.append((part, head, torch.from_numpy(partners)))
    for part, head, labels in found:
        part.targets[head] = labels


def _cross_fit(
    whole: RoutingNetwork,
    learn: Sequence[Prepared],
    config: TrainingConfig,
    generator: np.random.Generator,
    note: Callable[[Progress], None],
) -> None:
    """Fill in label probabilities of the training tasks as a network gives them that was trained on the others."""
    shape = whole.config
    folds = [part.groups % config.folds for part in learn]
    found = [{name: torch.zeros(len(part.groups), len(shape.heads[name])) for name in shape.tables} for part in learn]
    for fold in range(config.folds):
        router = RoutingNetwork(shape)
        router.learn_words(whole.vocabulary[whole.vocabulary >= 0])
        router.trait_mean.copy_(whole.trait_mean)
        router.trait_scale.copy_(whole.trait_scale)
        others = [part.take(np.flatnonzero(of != fold)) for part, of in zip(learn, folds, strict=True)]
        _train_labels(router, others, [], replace(config, label_epochs=config.fold_epochs), generator, note)
        for part, of, shares in zip(learn, folds, found, strict=True):
            rows = np.flatnonzero(of == fold)
            for name, share in shares_of(router, part.features.take(rows)).items():
                shares[name][rows] = torch.from_numpy(share)
    for part, shares in zip(learn, found, strict=True):
        part.shares = shares


def _train_outcomes(
    router: RoutingNetwork,
    learn: Sequence[Prepared],
    check: Sequence[Prepared],
    config: TrainingConfig,
    generator: np.random.Generator,
    note: Callable[[Progress], None],
) -> None:
    learner = devices.learner_of(router, config.device)
    frozen = {id(p) for part in learner.label_parts() for p in part.parameters()}
    bag = list(learner.meaning_bag.parameters())
    if not config.bag_rate:
        learner.meaning_bag.weight.data.zero_()  # rows that are not learned would be noise
        devices.bring_home(learner, router)
    others = [p for p in learner.parameters() if id(p) not in frozen and all(p is not b for b in bag)]
    optimiser = torch.optim.AdamW(
        [
            {"params": bag, "lr": config.bag_rate, "weight_decay": 0.0},
            {"params": others, "lr": config.outcome_rate, "weight_decay": config.weight_decay},
        ]
    )

    def loss_of(part: Prepared, rows: npt.NDArray[np.intp]) -> Tensor:
        n_agents = part.success.shape[1]
        kept = generator.permutation(n_agents)[: max(2, round(n_agents * config.agents_kept))]
        return outcome_loss(learner, part, rows, kept, config)

    def value() -> dict[str, float]:
        losses: dict[str, float] = {}
        for part in check:
            if len(part.features):
                success = judged(router, part)
                known = torch.isfinite(part.success)
                losses[part.name] = -float(
                    functional.binary_cross_entropy_with_logits(success[known], part.success[known])
                )
        return losses

    _loop("outcomes", router, learner, learn, optimiser, loss_of, value, config.outcome_epochs, config, generator, note)


def outcome_loss(
    learner: RoutingNetwork,
    part: Prepared,
    rows: npt.NDArray[np.intp],
    kept: npt.NDArray[np.intp],
    config: TrainingConfig,
) -> Tensor:
    """What the outcomes of some tasks of a set, done by the agents that are `kept`, cost the learner, on its device."""
    device = learner.device
    shares = part.shares and {name: share[rows] for name, share in part.shares.items()}
    familiarity, profiles = part.familiarity[rows].to(device), part.profiles[kept].to(device)
    encoded = learner.encode(*part.inputs(rows, device), familiarity, devices.moved(shares, device))
    strengths = learner.strengths(profiles)
    success, quality = learner.judge(encoded, part.records[rows][:, kept].to(device), strengths)
    target, score = part.success[rows][:, kept].to(device), part.quality[rows][:, kept].to(device)
    known = torch.isfinite(target)
    weights = _by_price(profiles, config.price_weighting)
    loss = _surprise(success, target, known, weights)
    if not config.quality_weight:
        return loss
    return loss + config.quality_weight * _surprise(quality, score, known, weights)


def _surprise(logits: Tensor, target: Tensor, known: Tensor, weights: Tensor) -> Tensor:
    """Mean log loss over readers, tasks and agents [readers, tasks, agents] where the outcome is known.

    `weights` [agents] say how much each agent's outcomes count.
    """
    each = functional.binary_cross_entropy_with_logits(logits, target.nan_to_num().expand_as(logits), reduction="none")
    counted = known * weights
    return (each * counted).sum() / (counted.sum().clamp(min=1e-6) * len(logits))


def _by_price(profiles: Tensor, power: float) -> Tensor:
    """[agents] what their outcomes count: their price, relative to the middle one of their set, to some power.

    The last number of a profile is the logarithm of that; it is 0 where the price is not known.
    """
    return torch.exp(power * profiles[:, -1]).clamp(0.1, 10.0)


def _calibrate(router: RoutingNetwork, check: Sequence[Prepared]) -> None:
    router.temperature.fill_(1.0)
    with torch.inference_mode():
        logits = [judged(router, part).numpy() for part in check]
    router.temperature.fill_(temperature(logits, [part.success.numpy() for part in check]))


def judged(router: RoutingNetwork, part: Prepared) -> Tensor:
    """Logits of success [tasks, agents] of all tasks of a set, from the records that it was prepared with."""
    encoded = router.encode(*part.inputs(np.arange(len(part.features))), part.familiarity)
    return router.judge(encoded, part.records, router.strengths(part.profiles))[0]


def _loop(
    phase: str,
    router: RoutingNetwork,
    learner: RoutingNetwork,
    learn: Sequence[Prepared],
    optimiser: torch.optim.Optimizer,
    loss_of: Callable[[Prepared, npt.NDArray[np.intp]], Tensor],
    value: Callable[[], dict[str, float]],
    epochs: int,
    config: TrainingConfig,
    generator: np.random.Generator,
    note: Callable[[Progress], None],
) -> None:
    """Epochs of batches, the rate falling to zero; the weights of the best epoch on val stay.

    `loss_of` and the optimiser are of the learner, `value` is of the router.
    """
    begun = time.monotonic()
    if phase == "labels":  # small sets are seen more often: labels are learned from them as well as from large ones
        most = max(len(part.features) for part in learn)
        learn = [part for part in learn for _ in range(min(max(round(most / max(len(part.features), 1)), 1), 3))]
    steps = sum(1 for _ in _batches(learn, config.batch, np.random.default_rng(0))) * epochs
    rates = [group["lr"] for group in optimiser.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=steps + 1, pct_start=0.1)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    clipped = [p for p in parameters if p.ndim < 2 or p.shape[0] < router.config.rows]  # a bag's gradient is sparse
    best, best_state, since = -np.inf, copy.deepcopy(router.state_dict()), 0
    for epoch in range(epochs):
        learner.train()
        total, count = 0.0, 0
        for part, rows in _batches(learn, config.batch, generator):
            loss = loss_of(part, rows)
            step(loss, optimiser, clipped, config.clip)
            schedule.step()
            total, count = total + float(loss.detach()), count + 1
        devices.bring_home(learner, router)
        router.eval()
        with torch.no_grad():
            val = value()
        mean = float(np.mean(list(val.values()))) if val else -total / count
        since = 0 if mean > best else since + 1
        if mean > best:
            best, best_state = mean, copy.deepcopy(router.state_dict())
        note(
            Progress(
                phase=phase,
                epoch=epoch + 1,
                epochs=epochs,
                loss=total / count,
                val=val,
                elapsed_s=time.monotonic() - begun,
            )
        )
        if since >= config.patience:
            break
    router.load_state_dict(best_state)
    router.eval()


def step(loss: Tensor, optimiser: torch.optim.Optimizer, clipped: Sequence[Tensor], clip: float | None) -> None:
    """Change the weights once, so that the loss becomes less."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if clip is not None:
        nn.utils.clip_grad_norm_(clipped, clip)
    optimiser.step()


def _batches(
    learn: Sequence[Prepared], size: int, generator: np.random.Generator
) -> Iterator[tuple[Prepared, npt.NDArray[np.intp]]]:
    """All tasks once, in batches of one set each, sets mixed."""
    batches = []
    for part in learn:
        order = generator.permutation(len(part.features))
        order = np.resize(order, max(len(order), 2)) if len(order) else order  # of one task there is no variance
        whole = max(len(order) - len(order) % size, min(len(order), size))  # a rest would upset batch normalisation
        batches += [(part, order[at : at + size]) for at in range(0, whole, size)]
    return (batches[number] for number in generator.permutation(len(batches)))


def _standardise(router: RoutingNetwork, learn: Sequence[Prepared]) -> None:
    """Every set counts alike, so that a trait of a small set is not squashed by the large ones."""
    means = np.stack([part.features.traits.mean(axis=0) for part in learn if len(part.features)])
    squares = np.stack([(part.features.traits**2).mean(axis=0) for part in learn if len(part.features)])
    mean = means.mean(axis=0)
    deviation = np.sqrt(np.maximum(squares.mean(axis=0) - mean**2, 0.0))
    router.trait_mean.copy_(torch.from_numpy(mean))
    router.trait_scale.copy_(torch.from_numpy(np.where(deviation > 1e-3, 1.0 / np.maximum(deviation, 1e-3), 0.0)))

"""Training: first the labels, then the outcomes; one loop for both.

Before both, what needs no learning is computed: which n-grams are read, and the bag of sense. Labels come first because
the agents' records are kept by them: the classifier must stand before a table can be made. Outcomes are then learned as
a residual on the records, each pair's without its own outcome (leave-one-out), or the network would learn to read the
answer off the table. Batches hold tasks of one set, with all its agents that may be trained on.

The same seed on the same machine gives the same weights; on another machine sums may be rounded otherwise.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from flowray.routing import sense, vocabulary
from flowray.routing.alignment import aligned
from flowray.routing.calibration import temperature
from flowray.routing.data import OutcomeSet
from flowray.routing.estimates import Floats
from flowray.routing.features import Features, featurise
from flowray.routing.memory import Views
from flowray.routing.network import NetworkConfig, RoutingNetwork, tensors
from flowray.routing.records import Records

# Which head learns which column of labels; a set that is not named here gives each of its columns a head of its own.
HEADS: Mapping[str, Mapping[str, str]] = {
    "mmlu_pro_matrix": {"task_type": "category"},
    "llmrouter_mix": {"capability": "capability", "task_type": "task"},
    "routellm_pairs": {"task_type": "subject"},
    "intent_clinc150": {"intent": "intent", "domain": "domain"},
}
UNTABLED = ("intent", "domain")  # heads of sets without agents: no record can be kept by them


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How long and how fast."""

    seed: int = 0
    batch: int = 128  # tasks
    label_epochs: int = 5  # and `align_epochs` before them
    label_rate: float = 5e-3
    label_smoothing: float = 0.05
    align_epochs: int = 2  # after which heads of other sets are taught what says the same; 0: they are not
    folds: int = 3  # the labels of training tasks are guessed by networks that have not seen them; 1: by the network
    fold_epochs: int = 5
    outcome_epochs: int = 6
    outcome_rate: float = 1e-3
    bag_rate: float = 5e-4  # a faster one learns single tasks by heart
    weight_decay: float = 0.02
    clip: float | None = 1.0  # norm that gradients are clipped to
    patience: int = 3  # epochs without a better val before training stops
    agents_kept: float = 1.0  # share of a set's agents in a batch
    leave_one_out: bool = True  # False leaks the label; for ablations only
    quality_weight: float = 0.2


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


@dataclass(slots=True, kw_only=True)
class _Prepared:
    """One set's tasks of one split as tensors."""

    name: str
    features: Features
    groups: npt.NDArray[np.intp]  # [tasks] tasks of one group are never told apart by a fold
    targets: dict[str, Tensor]  # head -> [tasks] numbers of labels, -1 where a task has none
    success: Tensor  # [tasks, agents]
    quality: Tensor  # [tasks, agents]
    records: Tensor = field(default_factory=lambda: torch.zeros(0))  # [tasks, agents, sources]
    profiles: Tensor = field(default_factory=lambda: torch.zeros(0))  # [agents, profile width]
    familiarity: Tensor = field(default_factory=lambda: torch.zeros(0))  # [tasks]
    shares: dict[str, Tensor] | None = None  # head -> [tasks, labels], out of fold; None: the network's own

    def inputs(self, rows: npt.NDArray[np.intp]) -> tuple[Tensor, Tensor, Tensor]:
        return tensors(self.features.take(rows))

    def take(self, rows: npt.NDArray[np.intp]) -> _Prepared:
        """Some of the tasks, for learning labels."""
        targets = {head: target[rows] for head, target in self.targets.items()}
        none = torch.zeros(0)
        features, groups = self.features.take(rows), self.groups[rows]
        return _Prepared(name=self.name, features=features, groups=groups, targets=targets, success=none, quality=none)


def heads_of(sets: Sequence[OutcomeSet]) -> dict[str, tuple[str, ...]]:
    """Every head that the sets can teach, with its labels in order."""
    labels: dict[str, set[str]] = {}
    for of_set in sets:
        for column, head in _columns(of_set).items():
            labels.setdefault(head, set()).update(label for label in of_set.labels[column] if label)
    return {head: tuple(sorted(found)) for head, found in sorted(labels.items()) if len(found) > 1}


def sums_of(sets: Sequence[OutcomeSet], heads: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Heads whose label follows from that of another head of the same set, as an intent's domain does.

    They need no weights: their probabilities are sums of the other's, and more exact than learned ones.
    """
    sums: dict[str, tuple[str, tuple[int, ...]]] = {}
    for of_set in sets:
        columns = {column: head for column, head in _columns(of_set).items() if head in heads}
        for coarse, fine in permutations(columns, 2):
            pairs = {pair for pair in zip(of_set.labels[fine], of_set.labels[coarse], strict=True) if all(pair)}
            within = dict(pairs)
            head, of = columns[coarse], columns[fine]
            if len(within) == len(pairs) == len(heads[of]) > len(heads[head]) and of not in sums:
                number = {label: at for at, label in enumerate(heads[head])}
                sums[head] = of, tuple(number[within[label]] for label in heads[of])
    return sums


@dataclass(slots=True, kw_only=True)
class Lesson:
    """Sets made ready for learning outcomes, and a network that knows their labels."""

    router: RoutingNetwork
    learn: list[_Prepared]  # train tasks of the sets with agents
    check: list[_Prepared]  # their val tasks


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
    """
    config = config or TrainingConfig()
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
    learn = [_prepared(of_set.split("train"), shape) for of_set in sets]
    check = [_prepared(of_set.split("val"), shape) for of_set in sets]
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
            recall(router, of_set, past, new, config)
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
    learn: Sequence[_Prepared],
    check: Sequence[_Prepared],
    config: TrainingConfig,
    generator: np.random.Generator,
    note: Callable[[Progress], None],
) -> None:
    learn = [part for part in learn if part.targets]
    if not learn:
        return
    parameters = [p for part in router.label_parts() for p in part.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=config.label_rate, weight_decay=1e-4)

    def loss_of(part: _Prepared, rows: npt.NDArray[np.intp]) -> Tensor:
        logits = router.labels(*part.inputs(rows))
        losses = [
            functional.cross_entropy(
                logits[head], target[rows], ignore_index=-1, label_smoothing=config.label_smoothing
            )
            for head, target in part.targets.items()
            if head not in router.config.sums and (target[rows] >= 0).any()
        ]
        return torch.stack(losses).sum()

    def value() -> dict[str, float]:
        right: dict[str, float] = {}
        for part in check:
            if len(part.features):
                logits = router.read_labels(part.features)
                for head, target in part.targets.items():
                    known = target >= 0
                    right[head] = float((logits[head].argmax(dim=1) == target)[known].float().mean())
        return right

    _loop("labels", router, learn, optimiser, loss_of, value, config.label_epochs, config, generator, note)


def _unaligned(router: RoutingNetwork, learn: Sequence[_Prepared]) -> list[tuple[_Prepared, str, str]]:
    """(set, head, own) where a set might teach a head that it has no labels of with finer labels of its own."""
    heads = router.config.heads
    return [
        (part, head, own)
        for part in learn
        for head in router.heads
        for own in part.targets
        if head not in part.targets and own in router.heads and len(heads[own]) > len(heads[head])
    ]


def _align(router: RoutingNetwork, learn: Sequence[_Prepared]) -> None:
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
    learn: Sequence[_Prepared],
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
    learn: Sequence[_Prepared],
    check: Sequence[_Prepared],
    config: TrainingConfig,
    generator: np.random.Generator,
    note: Callable[[Progress], None],
) -> None:
    frozen = {id(p) for part in router.label_parts() for p in part.parameters()}
    bag = list(router.meaning_bag.parameters())
    others = [p for p in router.parameters() if id(p) not in frozen and all(p is not b for b in bag)]
    optimiser = torch.optim.AdamW(
        [
            {"params": bag, "lr": config.bag_rate, "weight_decay": 0.0},
            {"params": others, "lr": config.outcome_rate, "weight_decay": config.weight_decay},
        ]
    )

    def loss_of(part: _Prepared, rows: npt.NDArray[np.intp]) -> Tensor:
        n_agents = part.success.shape[1]
        kept = generator.permutation(n_agents)[: max(2, round(n_agents * config.agents_kept))]
        shares = part.shares and {name: share[rows] for name, share in part.shares.items()}
        encoded = router.encode(*part.inputs(rows), part.familiarity[rows], shares)
        strengths = router.strengths(part.profiles[kept])
        success, quality = router.judge(encoded, part.records[rows][:, kept], strengths)
        target, score = part.success[rows][:, kept], part.quality[rows][:, kept]
        known = torch.isfinite(target)
        loss = _surprise(success, target, known)
        return loss + config.quality_weight * _surprise(quality, score, known) if config.quality_weight else loss

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

    _loop("outcomes", router, learn, optimiser, loss_of, value, config.outcome_epochs, config, generator, note)


def _surprise(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean log loss over readers, tasks and agents [readers, tasks, agents] where the outcome is known."""
    each = functional.binary_cross_entropy_with_logits(logits, target.nan_to_num().expand_as(logits), reduction="none")
    return (each * known).sum() / (known.sum().clamp(min=1) * len(logits))


def _calibrate(router: RoutingNetwork, check: Sequence[_Prepared]) -> None:
    router.temperature.fill_(1.0)
    with torch.inference_mode():
        logits = [judged(router, part).numpy() for part in check]
    router.temperature.fill_(temperature(logits, [part.success.numpy() for part in check]))


def judged(router: RoutingNetwork, part: _Prepared) -> Tensor:
    """Logits of success [tasks, agents] of all tasks of a set, from the records that it was prepared with."""
    encoded = router.encode(*part.inputs(np.arange(len(part.features))), part.familiarity)
    return router.judge(encoded, part.records, router.strengths(part.profiles))[0]


def _loop(
    phase: str,
    router: RoutingNetwork,
    learn: Sequence[_Prepared],
    optimiser: torch.optim.Optimizer,
    loss_of: Callable[[_Prepared, npt.NDArray[np.intp]], Tensor],
    value: Callable[[], dict[str, float]],
    epochs: int,
    config: TrainingConfig,
    generator: np.random.Generator,
    note: Callable[[Progress], None],
) -> None:
    """Epochs of batches, the rate falling to zero; the weights of the best epoch on val stay."""
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
        router.train()
        total, count = 0.0, 0
        for part, rows in _batches(learn, config.batch, generator):
            loss = loss_of(part, rows)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if config.clip is not None:
                nn.utils.clip_grad_norm_(clipped, config.clip)
            optimiser.step()
            schedule.step()
            total, count = total + float(loss.detach()), count + 1
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


def _batches(
    learn: Sequence[_Prepared], size: int, generator: np.random.Generator
) -> Iterator[tuple[_Prepared, npt.NDArray[np.intp]]]:
    """All tasks once, in batches of one set each, sets mixed."""
    batches = []
    for part in learn:
        order = generator.permutation(len(part.features))
        order = np.resize(order, max(len(order), 2)) if len(order) else order  # of one task there is no variance
        whole = max(len(order) - len(order) % size, min(len(order), size))  # a rest would upset batch normalisation
        batches += [(part, order[at : at + size]) for at in range(0, whole, size)]
    return (batches[number] for number in generator.permutation(len(batches)))


def _prepared(of_set: OutcomeSet, shape: NetworkConfig) -> _Prepared:
    targets = {}
    for column, head in _columns(of_set).items():
        if head in shape.heads:
            number = {label: at for at, label in enumerate(shape.heads[head])}
            targets[head] = torch.tensor([number.get(label, -1) for label in of_set.labels[column]])
    seen = np.flatnonzero(of_set.seen)
    return _Prepared(
        name=of_set.name,
        features=featurise(of_set.tasks),
        groups=of_set.groups,
        targets=targets if len(of_set) else {},
        success=torch.from_numpy(of_set.outcomes.success[:, seen]),
        quality=torch.from_numpy(of_set.outcomes.quality[:, seen]),
    )


def recall(
    router: RoutingNetwork,
    of_set: OutcomeSet,
    past: _Prepared,
    new: _Prepared,
    config: TrainingConfig,
    *,
    views: Callable[[Features], Views] | None = None,
    kinds: bool = True,
) -> None:
    """Fill in what the agents' records say, of the past without the task itself, of val from the whole past.

    `views` and `kinds` are for ablations: what likeness is judged by, and whether kinds of tasks are told.
    """
    view = views or (lambda features: views_of(router, features))
    seen = np.flatnonzero(of_set.seen)
    outcomes = of_set.split("train").outcomes.take(slice(None), seen)
    shares = shares_of(router, past.features)
    if past.shares is not None:  # a table row may be kept by the label itself, but must be looked up by a guess
        shares_asked = {name: share.numpy() for name, share in past.shares.items()}
    else:
        shares_asked = shares
    said = of_set.histories().kinds if kinds else ()
    past_view = view(past.features)
    records = Records.of(shares, past_view, outcomes, of_set.agents.take(seen), said)
    if config.leave_one_out:
        past.records = torch.from_numpy(records.of_past(shares, outcomes, shares_asked))
        past.familiarity = torch.from_numpy(records.memory.recall(past_view).familiarity)
    for part in (new,) if config.leave_one_out else (past, new):
        recalled = records.memory.recall(view(part.features))
        part.records = torch.from_numpy(records.of_tasks(shares_of(router, part.features), recalled.success))
        part.familiarity = torch.from_numpy(recalled.familiarity)
    past.profiles = new.profiles = torch.from_numpy(records.profiles)


def views_of(router: RoutingNetwork, features: Features, at_once: int = 512) -> Views:
    """What a memory judges the likeness of tasks by."""
    with torch.inference_mode():
        parts = [
            router.sense(features.take(np.arange(at, min(at + at_once, len(features))))).numpy()
            for at in range(0, max(len(features), 1), at_once)
        ]
    return Views(traits=features.traits, sense=np.concatenate(parts))


def shares_of(router: RoutingNetwork, features: Features, at_once: int = 512) -> dict[str, Floats]:
    """[tasks, labels] probabilities of the heads that records are kept by."""
    parts: dict[str, list[Floats]] = {name: [] for name in router.config.tables}
    router.eval()
    with torch.inference_mode():
        for at in range(0, max(len(features), 1), at_once):
            chosen = features.take(np.arange(at, min(at + at_once, len(features))))
            logits = router.read_labels(chosen)
            for name, found in parts.items():
                found.append(torch.softmax(logits[name], dim=1).numpy())
    return {name: np.concatenate(found) for name, found in parts.items()}


def _standardise(router: RoutingNetwork, learn: Sequence[_Prepared]) -> None:
    """Every set counts alike, so that a trait of a small set is not squashed by the large ones."""
    means = np.stack([part.features.traits.mean(axis=0) for part in learn if len(part.features)])
    squares = np.stack([(part.features.traits**2).mean(axis=0) for part in learn if len(part.features)])
    mean = means.mean(axis=0)
    deviation = np.sqrt(np.maximum(squares.mean(axis=0) - mean**2, 0.0))
    router.trait_mean.copy_(torch.from_numpy(mean))
    router.trait_scale.copy_(torch.from_numpy(np.where(deviation > 1e-3, 1.0 / np.maximum(deviation, 1e-3), 0.0)))


def _columns(of_set: OutcomeSet) -> dict[str, str]:
    """Column of labels -> head."""
    named = HEADS.get(of_set.name)
    found = named if named is not None else {column: column for column in of_set.labels}
    return {column: head for column, head in found.items() if column in of_set.labels}

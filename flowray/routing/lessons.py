"""What is learned from: sets of outcomes as tensors, and what the agents' records say of their tasks.

Training learns labels and then outcomes of the same tasks; between the two, the records are filled in (`recall`), kept
by the labels that the network then knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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


@dataclass(slots=True, kw_only=True)
class Prepared:
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

    def inputs(self, rows: npt.NDArray[np.intp], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """What `RoutingNetwork.labels` and `encode` read of these tasks, on a device."""
        grams, offsets, traits = tensors(self.features.take(rows))
        return grams.to(device), offsets.to(device), traits.to(device)

    def take(self, rows: npt.NDArray[np.intp]) -> Prepared:
        """Some of the tasks, for learning labels."""
        targets = {head: target[rows] for head, target in self.targets.items()}
        none = torch.zeros(0)
        features, groups = self.features.take(rows), self.groups[rows]
        return Prepared(name=self.name, features=features, groups=groups, targets=targets, success=none, quality=none)


@dataclass(slots=True, kw_only=True)
class Lesson:
    """Sets made ready for learning outcomes, and a network that knows their labels."""

    router: RoutingNetwork
    learn: list[Prepared]  # train tasks of the sets with agents
    check: list[Prepared]  # their val tasks


def heads_of(sets: Sequence[OutcomeSet]) -> dict[str, tuple[str, ...]]:
    """Every head that the sets can teach, with its labels in order."""
    labels: dict[str, set[str]] = {}
    for of_set in sets:
        for column, head in columns_of(of_set).items():
            labels.setdefault(head, set()).update(label for label in of_set.labels[column] if label)
    return {head: tuple(sorted(found)) for head, found in sorted(labels.items()) if len(found) > 1}


def sums_of(sets: Sequence[OutcomeSet], heads: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Heads whose label follows from that of another head of the same set, as an intent's domain does.

    They need no weights: their probabilities are sums of the other's, and more exact than learned ones.
    """
    sums: dict[str, tuple[str, tuple[int, ...]]] = {}
    for of_set in sets:
        columns = {column: head for column, head in columns_of(of_set).items() if head in heads}
        for coarse, fine in permutations(columns, 2):
            pairs = {pair for pair in zip(of_set.labels[fine], of_set.labels[coarse], strict=True) if all(pair)}
            within = dict(pairs)
            head, of = columns[coarse], columns[fine]
            if len(within) == len(pairs) == len(heads[of]) > len(heads[head]) and of not in sums:
                number = {label: at for at, label in enumerate(heads[head])}
                sums[head] = of, tuple(number[within[label]] for label in heads[of])
    return sums


def prepared(of_set: OutcomeSet, shape: NetworkConfig) -> Prepared:
    targets = {}
    for column, head in columns_of(of_set).items():
        if head in shape.heads:
            number = {label: at for at, label in enumerate(shape.heads[head])}
            targets[head] = torch.tensor([number.get(label, -1) for label in of_set.labels[column]])
    seen = np.flatnonzero(of_set.seen)
    return Prepared(
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
    past: Prepared,
    new: Prepared,
    *,
    leave_one_out: bool = True,
    views: Callable[[Features], Views] | None = None,
    kinds: bool = True,
) -> None:
    """Fill in what the agents' records say, of the past without the task itself, of val from the whole past.

    The rest is for ablations: whether the past may know its own outcomes, what likeness is judged by, and whether kinds
    of tasks are told.
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
    if leave_one_out:
        past.records = torch.from_numpy(records.of_past(shares, outcomes, shares_asked))
        past.familiarity = torch.from_numpy(records.memory.recall(past_view).familiarity)
    for part in (new,) if leave_one_out else (past, new):
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


def columns_of(of_set: OutcomeSet) -> dict[str, str]:
    """Column of labels -> head."""
    named = HEADS.get(of_set.name)
    found = named if named is not None else {column: column for column in of_set.labels}
    return {column: head for column, head in found.items() if column in of_set.labels}

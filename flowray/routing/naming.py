"""What a task is called, by two who judge unlike each other: the network, and the past tasks that it is like.

The network read words and their parts until it knew the labels; a memory guesses from traits and sense, in closed form
(`flowray.routing.memory`), what kind the past would have called a task. They err at different tasks, so their product
is better than either (a logarithmic opinion pool: Genest & Zidek 1986),

    p(label)  is proportional to  p_network(label) * p_past(label) ** weight,
    weight = MOST * tasks / (tasks + ENOUGH)    with so many past tasks of each kind on average,

taken over the labels that the past knows. What the network gives to all of these together stays as it is, and so does
each of the others: a past of sums and poems says nothing of whether a task is a translation.

It is a guess of names alone: success, cost and seconds are estimated without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flowray.routing.estimates import Floats
from flowray.routing.kernels import Numbers

# Of the past's word, where there is a long one. On val with the whole past .2 to 1 help MMLU-Pro's categories (85.4 %
# without, 86.3 to 86.8 with it) and llmrouter's tasks (94.3; 95.7 to 96.8), and .1 to .5 RouteLLM's subjects.
MOST = 0.5
ENOUGH = 100.0  # tasks of each kind that give it half of that: a past of 100 or 300 tasks at .5 costs up to 3 points
_LEAST = 1e-4  # probability that a guess never falls below: one word of the past must not rule a label out


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """The head whose labels the past's kinds are."""

    head: str
    columns: Numbers  # [kinds] the number of the label that each kind is
    weight: float  # of the past's word, 0..MOST
    sums: Mapping[str, Floats]  # heads that follow from it: name -> [labels, labels of that head] 1 where one is in it

    @classmethod
    def of(
        cls,
        kinds: Sequence[str],
        n_tasks: int,
        heads: Mapping[str, Sequence[str]],
        sums: Mapping[str, tuple[str, tuple[int, ...]]],
    ) -> Naming | None:
        """The first head that knows all kinds; None where none does, or there are fewer than two to tell apart.

        `n_tasks` are the past tasks of these kinds, `sums` the network's (`NetworkConfig`).
        """
        head = next((name for name, labels in heads.items() if set(kinds) <= set(labels)), None)
        if head is None or len(kinds) < 2:
            return None
        of_each = n_tasks / len(kinds)
        number = {label: at for at, label in enumerate(heads[head])}
        return cls(
            head=head,
            columns=np.array([number[kind] for kind in kinds], np.intp),
            weight=MOST * of_each / (of_each + ENOUGH),
            sums={
                name: np.eye(len(heads[name]), dtype=np.float32)[list(into)]
                for name, (of, into) in sums.items()
                if of == head
            },
        )

    def agreed(self, shares: Mapping[str, Floats], kinds: Floats) -> dict[str, Floats]:
        """Probabilities [tasks, labels] of every head, with what the past guesses [tasks, kinds]."""
        mine = shares[self.head]
        known = mine[:, self.columns]
        both = known * np.maximum(kinds, np.float32(_LEAST)) ** np.float32(self.weight)
        total = both.sum(axis=1, keepdims=True)
        scale = np.divide(known.sum(axis=1, keepdims=True), total, out=np.zeros_like(total), where=total > 0)
        named = mine.copy()
        named[:, self.columns] = both * scale
        return {**shares, self.head: named, **{name: named @ into for name, into in self.sums.items()}}

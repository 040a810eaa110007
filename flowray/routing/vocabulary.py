"""Which n-grams deserve a vector of their own: those that tell labels apart.

For each set and head, an n-gram's chi-square statistic over labels (Yang & Pedersen 1997) against independence; n-grams
are ranked within each head, and the best ranks of all heads share the rows. What occurs in one task only is left out:
nothing learned of it could be met again.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from flowray.routing.features import BUCKETS, Features
from flowray.routing.lexicon import Ids

LEAST_TASKS = 2  # that an n-gram must occur in
_AT_ONCE = 1 << 16  # n-grams whose statistic is taken together; bounds memory


def choose(labelled: Iterable[tuple[Features, Ids]], rows: int) -> Ids:
    """At most `rows` buckets, ascending, from tasks with numbered labels [tasks] (-1 where a task has none)."""
    rank = np.full(BUCKETS, np.iinfo(np.int64).max)
    for features, labels in labelled:
        found, statistic = _chi_square(features, labels)
        order = np.lexsort((found, -statistic))  # ties by bucket, so that the choice is the same everywhere
        rank[found[order]] = np.minimum(rank[found[order]], np.arange(len(found)))
    known = np.flatnonzero(rank < np.iinfo(np.int64).max)
    return np.sort(known[np.lexsort((known, rank[known]))[:rows]])


def _chi_square(features: Features, labels: Ids) -> tuple[Ids, npt.NDArray[np.float64]]:
    """The n-grams in at least `LEAST_TASKS` tasks, and the statistic of each."""
    sizes = np.diff(features.offsets)
    of_gram = np.repeat(labels, sizes)
    grams, of_gram = features.grams[of_gram >= 0], of_gram[of_gram >= 0]
    found, place, counts = np.unique(grams, return_inverse=True, return_counts=True)
    n_labels = int(labels.max(initial=0)) + 1
    share = np.bincount(labels[labels >= 0], minlength=n_labels) / max((labels >= 0).sum(), 1)
    statistic = np.empty(len(found))
    order = np.argsort(place, kind="stable")
    ends = np.cumsum(counts)
    for at in range(0, len(found), _AT_ONCE):
        until = min(at + _AT_ONCE, len(found))
        cells = order[ends[at] - counts[at] : ends[until - 1]]
        observed = np.bincount((place[cells] - at) * n_labels + of_gram[cells], minlength=(until - at) * n_labels)
        expected = counts[at:until, None] * share
        squares = (observed.reshape(until - at, n_labels) - expected) ** 2
        statistic[at:until] = (squares / np.maximum(expected, 1e-9)).sum(axis=1, where=expected > 0)
    often = counts >= LEAST_TASKS
    return found[often], statistic[often]

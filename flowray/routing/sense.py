"""A vector of a text that no label had a part in: latent semantic analysis (Deerwester et al. 1990).

The texts of all sets, as rows of n-grams weighted by rarity and of length 1, are a sparse matrix A; its best
approximation of low rank is A = U S V^T. A text's place is A V S^(-1/2): products of such vectors, made of length 1,
say how alike two texts are, also of texts of a kind that no label was ever given to. (S^0 lets the few largest
directions, which tell long texts from short ones, drown the others, S^-1 the noise of the smallest; on val the middle
finds the nearest texts of the same task, category, subject and intent best.) As a place is a sum over n-grams, V with
the weights folded in is a bag like any other.

V is found by randomised subspace iteration (Halko, Martinsson & Tropp 2011), in seconds, the same for the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from flowray.routing.features import Features

MOST_TASKS = 3_000  # of each set: sets count alike, and more would only take longer
_MORE = 16  # directions that are followed besides those wanted
_ROUNDS = 3  # of the iteration
_LEAST_SIZE = 1e-3  # of a direction, in units of the largest


def rows_of(sets: Sequence[Features], row_of: Tensor, n_rows: int, width: int, seed: int = 0) -> Tensor:
    """Rows of a bag [n_rows, width], given each bucket's row (0: none) [buckets] and some texts of each set.

    Row 0 is zero, and so are columns beyond what so few texts can tell.
    """
    rows, owners, rarity = _read(sets, row_of, n_rows, np.random.default_rng(seed))
    found = torch.zeros(n_rows, width)
    n_texts = int(owners[-1]) + 1 if len(owners) else 0
    rank = min(width, n_texts)
    if rank == 0:
        return found
    weights = rarity[rows]  # [entries of the matrix]
    lengths = torch.zeros(n_texts).index_add_(0, owners, weights**2).sqrt_()
    weights = weights / lengths[owners]
    across = _Sparse(rows, owners, weights, n_texts)
    order = torch.argsort(rows, stable=True)
    back = _Sparse(owners[order], rows[order], weights[order], n_rows)
    generator = torch.Generator().manual_seed(seed)
    place = torch.linalg.qr(across.times(torch.randn(n_rows, min(width + _MORE, n_texts), generator=generator)))[0]
    for _ in range(_ROUNDS):
        place = torch.linalg.qr(across.times(back.times(place)))[0]
    _, sizes, directions = torch.linalg.svd(back.times(place).T, full_matrices=False)  # [rank], [rank, n_rows]
    told = sizes[:rank] > _LEAST_SIZE * sizes[0]  # what is smaller is rounding, and would be blown up
    scale = torch.where(told, sizes[:rank].clamp(min=1e-12).rsqrt(), 0.0)
    found[:, :rank] = rarity[:, None] * directions[:rank].T * scale
    found[0] = 0.0
    return found


class _Sparse:
    """A sparse matrix that dense ones are multiplied by: a bag of its columns for each row."""

    def __init__(self, columns: Tensor, rows: Tensor, values: Tensor, n_rows: int) -> None:
        """Entries in the order of `rows`."""
        counts = torch.bincount(rows, minlength=n_rows)
        self._offsets = functional.pad(counts.cumsum(0), (1, 0))
        self._columns, self._values = columns, values

    def times(self, dense: Tensor) -> Tensor:
        return functional.embedding_bag(
            self._columns,
            dense,
            self._offsets,
            mode="sum",
            per_sample_weights=self._values,
            include_last_offset=True,
        )


def _read(
    sets: Sequence[Features], row_of: Tensor, n_rows: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The known n-grams' rows and the numbers of their texts [entries], and each row's rarity [n_rows]."""
    entries, owners, shares, n_texts = [], [], torch.zeros(n_rows), 0
    sets = [features for features in sets if len(features)]
    for features in sets:
        chosen = features.take(np.sort(rng.permutation(len(features))[:MOST_TASKS]))
        rows = row_of[torch.from_numpy(chosen.grams)].long()
        of_text = torch.repeat_interleave(torch.arange(len(chosen)), torch.from_numpy(np.diff(chosen.offsets)))
        known = rows > 0
        entries.append(rows[known])
        owners.append(of_text[known] + n_texts)
        shares += torch.bincount(rows[known], minlength=n_rows) / (len(chosen) * len(sets))
        n_texts += len(chosen)
    if not entries:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), shares
    return torch.cat(entries), torch.cat(owners), -shares.clamp(min=1e-4, max=0.9).log()

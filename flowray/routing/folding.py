"""Bags of n-grams read word by word: what a bag makes of a word is worked out once and kept.

A text's n-grams are those of its distinct words, and those of no word (pairs of words, words of tools). A sum over them
is a sum over words of sums that do not depend on the text,

    sum of rows of a text = sum over its words of fold(word) + sum over its loose n-grams of rows,
    fold(word) = sum over the word's n-grams of rows,

so that a text of four hundred n-grams costs a hundred rows, most of them of words that are common and therefore near
the processor. All bags lie side by side, with one more column that counts known n-grams: one pass reads them all. It
makes bags of int8 pointless: what is read is the sums, and they are float32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from flowray.routing.estimates import Floats
from flowray.routing.features import LEXICON_WORDS, Features
from flowray.routing.lexicon import Lexicon

_FIRST_WORDS = 4_096  # there is room for at first
_AT_ONCE = 4_096  # words folded together; bounds memory
_FEW = 4  # tasks, up to which they are summed up one by one

_VERSION = attrgetter("_version")  # of a tensor: how often it was changed in place

Made = TypeVar("Made")


class Latest(Generic[Made]):
    """What was made of some tensors as they are now: when they were changed since, be it in place, it is made again.

    No part of a network's state: a copy of a network, pickled or not, begins with none.
    """

    def __init__(self) -> None:
        self._last: tuple[tuple[int, ...], Made] | None = None

    def __reduce__(self) -> tuple[type[Latest[Made]], tuple[()]]:
        return Latest, ()

    def of(self, tensors: Iterable[Tensor], make: Callable[[], Made]) -> Made:
        """What `make` gave when the tensors were last as they are."""
        tensors = tuple(tensors)
        now = (*map(id, tensors), *map(_VERSION, tensors))
        last = self._last
        if last is None or last[0] != now:
            self._last = last = now, make()
        return last[1]


class Folded:
    """The bags of a network that stands still. Safe to use by several threads."""

    def __init__(self, bags: Sequence[Tensor], row_of: Tensor, max_words: int = LEXICON_WORDS) -> None:
        """`bags` [rows, width] each, whose row 0 stands for n-grams that are not known; `row_of` [buckets] int32.

        Of texts whose words are numbered beyond `max_words` nothing is kept: they are read n-gram by n-gram.
        """
        with torch.inference_mode(False), torch.no_grad():  # what is kept outlives the mode that it is asked in
            known = torch.ones(len(bags[0]), 1)
            self.rows = torch.cat([*(bag.detach() for bag in bags), known], dim=1)  # [rows, all widths + 1]
            self.rows[0] = 0.0
        self._row_of = row_of
        self._max_words = max_words
        self._kept = _Kept(Lexicon(), self.rows.new_zeros(0, self.rows.shape[1]), 0)
        self._folding = threading.Lock()

    def pooled(self, features: Features) -> Tensor:
        """[tasks, all widths + 1] sums of rows, and in the last column how many n-grams are known."""
        words = self._words(features.lexicon)
        if words is not None and len(features) <= _FEW:
            return torch.from_numpy(self._pooled_one_by_one(features, words))
        loose = self._row_of[torch.from_numpy(features.loose)]
        pooled = _sums(self.rows, loose, features.loose_offsets)
        if words is None:
            grams = self._row_of[torch.from_numpy(features.grams)]
            return _sums(self.rows, grams, features.offsets)
        return pooled.add_(_sums(words, torch.from_numpy(features.words), features.word_offsets))

    def _pooled_one_by_one(self, features: Features, words: Tensor) -> Floats:
        """As `pooled`: for so few rows torch's ways to call take longer than the sums, and let go of Python's lock.

        Rows are added up in the same order, so the sums are the same to the last bit.
        """
        rows, folds = self.rows.numpy(), words.numpy()
        loose = self._row_of.numpy()[features.loose]
        pooled = np.empty((len(features), rows.shape[1]), np.float32)
        begun = begun_loose = 0
        ends = zip(features.word_offsets[1:].tolist(), features.loose_offsets[1:].tolist(), strict=True)
        for task, (end, end_loose) in enumerate(ends):
            rows.take(loose[begun_loose:end_loose], axis=0).sum(axis=0, out=pooled[task])
            pooled[task] += folds.take(features.words[begun:end], axis=0).sum(axis=0)
            begun, begun_loose = end, end_loose
        return pooled

    def _words(self, lexicon: Lexicon) -> Tensor | None:
        """[forms and more, all widths + 1] the folds of all words that the lexicon knows by now."""
        wanted, kept = lexicon.n_forms, self._kept
        if kept.lexicon is lexicon and kept.count >= wanted:
            return kept.folds
        if wanted > self._max_words:
            return None
        with self._folding, torch.inference_mode(False), torch.no_grad():
            kept = self._kept if self._kept.lexicon is lexicon else _Kept(lexicon, self.rows[:0], 0)
            folds = kept.folds
            if len(folds) < wanted:
                folds = self.rows.new_empty(max(wanted, 2 * len(folds), _FIRST_WORDS), self.rows.shape[1])
                folds[: kept.count] = kept.folds[: kept.count]
            for at in range(kept.count, wanted, _AT_ONCE):
                until = min(at + _AT_ONCE, wanted)
                starts, last = lexicon.starts[at:until], lexicon.starts[until - 1] + lexicon.sizes[until - 1]
                rows = self._row_of[torch.from_numpy(lexicon.grams[starts[0] : last])]
                folds[at:until] = _sums(self.rows, rows, np.append(starts, last) - starts[0])
            self._kept = _Kept(lexicon, folds, max(wanted, kept.count))
        return folds


class _Kept:
    """The folds of one lexicon's words: replaced whole, so that no thread sees half of a change."""

    __slots__ = ("count", "folds", "lexicon")

    def __init__(self, lexicon: Lexicon, folds: Tensor, count: int) -> None:
        self.lexicon, self.folds, self.count = lexicon, folds, count


def _sums(matrix: Tensor, rows: Tensor, offsets: npt.NDArray[np.int64]) -> Tensor:
    """[len(offsets) - 1, width] sums of rows."""
    ends = torch.from_numpy(offsets).to(rows.dtype)
    return functional.embedding_bag(rows, matrix, ends, mode="sum", include_last_offset=True)

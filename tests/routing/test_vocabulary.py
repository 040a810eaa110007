"""The n-grams that tell labels apart are kept, the others are not."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flowray.routing import vocabulary
from flowray.routing.features import N_TRAITS, Features
from flowray.routing.lexicon import Lexicon


def features_of(bags: list[set[int]]) -> Features:
    sizes = [len(bag) for bag in bags]
    return Features(
        lexicon=Lexicon(),
        words=np.zeros(0, np.int64),
        word_offsets=np.zeros(len(bags) + 1, np.int64),
        loose=np.array([gram for bag in bags for gram in sorted(bag)], np.int64),
        loose_offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        traits=np.zeros((len(bags), N_TRAITS), np.float32),
    )


def test_a_telling_n_gram_is_kept_before_one_that_is_everywhere():
    bags = [{1, 10}, {1, 10}, {2, 10}, {2, 10}]
    assert vocabulary.choose([(features_of(bags), np.array([0, 0, 1, 1]))], 2).tolist() == [1, 2]


def test_what_occurs_once_is_left_out_and_tasks_without_a_label_do_not_count():
    bags = [{1, 5}, {1}, {2}, {2}, {5}]
    assert vocabulary.choose([(features_of(bags), np.array([0, 0, 1, 1, -1]))], 10).tolist() == [1, 2]


def test_heads_share_the_rows():
    one, other = features_of([{1, 3}, {1, 4}, {2, 3}, {2, 4}]), features_of([{7}, {7}, {8}, {8}])
    chosen = vocabulary.choose([(one, np.array([0, 0, 1, 1])), (other, np.array([0, 0, 1, 1]))], 4)
    assert set(chosen) == {1, 2, 7, 8}


@given(st.integers(0, 1000))
def test_the_statistic_is_that_of_the_textbook(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=30)
    labels[:3] = [0, 1, 2]
    bags = [set(np.flatnonzero(rng.random(6) < 0.5).tolist()) for _ in range(30)]
    found, statistic = vocabulary._chi_square(features_of(bags), labels)
    for gram, value in zip(found, statistic, strict=True):
        has = np.array([gram in bag for bag in bags])
        observed = np.array([(has & (labels == label)).sum() for label in range(3)])
        expected = has.sum() * np.bincount(labels, minlength=3) / 30
        np.testing.assert_allclose(value, ((observed - expected) ** 2 / expected).sum())

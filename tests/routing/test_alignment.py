"""Heads that say the same are found, heads that meet by chance are not."""

from __future__ import annotations

import numpy as np

from flowray.routing.alignment import aligned


def shares_of(coarse, sure=0.6, labels=2):
    """What a classifier would say that is never certain."""
    shares = np.full((len(coarse), labels), (1 - sure) / (labels - 1), np.float32)
    shares[np.arange(len(coarse)), coarse] = sure
    return shares


def test_finer_words_for_the_same_are_found_in_spite_of_errors_on_single_tasks():
    fine = np.repeat([0, 1, 2, 3], 10)
    coarse = np.repeat([0, 0, 1, 1], 10)
    noisy = coarse.copy()
    noisy[::10] = 1 - noisy[::10]
    assert aligned(fine, shares_of(noisy, 0.8)).tolist() == coarse.tolist()


def test_a_label_without_a_clear_partner_and_tasks_without_a_label_get_none():
    fine = np.array([0] * 8 + [1] * 8 + [2, 2] + [-1])
    partners = aligned(fine, shares_of(np.array([0] * 8 + [1] * 8 + [0, 1] + [0]), 0.9))
    assert partners[:16].tolist() == [0] * 8 + [1] * 8
    assert (partners[16:18] >= 0).all()  # half and half is just not less than one half: the first is taken
    assert partners[18] == -1
    assert aligned(fine, shares_of(np.array([0] * 8 + [1] * 8 + [0, 1] + [0]), 0.8))[16:].tolist() == [0, 0, -1]


def test_heads_that_meet_in_one_label_only_are_left_alone():
    fine = np.repeat([0, 1, 2, 3], 10)
    assert aligned(fine, shares_of(np.zeros(40, int), 0.9)) is None


def test_heads_of_which_most_tasks_find_no_partner_are_left_alone():
    fine = np.repeat(np.arange(8), 10)
    shares = shares_of(np.repeat(np.arange(8) % 3, 10), 0.9, labels=4)
    assert aligned(fine, shares) is not None
    shares[30:] = 1 / 4
    assert aligned(fine, shares) is None


def test_heads_that_say_the_same_but_for_some_broad_labels_are_aligned():
    """A third of a school's subjects are "miscellaneous" and the like, of which an unsure classifier says nothing."""
    fine = np.repeat([0, 1, 2], [35, 35, 30])
    shares = shares_of(np.repeat([0, 1, 0], [35, 35, 30]), 0.9)
    shares[70:] = [0.45, 0.45]
    assert np.unique(aligned(fine, shares), return_counts=True)[1].tolist() == [30, 35, 35]


def test_no_tasks_align_with_nothing():
    assert aligned(np.zeros(0, np.int64), np.zeros((0, 2), np.float32)) is None

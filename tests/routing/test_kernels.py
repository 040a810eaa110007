"""Kernels and ridge in closed form: exact leave-one-out, columns that say nothing, luck that is dropped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowray.routing.kernels import NOISES, Basis, Space, rotation


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_leaving_one_out_is_the_same_as_fitting_without_it(seed):
    rng = np.random.default_rng(seed)
    features, targets = rng.normal(size=(12, 5)), rng.normal(size=(12, 2))
    noises = np.array([2, 6])
    _, loo = Basis.of(features).solve(targets, noises)
    for left in range(12):
        others = np.arange(12) != left
        for column, noise in enumerate(NOISES[noises]):
            gram = features[others].T @ features[others] + noise * np.eye(5)
            weights = np.linalg.solve(gram, features[others].T @ targets[others, column])
            assert loo[left, column] == pytest.approx(features[left] @ weights, abs=1e-8)


def test_features_of_a_space_have_its_kernel_as_their_product():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 3)).astype(np.float32)
    space = Space.plain(values, np.arange(40), 2.0)
    features = space.likeness(values) @ space.whitening()
    assert features @ features.T == pytest.approx(space.likeness(values), abs=1e-2)


def test_a_column_that_says_nothing_of_the_targets_counts_least():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(500, 3)).astype(np.float32)
    values[:, 2] = 1.0
    space = Space.of(values, np.sign(values[:, :1]).astype(np.float64), np.arange(100))
    assert space.scale[0] > 2 * space.scale[1] > 0
    assert space.scale[2] == 0


def test_directions_that_nothing_predicts_are_dropped():
    rng = np.random.default_rng(0)
    weights, loo = Basis.of(rng.normal(size=(60, 30))).fit(rng.normal(size=(60, 8)))
    predicted = np.abs(weights).sum(axis=0)
    assert np.linalg.matrix_rank(weights) < 8
    assert np.isfinite(loo).all() and np.isfinite(predicted).all()


def test_turning_targets_loses_nothing():
    targets = np.random.default_rng(0).normal(size=(20, 4))
    turned, turn = rotation(targets)
    assert turned @ turn.T == pytest.approx(targets)


@pytest.mark.parametrize("n_past", [0, 1])
def test_hardly_any_past_makes_a_space_without_nan(n_past):
    values = np.ones((n_past, 3), np.float32)
    space = Space.of(values, np.zeros((n_past, 2)), np.arange(n_past))
    assert np.isfinite(space.likeness(np.zeros((5, 3), np.float32)) @ space.whitening()).all()

"""One temperature: found where it is known, bounded where nothing is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowray.routing.calibration import BOUNDS, temperature


@given(factor=st.floats(0.4, 2.5), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_factor_that_was_left_out_is_found(factor, seed):
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(4000, 3)) * 2
    success = (rng.random(true.shape) < 1 / (1 + np.exp(-true))).astype(np.float32)
    assert temperature([(true / factor).astype(np.float32)], [success]) == pytest.approx(factor, rel=0.1)


def test_every_set_counts_alike_whatever_its_size():
    rng = np.random.default_rng(0)
    parts = []
    for size, factor in ((200, 2.0), (20_000, 1.0)):
        true = rng.normal(size=(size, 5)) * 2
        parts.append((true / factor, (rng.random(true.shape) < 1 / (1 + np.exp(-true))).astype(np.float32)))
    assert temperature(*zip(*parts, strict=True)) > 1.2


def test_unknown_outcomes_do_not_count_and_none_at_all_changes_nothing():
    logits, success = np.array([[1.0, 9.0]], np.float32), np.array([[0.0, np.nan]], np.float32)
    assert temperature([logits], [success]) == pytest.approx(BOUNDS[0], rel=0.01)
    assert temperature([logits], [np.full_like(success, np.nan)]) == 1.0
    assert temperature([], []) == 1.0

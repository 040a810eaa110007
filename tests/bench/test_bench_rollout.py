"""The trials of `bench rollout`, on a small world with known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_bench_shift import N_AGENTS, world

from bench.workers.rollouts import BAD, changed, trial
from flowray.core.rollout import RolloutPolicy
from flowray.routing import data
from flowray.routing.data import OutcomeSet
from flowray.testing import make_outcomes

QUICK = RolloutPolicy(shadow_share=0.6, canary_share=0.3, canary_most=300)


@pytest.fixture
def past(tmp_path: Path) -> OutcomeSet:
    """Nobody's, of as many agents as the world has."""
    return data.load(make_outcomes(tmp_path, tasks=60, agents=N_AGENTS)).take(slice(0, 0))


@pytest.mark.parametrize("how", [*BAD, "same"])
def test_what_candidates_say_are_probabilities(how: str) -> None:
    said = changed(world(), how, np.random.default_rng(0))
    assert said.shape == world().expected.shape
    assert ((said > 0) & (said < 1)).all()
    assert not np.array_equal(said, world().expected)
    assert np.abs(said - world().expected).mean() < 0.05 or how in BAD


@pytest.mark.slow
def test_bad_ones_go(past: OutcomeSet) -> None:
    for how in BAD:
        ended = trial(world(), past, how, 0, 10_000, QUICK)
        assert ended.arrow == "rejected", how
        assert ended.stage == "canary" or ended.touched == 0

"""The streams of `bench shift`, on a small world with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from bench.workers.shift_streams import EXPLORING, Recorded, seconds, shifted, stable
from flowray.routing.posteriors import PosteriorPolicy

N_TASKS, N_AGENTS = 400, 8


def world() -> Recorded:
    """Two kinds, eight agents from bad to good; the router knows the rates."""
    rng = np.random.default_rng(0)
    rates = np.stack([np.linspace(0.2, 0.9, N_AGENTS), np.linspace(0.1, 0.8, N_AGENTS)])  # [kinds, agents]
    labels = np.arange(N_TASKS) % 2
    expected = rates[labels]
    latency_s = np.exp(rng.normal(0.0, 0.3, expected.shape))
    return Recorded(
        success=(rng.random(expected.shape) < expected).astype(np.float64),
        expected=expected,
        shares=np.eye(2, dtype=np.float32)[labels],
        kinds=("one", "two"),
        labels=labels,
        rates=rates,
        latency_s=latency_s,
        expected_s=np.ones_like(latency_s),
    )


@pytest.mark.parametrize("name", EXPLORING)
def test_propensities_are_probabilities_that_favour_the_best(name: str) -> None:
    rng = np.random.default_rng(0)
    success, deviation = rng.random((50, 16)), 0.3 * rng.random((50, 16)) + 0.01
    odds = EXPLORING[name](success, deviation, rng)
    assert odds.shape == success.shape
    assert (odds >= 0).all()
    np.testing.assert_allclose(odds.sum(axis=1), 1.0)
    best = odds[np.arange(50), success.argmax(axis=1)]
    assert (best >= 0.95 - 1e-9).all()


def test_who_is_sure_is_not_explored() -> None:
    success = np.array([[0.9, 0.5, 0.5]])
    odds = EXPLORING["rivals_half"](success, np.array([[0.01, 0.01, 0.4]]), np.random.default_rng(0))[0]
    assert odds[1] < 1e-9
    assert odds[2] > 0.01


@pytest.mark.slow
def test_a_shift_is_recovered_and_a_stable_world_left_alone() -> None:
    policy, exploring = PosteriorPolicy(), EXPLORING["rivals_half"]
    shifts = [shifted(world(), exploring, policy, seed, (0, 200)) for seed in range(3)]
    assert all(abs(found["recovered_0"]) < 0.2 for found in shifts)
    assert np.mean([found["recovered_200"] for found in shifts]) > 0.8
    assert all(found["first_alarm"] < 60 for found in shifts)
    assert np.mean([stable(world(), exploring, policy, seed)["gain"] for seed in range(3)]) > -0.03


def test_slower_agents_are_expected_to_be_slower() -> None:
    found = seconds(world(), PosteriorPolicy(), 0, (0, 50))
    assert found["recovered_0"] == pytest.approx(0.0)
    assert found["recovered_50"] > 0.9

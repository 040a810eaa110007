"""The bet: right as often as it says under continuous looking, and quick where there is something to find."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.core.betting import STAKES, Bet

RUNS, LENGTH = 200, 500


def ever_shown(numbers, alpha: float, null: float = 0.0) -> int:
    """How many numbers it took; 0: it was never shown."""
    bet = Bet(null)
    for number in numbers:
        bet.add(number)
        if bet.shown(alpha):
            return bet.count
    return 0


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.choice((-1.0, 1.0)),
        lambda rng: rng.uniform(-1.0, 1.0),
        lambda rng: 1.0 if rng.random() < 0.02 else -0.02 / 0.98,  # rare and great
        lambda rng: rng.gauss(0.0, 0.01),
    ],
    ids=["coins", "even", "rare", "narrow"],
)
def test_where_there_is_nothing_it_is_seldom_shown_however_often_one_looks(draw):
    alpha, rng = 0.05, Random(1)
    wrong = sum(ever_shown((draw(rng) for _ in range(LENGTH)), alpha) > 0 for _ in range(RUNS))
    # At most alpha; of so many runs three deviations more.
    assert wrong / RUNS <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / RUNS)


def test_an_ordinary_test_looked_at_as_often_is_wrong_far_more_often():
    """What the bet is for: the same data, and a z-test at 5 % after each number."""
    rng, wrong = Random(1), 0
    for _ in range(RUNS):
        total = 0.0
        for number in range(1, LENGTH + 1):
            total += rng.choice((-1.0, 1.0))
            if number > 10 and total > 1.645 * math.sqrt(number):
                wrong += 1
                break
    assert wrong / RUNS > 0.2


@pytest.mark.parametrize(("mean", "most"), [(0.3, 120), (0.1, 900)])
def test_what_is_there_is_found_soon(mean, most):
    rng = Random(2)
    taken = sorted(
        ever_shown((1.0 if rng.random() < 0.5 + mean / 2 else -1.0 for _ in range(10_000)), 0.05) for _ in range(60)
    )
    assert taken[0] > 0, "each time"
    assert taken[len(taken) // 2] < most


def test_a_margin_is_a_bound_below_nothing():
    rng = Random(3)
    assert ever_shown((rng.uniform(-0.05, 0.05) for _ in range(5_000)), 0.05, null=-0.02) > 0
    assert ever_shown((rng.uniform(-0.05, 0.05) - 0.03 for _ in range(5_000)), 0.05, null=-0.02) == 0


@given(st.lists(st.floats(-1.0, 1.0), max_size=60), st.floats(-0.9, 0.9), st.integers(0, 60))
def test_it_goes_on_where_it_stopped(numbers, null, at):
    whole, first = Bet(null), Bet(null)
    for number in numbers:
        whole.add(number)
    for number in numbers[:at]:
        first.add(number)
    second = Bet(null, first.keep())
    for number in numbers[at:]:
        second.add(number)
        second.check()
    assert second.keep() == whole.keep()
    assert math.isfinite(whole.log_wealth)


def test_no_stake_can_ruin_it():
    bet = Bet()
    for _ in range(100):
        bet.add(-1.0)
    assert bet.log_wealth >= 100 * math.log1p(-STAKES[-1]) - math.log(len(STAKES)) - 1e-9
    for _ in range(10_000):
        bet.add(1.0)
    bet.check()
    assert bet.shown(1e-6)


@pytest.mark.parametrize("wrong", [1.5, -1.01, math.nan])
def test_refuses_what_is_out_of_range(wrong):
    with pytest.raises(ValueError, match="from -1 to 1"):
        Bet().add(wrong)
    with pytest.raises(ValueError, match="null"):
        Bet(wrong)

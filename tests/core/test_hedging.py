from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.core.hedging import HedgePolicy, Hedging
from flowray.errors import ConfigError


def test_the_wait_is_the_95th_percentile_once_enough_is_known():
    hedging = Hedging(HedgePolicy(known=20, first_s=0.05))
    for number in range(19):
        hedging.took(0.010 + number / 1000)
    assert hedging.wait_s() == 0.05
    hedging.took(0.029)
    assert hedging.wait_s() == pytest.approx(0.028)


@given(st.lists(st.floats(0.0, 1e6), max_size=600))
def test_the_wait_stays_within_its_bounds(latencies):
    hedging = Hedging(HedgePolicy())
    for latency_s in latencies:
        hedging.took(latency_s)
    assert 0.005 <= hedging.wait_s() <= 0.25


@given(st.lists(st.booleans(), max_size=500))
def test_further_questions_stay_within_their_share(asks):
    hedging, first, second = Hedging(HedgePolicy(share=0.1, burst=3.0)), 0, 0
    for ask in asks:
        if ask:
            hedging.asked()
            first += 1
        else:
            second += hedging.may_hedge()
    assert second <= 3 + 0.1 * first + 1e-6


def test_without_credit_there_are_none():
    assert not Hedging(HedgePolicy(burst=0.0)).may_hedge()


@pytest.mark.parametrize(
    "wrong",
    [
        {"quantile": 1.0},
        {"least_s": 0.0},
        {"first_s": 1.0},
        {"known": 0},
        {"more": -1},
        {"share": 2.0},
        {"burst": -1.0},
    ],
)
def test_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ConfigError, match="hedge"):
        HedgePolicy(**wrong)

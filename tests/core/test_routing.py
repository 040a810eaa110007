"""The choice among candidates: values, the good ones, chance, and exact propensities."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.core.model import Estimate, Task, TaskId
from flowray.core.routing import RoutingPolicy, draw, in_time, policy_for, run_times, value_of
from flowray.errors import ConfigError

PLAIN = RoutingPolicy(second=0.0, slowdown=0.0, good=0.0, explore=0.0)


def chosen(estimates, *, waits=None, policy=PLAIN, remaining_s=None, seed=0, **of_task):
    waits = waits or [0.0] * len(estimates)
    drawn = draw(estimates, run_times(estimates), waits, remaining_s, policy, random.Random(seed), **of_task)
    return estimates[drawn.place].candidate


def test_the_best_by_expected_success():
    assert chosen([Estimate("weak", 0.4), Estimate("strong", 0.8), Estimate("middle", 0.6)]) == "strong"


def test_quality_counts_instead_of_success_where_it_is_known():
    estimates = [Estimate("sure", 0.9, 0.0, 0.5), Estimate("fine", 0.8, 0.0, 0.8)]
    assert chosen(estimates) == "fine"
    assert chosen(estimates, policy=RoutingPolicy(use_quality=0.0, explore=0.0, good=0.0)) == "sure"


def test_dollars_and_seconds_at_the_policys_prices():
    estimates = [Estimate("dear", 0.9, 0.0, None, 10.0, 0.5), Estimate("cheap", 0.85, 0.0, None, 1.0, 0.01)]
    assert chosen(estimates) == "dear"
    assert chosen(estimates, policy=RoutingPolicy(usd=1.0, second=0.0, explore=0.0)) == "cheap"
    assert chosen(estimates, policy=RoutingPolicy(second=0.01, explore=0.0, good=0.0)) == "cheap"


def test_a_wait_counts_by_how_long_the_task_itself_takes():
    quick, slow = Estimate("a", 0.8, 0.0, None, 0.1), Estimate("a", 0.8, 0.0, None, 10.0)
    policy = RoutingPolicy(second=0.0, slowdown=0.02)

    def lost(estimate, wait_s):
        (run_s,) = run_times([estimate])
        return value_of(estimate, run_s, 0.0, None, policy) - value_of(estimate, run_s, wait_s, None, policy)

    assert lost(quick, 0.1) == pytest.approx(0.02)
    assert lost(quick, 0.3) == pytest.approx(0.04)
    assert lost(slow, 0.1) < 0.0003


def test_the_quicker_of_equals():
    estimates = [Estimate("slow", 0.8, 0.0, None, 8.0), Estimate("quick", 0.8, 0.0, None, 1.0), Estimate("new", 0.8)]
    policy = RoutingPolicy(explore=0.0, second=0.0)
    assert chosen(estimates, policy=policy) == "quick"
    assert chosen(estimates, policy=policy, waits=[0.0, 60.0, 60.0]) == "slow"
    nobody_knows = [Estimate("a", 0.5), Estimate("b", 0.5)]
    assert draw(nobody_knows, run_times(nobody_knows), [0.0, 0.0], None, policy, random.Random(0)).propensities == (
        0.5,
        0.5,
    )


def test_a_deadline_prefers_who_will_be_done_by_then():
    estimates = [Estimate("slow", 0.9, 0.0, None, 20.0), Estimate("quick", 0.7, 0.0, None, 1.0)]
    assert chosen(estimates) == "slow"  # PLAIN: time is worth nothing
    assert chosen(estimates, remaining_s=10.0) == "quick"
    assert chosen(estimates, remaining_s=100.0) == "slow"
    assert chosen(estimates, remaining_s=5.0, waits=[0.0, 4.9]) == "slow"


def test_in_time_is_a_half_at_the_median_and_nothing_after_the_end():
    assert in_time(3.0, 3.0) == 0.5
    assert in_time(3.0, 0.0) == in_time(3.0, -1.0) == 0.0
    assert in_time(0.0, 1.0) == 1.0


class TestGoodEnough:
    estimates = (
        Estimate("best", 0.9, 0.0, None, 1.0, 0.10),
        Estimate("fine", 0.87, 0.0, None, 1.0, 0.02),
        Estimate("poor", 0.6, 0.0, None, 1.0, 0.001),
    )

    def test_the_cheapest_that_reaches_the_share(self):
        assert chosen(self.estimates, quality=1.0) == "best"
        assert chosen(self.estimates, quality=0.95) == "fine"
        assert chosen(self.estimates, quality=0.5) == "poor"

    def test_without_prices_the_best(self):
        assert chosen([Estimate("a", 0.5), Estimate("b", 0.9)], quality=0.1) == "b"

    def test_an_unknown_price_is_taken_for_the_dearest(self):
        unknown = Estimate("unknown", 0.9)
        assert chosen([unknown, *self.estimates], quality=0.95) == "fine"


class TestMoney:
    estimates = TestGoodEnough.estimates

    def test_nobody_above_the_limit(self):
        assert chosen(self.estimates, max_cost_usd=0.05) == "fine"

    def test_where_all_are_above_it_the_cheapest(self):
        assert chosen(self.estimates, max_cost_usd=0.0001) == "poor"


class TestAmongTheGood:
    policy = RoutingPolicy(good=0.05, explore=0.0, slowdown=0.0, second=0.0)

    def test_the_less_loaded_of_two(self):
        estimates = [Estimate(name, success) for name, success in (("a", 0.80), ("b", 0.79), ("c", 0.78))]
        drawn = draw(estimates, run_times(estimates), [3.0, 1.0, 2.0], None, self.policy, random.Random(0))
        assert drawn.propensities == pytest.approx((0.0, 2 / 3, 1 / 3))

    def test_of_equals_either(self):
        estimates = [Estimate(name, 0.8) for name in "abcd"]
        drawn = draw(estimates, run_times(estimates), [0.0] * 4, None, self.policy, random.Random(0))
        assert drawn.propensities == pytest.approx((0.25,) * 4)

    def test_never_one_that_is_not_good(self):
        estimates = [Estimate("good", 0.8), Estimate("bad", 0.5)]
        drawn = draw(estimates, run_times(estimates), [9.0, 0.0], None, self.policy, random.Random(0))
        assert drawn.propensities == (1.0, 0.0)


class TestChance:
    policy = RoutingPolicy(good=0.0, explore=0.1, slowdown=0.0, second=0.0)

    def test_nothing_where_all_is_known(self):
        estimates = [Estimate("a", 0.8), Estimate("b", 0.7)]
        drawn = draw(estimates, run_times(estimates), [0.0, 0.0], None, self.policy, random.Random(0))
        assert drawn.propensities == (1.0, 0.0)
        assert drawn.confidence == 1.0

    def test_the_less_is_known_the_more_but_never_above_the_bound(self):
        shares = []
        for deviation in (0.02, 0.05, 0.5):
            estimates = [Estimate("a", 0.8, 0.0), Estimate("b", 0.7, deviation)]
            shares.append(
                draw(estimates, run_times(estimates), [0.0, 0.0], None, self.policy, random.Random(0)).propensities[1]
            )
        assert 0 < shares[0] < shares[1] < shares[2] == pytest.approx(0.1)

    def test_propensities_are_how_often_it_happens(self):
        estimates = [Estimate("a", 0.8, 0.1), Estimate("b", 0.75, 0.2), Estimate("c", 0.6, 0.2)]
        rng = random.Random(1)
        drawn = [draw(estimates, run_times(estimates), [0.0] * 3, None, self.policy, rng) for _ in range(4_000)]
        counts = Counter(each.place for each in drawn)
        for place, propensity in enumerate(drawn[0].propensities):
            assert counts[place] / 4_000 == pytest.approx(propensity, abs=0.03)
        assert all(each.explored == (each.place != 0) for each in drawn)

    def test_confidence_falls_with_what_is_not_known(self):
        def confidence(deviation):
            estimates = [Estimate("a", 0.8, deviation), Estimate("b", 0.6, deviation)]
            return draw(estimates, run_times(estimates), [0.0, 0.0], None, self.policy, random.Random(0)).confidence

        assert confidence(0.0) == 1.0 > confidence(0.1) > confidence(0.4) > 0.4


_estimates = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.floats(0, 0.5),
        st.none() | st.floats(0, 1),
        st.none() | st.floats(0, 1e4),
        st.none() | st.floats(0, 1e3),
        st.floats(0, 1e4),
    ),
    min_size=1,
    max_size=12,
)


@given(
    _estimates,
    st.none() | st.floats(0, 1),
    st.none() | st.floats(0.001, 100),
    st.none() | st.floats(-10, 1e4),
    st.integers(0, 9),
)
def test_there_is_always_one_and_it_could_be_chosen(rows, quality, max_cost_usd, remaining_s, seed):
    estimates = [Estimate(f"c{number}", *row[:5]) for number, row in enumerate(rows)]
    waits = [row[5] for row in rows]
    wishes = {"quality": quality, "max_cost_usd": max_cost_usd}
    drawn = draw(estimates, run_times(estimates), waits, remaining_s, RoutingPolicy(), random.Random(seed), **wishes)
    assert sum(drawn.propensities) == pytest.approx(1.0)
    assert all(propensity >= 0 for propensity in drawn.propensities)
    assert drawn.propensities[drawn.place] > 0
    assert 0 <= drawn.confidence <= 1
    if max_cost_usd is not None and any((e.cost_usd or 0) <= max_cost_usd for e in estimates):
        assert (estimates[drawn.place].cost_usd or 0) <= max_cost_usd


@pytest.mark.parametrize(
    "wrong",
    [
        {"within_s": 0},
        {"shortlist": 1},
        {"newcomers": 16},
        {"explore": 1.5},
        {"usd": -1},
        {"second": -0.1},
        {"tiers": {"spare": math.nan}},
    ],
)
def test_a_policy_out_of_range_names_its_field(wrong):
    with pytest.raises(ConfigError, match=f"routing.{next(iter(wrong))}"):
        RoutingPolicy(**wrong)


def test_a_task_may_have_weights_of_its_own():
    estimates = [Estimate("dear", 0.9, 0.0, None, 1.0, 0.5), Estimate("cheap", 0.85, 0.0, None, 1.0, 0.01)]
    thrifty = policy_for(Task(id=TaskId("t"), weights={"usd": 1.0}), PLAIN)
    assert chosen(estimates) == "dear" and chosen(estimates, policy=thrifty) == "cheap"
    assert thrifty.second == PLAIN.second and policy_for(Task(id=TaskId("u")), PLAIN) is PLAIN


def test_what_is_added_to_a_value_counts_but_does_not_make_good_enough_of_what_is_not():
    estimates = [Estimate("best", 0.9, 0.0, None, 1.0, 0.5), Estimate("bad", 0.2, 0.0, None, 1.0, 0.01)]
    assert chosen(estimates, extras=[0.0, 0.8]) == "bad"
    assert chosen(estimates, extras=[2.0, 0.0], quality=0.9) == "best"

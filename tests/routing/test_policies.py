"""Policies to hold against the one in force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flowray.core.model import Estimate
from flowray.errors import ConfigError
from flowray.routing import policies

from .logs import decided, outcome, routed


def row(*estimates):
    """Decisions of one task; all candidates equally likely."""
    n = len(estimates)
    choice = routed(estimates[0].candidate, estimates=estimates, values=(0.0,) * n, propensities=(1 / n,) * n)
    return decided([outcome(choices=(choice,))])


def chosen(policy, decisions):
    [probabilities] = policy(decisions, decisions.estimates)
    assert probabilities.sum() == 1 and probabilities.max() == 1
    return decisions.candidates[int(probabilities.argmax())]


A, B, C = (
    Estimate("a", 0.80, cost_usd=0.02),
    Estimate("b", 0.90, cost_usd=0.10),
    Estimate("c", 0.90, cost_usd=None),
)


def test_greedy_takes_the_most_successful_and_of_equals_the_first():
    assert chosen(policies.greedy, row(A, C, B)) == "b"


@pytest.mark.parametrize(("quality", "name"), [(1.0, "b"), (0.88, "a"), (0.0, "a")])
def test_cheapest_takes_the_cheapest_that_is_good_enough(quality, name):
    assert chosen(policies.cheapest(quality), row(A, B, C)) == name


def test_where_no_cost_is_known_the_most_successful_is_cheapest():
    assert chosen(policies.cheapest(0.5), row(Estimate("a", 0.8), Estimate("b", 0.9))) == "b"


def test_always_leaves_the_choice_to_the_policy_in_force_where_its_one_is_not_offered():
    mixed = decided([outcome(1), outcome(2, choices=(routed("tiny", estimates=(Estimate("tiny", 0.5),), values=(0.5,),
                                                            propensities=(1.0,)),))])  # fmt: skip
    probabilities = policies.always("large")(mixed, mixed.estimates)
    assert mixed.candidates == ("large", "small", "tiny")
    assert probabilities.tolist() == [[1, 0, 0], [0, 0, 1]]
    with pytest.raises(ConfigError, match="no task had a candidate 'huge'"):
        policies.always("huge")(mixed, mixed.estimates)


def test_a_policy_chooses_by_the_estimates_it_is_given():
    """Those of another router, say."""
    decisions = row(A, B)
    other = replace(decisions.estimates, success=np.array([[0.9, 0.1]], np.float32))
    assert policies.greedy(decisions, other).tolist() == [[1, 0]]


def test_names():
    decisions = row(A, B, C)
    assert chosen(policies.named("greedy"), decisions) == "b"
    assert chosen(policies.named("cheapest:0.5"), decisions) == "a"
    assert chosen(policies.named("always:c"), decisions) == "c"
    assert policies.named("in_force")(decisions, decisions.estimates) is decisions.propensities
    for wrong, words in (("best", "there is no 'best'"), ("always:", "there is no"), ("cheapest:2", "from 0 to 1"),
                         ("cheapest:x", "got 'x'")):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            policies.named(wrong)

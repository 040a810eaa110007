"""Off-policy evaluation against a logger whose truth is known."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from flowray.core.model import Estimate
from flowray.core.states import TaskState
from flowray.errors import ConfigError
from flowray.routing import offpolicy, policies
from flowray.routing.offpolicy import Evaluation, OffPolicyConfig

from .logs import SECONDS, TRUE, USD, Logger, decided, outcome, routed

SEEDS = 30
QUICK = OffPolicyConfig(resamples=200)


def truth(policy: str, logger: Logger) -> dict[str, float]:
    """What a policy is worth, by the true success of the kinds of tasks; dollars and seconds are of answers."""
    chances = {
        "greedy": np.eye(3)[logger.estimated.argmax(axis=1)],
        "always:small": np.eye(3)[[2, 2, 2]],
        "in_force": logger.propensities(),
    }[policy]
    answers = (chances * TRUE).sum()
    return {
        "reward": answers / len(TRUE),
        "cost_usd": (chances * TRUE * USD).sum() / answers,
        "run_s": (chances * TRUE * SECONDS).sum() / answers,
    }


def judged(policy: str, decisions, config=QUICK) -> Evaluation:
    probabilities = policies.named(policy)(decisions, decisions.estimates)
    return offpolicy.evaluate(decisions, probabilities, config=config)


KINDS = [
    *(("reward", kind) for kind in offpolicy.ESTIMATORS),
    ("cost_usd", "snips"),
    ("cost_usd", "dr"),
    ("run_s", "dr"),
]
LOGGERS = {
    "true model": Logger(temperature=0.5),
    "biased model": Logger(
        estimated=TRUE + np.array([[-0.3, 0.1, 0.2], [0.1, -0.3, 0.1], [-0.4, 0.3, 0.5]]), temperature=0.5
    ),
}


@functools.cache
def over_seeds(policy: str, logger: str, n_tasks: int = 600) -> list[Evaluation]:
    return [judged(policy, LOGGERS[logger].decisions(n_tasks, seed)) for seed in range(SEEDS)]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["greedy", "always:small"])
@pytest.mark.parametrize("logger", LOGGERS)
@pytest.mark.parametrize(("quantity", "kind"), KINDS)
def test_intervals_hold_the_truth_and_nothing_is_biased(policy, logger, quantity, kind):
    """Of thirty intervals of 95 % at most five miss (more do by chance in 0.3 % of cases); the mean is within noise."""
    figures = [found.quantities[quantity].estimates[kind] for found in over_seeds(policy, logger)]
    true = truth(policy, LOGGERS[logger])[quantity]
    assert sum(low <= true <= high for low, high in (figure.interval for figure in figures)) >= 25
    values = np.array([figure.value for figure in figures])
    assert abs(values.mean() - true) < 4 * values.std(ddof=1) / np.sqrt(SEEDS)
    assert np.mean([figure.error for figure in figures]) == pytest.approx(values.std(ddof=1), rel=0.4)


def test_a_good_model_makes_dr_vary_less():
    found = over_seeds("always:small", "true model")
    spread = {
        kind: np.std([one.quantities["reward"].estimates[kind].value for one in found]) for kind in offpolicy.ESTIMATORS
    }
    assert spread["dr"] < spread["ips"] and spread["snips"] < spread["ips"]


def test_the_policy_in_force_earns_what_was_observed_to_the_last_digit():
    found = judged("in_force", Logger().decisions(500), OffPolicyConfig(resamples=50, clip=0.5))
    reward = found.quantities["reward"]
    for kind in ("ips", "snips"):
        assert reward.estimates[kind] == reward.observed
        assert (reward.changes[kind].value, reward.changes[kind].error) == (0.0, 0.0)
    low, high = reward.changes["dr"].interval
    assert low <= 0 <= high
    for name in ("cost_usd", "run_s"):
        answered = found.quantities[name]
        assert answered.estimates["snips"].value == answered.observed.value
    assert found.mean_weight == 1 and found.clipped_share == 0 and found.unsupported_share == 0
    assert reward.effective_rows == reward.rows == 500


def test_the_observed_mean_is_that_of_the_rewards():
    decisions = Logger().decisions(300)
    assert judged("greedy", decisions).quantities["reward"].observed.value == pytest.approx(decisions.rewards.mean())


def test_the_same_seed_gives_the_same_intervals():
    decisions = Logger().decisions(300)
    assert judged("greedy", decisions) == judged("greedy", decisions)
    assert judged("greedy", decisions) != judged("greedy", decisions, OffPolicyConfig(resamples=200, seed=1))


def test_attempts_at_one_task_are_drawn_together():
    """A task that is tried twice with the same end says no more than one: the error is not smaller."""
    once = [outcome(n, quality=float(n % 2)) for n in range(100)]
    choices, ends = (routed(), routed()), ("attempt_failed",)
    half = [outcome(n, choices=choices, ends=ends, quality=float(n % 2)) for n in range(100)]
    error = judged("in_force", decided(once)).quantities["reward"].observed.error
    assert error == pytest.approx(0.05, rel=0.2)
    both = judged("in_force", decided(half)).quantities["reward"].observed
    assert both.value == 0.25 and both.error == pytest.approx(error / 2, rel=0.2)


def certain(name: str, n: int):
    """Decisions of a policy that leaves nothing to chance."""
    share = (1.0, 0.0) if name == "large" else (0.0, 1.0)
    return [outcome(number, choices=(routed(name, propensities=share),)) for number in range(n)]


def test_no_overlap_is_said_and_nothing_is_made_up():
    found = judged("always:large", decided(certain("small", 200)))
    assert found.unsupported_share == 1 and found.mean_weight == 0
    reward = found.quantities["reward"]
    assert set(reward.estimates) == {"dr"} and reward.effective_rows == 0
    assert reward.estimates["dr"].value == pytest.approx(0.9)  # the estimates, and nothing else
    assert any("had no chance of being chosen" in note for note in found.notes)
    assert any("do not lean on its intervals" in note for note in found.notes)


def test_little_overlap_leaves_few_effective_rows_and_a_note():
    rare = Logger(temperature=0.06).decisions(2000)
    found = judged("always:small", rare)
    assert found.quantities["reward"].effective_rows < 100
    assert any(note.startswith("reward: the 2,000 known rows are worth") for note in found.notes)
    common = judged("greedy", rare)
    assert common.quantities["reward"].effective_rows > 1000
    assert not any(note.startswith("reward: the") for note in common.notes)


def test_small_propensities_are_clipped_and_that_is_said():
    estimates = (Estimate("large", 0.9), Estimate("small", 0.6))
    rare = routed("small", estimates=estimates, propensities=(0.999, 0.001))
    usual = routed("large", estimates=estimates, propensities=(0.999, 0.001))
    decisions = decided([outcome(1, choices=(rare,)), *(outcome(n, choices=(usual,)) for n in range(2, 101))])
    found = judged("always:small", decisions)
    assert found.clipped_share == pytest.approx(0.01)
    assert found.mean_weight == pytest.approx(1.0)  # one row of a hundred, that weighs 1 / 0.01
    assert any("below 0.01" in note for note in found.notes)
    assert judged("always:small", decisions, OffPolicyConfig(clip=0.001)).mean_weight == pytest.approx(10)


def test_candidates_without_an_estimate_do_not_stop_dr():
    """`small` has no estimated cost: the mean of the others stands in for it."""
    made = [
        outcome(n, choices=(routed(name),), cost_usd=0.02)
        for n, name in enumerate(["small", "large", "large", "large"] * 10)
    ]
    cost = judged("always:small", decided(made)).quantities["cost_usd"]
    assert cost.estimates["dr"].value == pytest.approx(0.02)
    bare = [Estimate("large", 0.9), Estimate("small", 0.6)]
    silent = decided([outcome(n, choices=(routed(estimates=tuple(bare)),), cost_usd=0.02) for n in range(9)])
    found = judged("in_force", silent)
    assert "dr" not in found.quantities["cost_usd"].estimates
    assert "cost_usd was never estimated, so there is no DR of it." in found.notes


def test_a_missing_estimate_is_the_mean_of_the_candidates_others():
    """Without overlap DR is the direct model alone: 0.03, 0.05, and for the third 0.04."""
    rows = []
    for number, usd in enumerate((0.03, 0.05, None)):
        estimates = (Estimate("large", 0.9, cost_usd=usd), Estimate("small", 0.6, cost_usd=0.001))
        choice = routed("small", estimates=estimates, propensities=(0.0, 1.0))
        rows.append(outcome(number, choices=(choice,), cost_usd=0.002))
    cost = judged("always:large", decided(rows)).quantities["cost_usd"]
    assert cost.estimates["dr"].value == pytest.approx(0.04)


def test_what_is_known_nowhere_is_absent():
    found = judged("in_force", decided([outcome(1), outcome(2)]))
    assert set(found.quantities) == {"reward", "run_s"}
    nothing = judged("in_force", decided([outcome(state=TaskState.CANCELLED)]))
    assert not nothing.quantities and nothing.notes == ("Of none of these decisions is it known what they earned.",)


def test_probabilities_must_be_of_these_decisions():
    decisions = decided([outcome()])
    for wrong in ([[0.5, 0.4]], [[1.5, -0.5]], [[1.0]]):
        with pytest.raises(ValueError, match="probabilit"):
            offpolicy.evaluate(decisions, np.array(wrong))


@pytest.mark.parametrize(("field", "value"), [("clip", 0.0), ("clip", 1.5), ("resamples", 1)])
def test_a_wrong_setting_names_its_field(field, value):
    with pytest.raises(ConfigError) as caught:
        OffPolicyConfig(**{field: value})
    assert caught.value.field == field

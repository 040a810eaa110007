"""What would have changed, had another policy chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flowray.core.model import Asked, Recorded
from flowray.core.states import TaskState
from flowray.routing import policies
from flowray.routing.offpolicy import OffPolicyConfig
from flowray.routing.replay import as_text, replay

from .logs import Logger, decided, outcome, routed

QUICK = OffPolicyConfig(resamples=50)


@pytest.fixture(scope="module")
def decisions():
    return Logger().decisions(400)


def test_a_policy_is_held_against_the_one_in_force(decisions):
    found = replay(decisions, policies.always("small"), "always:small", config=QUICK)
    assert found.differing_share == pytest.approx(np.mean(decisions.chosen != 2))
    assert found.evaluation.quantities["reward"].changes["snips"].value < 0
    assert len(found.examples) == 10
    assert all(example.chosen != "small" and example.instead == "small" for example in found.examples)
    rows = [decisions.task_ids.index(example.task_id) for example in found.examples]
    assert rows == sorted(set(rows)) and rows[0] < 40 and rows[-1] >= 360  # over the whole time


def test_the_policy_in_force_differs_by_chance_alone(decisions):
    found = replay(decisions, policies.in_force, "in_force", config=QUICK)
    assert found.differing_share == pytest.approx(1 - decisions.of_chosen(decisions.propensities).mean())
    assert found.evaluation.quantities["reward"].changes["ips"].value == 0


def test_another_router_may_estimate_the_same_tasks(decisions):
    """Its estimates choose, and are the model of DR: with nothing but zeros DR is IPS."""
    other = replace(decisions.estimates, success=np.zeros_like(decisions.estimates.success))
    found = replay(decisions, policies.greedy, "greedy", estimates=other, config=QUICK)
    assert {example.instead for example in found.examples} == {"large"}  # of equals the first
    reward = found.evaluation.quantities["reward"].estimates
    assert reward["dr"].value == pytest.approx(reward["ips"].value)


def test_lines_tell_every_figure(decisions):
    text = as_text(replay(decisions, policies.always("small"), "always:small", config=QUICK))
    lines = text.splitlines()
    assert lines[0].startswith("always:small instead of the policy in force (router v1): 400 decisions for 400 tasks")
    assert [line.split()[0] for line in lines if line[:1].isalpha()][1:4] == ["reward", "dollars", "seconds"]
    assert sum("SNIPS" in line for line in lines) >= 3
    assert sum(line.startswith("  t-") for line in lines) == 10


def test_an_example_shows_what_is_known():
    bare = replay(decided([outcome()]), policies.always("large"), "always:large", config=QUICK)
    assert "  t-000001 #1  small -> large  success 0.60 -> 0.90  $? -> $0.03  earned 1.00" in as_text(bare)
    made = decided(
        [Recorded(outcome=outcome(state=TaskState.CANCELLED), asked=Asked("Summarise\nthe report " + "x" * 80))]
    )
    line = as_text(replay(made, policies.always("large"), "always:large", config=QUICK)).splitlines()[-1]
    assert line.endswith("reward not known  'Summarise the report xxxxxxxxxxxxxxxxxxxxxxxx...'")


def test_where_nothing_differs_there_are_no_examples():
    same = replay(decided([outcome(choices=(routed("large"),))]), policies.greedy, "greedy", config=QUICK)
    assert same.examples == () and "For example" not in as_text(same)

"""What a task is called: the past helps the network with the labels that both know, and with those alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.routing.estimates import Histories, Outcomes, TaskBatch
from flowray.routing.estimator import RouterEstimator
from flowray.routing.naming import ENOUGH, MOST, Naming

from .routers import trades, trained

HEADS = {"wide": ("art", "science"), "kind": ("dance", "logic", "music", "physics")}
SUMS = {"wide": ("kind", (0, 1, 0, 1))}
PAST = ("dance", "logic", "music")


def naming(n_tasks=100_000, kinds=PAST):
    made = Naming.of(kinds, n_tasks, HEADS, SUMS)
    assert made is not None
    return made


def shares(*rows):
    fine = np.array(rows, np.float32)
    return {"kind": fine, "wide": np.stack([fine[:, 0] + fine[:, 2], fine[:, 1] + fine[:, 3]], axis=1)}


def test_where_the_network_is_torn_the_past_decides():
    said = naming().agreed(shares((0.4, 0.3, 0.25, 0.05)), np.array([[0.1, 0.8, 0.1]], np.float32))
    assert HEADS["kind"][int(said["kind"][0].argmax())] == "logic"
    assert said["wide"][0, 1] == pytest.approx(said["kind"][0, 1] + said["kind"][0, 3])


def test_a_label_that_the_past_never_met_keeps_what_the_network_gives_it():
    said = naming().agreed(shares((0.1, 0.1, 0.1, 0.7)), np.array([[0.98, 0.01, 0.01]], np.float32))
    assert said["kind"][0, 3] == pytest.approx(0.7)
    assert said["kind"][0].argmax() == 3


def test_the_past_has_the_more_to_say_the_longer_it_is():
    weights = [naming(n_tasks).weight for n_tasks in (3, 300, 3_000, 3_000_000)]
    assert weights == sorted(weights)
    assert weights[0] < 0.01 and weights[1] == pytest.approx(MOST * 100 / (100 + ENOUGH)) and weights[3] < MOST


@pytest.mark.parametrize("kinds", [("dance", "cooking"), ("dance",), ()], ids=["unknown", "one", "none"])
def test_kinds_that_no_head_knows_or_that_tell_nothing_apart_change_nothing(kinds):
    assert Naming.of(kinds, 1_000, HEADS, SUMS) is None


@given(
    st.lists(st.floats(0.0, 1.0, width=32), min_size=4, max_size=4).filter(lambda row: sum(row) > 1e-3),
    st.lists(st.floats(0.0, 1.0, width=32), min_size=3, max_size=3),
    st.integers(0, 10_000),
)
def test_what_comes_of_it_are_probabilities(mine, past, n_tasks):
    row = np.array(mine, np.float32) / np.float32(sum(mine))
    said = naming(n_tasks).agreed(shares(row), np.array([past], np.float32))
    for values in said.values():
        assert np.isfinite(values).all() and (values >= 0).all()
        assert values.sum() == pytest.approx(1.0, abs=1e-4)


def asked(kinds):
    """Sums and poems that were called by each other's names."""
    past = trades().histories()
    test = trades().split("test")
    told = RouterEstimator(trained().network).estimate(test.tasks, test.agents, replace(past, kinds=kinds(past.kinds)))
    return told


def test_a_router_hears_what_its_agents_past_calls_tasks_and_rates_agents_as_it_did():
    other = {"sums": "poems", "poems": "sums"}
    same, swapped = asked(lambda kinds: kinds), asked(lambda kinds: tuple(other[kind] for kind in kinds))
    labels = same.capabilities["task_type"].labels
    sums = np.flatnonzero(np.array(trades().split("test").labels["task_type"]) == "sums")
    column = labels.index("sums")
    mine, theirs = (told.capabilities["task_type"].probabilities[sums, column] for told in (same, swapped))
    assert mine.mean() > theirs.mean() + 0.1
    strange = asked(lambda kinds: tuple(f"a {kind}" for kind in kinds))  # the same guess in words that no head knows
    alone = RouterEstimator(trained().network)._labels_alone(trades().split("test").tasks)
    assert np.array_equal(
        strange.capabilities["task_type"].probabilities, alone.capabilities["task_type"].probabilities
    )
    assert np.array_equal(strange.success, same.success)


def test_a_past_without_tasks_says_nothing():
    agents = trades().agents
    nobody = Histories(tasks=TaskBatch.of_texts(()), outcomes=Outcomes.none(0, len(agents)))
    router, tasks = RouterEstimator(trained().network), trades().split("test").tasks
    assert router.acquaintance(agents, nobody).naming is None
    assert np.isfinite(router.estimate(tasks, agents, nobody).capabilities["task_type"].probabilities).all()

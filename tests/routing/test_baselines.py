"""The baselines learn what is there to be learnt, and no more."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from flowray.errors import MissingExtra
from flowray.routing import baselines, data, metrics
from flowray.routing.estimates import AgentBatch, Histories, Outcomes, TaskBatch

from .sets import two_trades, write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trades(tmp_path_factory):
    return data.load(two_trades(tmp_path_factory.mktemp("sets") / "trades"))


@pytest.fixture(scope="module")
def fitted(trades):
    return baselines.fit(trades.split("train"))


def areas(fitted, trades):
    test = trades.split("test")
    ones = np.ones((1, len(test)), np.float32)
    found = {}
    for name, baseline in fitted.items():
        p = baseline.estimate(test.tasks, test.agents, trades.histories()).success
        assert np.isfinite(p).all() and (p >= 0).all() and (p <= 1).all()
        found[name] = metrics.auc(p, test.outcomes.success)(ones)[0]
    return found


def test_who_reads_ranks_better_than_who_counts(trades, fitted):
    found = areas(fitted, trades)
    assert found["majority"] == 0.5
    assert 0.55 < found["agent_prior"] < 0.8
    for reader in ("table", "knn", "logistic"):
        assert found[reader] > found["agent_prior"] + 0.1


def test_task_types_are_read_off_the_text(trades, fitted):
    test = trades.split("test")
    for reader in ("table", "knn", "logistic"):
        said = fitted[reader].estimate(test.tasks, test.agents, trades.histories()).capabilities["task_type"]
        np.testing.assert_allclose(said.probabilities.sum(axis=1), 1, rtol=1e-5)
        assert np.mean([a == b for a, b in zip(said.best(), test.labels["task_type"], strict=True)]) > 0.98


def test_the_table_knows_how_long_and_how_dear(trades, fitted):
    test = trades.split("test")
    said = fitted["table"].estimate(test.tasks, test.agents, trades.histories())
    np.testing.assert_allclose(said.latency_s, test.outcomes.latency_s, rtol=0.6)
    np.testing.assert_allclose(said.cost_usd, test.outcomes.cost_usd, rtol=1e-4)


def test_an_agent_without_a_past_gets_what_agents_usually_do(trades, fitted):
    test = trades.split("test")
    agents = AgentBatch.of_ids((*trades.agents.agent_ids, "stranger"))
    histories = trades.histories(agents=agents)
    for baseline in fitted.values():
        said = baseline.estimate(test.tasks, agents, histories)
        assert np.isfinite(said.success).all()
        assert 0.2 < said.success[:, -1].mean() < 0.8


def test_labels_alone_are_enough_for_labels(tmp_path):
    words = {"text": ["add two", "sum three", "rhyme me", "verse four"] * 5, "intent": ["a", "a", "b", "b"] * 5}
    tasks = {"prompt_id": [str(i) for i in range(20)], "split": ["train"] * 20, **words}
    train = data.load(write(tmp_path, tasks=tasks))
    fitted = baselines.fit(train)
    nobody = Histories(tasks=TaskBatch.of_texts(()), outcomes=Outcomes.none(0, 0))
    said = fitted["logistic"].estimate(train.tasks, train.agents, nobody)
    assert said.capabilities["intent"].best() == train.labels["intent"]
    assert said.success.shape == (20, 0)
    assert "agent_prior" not in fitted


def test_no_train_tasks_no_baselines(trades):
    assert baselines.fit(trades.split("nothing")) == {}


def test_a_missing_library_is_named(trades, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(MissingExtra, match=r"pip install 'flowray\[router\]'"):
        baselines.fit(trades.split("train"))

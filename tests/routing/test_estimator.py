"""Asking a router anything: an answer that is a number, or an error that says what is wrong."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowray.routing import artifacts, estimator
from flowray.routing.artifacts import ArtifactError
from flowray.routing.estimates import AgentBatch, Histories, Outcomes, TaskBatch
from flowray.routing.estimator import RouterEstimator

from .routers import trades, trained

AGENTS = AgentBatch.of_ids(["a", "b", "c"])
CELL = st.sampled_from([0.0, 1.0, np.nan])


@pytest.fixture(scope="module")
def router() -> RouterEstimator:
    return RouterEstimator(trained().network)


def past(success: np.ndarray, texts: tuple[str, ...] | None = None) -> Histories:
    success = np.asarray(success, np.float32)
    none = np.full_like(success, np.nan)
    outcomes = Outcomes(success=success, quality=success, latency_s=none, cost_usd=none, tokens=none)
    return Histories(tasks=TaskBatch.of_texts(texts or ("add the total",) * len(success)), outcomes=outcomes)


NOTHING = past(np.zeros((0, 3)))


@given(texts=st.lists(st.text(st.characters(), max_size=40), max_size=4), cells=st.lists(CELL, min_size=6, max_size=6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_texts_and_any_past_give_probabilities(router, texts, cells):
    estimates = router.estimate(TaskBatch.of_texts(texts), AGENTS, past(np.reshape(cells, (2, 3))))
    for values in (estimates.success, estimates.quality, estimates.confidence):
        assert values.shape == (len(texts), 3)
        assert ((values >= 0) & (values <= 1)).all()
    for labelled in estimates.capabilities.values():
        np.testing.assert_allclose(labelled.probabilities.sum(axis=1), 1.0, rtol=1e-4)


@pytest.mark.parametrize("text", ["", " \n\t", "\x00", "\ud800", "x" * 1_000_000, "日本語の質問", "🤖" * 500])
def test_odd_texts_are_answered(router, text):
    assert np.isfinite(router.estimate(TaskBatch.of_texts([text]), AGENTS, NOTHING).success).all()


def test_agents_without_any_past_are_all_alike(router):
    success = router.estimate(TaskBatch.of_texts(["add two numbers"]), AGENTS, NOTHING).success
    assert np.ptp(success) < 0.05


def test_no_candidates_give_no_columns_but_the_capabilities(router):
    estimates = router.estimate(TaskBatch.of_texts(["rhyme a stanza"]), AgentBatch.of_ids([]), past(np.zeros((0, 0))))
    assert estimates.success.shape == (1, 0)
    assert estimates.capabilities["task_type"].best() == ("poems",)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_capabilities_are_the_same_whether_there_are_agents_or_not(precision):
    asked = RouterEstimator(trained().network, precision=precision)
    tasks = TaskBatch.of_texts(["add two numbers", "", "translate this letter into French", "x" * 9_000])
    with_agents = asked.estimate(tasks, AGENTS, NOTHING).capabilities
    without = asked.estimate(tasks, AgentBatch.of_ids([]), past(np.zeros((0, 0)))).capabilities
    assert list(with_agents) == list(without)
    for head, labelled in with_agents.items():
        assert labelled.labels == without[head].labels
        np.testing.assert_allclose(labelled.probabilities, without[head].probabilities, atol=1e-5)


def test_no_tasks_give_no_rows(router):
    assert router.estimate(TaskBatch.of_texts([]), AGENTS, NOTHING).success.shape == (0, 3)


def test_a_history_of_other_agents_is_refused(router):
    with pytest.raises(ValueError, match="give each agent one column"):
        router.estimate(TaskBatch.of_texts(["x"]), AGENTS, past(np.zeros((4, 2))))


def test_attempts_of_another_shape_are_refused(router):
    tasks = replace(TaskBatch.of_texts(["x"]), attempts=np.zeros((1, 2), np.float32))
    with pytest.raises(ValueError, match="tasks x agents"):
        router.estimate(tasks, AGENTS, NOTHING)


def test_a_batch_answers_as_one_by_one(router):
    test, histories = trades().split("test"), trades().histories()
    whole = router.estimate(test.tasks, test.agents, histories)
    for row in range(0, len(test), 7):
        one = router.estimate(test.tasks.take(slice(row, row + 1)), test.agents, histories)
        np.testing.assert_allclose(one.success[0], whole.success[row], atol=1e-4)


def test_a_failed_attempt_at_the_very_task_lowers_what_is_expected_of_that_agent(router):
    test, histories = trades().split("test"), trades().histories()
    before = router.estimate(test.tasks, test.agents, histories).success
    attempts = np.full_like(before, np.nan)
    attempts[:, 0] = 0.0
    after = router.estimate(replace(test.tasks, attempts=attempts), test.agents, histories).success
    assert (after[:, 0] < before[:, 0]).all()


def test_a_history_is_read_once_and_forgotten_with_its_owner():
    asked = RouterEstimator(trained().network)
    histories = trades().histories()
    agents = trades().agents
    assert asked.acquaintance(agents, histories) is asked.acquaintance(agents, histories)
    del histories
    gc.collect()
    assert len(asked._known) == 0


def test_what_is_saved_and_loaded_answers_the_same(router, tmp_path):
    estimator.save(tmp_path, trained())
    loaded = estimator.load(tmp_path)
    test, histories = trades().split("test"), trades().histories()
    mine, theirs = (each.estimate(test.tasks, test.agents, histories) for each in (router, loaded))
    np.testing.assert_array_equal(mine.success, theirs.success)
    assert loaded.header["data"]["trades"]["sha256"] == trades().digest


def test_weights_that_do_not_fit_their_header_are_refused(tmp_path):
    estimator.save(tmp_path, trained())
    whole = artifacts.load(tmp_path)
    arrays = {name: values for name, values in whole.arrays.items() if name != "lower.weight"}
    artifacts.save(tmp_path, arrays, whole.header)
    with pytest.raises(ArtifactError, match="do not fit"):
        estimator.load(tmp_path)


def test_a_residual_that_does_not_hold_on_the_past_is_not_trusted():
    """The text's part of the network is turned round: on these agents' past it is worth less than nothing."""
    network = trained().network
    turned = type(network)(network.config).eval()
    turned.load_state_dict(network.state_dict())
    with torch.no_grad():
        for layer in (turned.difficulty, turned.demand):
            layer.weight.mul_(-3.0)
            layer.bias.mul_(-3.0)
    whole = trades()
    straight, reversed_ = (
        RouterEstimator(each).acquaintance(whole.agents, whole.histories()).trust for each in (network, turned)
    )
    assert reversed_ < straight
    assert reversed_ < 0.3


def test_eight_bits_answer_nearly_the_same_and_the_card_says_so(tmp_path):
    estimator.save(tmp_path / "whole", trained())
    fidelity = estimator.quantize(tmp_path / "whole", tmp_path / "small", [trades()])
    assert fidelity.n_pairs == len(trades().split("val")) * 4
    assert 0 < fidelity.largest_error < 0.05
    assert fidelity.decisions_changed < 0.2
    assert fidelity.reduction > 0.5
    assert artifacts.card(tmp_path / "small")["fidelity"]["mean_error"] == fidelity.mean_error
    size = [(tmp_path / name / artifacts.WEIGHTS).stat().st_size for name in ("small", "whole")]
    assert size[0] < 0.5 * size[1]


def test_precision_follows_the_batch(monkeypatch):
    monkeypatch.setattr(estimator.quantization, "crossover", lambda run: 8)
    asked = RouterEstimator(trained().network, precision="auto")
    if asked.small is None:
        pytest.skip("this torch has no int8 layers")
    assert asked._reader(7) is asked.network
    assert asked._reader(8) is asked.small


def test_without_int8_layers_everything_is_read_in_float32(monkeypatch):
    monkeypatch.setattr(estimator.quantization, "quantized", lambda network: None)
    asked = RouterEstimator(trained().network, precision="auto")
    assert asked.int8_from is None
    assert asked._reader(1000) is asked.network


def test_a_router_measures_for_itself_where_int8_pays():
    asked = RouterEstimator(trained().network, precision="auto")
    assert asked.int8_from is None or 1 <= asked.int8_from <= 128

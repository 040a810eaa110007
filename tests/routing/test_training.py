"""Training: it learns what there is to learn, nothing from its own answers, and the same twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from flowray.routing import data, lessons, training
from flowray.routing.estimates import TaskBatch
from flowray.routing.estimator import RouterEstimator
from flowray.routing.features import featurise
from flowray.routing.training import TrainingConfig

from .routers import CONFIG, SHAPE, trades, trained
from .sets import small, write


def log_loss(probabilities: np.ndarray, success: np.ndarray) -> float:
    return float(-np.log(np.where(success > 0, probabilities, 1 - probabilities)).mean())


def test_it_beats_the_agents_priors_on_tasks_it_has_not_seen():
    test = trades().split("test")
    histories = trades().histories()
    router = RouterEstimator(trained().network)
    estimates = router.estimate(test.tasks, test.agents, histories)
    prior = np.clip(histories.outcomes.success.mean(axis=0), 0.01, 0.99)
    assert log_loss(estimates.success, test.outcomes.success) < log_loss(prior, test.outcomes.success) - 0.1
    named = router.estimate(test.tasks, test.agents.take(slice(0)), histories).capabilities["task_type"]
    assert named.best() == test.labels["task_type"]  # the network alone: nobody's past has a word in it
    right = np.array(estimates.capabilities["task_type"].best()) == np.array(test.labels["task_type"])
    assert right.mean() > 0.97


def test_the_unseen_agent_is_scored_from_its_history():
    test = trades().split("test")
    estimates = RouterEstimator(trained().network).estimate(test.tasks, test.agents, trades().histories())
    fool, sage = test.agents.agent_ids.index("fool"), test.agents.agent_ids.index("sage")
    assert not test.seen[fool]
    assert (estimates.success[:, fool] < estimates.success[:, sage] - 0.2).all()


def test_the_same_seed_gives_the_same_weights_and_another_gives_others():
    again = training.train([trades()], CONFIG, SHAPE).network.state_dict()
    first, other = trained().network.state_dict(), trained(seed=1).network.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def noise(n_tasks: int = 150) -> data.OutcomeSet:
    """The trades, but success is tossed for: there is nothing to learn."""
    whole = trades()
    tossed = np.random.default_rng(0).integers(2, size=whole.outcomes.success.shape).astype(np.float32)
    return replace(whole, outcomes=replace(whole.outcomes, success=tossed, quality=tossed))


@pytest.mark.parametrize(("leave_one_out", "leaks"), [(True, False), (False, True)])
def test_records_of_training_tasks_do_not_hold_their_own_outcome(leave_one_out, leaks):
    tossed = noise()
    config = replace(CONFIG, leave_one_out=leave_one_out, folds=1)
    network = trained().network
    past = lessons.prepared(tossed.split("train"), network.config)
    new = lessons.prepared(tossed.split("val"), network.config)
    lessons.recall(network, tossed, past, new, leave_one_out=config.leave_one_out)
    deviation = (past.records[:, :, 2] - past.records[:, :, 0]).numpy()  # the table against the prior
    seen = past.success.numpy()
    correlation = np.mean([np.corrcoef(deviation[:, a], seen[:, a])[0, 1] for a in range(seen.shape[1])])
    assert (correlation > 0) == leaks


def test_progress_is_told_epoch_by_epoch():
    told = []
    training.train([trades()], replace(CONFIG, outcome_epochs=2, folds=1, patience=99), SHAPE, report=told.append)
    assert [step.phase for step in told] == ["labels"] * CONFIG.label_epochs + ["outcomes"] * 2
    assert [step.epoch for step in told[-2:]] == [1, 2]
    assert told[CONFIG.label_epochs - 1].val["task_type"] > 0.9


def test_training_goes_on_from_a_network():
    first = trained()
    on = training.train([trades()], replace(CONFIG, label_epochs=1, outcome_epochs=1, folds=1), start=first.network)
    assert on.network.config == first.network.config
    assert torch.equal(on.network.vocabulary, first.network.vocabulary)
    assert not torch.equal(on.network.lower.weight, first.network.lower.weight)


def test_training_stops_when_val_gets_no_better():
    told = []
    config = replace(CONFIG, label_epochs=0, outcome_epochs=50, patience=2, folds=1, outcome_rate=0.05)
    training.train([noise()], config, SHAPE, report=told.append)
    assert len(told) < 50


def test_nothing_to_learn_from_is_refused(tmp_path):
    empty = data.load(write(tmp_path / "s", **small(tasks={"split": ["test"] * 3})))
    with pytest.raises(ValueError, match="split 'train'"):
        training.train([empty], TrainingConfig())


def test_a_set_without_labels_and_with_one_agent_trains(tmp_path):
    single = {
        "outcomes": {"prompt_id": ["a", "b", "c"], "agent_id": ["x"] * 3, "success": [1, 0, 1]},
        "agents": {"agent_id": ["x"]},
    }
    of_set = data.load(write(tmp_path / "s", **small(**single)))
    network = training.train([of_set], CONFIG, SHAPE).network
    estimates = RouterEstimator(network).estimate(of_set.tasks, of_set.agents, of_set.histories())
    assert np.isfinite(estimates.success).all()


def test_a_label_that_follows_from_a_finer_one_is_summed_and_not_learned():
    whole = trades()
    fine = tuple(f"{kind} {'short' if n % 3 else 'long'}" for n, kind in enumerate(whole.labels["task_type"]))
    both = replace(whole, labels={"task_type": whole.labels["task_type"], "capability": fine})
    heads = lessons.heads_of([both])
    assert lessons.sums_of([both], heads) == {"task_type": ("capability", (0, 0, 1, 1))}
    network = training.train([both], replace(CONFIG, folds=1, outcome_epochs=1), SHAPE).network
    assert set(network.heads) == {"capability"}
    test = both.split("test")
    estimates = RouterEstimator(network).estimate(test.tasks, test.agents, both.histories())
    assert estimates.capabilities["task_type"].best() == test.labels["task_type"]


def alike(tmp_path, rare=0.1, n_tasks=300):
    """Tasks that all read the same; one label is rarer than the other."""
    kinds = np.where(np.arange(n_tasks) % round(1 / rare) == 0, "odd", "usual")
    splits = np.where(np.arange(n_tasks) % 7 == 6, "val", "train")
    tasks = {
        "prompt_id": [f"t{number}" for number in range(n_tasks)],
        "text": ["the very same words"] * n_tasks,
        "split": splits.tolist(),
        "task_type": kinds.tolist(),
    }
    return data.load(write(tmp_path / "alike", tasks=tasks))


@pytest.mark.parametrize(("power", "share"), [(0.0, 0.1), (1.0, 0.5)])
def test_rare_labels_may_count_more(tmp_path, power, share):
    config = replace(CONFIG, class_weighting=power, label_smoothing=0.0)
    network = training.train([alike(tmp_path)], config, SHAPE).network
    said = network.read_labels(featurise(TaskBatch.of_texts(["the very same words"])))["task_type"]
    odd = network.config.heads["task_type"].index("odd")
    assert float(torch.softmax(said.detach(), dim=1)[0, odd]) == pytest.approx(share, abs=0.06)


def test_dear_agents_may_count_more():
    """`sage` is the dear one: what is learned then suits it, and the others less."""
    price = np.array([1.0, 1.0, 50.0, 1.0], np.float32)
    priced = replace(trades(), agents=replace(trades().agents, price_in_per_m=price, price_out_per_m=price))
    sage = priced.agents.agent_ids.index("sage")

    def behind(power):
        """How much worse than the others `sage` is known."""
        config = replace(CONFIG, price_weighting=power, outcome_epochs=12, outcome_rate=0.01, patience=99)
        network = training.train([priced], config, SHAPE).network
        past = lessons.prepared(priced.split("train"), network.config)
        lessons.recall(network, priced, past, lessons.prepared(priced.split("val"), network.config))
        with torch.no_grad():
            said = torch.sigmoid(training.judged(network, past)).numpy()
        losses = [log_loss(said[:, at], past.success[:, at].numpy()) for at in range(said.shape[1])]
        return 1.5 * losses[sage] - 0.5 * sum(losses)

    assert behind(1.0) < behind(0.0)


def test_what_outcomes_count_by_price_is_bounded():
    profiles = torch.tensor([[0.0, 0.0], [0.0, np.log(4.0)], [0.0, 50.0], [0.0, -50.0]])
    assert training._by_price(profiles, 0.0).tolist() == [1.0] * 4
    assert training._by_price(profiles, 0.5).tolist() == pytest.approx([1.0, 2.0, 10.0, 0.1])

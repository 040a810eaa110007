"""Pruning leaves the n-grams that matter, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowray.routing.estimates import TaskBatch
from flowray.routing.estimator import RouterEstimator
from flowray.routing.features import featurise
from flowray.routing.network import tensors
from flowray.routing.pruning import pruned

from .routers import trades, trained


def met():
    return [featurise(trades().split("train").tasks)]


def test_keeping_all_changes_nothing():
    network = trained().network
    whole = pruned(network, met(), 1.0)
    features = tensors(featurise(trades().split("test").tasks))
    torch.testing.assert_close(whole.labels(*features)["task_type"], network.labels(*features)["task_type"])


def test_half_the_n_grams_still_tell_the_trades_apart():
    network = trained().network
    small = pruned(network, met(), 0.5)
    known = int((network.vocabulary >= 0).sum())
    assert len(small.label_bag.weight) - 1 == round(known / 2)
    test = trades().split("test")
    estimates = RouterEstimator(small).estimate(test.tasks, test.agents, trades().histories())
    right = np.array(estimates.capabilities["task_type"].best()) == np.array(test.labels["task_type"])
    assert right.mean() > 0.9


def test_what_never_occurs_goes_first():
    network = trained().network
    seen = [featurise(TaskBatch.of_texts(["rhyme sonnet"]))]
    with torch.no_grad():
        equal = type(network)(network.config)
        equal.load_state_dict(network.state_dict())
        equal.label_bag.weight.fill_(1.0)
        equal.meaning_bag.weight.fill_(1.0)
    known = equal.vocabulary[equal.vocabulary >= 0].numpy()
    occurs = np.isin(known, seen[0].grams)
    kept = pruned(equal, seen, occurs.mean()).vocabulary.numpy()
    assert set(kept) == set(known[occurs])


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(keep):
    with pytest.raises(ValueError, match="keep is a share"):
        pruned(trained().network, met(), keep)

"""Texts about the same lie near each other, without anyone having said what they are about."""

from __future__ import annotations

import numpy as np
import torch

from flowray.routing import sense
from flowray.routing.estimates import TaskBatch
from flowray.routing.features import BUCKETS, Features, featurise
from flowray.routing.network import NetworkConfig, RoutingNetwork

from .routers import trades, trained
from .sets import WORDS


def texts(n_texts: int = 60, seed: int = 0) -> tuple[Features, np.ndarray]:
    rng = np.random.default_rng(seed)
    kinds = np.arange(n_texts) % 2
    of = [" ".join(rng.choice(list(WORDS.values())[kind].split(), size=4)) for kind in kinds]
    return featurise(TaskBatch.of_texts(of)), kinds


def network_of(features: Features, width: int = 8) -> RoutingNetwork:
    network = RoutingNetwork(
        NetworkConfig(heads={"kind": ("a", "b")}, tables=("kind",), rows=1_000, label_width=4, sense_width=width)
    )
    network.learn_words(torch.from_numpy(np.unique(features.grams)[:999]))
    with torch.no_grad():
        network.sense_bag.weight.copy_(sense.rows_of([features], network.row_of, 1_000, width))
    return network.eval()


def test_texts_of_one_kind_are_nearer_than_texts_of_two():
    learned, _ = texts()
    new, kinds = texts(seed=1)
    vectors = network_of(learned).sense(new).numpy()
    likeness = vectors @ vectors.T
    same = kinds[:, None] == kinds
    assert likeness[same].mean() > likeness[~same].mean() + 0.3


def test_the_same_seed_gives_the_same_rows():
    features, _ = texts()
    row_of = torch.arange(BUCKETS, dtype=torch.int32) % 1_000
    first, again, other = (sense.rows_of([features], row_of, 1_000, 4, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_best_approximation_is_found():
    """The products of all texts' vectors are those of the exact decomposition, whose sizes enter once."""
    features, _ = texts()
    network = network_of(features, width=6)
    rows = network.row_of[torch.from_numpy(features.grams)].long()
    matrix = torch.zeros(len(features), 1_000)
    matrix.index_put_((torch.repeat_interleave(torch.arange(60), torch.from_numpy(np.diff(features.offsets))), rows),
                      torch.ones(len(rows)), accumulate=True)  # fmt: skip
    matrix[:, 0] = 0
    rarity = -((matrix.sum(dim=0) / 60).clamp(min=1e-4, max=0.9)).log()
    left, sizes, _ = torch.linalg.svd(torch.nn.functional.normalize(matrix * rarity, dim=1), full_matrices=False)
    exact = torch.nn.functional.normalize(left[:, :6] * sizes[:6].sqrt(), dim=1)
    found = network.sense(features)
    torch.testing.assert_close(found @ found.T, exact @ exact.T, atol=0.02, rtol=0)


def test_few_texts_and_none_leave_columns_empty():
    row_of = torch.arange(BUCKETS, dtype=torch.int32) % 1_000
    few = featurise(TaskBatch.of_texts(["one text", "another text"]))
    rows = sense.rows_of([few], row_of, 1_000, 8)
    assert torch.isfinite(rows).all()
    assert rows[:, 2:].abs().sum() == 0
    assert not sense.rows_of([few.take(np.zeros(0, np.intp))], row_of, 1_000, 8).any()
    assert not sense.rows_of([], row_of, 1_000, 8).any()


def test_training_fills_it_in():
    features = featurise(trades().split("test").tasks)
    torch.testing.assert_close(trained().network.sense(features).norm(dim=1), torch.ones(len(features)))

"""Leaving out what says little: the n-grams whose vectors hardly move any answer.

Nearly all weights of a router are the vectors of n-grams, so whole rows are pruned (structured: the file shrinks and
nothing is computed for what is gone). A row's worth is how far it moves the logits when it occurs, times the root of
how often it occurs: both bags count in units of their own mean. Fine-tune afterwards with `training.train(start=...)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from flowray.routing.features import BUCKETS, Features
from flowray.routing.network import RoutingNetwork


def pruned(network: RoutingNetwork, met: Sequence[Features], keep: float) -> RoutingNetwork:
    """A network with the best `keep` (0..1] of the n-grams, as judged by the tasks that were `met`.

    Raises:
        ValueError: `keep` is not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is a share above 0 and at most 1, got {keep!r}")
    known = network.vocabulary[network.vocabulary >= 0].numpy()
    often = np.zeros(BUCKETS)
    for features in met:
        often += np.bincount(features.grams, minlength=BUCKETS)
    bags = (network.label_bag.weight, network.meaning_bag.weight)  # what sense tells is worth what these two tell
    norms = [bag.detach()[1 : len(known) + 1].norm(dim=1).numpy() for bag in bags]
    worth = sum(norm / max(float(norm.mean()), 1e-12) for norm in norms) * np.sqrt(often[known] + 1.0)
    rows = np.sort(np.lexsort((known, -worth))[: max(round(len(known) * keep), 1)])
    small = RoutingNetwork(replace(network.config, rows=len(rows) + 1))
    state = network.state_dict()
    chosen = torch.from_numpy(np.concatenate([[0], rows + 1]))
    for name in ("label_bag.weight", "meaning_bag.weight", "sense_bag.weight"):
        state[name] = state[name][chosen]
    state["vocabulary"] = network.vocabulary[network.vocabulary >= 0][torch.from_numpy(rows)]
    small.load_state_dict(state)
    return small.eval()

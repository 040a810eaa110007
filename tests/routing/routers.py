"""A small router, trained in a second or two, for the tests of everything that is done with one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from flowray.routing import data, training
from flowray.routing.data import OutcomeSet
from flowray.routing.training import Trained, TrainingConfig

from .sets import two_trades

CONFIG = TrainingConfig(batch=16, label_epochs=6, fold_epochs=2, outcome_epochs=3, label_rate=0.02)
SHAPE = {"rows": 512, "label_width": 8, "meaning_width": 8, "hidden": 16, "strengths": 4}


@cache
def trades(n_tasks: int = 240, seed: int = 0) -> OutcomeSet:
    """Two kinds of tasks, four agents."""
    with TemporaryDirectory() as directory:
        return data.load(two_trades(Path(directory) / "trades", n_tasks=n_tasks, seed=seed))


@cache
def trained(seed: int = 0, **shape: int) -> Trained:
    """A network that knows the two trades."""
    return training.train([trades()], replace(CONFIG, seed=seed), SHAPE | shape)

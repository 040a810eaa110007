"""The small set of outcomes that flowray makes itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from flowray.errors import ConfigError
from flowray.routing.data import OutcomeSet, digest_of, load
from flowray.testing import make_outcomes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> OutcomeSet:
    return load(make_outcomes(tmp_path_factory.mktemp("sets") / "made"))


def test_it_follows_the_schema_and_every_agent_tried_every_task(made):
    assert (len(made), len(made.agents)) == (600, 6)
    assert made.outcomes.known.all()
    assert (
        (made.outcomes.latency_s > 0).all() and (made.outcomes.cost_usd > 0).all() and (made.outcomes.tokens > 0).all()
    )
    assert np.array_equal(made.outcomes.quality > 0.5, made.outcomes.success == 1)
    assert len(set(made.tasks.texts)) == 600


def test_each_kind_is_split_alike(made):
    splits = Counter(zip(made.labels["task_type"], made.splits, strict=True))
    assert len(splits) == 18
    assert {split: {n for (_, of), n in splits.items() if of == split} for split in ("train", "val", "test")} == {
        "train": {70}, "val": {10}, "test": {20}
    }  # fmt: skip


def best_single_and_by_kind(directory: Path) -> tuple[float, float]:
    """Success at the test tasks of the agent that was best at train, and of the agent best at train for each kind."""
    whole = load(directory)
    past, judged = whole.split("train"), whole.split("test")
    best = past.outcomes.success.mean(axis=0).argmax()
    kinds = np.array(past.labels["task_type"])
    table = {kind: past.outcomes.success[kinds == kind].mean(axis=0).argmax() for kind in set(kinds)}
    chosen = [table[kind] for kind in judged.labels["task_type"]]
    by_kind = judged.outcomes.success[np.arange(len(judged)), chosen].mean()
    return float(judged.outcomes.success[:, best].mean()), float(by_kind)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("agents", [3, 6, 12])
def test_who_knows_kinds_and_agents_does_better_than_the_best_single_agent(tmp_path, agents, seed):
    single, by_kind = best_single_and_by_kind(make_outcomes(tmp_path, agents=agents, seed=seed))
    assert by_kind > single + 0.15


def test_equal_arguments_give_equal_sets(tmp_path):
    seeds = {"first": 1, "again": 1, "other": 2}
    first, again, other = (make_outcomes(tmp_path / name, tasks=60, seed=seed) for name, seed in seeds.items())
    assert digest_of(first) == digest_of(again) != digest_of(other)


@pytest.mark.parametrize("wrong", [{"tasks": 59}, {"tasks": 10_001}, {"agents": 2}, {"agents": 101}])
def test_numbers_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: wants a whole number from"):
        make_outcomes(tmp_path, **wrong)
    assert not any(tmp_path.iterdir())

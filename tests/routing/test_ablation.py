"""What each part brings: the same lesson without it, held against the whole with the same seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flowray.routing import ablation, training
from flowray.routing.ablation import FIGURES, VARIANTS, WHOLE, Variant, ablate

from .routers import CONFIG, SHAPE, trades

pytestmark = pytest.mark.slow
FAST = replace(CONFIG, label_epochs=4, folds=1, outcome_epochs=2)


@pytest.fixture(scope="module")
def rows() -> dict[str, ablation.Row]:
    return {row.name: row for row in ablate([trades()], FAST, SHAPE, seeds=2)}


def test_every_variant_is_judged_and_the_whole_is_what_it_is_held_against(rows):
    assert list(rows) == [variant.name for variant in VARIANTS]
    assert all(np.isfinite(list(row.figures.values())).all() for row in rows.values())
    assert set(rows[WHOLE].differences.values()) == {0.0}
    for row in rows.values():
        for figure in FIGURES:
            assert row.figures[figure] - rows[WHOLE].figures[figure] == pytest.approx(row.differences[figure])


def test_without_the_past_agents_are_not_told_apart(rows):
    """Who is good at which trade stands in the history alone."""
    assert rows["without history (priors alone)"].differences["log_loss"] > 0.05
    assert rows[WHOLE].figures["auc"] > 0.8


def test_eight_bits_change_next_to_nothing(rows):
    assert abs(rows["eight bits"].differences["log_loss"]) < 0.01


def test_the_table_names_every_variant(rows):
    text = ablation.as_text(list(rows.values()))
    assert all(variant.name in text for variant in VARIANTS)
    assert len(text.splitlines()) == len(VARIANTS) + 1


@pytest.mark.parametrize("network", [{}, {"attention": True}])
def test_outcomes_learned_without_n_grams_read_none(network):
    """Also by a network of another shape than the lesson's, which is made anew."""
    lesson = training.learn_labels([trades()], FAST, SHAPE)
    silent = training.learn_outcomes(lesson, replace(FAST, bag_rate=0.0), network)
    assert not silent.meaning_bag.weight.any()
    assert training.learn_outcomes(lesson, FAST, network).meaning_bag.weight.any()


def test_a_variant_changes_nothing_for_those_after_it():
    """The lesson is shared: what one variant does to it the next must not see."""
    some = [variant for variant in VARIANTS if variant.lesson is not None]
    after = ablate([trades()], FAST, SHAPE, seeds=1, variants=[VARIANTS[0], *some, replace(VARIANTS[0], name="again")])
    assert after[-1].figures == pytest.approx(after[0].figures)


def test_sets_without_outcomes_are_refused(tmp_path):
    from flowray.routing import data

    from .sets import two_trades

    labels_only = data.load(two_trades(tmp_path / "labels", drop=("outcomes", "agents")))
    with pytest.raises(ValueError, match="outcomes"):
        ablate([labels_only], FAST, SHAPE, variants=[Variant(name=WHOLE)])

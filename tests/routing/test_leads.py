"""Leads over the leader: believed where the past shows that they hold, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.routing.estimates import Outcomes
from flowray.routing.leads import MARGINS, foretold, leader_of, margin_of, tempered
from flowray.routing.memory import Views


def test_leads_that_are_errors_are_not_believed():
    """Forty agents as good as one another, judged with errors: whoever seems best is only the luckiest."""
    rng = np.random.default_rng(0)
    success = (rng.random((1000, 40)) < 0.8).astype(np.float32)
    success[:, 0] = rng.random(1000) < 0.9
    estimated = np.clip(0.8 + 0.1 * rng.normal(size=success.shape), 0.02, 0.98)
    estimated[:, 0] = 0.9
    margin = margin_of(estimated, success, 0)
    assert margin >= 0.2
    chosen = tempered(estimated.astype(np.float32), 0, margin).argmax(axis=1)
    assert success[np.arange(1000), chosen].mean() > success[np.arange(1000), estimated.argmax(axis=1)].mean() + 0.05


def test_leads_that_hold_are_believed():
    rng = np.random.default_rng(0)
    chance = np.where(rng.random((1000, 1)) < 0.5, [0.9, 0.3], [0.5, 0.8])
    success = (rng.random(chance.shape) < chance).astype(np.float32)
    assert margin_of(chance, success, 0) == 0.0
    estimated = chance.astype(np.float32)
    assert (tempered(estimated, 0, 0.0) == estimated).all()


@pytest.mark.parametrize(
    "success", [np.zeros((0, 3)), np.full((5, 3), np.nan), [[np.nan, 1, 0]], [[1, np.nan, np.nan]]]
)
def test_without_anything_to_compare_all_is_believed(success):
    success = np.array(success, np.float32)
    assert margin_of(np.full(success.shape, 0.5), success, 0) == 0.0


probabilities = st.lists(st.floats(0.01, 0.99), min_size=2, max_size=8, unique=True)


@given(probabilities, st.sampled_from(MARGINS), st.data())
def test_only_the_leader_changes_places(row, margin, data):
    leader = data.draw(st.integers(0, len(row) - 1))
    before = np.array([row], np.float32)
    after = tempered(before, leader, margin)
    others = np.delete(np.arange(len(row)), leader)
    assert ((after > 0) & (after < 1)).all()
    assert after[0, leader] == before[0, leader]
    order = others[np.argsort(before[0, others], kind="stable")]
    assert (np.diff(after[0, order]) >= -1e-6).all()
    ahead = before[0, others] - before[0, leader] > margin + 1e-6
    assert ((after[0, others] > after[0, leader]) >= ahead).all()
    assert not (after[0, others] > after[0, leader])[before[0, others] - before[0, leader] <= margin - 1e-6].any()


def test_the_past_is_foretold_without_itself():
    """Outcomes are coin tosses of which an agent's own past says all: no estimate may follow its task's outcome."""
    rng = np.random.default_rng(0)
    success = rng.integers(2, size=(200, 3)).astype(np.float32)
    none = np.full_like(success, np.nan)
    outcomes = Outcomes(success=success, quality=success, latency_s=none, cost_usd=none, tokens=none)
    views = Views(traits=rng.normal(size=(200, 4)).astype(np.float32), sense=np.zeros((200, 0), np.float32))
    expected = foretold(views, outcomes, tuple("ab"[number] for number in rng.integers(2, size=200)))
    assert np.isfinite(expected).all()
    assert abs(np.corrcoef(expected.ravel(), success.ravel())[0, 1]) < 0.15


def test_the_leader_is_the_agent_with_the_best_past():
    assert leader_of(np.array([0.3, 0.7, 0.7])) == 1

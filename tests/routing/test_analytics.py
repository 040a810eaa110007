"""How estimates and choices did over time."""

from __future__ import annotations

import numpy as np
import pytest

from flowray.core.model import Estimate
from flowray.core.states import TaskState
from flowray.errors import ConfigError
from flowray.routing.analytics import AnalyticsConfig, analyse

from .logs import NAMES, TRUE, USD, Logger, decided, outcome, routed

QUICK = AnalyticsConfig(windows=10, resamples=20)


@pytest.fixture(scope="module")
def found():
    return analyse(Logger().decisions(3000), QUICK)


def test_true_estimates_are_calibrated_and_do_not_drift(found):
    assert found.known == found.decisions == found.tasks == 3000
    assert found.calibration_error.value < 0.03
    np.testing.assert_allclose(found.series.expected, found.series.reward, atol=0.08)
    assert not any(one.drift for one in found.candidates)
    assert all(np.abs(one.cusum).max() <= found.threshold for one in found.candidates)


def test_every_window_has_its_share(found):
    series = found.series
    assert list(series.decisions) == [300] * 10 and (np.diff(series.at) > 0).all()
    np.testing.assert_allclose(series.shares.sum(axis=1), 1)
    chances = Logger().propensities().mean(axis=0)
    np.testing.assert_allclose(series.shares.mean(axis=0), chances, atol=0.04)
    assert [one.candidate for one in found.candidates] == [NAMES[c] for c in np.argsort(-chances)]
    assert sum(one.chosen for one in found.candidates) == 3000


def test_ranking_is_measured_in_each_window_and_over_all(found):
    low, high = found.auc.interval
    assert 0.5 < low <= found.auc.value <= high < 1
    assert np.mean(found.series.auc) == pytest.approx(found.auc.value, abs=0.05)
    assert np.mean(found.series.brier) == pytest.approx(found.brier.value, abs=1e-6)


def test_regret_is_what_exploring_costs_by_the_estimates(found):
    """This logger calls everything but the best estimate exploring."""
    chances = Logger().propensities()
    expected = (chances * (TRUE.max(axis=1, keepdims=True) - TRUE)).sum(axis=1).mean()
    assert found.regret == pytest.approx(expected, abs=0.02)
    assert found.regret_exploring == pytest.approx(found.regret)
    assert found.series.exploring.mean() == pytest.approx(found.exploring_share)
    assert found.series.regret.mean() == pytest.approx(found.regret)


def test_money_is_held_against_the_dearest_and_the_best_single_one(found):
    assert found.single == "large"  # 0.9, 0.8, 0.95
    spent = (Logger().propensities() * USD).sum(axis=1).mean()
    for saving in (found.against_dearest, found.against_single):
        assert saving.decisions == 3000 and saving.instead_usd == pytest.approx(USD[0])
        assert saving.chosen_usd == pytest.approx(spent, rel=0.05)
        assert saving.saved_share == pytest.approx(1 - saving.chosen_usd / saving.instead_usd)
    assert found.against_single.expected == pytest.approx(-found.regret, abs=1e-6)
    np.testing.assert_allclose(found.series.dearest_cost_usd, USD[0], rtol=1e-6)


@pytest.mark.parametrize(("change", "drift"), [(0.3, "worse"), (-0.3, "better")])
def test_a_candidate_that_changes_is_flagged_after_it_changed_and_nobody_else(change, drift):
    logger = Logger(estimated=TRUE.clip(0, 0.65), drops=("small", 0.5, change))  # `small` is estimated right
    true = analyse(Logger(drops=("small", 0.5, change), temperature=0.6).decisions(4000), QUICK)
    flagged = [one for one in true.candidates if one.drift]
    assert [(one.candidate, one.drift) for one in flagged] == [("small", drift)]
    assert 5 <= flagged[0].drift_window <= 8
    assert abs(flagged[0].residuals[:5].mean()) < 0.1 and abs(flagged[0].residuals[5:].mean() + change) < 0.1
    wrong = analyse(logger.decisions(2000), QUICK)
    assert {one.candidate: one.drift for one in wrong.candidates}["large"] == "better"  # than estimated, all along


def test_two_attempts_at_one_task_cost_together():
    choices = (routed("small"), routed("large"))
    made = [outcome(1, cost_usd=0.01), outcome(2, choices=choices, ends=("requeued",), cost_usd=0.03)]
    assert analyse(decided(made), QUICK).cost_usd_per_task == pytest.approx(0.02)


def test_what_is_not_known_is_not_made_up():
    bare = routed(estimates=(Estimate("large", 0.9), Estimate("small", 0.6)))
    found = analyse(decided([outcome(n, choices=(bare,), state=TaskState.CANCELLED) for n in range(30)]), QUICK)
    assert found.known == 0 and np.isnan(found.auc.value) and np.isnan(found.cost_usd_per_task)
    assert np.isnan(found.against_dearest.saved_share) and found.against_dearest.decisions == 0
    assert np.isnan(found.series.reward).all() and np.isnan(found.series.auc).all()
    assert [one.drift for one in found.candidates] == ["", ""]
    assert {one.candidate: one.chosen for one in found.candidates} == {"small": 30, "large": 0}


def test_fewer_decisions_than_windows_make_fewer_windows():
    assert len(analyse(decided([outcome(1), outcome(2)]), QUICK).series.at) == 2


def test_one_window_is_refused():
    with pytest.raises(ConfigError, match="windows: must be at least 2"):
        AnalyticsConfig(windows=1)

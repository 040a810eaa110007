"""A router on trial: known routers get known marks, and sets with holes are judged on what they have."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from flowray.errors import ConfigError
from flowray.routing import data, evaluation
from flowray.routing.estimates import AgentBatch, Estimates, Histories, Labelled, Outcomes, TaskBatch
from flowray.routing.judge import filled_costs

from .sets import WORDS, two_trades, write

RATES = {"counter": (0.9, 0.1), "poet": (0.1, 0.9), "sage": (0.85, 0.85), "fool": (0.2, 0.2)}
ISSUE = {
    "success_accuracy", "success_auc", "within_agent_auc", "brier", "ece", "routed_success", "q60_share", "aiq",
    "usd_per_million_tokens", "category_accuracy", "latency_median_ape",
}  # fmt: skip


class Reader:
    """Knows how the sets of `two_trades` are made."""

    def __init__(self) -> None:
        self.asked: list[TaskBatch] = []

    def estimate(self, tasks: TaskBatch, agents: AgentBatch, histories: Histories) -> Estimates:
        self.asked.append(tasks)
        poems = np.array([text.split()[0] in WORDS["poems"] for text in tasks.texts]).astype(int)
        success = np.array([[RATES.get(a, (0.5, 0.5))[kind] for a in agents.agent_ids] for kind in poems], np.float32)
        if tasks.attempts is not None:
            success = np.where(np.isnan(tasks.attempts), success, tasks.attempts)
        success = success.reshape(len(tasks), len(agents))
        types = Labelled(labels=("poems", "sums"), probabilities=np.eye(2, dtype=np.float32)[1 - poems])
        seconds = np.where(poems, 8.0, 2.0)[:, None] * np.ones_like(success)
        return Estimates(
            success=success,
            quality=success,
            latency_s=seconds.astype(np.float32),
            cost_usd=np.full_like(success, np.nan),
            confidence=np.ones_like(success),
            capabilities={"category": types},
        )


def judged(directory, **options):
    options = {"with_baselines": False, "resamples": 50, **options}
    return evaluation.evaluate(Reader(), data.load(directory), **options)


def test_a_router_that_knows_gets_the_marks_of_one(tmp_path):
    report = judged(two_trades(tmp_path / "trades", n_tasks=900))
    found = {name: metric.router for name, metric in report.metrics.items()}
    assert found.keys() >= ISSUE
    assert found["category_accuracy"] == 1.0
    assert found["success_auc"] > 0.85
    assert found["ece"] < 0.06
    assert found["routed_success"] > 0.85
    assert found["latency_median_ape"] < 0.1
    assert found["latency_r2"] > 0.9
    assert report.best_single == "sage"
    assert found["q60_share"] > 1.0  # counter or poet, each for a tenth of the sage's price
    assert report.metrics["q60_share"].baselines["random_mixing"] < 0.95
    assert found["usd_per_million_tokens"] < 2.0 < report.metrics["usd_per_million_tokens"].baselines["best_single"]
    assert found["q60_share_fixed"] > 0.97
    assert found["cost_cut_fixed"] > 0.6


@pytest.mark.slow
def test_everybody_is_judged_on_the_same_tasks(tmp_path):
    report = judged(two_trades(tmp_path / "trades"), with_baselines=True)
    metric = report.metrics["success_auc"]
    assert set(metric.baselines) == {"majority", "agent_prior", "table", "knn", "logistic"}
    assert metric.baselines["majority"] == 0.5 < metric.baselines["table"]
    assert metric.over_table.value == pytest.approx(metric.router - metric.baselines["table"])
    low, high = metric.over_table.interval
    assert low <= metric.over_table.value <= high
    assert high - low < metric.interval[1] - metric.interval[0]  # paired: what both find hard cancels out
    routed = report.metrics["routed_success"]
    assert routed.oracle is not None
    assert routed.baselines["random_mixing"] < routed.baselines["best_single"] <= routed.oracle
    for values in report.metrics.values():
        assert all(math.isfinite(value) for value in values.baselines.values())


def test_intervals_hold_the_value(tmp_path):
    report = judged(two_trades(tmp_path / "trades"), resamples=200)
    for name, metric in report.metrics.items():
        if metric.interval is not None and name != "ece":  # a resample is worse calibrated than the sample
            assert metric.interval[0] - 1e-6 <= metric.router <= metric.interval[1] + 1e-6, name
    assert report.metrics["success_accuracy"].interval is not None


def test_the_document_has_the_agreed_form(tmp_path):
    document = evaluation.as_json([judged(two_trades(tmp_path / "trades"))])
    again = json.loads(json.dumps(document, allow_nan=False))
    metric = again["sets"]["trades"]["success_accuracy"]
    assert metric.keys() == {"router", "baselines", "interval"}
    low, high = metric["interval"]
    assert low <= metric["router"] <= high


def test_labels_are_never_shown(tmp_path):
    reader, one = Reader(), data.load(two_trades(tmp_path / "trades"))
    evaluation.evaluate(reader, one, with_baselines=False, resamples=0)
    for tasks in reader.asked:
        assert "task_type" not in repr(tasks)
        assert all(word in " ".join(WORDS.values()) for text in tasks.texts for word in text.split())


def test_one_earlier_attempt_is_told_and_not_asked_for(tmp_path):
    reader, one = Reader(), data.load(two_trades(tmp_path / "trades"))
    report = evaluation.evaluate(reader, one, with_baselines=False, resamples=0)
    told = [tasks.attempts for tasks in reader.asked if tasks.attempts is not None]
    assert len(told) == 1
    assert (np.isfinite(told[0]).sum(axis=1) == 1).all()
    assert report.metrics["after_attempt_auc"].router == pytest.approx(report.metrics["success_auc"].router, abs=0.05)


@pytest.mark.parametrize(
    ("drop", "gone", "kept"),
    [
        (("latency_s",), {"latency_median_ape", "latency_r2"}, {"aiq", "success_auc"}),
        (("input_tokens",), {"usd_per_million_tokens"}, {"aiq", "success_auc"}),
        (("cost_usd",), {"usd_per_million_tokens", "aiq", "q60_share"}, {"success_auc", "routed_success"}),
        (("task_type",), {"category_accuracy"}, {"success_auc"}),
        (("agent_split",), {"unseen_success_auc"}, {"success_auc"}),
        (("agents",), {"unseen_success_auc"}, {"success_auc", "aiq"}),
        (("outcomes", "agents"), {"success_auc", "aiq", "routed_success"}, {"category_accuracy"}),
    ],
)
def test_what_a_set_lacks_is_absent(tmp_path, drop, gone, kept):
    report = judged(two_trades(tmp_path / "trades", n_tasks=60, drop=drop))
    assert not gone & report.metrics.keys()
    assert kept <= report.metrics.keys()


def test_one_agent_can_be_predicted_but_not_chosen(tmp_path):
    whole = data.load(two_trades(tmp_path / "trades", n_tasks=60))
    report = evaluation.evaluate(Reader(), whole.of_agents(np.array([2])), with_baselines=False, resamples=0)
    assert report.metrics["routed_success"].router == report.metrics["routed_success"].baselines["best_single"]
    assert not {"aiq", "q60_share", "after_attempt_auc"} & report.metrics.keys()


def test_agents_that_did_not_try_everything(tmp_path):
    """Cost figures are of the tasks that all tried; the others use every outcome there is."""
    directory = two_trades(tmp_path / "trades", n_tasks=60)
    whole = data.load(directory)
    whole.outcomes.success[::5, 0] = np.nan
    report = evaluation.evaluate(Reader(), whole, with_baselines=False, resamples=0)
    assert any("tasks that every priced agent tried" in note for note in report.notes)
    assert all(math.isfinite(metric.router) for metric in report.metrics.values() if metric.router is not None)


def test_two_agents_have_a_gap_to_recover(tmp_path):
    whole = data.load(two_trades(tmp_path / "trades", n_tasks=300))
    pair = whole.of_agents(np.array([0, 2]))  # counter and sage: send the poems to the sage
    report = evaluation.evaluate(Reader(), pair, with_baselines=False, resamples=20)
    assert report.metrics["apgr"].router > 0.7
    assert report.metrics["apgr"].baselines["random_mixing"] == pytest.approx(0.5)
    assert report.metrics["cpt80"].router < 0.7


def test_histories_come_from_the_set_of_the_same_name(tmp_path):
    two_trades(tmp_path / "known" / "trades")
    held = two_trades(tmp_path / "held" / "trades", seed=1, splits=("holdout",), drop=("agents",))
    with_past = evaluation.evaluate_all(
        Reader(), [held], history=tmp_path / "known", split="holdout", with_baselines=False, resamples=0
    )[0]
    alone = evaluation.evaluate_all(Reader(), [held], split="holdout", with_baselines=False, resamples=0)[0]
    assert with_past.best_single == "sage"
    assert "unseen_success_auc" in with_past.metrics  # who is unseen is known from there, too
    assert alone.best_single is None
    assert any("no history" in note for note in alone.notes)
    assert "success_auc" in alone.metrics and "aiq" not in alone.metrics


def test_a_new_agent_costs_its_price(tmp_path):
    """It joined after the history was written; everybody can still be judged on cost."""
    past = data.load(two_trades(tmp_path / "trades"))
    known = past.of_agents([0, 1, 2])
    report = evaluation.evaluate(Reader(), past.split("test"), past=known, with_baselines=False, resamples=0)
    assert report.n_agents == 4
    assert report.metrics["q60_share"].router > 0.9
    assert "fool" in report.singles


def test_costs_are_filled_from_the_record_the_price_or_the_others():
    agents = AgentBatch(
        agent_ids=("old", "priced", "bare"), descriptions=("", "", ""), params_b=np.full(3, np.nan, np.float32),
        price_in_per_m=np.array([9, 2, np.nan], np.float32), price_out_per_m=np.array([9, 6, np.nan], np.float32),
        load=np.full(3, np.nan, np.float32),
    )  # fmt: skip
    nothing = np.full((1, 3), np.nan, np.float32)
    cost = np.array([[0.002, np.nan, np.nan]], np.float32)
    outcomes = Outcomes(success=nothing, quality=nothing, latency_s=nothing, cost_usd=cost, tokens=nothing)
    estimates = Estimates(
        success=nothing, quality=nothing, latency_s=nothing, cost_usd=nothing, confidence=nothing, capabilities={}
    )
    filled = filled_costs(estimates, agents, Histories(tasks=TaskBatch.of_texts(["x"]), outcomes=outcomes))
    np.testing.assert_allclose(filled, [[0.002, 0.004, 0.003]])


def test_a_split_that_is_not_there_is_named(tmp_path):
    directory = two_trades(tmp_path / "trades", n_tasks=12)
    with pytest.raises(ConfigError, match="there are test, train, val"):
        evaluation.evaluate_all(None, [directory], split="holdout")
    with pytest.raises(ConfigError, match="it has test, train, val"):
        evaluation.evaluate(None, data.load(directory), split="holdout")


def test_out_of_scope_tasks_are_counted_apart(tmp_path):
    texts = ["add one", "rhyme two", "what is love"]
    tasks = {"prompt_id": ["a", "b", "c"], "text": texts, "split": ["test"] * 3, "domain": ["sums", "poems", "oos"]}

    class Domains(Reader):
        def estimate(self, tasks: TaskBatch, agents: AgentBatch, histories: Histories) -> Estimates:
            labels = Labelled(
                labels=("oos", "poems", "sums"), probabilities=np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], np.float32)
            )
            nobody = np.zeros((len(tasks), 0), np.float32)
            return Estimates(
                success=nobody, quality=nobody, latency_s=nobody, cost_usd=nobody, confidence=nobody,
                capabilities={"domain": labels},
            )  # fmt: skip

    report = evaluation.evaluate(Domains(), data.load(write(tmp_path, tasks=tasks)), resamples=0)
    assert {name: metric.router for name, metric in report.metrics.items()} == {"domain_accuracy": 1, "oos_recall": 1}


class Historian(Reader):
    """Remembers how long a past it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, ...]] = []

    def estimate(self, tasks, agents, histories):
        self.seen.append(histories.tasks.texts)
        return super().estimate(tasks, agents, histories)


def test_a_past_can_be_shortened_and_is_drawn_from_train_alone(tmp_path):
    whole = data.load(two_trades(tmp_path / "trades"))
    router = Historian()
    evaluation.evaluate(router, whole, with_baselines=False, resamples=0, history_tasks=30, seed=1)
    evaluation.evaluate(router, whole, with_baselines=False, resamples=0, history_tasks=30, seed=2)
    evaluation.evaluate(router, whole, with_baselines=False, resamples=0, history_tasks=10_000)
    lengths = [len(texts) for texts in router.seen]
    assert max(lengths[:2]) == 30
    assert router.seen[0] != router.seen[-1]
    assert max(lengths) == len(whole.split("train"))

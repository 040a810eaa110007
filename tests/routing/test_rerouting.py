"""Another router over recorded receipts: the same one says and chooses the same, another one is held against it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pytest

from flowray.core.commands import RequestEstimates, ResolveTask
from flowray.core.coordination import Coordination
from flowray.core.events import AgentReady, AgentsAdded, AttemptFinished, EstimatesReady, TaskSubmitted, Ticked
from flowray.core.model import AgentId, AgentSpec, Failure, Recorded, Task, TaskId
from flowray.core.policy import CorePolicy
from flowray.core.routing import RoutingPolicy
from flowray.errors import ConfigError
from flowray.routing import estimator, policies, receipts, replay
from flowray.routing.decisions import Decisions
from flowray.routing.estimator import RouterEstimator
from flowray.routing.live import LiveRouter
from flowray.routing.queries import query_of
from flowray.routing.rerouting import reroute, with_column
from flowray.routing.tables import SchemaError

from .logs import Logger, outcome
from .routers import trades, trained

RULES = RoutingPolicy(enabled=True, usd=20.0, explore=0.1, good=0.05, tiers={"primary": 0.02})
AGENTS = ("counter", "poet", "sage", "fool")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("artifact") / "router"
    estimator.save(directory, trained())
    return directory


def fresh(past: int = 0) -> LiveRouter:
    """A router into which nothing was learned; its agents have one past or another."""
    return LiveRouter(RouterEstimator(trained().network), trades(seed=past), version=f"v{past}")


@cache
def recorded(n_tasks: int = 150, most: int = 1) -> tuple[Recorded, ...]:
    """What a coordinator keeps of tasks that its router decided: some wait, some fail, some are told what to mind.

    The router is asked about up to `most` of them at once.
    """
    rng, router = Random(5), fresh()
    core = Coordination(epoch=1, rng=Random(1), policy=CorePolicy(routing=RULES))
    now, resolved, asked, busy = 0.0, [], [], []

    def tell(event) -> None:
        for command in core.handle(event, now):
            if isinstance(command, RequestEstimates):
                asked[:] = [one for one in asked if one.task_id != command.task_id]  # a late one is out of date
                asked.append(command)
            elif isinstance(command, ResolveTask):
                resolved.append(command)
            elif type(command).__name__ == "StartAttempt":
                busy.append(command)
            elif type(command).__name__ == "StartAgent":
                ready.append(AgentReady(command.agent_id, command.incarnation))

    ready: list[AgentReady] = []
    for name in AGENTS:
        tell(AgentsAdded(AgentSpec(name=name, tier="primary" if name < "p" else "secondary")))
    for event in ready:
        tell(event)
    for number in range(n_tasks):
        now += rng.expovariate(1.5)
        wishes = rng.choice(
            [
                {},
                {"deadline_s": 30.0},
                {"quality": 0.8},
                {"max_cost_usd": 2e-4},
                {"weights": {"usd": 500.0}},
                {"choices": "['a', 'b', 'c']", "counts": {"n_tools": 2.0, "n_params": 7.0, "n_options": 3.0}},
            ]
        )
        text = trades().tasks.texts[number % len(trades())]
        tell(TaskSubmitted(Task(id=TaskId(f"t-{number:04}"), prompt=text, tools="x: one ; y: two", **wishes)))
        while (asked and rng.random() < 0.7) or len(asked) > 5:
            batch = [asked.pop(0) for _ in range(min(len(asked), rng.randint(1, most)))]
            batch = [one for one in batch if core.asking.is_asked(one.task_id)]
            entries = [core.book.open[one.task_id].task for one in batch]
            queries = [query_of(task, one.candidates, one.tried) for task, one in zip(entries, batch, strict=True)]
            ids = [one.task_id for one in batch]
            answers = tuple(zip(ids, router.estimate(ids, queries), strict=True))
            tell(EstimatesReady(answers, "local", router.version))
        while busy and rng.random() < 0.6:
            one = busy.pop(rng.randrange(len(busy)))
            fails = rng.random() < 0.3
            failure = Failure(kind="application", type="OSError", retryable=True) if fails else None
            tell(
                AttemptFinished(one.task_id, one.attempt, one.epoch, AgentId(one.agent_id), failure=failure, run_s=1.0)
            )
        tell(Ticked())
    return tuple(Recorded(outcome=one.outcome, asked=one.asked) for one in resolved)


def test_the_same_router_and_policy_say_and_choose_the_same():
    """Retries, waits, deadlines, thrift and budgets included: nothing is left to explain a difference."""
    table = receipts.tabled(recorded())
    again = reroute(table, fresh(), batch=1)
    decisions = again.decisions
    assert len(decisions) > 80 and again.version == "v0+0"
    told = decisions.table
    assert sum(bool(tried) for tried in told.column("tried").to_pylist()) > 5
    assert sum(any(waits) for waits in told.column("waits_s").to_pylist()) > 20
    assert sum(bool(weights) for weights in told.column("weights").to_pylist()) > 5
    assert sum(any(extras) for extras in told.column("extras").to_pylist()) > 50
    assert 5 < sum(("n_params", 7.0) in counts for counts in told.column("counts").to_pylist()) < len(decisions)
    for name in ("remaining_s", "thrift", "max_cost_usd"):
        assert told.column(name).null_count < len(decisions)
    for name in ("success", "quality", "latency_s", "cost_usd"):
        recorded_ones, others = getattr(decisions.estimates, name), getattr(again.estimates, name)
        np.testing.assert_array_equal(others, recorded_ones, err_msg=name)
    np.testing.assert_array_equal(again.deviations, decisions.deviations)
    chosen = policies.routed(RULES, again.deviations)(decisions, again.estimates)
    np.testing.assert_array_equal(chosen, decisions.propensities)
    found = replay.replay(decisions, policies.routed(RULES, again.deviations), "same", estimates=again.estimates)
    reward = found.evaluation.quantities["reward"]
    assert reward.estimates["ips"].value == pytest.approx(reward.observed.value)
    assert reward.changes["snips"].value == pytest.approx(0.0, abs=1e-12)


def test_batches_of_other_sizes_change_last_digits_alone():
    again = reroute(receipts.tabled(recorded(most=6)), fresh())
    decisions, there = again.decisions, again.decisions.offered
    for name in ("success", "quality", "latency_s", "cost_usd"):
        ours, others = getattr(decisions.estimates, name)[there], getattr(again.estimates, name)[there]
        np.testing.assert_allclose(others, ours, rtol=1e-4, atol=1e-5, err_msg=name)
    chosen = policies.routed(RULES, again.deviations)(decisions, again.estimates)
    off = np.abs(chosen - decisions.propensities).max(axis=1)
    assert (off > 1e-4).mean() < 0.02  # a close call may turn


def test_a_policy_with_other_rules_chooses_otherwise():
    decisions = Decisions.of_table(receipts.tabled(recorded()))
    same = policies.named("routed", RULES)(decisions, decisions.estimates)
    np.testing.assert_array_equal(same, decisions.propensities)
    thrifty = policies.named("routed", RoutingPolicy(usd=5_000.0))(decisions, decisions.estimates)
    assert np.allclose(thrifty.sum(axis=1), 1.0)
    fool = decisions.candidates.index("fool")
    assert thrifty[:, fool].mean() > decisions.propensities[:, fool].mean() + 0.05


def test_another_router_says_otherwise():
    again = reroute(receipts.tabled(recorded()), fresh(past=1))
    assert again.version == "v1+0"
    there = again.decisions.offered
    assert np.isfinite(again.estimates.success[there]).all() and np.isnan(again.estimates.success[~there]).all()
    assert np.abs(again.estimates.success - again.decisions.estimates.success)[there].max() > 0.01
    found = replay.replay(again.decisions, policies.routed(RULES, again.deviations), "other", estimates=again.estimates)
    assert 0 < found.differing_share < 1


def test_receipts_without_text_are_told_apart():
    table = receipts.tabled([*recorded(), *Logger().outcomes(10)])
    known, without = with_column(table, "prompt")
    assert (without, known.num_rows) == (10, table.num_rows - 10)
    with pytest.raises(SchemaError, match="null in 10 receipts"):
        reroute(table, fresh())
    old = Decisions.of_table(receipts.tabled([outcome()]))
    with pytest.raises(ConfigError, match="1 receipts do not say how long"):
        policies.routed()(old, old.estimates)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Receipts of which ten have no text, and do not say how long candidates would have waited."""
    receipts.write(tmp_path / "log.parquet", [*recorded(), *Logger().outcomes(10)])
    return tmp_path / "log.parquet"


def test_on_the_command_line(router, log, saved, tmp_path):
    (tmp_path / "rules.yaml").write_text(
        "core: {routing: {usd: 20.0, explore: 0.1, good: 0.05, tiers: {primary: 0.02}}}\n"
    )
    history = estimator_history(tmp_path)
    common = ("replay", "--receipts", log, "--resamples", 20)
    code, out, err = router(*common, "--router", saved, "--history", history, "--config", "rules.yaml", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["policy"].startswith("routed by router ")
    assert document["without_waits"] == 10 and document["without_text"] == 0  # they lack both: told once
    assert document["differing_share"] == pytest.approx(expected_differing(), abs=1e-5)  # batches of other sizes
    code, out, err = router(*common, "--router", saved, "--history", history, "--policy", "greedy")
    assert code == 0, err
    assert "10 receipts without text are left out" in out
    code, out, err = router(*common, "--policy", "routed")
    assert code == 0 and "10 receipts from before waits were recorded are left out" in out


def estimator_history(directory: Path) -> Path:
    """The past that `fresh` goes by, as a set on disk."""
    from .sets import two_trades

    return two_trades(directory / "trades", n_tasks=240, seed=0)


def expected_differing() -> float:
    """The share of decisions that chance alone makes differ."""
    decisions = Decisions.of_table(receipts.tabled(recorded()))
    return float(1.0 - decisions.of_chosen(decisions.propensities).mean())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--history", "x"), "say --router DIR too"),
        (("--router", "nowhere"), "nowhere"),
        (("--policy", "best"), "in_force or routed"),
    ],
)
def test_what_does_not_go_together_is_refused(router, log, more, words):
    code, _, err = router("replay", "--receipts", log, *more)
    assert code in (1, 2) and words in err


def test_a_log_without_any_text_is_no_use_to_a_router(router, saved, tmp_path):
    receipts.write(tmp_path / "old.parquet", Logger().outcomes(10))
    code, _, err = router("replay", "--receipts", "old.parquet", "--router", saved, "--policy", "greedy")
    assert code == 2 and "no receipt in old.parquet has the text" in err and "keep_text" in err

"""A runtime whose router chooses among classes of agents, on real Ray."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import flowray as fr
from flowray.testing import make_outcomes, replay_specs, replay_tasks

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 60.0
SHIPPED = Path(__file__).parents[2] / "models" / "router" / "v1"


@fr.agent(capabilities={"answer"})
class Answerer:
    """Its answers are worth what it was made with."""

    def __init__(self, worth: float, usd: float = 0.0) -> None:
        self.worth, self.usd = worth, usd

    def run(self, task: fr.Task, ctx: fr.Context) -> float:
        ctx.report(quality=self.worth, cost_usd=self.usd)
        return self.worth


@pytest.fixture(scope="module")
def learning(start_runtime: Callable[..., fr.Runtime]) -> Iterator[fr.Runtime]:
    """Two classes of agents, and a router that knows nothing of them at first."""
    with start_runtime("learning", core__routing={"enabled": True, "within_s": 5.0, "sampled": 1.0}, seed=3) as rt:
        rt.agents.add(Answerer, name="good", count=2, options={"worth": 0.9, "usd": 0.02})
        rt.agents.add(Answerer, name="poor", count=2, options={"worth": 0.2, "usd": 0.001})
        rt.wait_ready(timeout_s=WAIT_S)
        yield rt


def routed(rt: fr.Runtime, count: int, **wishes: float) -> list[fr.Handle]:
    """Tasks one after another, so that each can learn from those before."""
    handles = []
    for number in range(count):
        handle = rt.submit(f"question {number}", needs={"answer"}, **wishes)
        handle.result(timeout_s=WAIT_S)
        handles.append(handle)
    return handles


def who(handles: list[fr.Handle]) -> Counter[str]:
    return Counter(handle.outcome().agent_id.rpartition("-")[0] for handle in handles)


def test_it_learns_who_is_good_and_says_so(learning):
    until_loaded(learning)
    routed(learning, 40)
    handles = routed(learning, 30)
    assert who(handles)["good"] >= 25
    last = handles[-1].outcome()
    choice = last.choices[0]
    assert choice.receipt is not None
    assert choice.receipt.path == "local"
    assert {estimate.candidate for estimate in choice.receipt.estimates} == {"good", "poor"}
    assert sum(choice.receipt.propensities) == pytest.approx(1.0)
    assert "expected to succeed" in handles[-1].explain()


def test_good_enough_is_cheaper(learning):
    routed(learning, 20)
    cheap = routed(learning, 20, quality=0.1)
    assert who(cheap)["poor"] >= 15
    assert who(routed(learning, 20, quality=1.0))["good"] >= 15


def until_loaded(rt: fr.Runtime) -> None:
    deadline = time.monotonic() + WAIT_S
    while not rt.status().router:
        assert time.monotonic() < deadline, rt.status().router_failed
        time.sleep(0.1)


def test_live_is_as_good_as_offline(start_runtime, tmp_path):
    """The same router over the same past, asked by a runtime and asked by hand, chooses the same agents."""
    from flowray.routing import data, estimator
    from flowray.routing.live import class_names

    directory = make_outcomes(tmp_path / "made", tasks=120, agents=4)
    recorded = data.load(directory)
    test = recorded.split("test")
    offline = estimator.load(SHIPPED, "float32").estimate(test.tasks, test.agents, recorded.histories())
    names = class_names(recorded.agents.agent_ids)
    expected = [names[column] for column in offline.success.argmax(axis=1)]
    nothing_but_success = dict.fromkeys(("good", "explore", "slowdown", "second", "use_quality"), 0.0)
    with start_runtime(
        "replayed",
        core__routing={"enabled": True, "within_s": 5.0, "sampled": 1.0, **nothing_but_success},
        router={"artifact": str(SHIPPED), "history": str(directory)},
        tiers__secondary__agents_per_actor=4,
    ) as rt:
        for spec in replay_specs(directory, capability="answer"):
            rt.agents.add(**spec.arguments)
        rt.wait_ready(timeout_s=WAIT_S)
        until_loaded(rt)
        tasks = replay_tasks(directory, "test")
        handles = rt.submit_many([{"prompt": text, "labels": labels, "needs": {"answer"}} for text, labels in tasks])
        outcomes = handles.outcomes(timeout_s=WAIT_S)
    chosen = [outcome.choices[0].receipt.chosen for outcome in outcomes]
    # What is learned on the way may turn a close call.
    same = sum(one == other for one, other in zip(chosen, expected, strict=True))
    assert same >= 0.9 * len(expected)
    live = sum(outcome.quality or 0.0 for outcome in outcomes) / len(outcomes)
    row = {name: column for column, name in enumerate(names)}
    by_hand = sum(float(test.outcomes.quality[at, row[name]]) for at, name in enumerate(expected)) / len(expected)
    assert live == pytest.approx(by_hand, abs=0.1)

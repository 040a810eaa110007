"""A router in service: what it says of agents with and without a past, and what it learns at once."""

from __future__ import annotations

import numpy as np
import pytest

from flowray.routing import live
from flowray.routing.data import load
from flowray.routing.estimates import Estimates, Labelled
from flowray.routing.live import LiveRouter
from flowray.routing.queries import Query
from flowray.testing import make_outcomes


class Sayer:
    """Says of every agent of the past the same whatever the task is, and of the task what its first letter says."""

    def __init__(self, success=0.6, quality=0.6):
        self.success, self.quality, self.asked = success, quality, []

    def estimate(self, tasks, agents, histories):
        self.asked.append(tasks)
        shape = len(tasks), len(agents)
        sums = np.array([text.startswith("s") for text in tasks.texts])
        return Estimates(
            success=np.full(shape, self.success, np.float32),
            quality=np.full(shape, self.quality, np.float32),
            latency_s=np.full(shape, 2.0, np.float32),
            cost_usd=np.full(shape, 0.01, np.float32),
            confidence=np.ones(shape, np.float32),
            capabilities={
                "task": Labelled(labels=("sums", "rest"), probabilities=np.stack([sums, ~sums], 1).astype(np.float32))
            },
        )


@pytest.fixture(scope="module")
def past(tmp_path_factory):
    return load(make_outcomes(tmp_path_factory.mktemp("set") / "made", tasks=60, agents=3))


def ask(router, task_id="t", text="sum", candidates=("a", "b"), tried=()):
    (answer,) = router.estimate([task_id], [Query(text, tuple(candidates), tried=tried)])
    return {estimate.candidate: estimate for estimate in answer}


def teach(router, agent, grade, times, *, text="sum", candidates=("a", "b"), **more):
    for number in range(times):
        ask(router, f"{text}-{number}", text, candidates)
        assert router.learn(f"{text}-{number}", agent, bool(grade), **more)
        router.forget(f"{text}-{number}")


class TestWithoutPast:
    def test_all_are_alike(self):
        said = ask(LiveRouter())
        assert said["a"].success == said["b"].success == pytest.approx(0.5)
        assert said["a"].latency_s is None and said["a"].cost_usd is None

    def test_outcomes_tell_them_apart(self):
        router = LiveRouter()
        teach(router, "a", 1.0, 15)
        teach(router, "b", 0.0, 15)
        said = ask(router)
        assert said["a"].success > 0.75 > 0.3 > said["b"].success
        assert said["a"].deviation < ask(LiveRouter())["a"].deviation

    def test_what_an_agent_takes_and_costs_is_learned_from_nothing(self):
        router = LiveRouter()
        teach(router, "a", 1.0, 20, run_s=30.0, cost_usd=0.002)
        said = ask(router)
        assert said["a"].latency_s == pytest.approx(30.0, rel=0.3)
        assert said["a"].cost_usd == pytest.approx(0.002, rel=0.4)
        assert said["b"].latency_s is None

    def test_by_kind_of_task_where_a_router_tells_the_kind(self):
        router = LiveRouter(Sayer())
        teach(router, "a", 1.0, 30, text="sum")
        teach(router, "a", 0.0, 30, text="poem")
        assert ask(router, text="sum")["a"].success > ask(router, text="poem")["a"].success + 0.3


class TestWithPast:
    def names(self, past):
        return live.class_names(past.agents.agent_ids)

    def test_the_routers_word_stands_until_something_else_is_seen(self, past):
        names = self.names(past)
        said = ask(LiveRouter(Sayer(), past), candidates=names)
        for name in names:
            assert said[name].success == pytest.approx(0.6)
            assert said[name].latency_s == pytest.approx(2.0)
            assert said[name].cost_usd == pytest.approx(0.01)

    def test_a_stranger_begins_as_the_mean_and_less_sure(self, past):
        names = self.names(past)
        said = ask(LiveRouter(Sayer(), past), candidates=[*names, "stranger"])
        assert said["stranger"].success == pytest.approx(0.6)
        assert said["stranger"].deviation > 2 * said[names[0]].deviation
        assert said["stranger"].latency_s is None

    def test_one_that_fails_is_found_out(self, past):
        names = self.names(past)
        router = LiveRouter(Sayer(), past)
        teach(router, names[0], 0.0, 60, candidates=names)
        said = ask(router, candidates=names)
        assert said[names[0]].success < 0.35
        assert said[names[1]].success == pytest.approx(0.6)

    def test_a_quality_is_held_against_the_quality_that_was_expected(self, past):
        names = self.names(past)
        router = LiveRouter(Sayer(quality=0.3), past)
        teach(router, names[0], 1.0, 100, candidates=names, quality=0.3)
        said = ask(router, candidates=names)[names[0]]
        assert (said.success, said.quality) == (pytest.approx(0.6, abs=0.01), pytest.approx(0.3, abs=0.01))
        teach(router, names[1], 1.0, 100, candidates=names, quality=0.8)
        said = ask(router, candidates=names)[names[1]]
        assert said.success > 0.75 and said.quality > 0.45

    def test_one_that_gets_slow_and_dear_too(self, past):
        names = self.names(past)
        router = LiveRouter(Sayer(), past)
        teach(router, names[0], 1.0, 60, candidates=names, run_s=20.0, cost_usd=0.1)
        said = ask(router, candidates=names)
        assert said[names[0]].latency_s == pytest.approx(20.0, rel=0.2)
        assert said[names[0]].cost_usd == pytest.approx(0.1, rel=0.2)

    def test_earlier_attempts_reach_the_router(self, past):
        names, sayer = self.names(past), Sayer()
        ask(LiveRouter(sayer, past), candidates=names, tried=((names[1], 0.0), ("stranger", 0.0)))
        np.testing.assert_array_equal(sayer.asked[-1].attempts, [[np.nan, 0.0, np.nan]])


def test_several_tasks_with_different_candidates_at_once(past):
    names = live.class_names(past.agents.agent_ids)
    router = LiveRouter(Sayer(), past)
    sets = [("x", names[0]), (names[1], names[2]), ("x", names[0]), ("y",)]
    answers = router.estimate([str(at) for at in range(len(sets))], [Query("t", tuple(c)) for c in sets])
    assert [[estimate.candidate for estimate in answer] for answer in answers] == [list(c) for c in sets]
    assert len(router._estimator.asked) == 2  # one to get acquainted, one for all


def test_what_nobody_asked_about_teaches_nothing():
    router = LiveRouter()
    assert not router.learn("t", "a", True)
    ask(router)
    assert not router.learn("t", "stranger", True)
    router.forget("t")
    assert not router.learn("t", "a", True)
    assert router.version == "none+0"


def test_the_version_says_how_much_was_learned():
    router = LiveRouter(version="v7")
    ask(router)
    router.learn("t", "a", True)
    assert router.version == "v7+1"


def test_tasks_that_never_end_are_forgotten(monkeypatch):
    monkeypatch.setattr(live, "MAX_PENDING", 3)
    router = LiveRouter()
    for number in range(5):
        ask(router, str(number))
    assert [router.learn(str(number), "a", True) for number in range(5)] == [False, False, True, True, True]

"""Asking a router that is slow, hung or gone: in virtual time, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from virtual_loop import run

from flowray.core.breaker import BreakerPolicy, BreakerState
from flowray.core.hedging import HedgePolicy
from flowray.core.model import Estimate
from flowray.errors import ConfigError
from flowray.routing.config import AskingConfig
from flowray.routing.queries import Answers, Queries, Query, encode
from flowray.runtime.scorers import Failed, Hedged, Scored

QUERIES = Queries((Query("add two numbers", ("ann", "bob")),))
ANSWERS = Answers("v1", ((Estimate("ann", 0.9), Estimate("bob", 0.2)),))
GONE = Failed(kind="lost", detail="it died")
HEDGE = HedgePolicy(first_s=0.02, least_s=0.01, most_s=0.1)
CONFIG = AskingConfig(deadline_s=0.2, hedge=HEDGE, breaker=BreakerPolicy(failures=3, wait_s=1.0))


class Served:
    """Answers question n after `steps[n]`: (seconds, what it says); the last step repeats."""

    def __init__(self, *steps: tuple[float, bytes | Failed]) -> None:
        self.steps: Sequence[tuple[float, bytes | Failed]] = steps
        self.asked_at: list[float] = []
        self.given_up = 0

    async def __call__(self, body: bytes) -> bytes | Failed:
        delay_s, said = self.steps[min(len(self.asked_at), len(self.steps) - 1)]
        self.asked_at.append(asyncio.get_running_loop().time())
        try:
            await asyncio.sleep(delay_s)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return said


GOOD = encode(ANSWERS)


def once(served: Served, deadline_s: float | None = None, config: AskingConfig = CONFIG) -> Scored | Failed:
    async def ask() -> Scored | Failed:
        outcome = await Hedged(served, config).score(QUERIES, deadline_s)
        await asyncio.sleep(0)  # lets what was cancelled end
        return outcome

    return run(ask())


def test_an_answer_in_time():
    outcome = once(Served((0.01, GOOD)))
    assert outcome == Scored(answers=ANSWERS, took_s=pytest.approx(0.01), asked=1)
    assert outcome.path == "serve"


def test_a_slow_answer_is_asked_for_again_and_the_slow_question_is_given_up():
    served = Served((5.0, GOOD), (0.01, GOOD))
    outcome = once(served)
    assert outcome == Scored(answers=ANSWERS, took_s=pytest.approx(0.03), asked=2, hedged=True)
    assert served.asked_at == [0.0, pytest.approx(0.02)]
    assert served.given_up == 1


def test_the_first_question_may_still_win():
    outcome = once(Served((0.03, GOOD), (5.0, GOOD)))
    assert outcome == Scored(answers=ANSWERS, took_s=pytest.approx(0.03), asked=2)


def test_a_replica_that_dies_is_not_waited_for():
    outcome = once(Served((0.001, GONE), (0.004, GOOD)))
    assert outcome == Scored(answers=ANSWERS, took_s=pytest.approx(0.005), asked=2, hedged=True)


def test_a_hung_router_costs_the_deadline_and_no_more():
    served = Served((3600.0, GOOD))
    outcome = once(served)
    assert outcome == Failed(kind="late", detail="no answer within the deadline", took_s=pytest.approx(0.2), asked=3)
    assert served.given_up == 3, "nobody goes on waiting for it"


def test_a_second_question_to_the_same_hung_process_is_followed_by_a_third():
    outcome = once(Served((5.0, GOOD), (5.0, GOOD), (0.01, GOOD)))
    assert outcome == Scored(answers=ANSWERS, took_s=pytest.approx(0.05), asked=3, hedged=True)


def test_failures_alone_are_a_failure_at_once():
    outcome = once(Served((0.001, GONE)))
    assert outcome == Failed(kind="lost", detail="it died", took_s=pytest.approx(0.003), asked=3)


def test_a_wrong_question_is_not_asked_twice():
    served = Served((0.001, Failed(kind="refused", detail="too many tasks")))
    assert once(served) == Failed(kind="refused", detail="too many tasks", took_s=pytest.approx(0.001), asked=1)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"\xc1", "cannot be read"),
        (encode(Answers("v1", ())), "of other tasks"),
        (encode(Answers("v1", ((Estimate("ann", 0.9),),))), "or agents"),
        (encode(Answers("v1", ((Estimate("bob", 0.9), Estimate("ann", 0.9)),))), "or agents"),
    ],
)
def test_an_answer_that_fits_no_question_is_a_failure(said, why):
    outcome = once(Served((0.0, said)))
    assert isinstance(outcome, Failed)
    assert outcome.kind == "failed"
    assert why in outcome.detail


def test_without_credit_the_one_question_has_to_do():
    config = AskingConfig(deadline_s=0.2, hedge=HedgePolicy(burst=0.0, first_s=0.02))
    served = Served((0.1, GOOD))
    assert once(served, config=config) == Scored(answers=ANSWERS, took_s=pytest.approx(0.1), asked=1)
    assert len(served.asked_at) == 1


def test_who_does_not_answer_is_left_alone_and_found_again():
    """Serve hangs for a while: three deadlines are lost, then nobody waits, then one question finds it mended."""

    async def story() -> None:
        served = Served((3600.0, GOOD))
        hedged = Hedged(served, CONFIG)
        for _ in range(3):
            assert (await hedged.score(QUERIES)).kind == "late"
        asked, now = len(served.asked_at), asyncio.get_running_loop().time
        begun = now()
        outcome = await hedged.score(QUERIES)
        assert outcome.kind == "open"
        assert "1.0 s" in outcome.detail
        assert (now() - begun, outcome.asked, len(served.asked_at)) == (0.0, 0, asked)
        await asyncio.sleep(1.0)
        served.steps = [(0.01, GOOD)]
        probe, other = await asyncio.gather(hedged.score(QUERIES), hedged.score(QUERIES))
        assert isinstance(probe, Scored)
        assert other.kind == "open", "one question is enough to find out"
        assert hedged.state is BreakerState.CLOSED
        assert isinstance(await hedged.score(QUERIES), Scored)

    run(story())


def test_callers_in_a_hurry_do_not_open_the_breaker():
    async def story() -> None:
        hedged = Hedged(Served((0.1, GOOD)), CONFIG)
        for _ in range(10):
            assert (await hedged.score(QUERIES, 0.001)).kind == "late"
        assert isinstance(await hedged.score(QUERIES), Scored)

    run(story())


def test_wrong_questions_do_not_open_the_breaker():
    async def story() -> None:
        hedged = Hedged(Served((0.0, Failed(kind="refused", detail="too many tasks"))), CONFIG)
        for _ in range(10):
            assert (await hedged.score(QUERIES)).kind == "refused"

    run(story())


def test_a_caller_that_goes_away_takes_its_questions_along_and_frees_the_probe():
    async def story() -> None:
        served = Served((3600.0, GOOD))
        hedged = Hedged(served, CONFIG)
        for _ in range(3):
            await hedged.score(QUERIES)
        await asyncio.sleep(1.0)
        probe = asyncio.ensure_future(hedged.score(QUERIES))
        await asyncio.sleep(0.001)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        await asyncio.sleep(0)
        assert served.given_up == len(served.asked_at)
        served.steps = [(0.0, GOOD)]
        assert isinstance(await hedged.score(QUERIES), Scored)

    run(story())


def test_a_router_that_hangs_for_good_is_asked_twice_as_seldom_each_time():
    async def story() -> None:
        served = Served((3600.0, GOOD))
        hedged = Hedged(served, CONFIG)
        kinds = []
        while asyncio.get_running_loop().time() < 60.0:
            kinds.append((await hedged.score(QUERIES)).kind)
            await asyncio.sleep(0.05)
        assert kinds.count("late") <= 9
        assert kinds.count("open") > 900

    run(story())


def test_the_deadline_must_be_positive():
    with pytest.raises(ConfigError, match="deadline_s"):
        AskingConfig(deadline_s=0.0)


def test_what_is_asked_at_once_fails_once():
    """Serve stands still for a moment while several batches are under way: that is one failure, not one each."""

    async def story() -> tuple[BreakerState, BreakerState]:
        hedged = Hedged(Served((3600.0, GOOD)), CONFIG)
        for _ in range(2):
            outcomes = await asyncio.gather(*(hedged.score(QUERIES) for _ in range(8)))
            assert {outcome.kind for outcome in outcomes} == {"late"}
        before = hedged.state
        await hedged.score(QUERIES)
        return before, hedged.state

    assert run(story()) == (BreakerState.CLOSED, BreakerState.OPEN)

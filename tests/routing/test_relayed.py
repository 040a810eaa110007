"""What another process said of tasks is as good as what this one would say, and what is learned on top is the same."""

from __future__ import annotations

import pytest

from flowray.core.model import Estimate
from flowray.routing import estimator, live
from flowray.routing.live import LiveRouter
from flowray.routing.queries import Answers, Queries, Query, decode_answers, encode
from flowray.routing.scoring import Scorer

from .routers import trained
from .sets import two_trades

TEAM = ("counter", "fool", "newcomer", "poet")
TEXTS = ("add multiply number total", "rhyme verse sonnet stanza", "total fraction", "")


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small router tells kinds of tasks by another head than the shipped one."""
    monkeypatch.setattr("flowray.routing.live.KIND_HEADS", ("task_type",))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    directory = tmp_path_factory.mktemp("relayed")
    estimator.save(directory / "router", trained())
    return str(directory / "router"), str(two_trades(directory / "trades"))


def scorer_of(places: tuple[str, str]) -> Scorer:
    return Scorer.load(*places, precision="float32")


def asked(number: int) -> list[Query]:
    """Four tasks; whom they may go to and what was tried differs."""
    teams = (TEAM, TEAM[:3], TEAM, ("newcomer", "other"))
    tried = ((), (("counter", 0.0),), (), ())
    return [Query(f"{text} {number}", team, tried=t) for text, team, t in zip(TEXTS, teams, tried, strict=True)]


def by_wire(scorer: Scorer, queries: list[Query]) -> Answers:
    return decode_answers(encode(scorer.score(Queries(tuple(queries)))))


def same(one: list[tuple[Estimate, ...]], other: list[tuple[Estimate, ...]]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.candidate == b.candidate
            for name in ("success", "deviation", "quality", "latency_s", "cost_usd"):
                left, right = getattr(a, name), getattr(b, name)
                assert left == (right if right is None else pytest.approx(right, rel=1e-4, abs=1e-6)), (a, b)


@pytest.mark.parametrize("with_copy", [True, False])
@pytest.mark.parametrize("with_past", [True, False])
def test_a_relayed_word_is_the_routers_own(places, with_copy, with_past):
    """Before and after outcomes, of agents with a past and without; whether or not there is a copy here."""
    places = places if with_past else (places[0], "")
    scorer, local = scorer_of(places), live.load(*places)
    kinds = by_wire(scorer, asked(0)).kinds
    relay = live.load(*places) if with_copy else LiveRouter(version=scorer.version, kinds=kinds)
    assert relay.known.kinds == local.known.kinds == kinds
    assert len(kinds) == 2
    for number in range(30):
        ids, queries = [f"{number}/{at}" for at in range(len(TEXTS))], asked(number)
        same(relay.estimate_from(ids, queries, by_wire(scorer, queries)), local.estimate(ids, queries))
        for router in (relay, local):
            assert router.learn(ids[0], "counter", False, run_s=9.0, cost_usd=0.01)
            assert router.learn(ids[1], "newcomer", True, quality=0.8, run_s=0.3, cost_usd=0.002)
            assert router.learn(ids[3], "other", False)
            assert not router.learn(ids[3], "poet", True), "it was not asked about"
            for task_id in ids:
                router.forget(task_id)
    assert relay.version == local.version == f"{scorer.version}+90"


def test_answers_about_other_kinds_of_tasks_are_refused(places):
    with pytest.raises(ValueError, match="other kinds"):
        LiveRouter(kinds=("this", "that")).estimate_from(["t"], asked(0)[:1], by_wire(scorer_of(places), asked(0)[:1]))


def taught(router: LiveRouter, scorer: Scorer) -> LiveRouter:
    for number in range(20):
        router.estimate_from(["t"], asked(number)[:1], by_wire(scorer, asked(number)[:1]))
        router.learn("t", "newcomer", False, run_s=3.0)
        router.learn("t", "counter", False)
    return router


def test_a_copy_goes_on_with_what_was_learned_before_it_came(places):
    scorer = scorer_of(places)
    older = taught(LiveRouter(version=scorer.version, kinds=by_wire(scorer, asked(0)).kinds), scorer)
    (expected,) = older.estimate_from(["t"], asked(0)[:1], by_wire(scorer, asked(0)[:1]))
    copy = live.load(*places)
    copy.take_over(older)
    same(copy.estimate(["u"], asked(0)[:1]), [expected])
    assert copy.version == older.version
    assert copy.learn("t", "counter", True), "also of tasks that were asked about before"


def test_another_router_keeps_what_was_learned_of_strangers_alone(places):
    scorer, fresh = scorer_of(places), live.load(*places)
    older = taught(LiveRouter(version="older", kinds=by_wire(scorer, asked(0)).kinds), scorer)
    (learned,) = older.estimate_from(["t"], asked(0)[:1], by_wire(scorer, asked(0)[:1]))
    (unlearned,) = fresh.estimate(["t"], asked(0)[:1])
    copy = live.load(*places)
    copy.take_over(older)
    (found,) = copy.estimate(["t"], asked(0)[:1])
    place = TEAM.index
    same([(found[place("newcomer")],)], [(learned[place("newcomer")],)])
    same([(found[place("counter")],)], [(unlearned[place("counter")],)])
    assert learned[place("counter")].success < unlearned[place("counter")].success - 0.02


def test_kinds_that_do_not_fit_are_not_taken_over(places):
    copy = live.load(*places)
    before = copy.strangers
    copy.take_over(LiveRouter(kinds=("this", "that")))
    assert copy.strangers is before

"""A router with its history, asked by names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec import structs

from flowray.core.model import Estimate
from flowray.errors import ConfigError
from flowray.routing import estimator, scoring
from flowray.routing.artifacts import ArtifactError
from flowray.routing.config import ServingConfig
from flowray.routing.data import digest_of
from flowray.routing.estimates import TaskBatch
from flowray.routing.queries import Answers, Queries, Query, decode_answers, encode
from flowray.routing.scoring import Scorer
from flowray.routing.tables import SchemaError
from flowray.routing.versions import check, version_of

from .routers import trained
from .sets import two_trades

TEAM = ("counter", "poet", "sage", "fool")
TEXTS = ("add multiply number total", "rhyme verse sonnet stanza")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A router and a history on disk."""
    directory = tmp_path_factory.mktemp("scoring")
    estimator.save(directory / "router", trained())
    return directory / "router", two_trades(directory / "trades")


@pytest.fixture(scope="module")
def scorer(places: tuple[Path, Path]) -> Scorer:
    return Scorer.load(*places, precision="float32")


def rows(answers: Answers) -> list[dict[str, Estimate]]:
    return [{one.candidate: one for one in row} for row in answers.estimates]


def test_estimates_are_those_of_the_router(scorer: Scorer, places: tuple[Path, Path]):
    answers = scorer.score(Queries(tuple(Query(text, TEAM) for text in TEXTS)))
    found = estimator.load(places[0], "float32").estimate(TaskBatch.of_texts(TEXTS), scorer.agents, scorer.histories)
    for row, of_task in enumerate(answers.estimates):
        for column, one in enumerate(of_task):
            assert one.candidate == TEAM[column] == scorer.agents.agent_ids[column]
            assert one.success == pytest.approx(found.success[row, column], abs=1e-6)
            assert one.quality == pytest.approx(found.quality[row, column], abs=1e-6)
            assert one.latency_s == pytest.approx(found.latency_s[row, column], rel=1e-5)
            assert one.cost_usd == pytest.approx(found.cost_usd[row, column], rel=1e-5)


def test_whom_the_history_does_not_know_is_taken_for_the_mean_of_the_others(scorer: Scorer):
    """As `LiveRouter` takes them; and what is said of the others does not depend on who is asked about beside them."""
    asked = Queries(tuple(Query(text, (*TEAM, "stranger")) for text in TEXTS))
    answers = scorer.score(asked)
    assert answers.strangers == ("stranger",)
    for row, alone in zip(
        answers.estimates, scorer.score(Queries(tuple(Query(t, TEAM) for t in TEXTS))).estimates, strict=True
    ):
        assert row[: len(TEAM)] == alone
        assert row[-1].success == pytest.approx(np.mean([one.success for one in alone]), abs=1e-6)
        assert (row[-1].latency_s, row[-1].cost_usd) == (None, None)


def test_kinds_of_tasks_are_told(scorer: Scorer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowray.routing.live.KIND_HEADS", ("task_type",))  # what the small router has
    answers = scorer.score(Queries(tuple(Query(text, TEAM) for text in TEXTS)))
    assert set(answers.kinds) == {"sums", "poems"}
    for shares in answers.shares:
        assert sum(shares) == pytest.approx(1.0)
    assert np.argmax(answers.shares[0]) != np.argmax(answers.shares[1])


def test_agents_may_be_named_as_their_classes_are(places: tuple[Path, Path], scorer: Scorer):
    agents = replace(scorer.agents, agent_ids=("maker/counter v1", *scorer.agents.agent_ids[1:]))
    renamed = replace(scorer, agents=agents)
    one, other, stranger = renamed.score(
        Queries((Query(TEXTS[0], ("maker/counter v1", "maker-counter-v1", "counter")),))
    ).estimates[0]
    assert structs.replace(one, candidate="") == structs.replace(other, candidate="")
    assert stranger.latency_s is None


def test_candidates_are_answered_for_in_the_order_asked_whoever_they_are(scorer: Scorer):
    asked = Queries((Query(TEXTS[0], ("poet", "nobody", "counter")), Query(TEXTS[1], ()), Query("", ("fool",))))
    answers = scorer.score(asked)
    assert answers.fits(asked)
    assert decode_answers(encode(answers)) == answers
    poet, nobody, counter = answers.estimates[0]
    assert counter.success > poet.success
    assert 0.0 < nobody.success < 1.0
    assert nobody.deviation > counter.deviation, "nothing was seen of it"
    assert scorer.score(Queries(())).estimates == ()


def test_all_strangers_are_alike(scorer: Scorer):
    one, other = scorer.score(Queries((Query(TEXTS[0], ("x", "y")),))).estimates[0]
    assert (one.success, one.deviation) == (other.success, other.deviation)


def test_an_earlier_failure_at_the_same_task_counts(scorer: Scorer):
    fresh = Query(TEXTS[0], ("counter", "x"))
    failed = Query(TEXTS[0], ("counter", "x"), tried=(("counter", 0.0), ("x", 0.0)))
    before, after = rows(scorer.score(Queries((fresh, failed))))
    assert after["counter"].success < before["counter"].success


def test_without_a_history_everybody_is_a_stranger(places: tuple[Path, Path]):
    scorer = Scorer.load(places[0], precision="float32")
    (one,), (other,) = scorer.score(Queries((Query(TEXTS[0], ("counter",)), Query(TEXTS[1], ("poet",))))).estimates
    assert 0.0 < one.success < 1.0
    assert one.latency_s is None
    assert other.cost_usd is None


def test_a_version_names_the_weights_and_the_history(places: tuple[Path, Path], scorer: Scorer):
    router, history = places
    digest = estimator.artifacts.card(router)["sha256"]
    assert version_of(router) == digest[:16]
    assert scorer.version == check(router, history) == f"{digest[:16]}.{digest_of(history)[:16]}"


def test_what_cannot_be_used_is_refused(places: tuple[Path, Path], tmp_path: Path):
    router, history = places
    (tmp_path / "card.json").write_bytes((router / "card.json").read_bytes())
    (tmp_path / "weights.npz").write_bytes((router / "weights.npz").read_bytes()[:-10])
    for refuse in (check, Scorer.load):
        with pytest.raises(ArtifactError):
            refuse(tmp_path, history)
        with pytest.raises(ArtifactError):
            refuse(tmp_path / "nowhere")
        with pytest.raises((SchemaError, OSError)):
            refuse(router, tmp_path / "nowhere")


def test_a_network_that_says_nonsense_is_refused(scorer: Scorer):
    class Broken:
        def estimate(self, *asked: object) -> object:
            found = scorer.router.estimate(*asked)
            found.success[0, 0] = np.nan
            return found

    broken = Scorer(version="v", router=Broken(), agents=scorer.agents, histories=scorer.histories)
    with pytest.raises(ArtifactError, match="no number"):
        broken.practise(1)


def test_more_experience_means_less_deviation():
    confidence = np.array([0.0, 0.5, 0.9, 1.0], np.float32)
    deviation = scoring.deviations(np.full(4, 0.5, np.float32), confidence)
    assert deviation[0] == pytest.approx(0.5)
    assert deviation[1] == pytest.approx(np.sqrt(0.25 / 16))
    assert (np.diff(deviation) < 0).all()


def test_one_thread():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        scoring.use_one_thread()
        assert scoring.threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"router": ""},
        {"router": "models/v1"},
        {"history": "past"},
        {"name": ""},
        {"min_replicas": 0},
        {"min_replicas": 3},
        {"max_queued": 0},
        {"num_cpus": -1.0},
        {"ready_s": 0.0},
    ],
)
def test_serving_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ConfigError, match="serving"):
        ServingConfig(**({"router": "/router"} | wrong))

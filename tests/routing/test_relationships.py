"""Who makes more of whose work: learned from outcomes, believed only when seen often, and worth something."""

from __future__ import annotations

import random

import numpy as np
import pytest

from flowray.core.model import Estimate
from flowray.core.routing import RoutingPolicy, draw, run_times
from flowray.routing.live import LiveRouter
from flowray.routing.posteriors import PosteriorPolicy
from flowray.routing.queries import Query
from flowray.routing.relationships import Relationships, pair

REVIEWERS = ("anna", "ben", "carl")
WRITERS = ("prose", "code")
# Carl is the best on average; Anna and Ben are better on the work of one writer each.
SUCCESS = {("prose", "anna"): 0.9, ("code", "anna"): 0.2, ("prose", "ben"): 0.2, ("code", "ben"): 0.9}


def chance(writer: str, reviewer: str) -> float:
    return SUCCESS.get((writer, reviewer), 0.6)


def earned(tasks: int, seed: int, *, told: bool, success=chance) -> float:
    """The share of the later half of so many tasks that succeeds, when the router is told who wrote what or not."""
    rng, router, policy = random.Random(seed), LiveRouter(), RoutingPolicy()
    done = 0
    for number in range(tasks):
        writer = rng.choice(WRITERS)
        query = Query("review", REVIEWERS, builds_on=writer if told else "")
        (answer,) = router.estimate([f"t{number}"], [query])
        chosen = REVIEWERS[draw(answer, run_times(answer), [0.0] * 3, None, policy, rng).place]
        good = rng.random() < success(writer, chosen)
        router.learn(f"t{number}", chosen, good)
        router.forget(f"t{number}")
        done += good and number >= tasks // 2
    return done / (tasks - tasks // 2)


def asked(router: LiveRouter, writer: str = "") -> dict[str, Estimate]:
    (answer,) = router.estimate(["asked"], [Query("review", REVIEWERS, builds_on=writer)])
    return {estimate.candidate: estimate for estimate in answer}


def taught(outcomes, times=60):
    router = LiveRouter()
    for number in range(times):
        for writer, reviewer, good in outcomes:
            key = f"{writer}{reviewer}{number}"
            router.estimate([key], [Query("review", REVIEWERS, builds_on=writer)])
            router.learn(key, reviewer, good)
            router.forget(key)
    return router


def test_who_is_told_of_the_writers_does_better_and_who_need_not_be_does_as_well() -> None:
    gains = [earned(500, seed, told=True) - earned(500, seed, told=False) for seed in range(3)]
    assert sorted(gains)[1] > 0.12, gains
    alike = [
        earned(500, seed, told=True, success=lambda _, reviewer: 0.8 if reviewer == "carl" else 0.6)
        - earned(500, seed, told=False, success=lambda _, reviewer: 0.8 if reviewer == "carl" else 0.6)
        for seed in range(3)
    ]
    assert sorted(alike)[1] > -0.05, alike


def test_a_relationship_is_of_an_ordered_pair_and_of_nobody_else() -> None:
    router = taught([("prose", "anna", True), ("code", "anna", False)])
    prose, code, nobody = asked(router, "prose"), asked(router, "code"), asked(router)
    assert prose["anna"].related > 0.2 and code["anna"].related < -0.2
    assert prose["anna"].success == pytest.approx(nobody["anna"].success + prose["anna"].related, abs=1e-6)
    assert prose["ben"].related == code["ben"].related == nobody["anna"].related == 0.0
    assert asked(router, "anna")["anna"].related == 0.0
    assert router.relationships.worth("prose", "anna") > 0.2 > router.relationships.worth("anna", "prose") == 0.0


def test_what_an_agent_always_does_is_no_relationship() -> None:
    router = taught([("prose", "anna", True), ("code", "anna", True)])
    assert asked(router)["anna"].success > 0.85
    assert abs(asked(router, "prose")["anna"].related) < 0.1


def test_one_outcome_says_little() -> None:
    router = taught([("prose", "anna", True)], times=1)
    assert 0.0 < asked(router, "prose")["anna"].related < 0.03


def test_a_grade_changes_what_is_known_of_the_pair() -> None:
    router = taught([("prose", "anna", True)], times=30)
    before = asked(router, "prose")["anna"].related
    for number in range(15):
        router.regrade(f"proseanna{number}", 0.0)
    assert asked(router, "prose")["anna"].related < before


def test_many_pairs_do_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowray.routing.relationships.MAX_PAIRS", 8)
    related = Relationships((), PosteriorPolicy())
    for number in range(40):
        nothing = np.zeros((1, 0), np.float32)
        related.observe_all([pair(f"w{number}", "anna")], nothing, np.array([0.5]), np.array([1.0]))
    assert related.worth("w39", "anna") > 0.0 == related.worth("w0", "anna")

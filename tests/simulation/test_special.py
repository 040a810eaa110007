"""Worlds that are hard on one thing: they hold, they come by what they are for, and find the bugs that they must."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from flowray.core.adopting import Adopting
from flowray.core.attempts import Attempts
from flowray.core.commands import AnswerStep
from flowray.core.coordination import Coordination
from flowray.core.fencing import Lease
from flowray.core.lives import Lives
from flowray.core.placing import Placing
from flowray.core.recording import Recording
from flowray.core.stateful import Stateful
from flowray.testing.agent import AgentProcess
from flowray.testing.coordinator import CoordinatorProcess
from flowray.testing.drawing import Options, draw_anything
from flowray.testing.outliving import draw_lost_numbers, draw_overtaken, draw_replaced, draw_unseen
from flowray.testing.special import EVERY, draw_effects, draw_late, draw_leaving, draw_options
from flowray.testing.swarm import run_options

from . import mutants

OWNERS = (
    *(Coordination, Adopting, Attempts, Lives, Placing, Recording, Stateful),
    *(CoordinatorProcess, AgentProcess, Lease, AnswerStep),
)
SEEDS = 25
PLANTED = [
    *(
        (draw_effects, name)
        for name in (
            "a stale attempt records",
            "goes on before its step is on disk",
            "is given steps that are not on disk",
            "exclusive tasks do not wait",
            "told to stop and not waited for",
            "exclusive attempts start before they are on disk",
            "nobody fences itself off",
            "leases are for ever",
            "leases for those given up",
        )
    ),
    *(
        (draw_leaving, name)
        for name in (
            "task stays with a fallback that is gone",
            "found: drained by a report, never stopped",
            "found: draining agents are not kept",
            "found: broken class keeps its tasks",
        )
    ),
    (draw_replaced, "leases of an epoch that is over"),
    (draw_lost_numbers, "found: adopts with a lower fence"),
    (draw_overtaken, "found: adopts what has answered"),
    (draw_overtaken, "found: adopts what was stopped"),
    (draw_unseen, "found: a process that was not seen keeps what is left out"),
]
COMES_BY = {
    draw_effects: (
        "held back",
        "fenced itself off",
        "waited for a lease",
        "step given to a later attempt",
        "step stale",
    ),
    draw_late: ("adopted attempt", "commit arrived after re-queue", "tail lost", "answer kept for a new coordinator"),
    draw_leaving: ("given to the fallback", "dead: no_agent", "attempt handed back", "prefetched"),
    draw_replaced: ("zombie went on", "fenced itself off", "held back", "heard late of a new coordinator"),
    draw_lost_numbers: ("tail lost", "disk full", "adopted attempt", "retry attempt"),
    draw_overtaken: ("tail lost", "adopted attempt", "answer of an ended task", "attempt confirmed after restart"),
    draw_unseen: ("input left out", "promoted with open inputs", "heard late of a new coordinator"),
}


@pytest.fixture
def mended() -> Iterator[None]:
    """What is planted in a test is gone after it."""
    saved = {owner: dict(vars(owner)) for owner in OWNERS}
    yield
    for owner, before in saved.items():
        for attribute, value in before.items():
            if vars(owner)[attribute] is not value:
                setattr(owner, attribute, value)


@pytest.mark.slow
@pytest.mark.parametrize("draw", COMES_BY)
def test_it_holds_and_comes_by_what_it_is_for(draw: Callable[[int], Options]) -> None:
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        report = run_options(draw(seed))
        assert not report.violation, f"{report.violation}\n{report.options}"
        seen.update(report.sometimes)
    assert not [point for point in COMES_BY[draw] if not seen[point]]


def test_ten_seeds_in_thirty_two_are_such_worlds() -> None:
    draws = {5: draw_late, 9: draw_effects, 13: draw_leaving, 21: draw_late, 25: draw_effects, 29: draw_leaving}
    draws |= {18: draw_replaced, 22: draw_lost_numbers, 27: draw_overtaken, 31: draw_unseen}
    for seed in range(EVERY):
        assert draw_options(seed + EVERY) == draws.get(seed, draw_anything)(seed + EVERY)


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "name"), PLANTED)
def test_a_planted_bug_is_found(draw: Callable[[int], Options], name: str, mended: None) -> None:
    mutants.MUTANTS[name]()
    assert any(run_options(draw(seed)).violation for seed in range(4 * SEEDS))

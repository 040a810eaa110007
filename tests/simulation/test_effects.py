"""Worlds that are hard on side effects: long exclusive attempts with steps, agents that are given up and live on,
coordinators that come and go, a slow disk that loses its tail. And the bugs that such a world must find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from flowray.core.commands import AnswerStep
from flowray.core.coordination import Coordination
from flowray.core.fencing import Lease
from flowray.testing.agent import AgentProcess
from flowray.testing.coordinator import CoordinatorProcess
from flowray.testing.special import draw_effects
from flowray.testing.swarm import run_options

from . import mutants

OWNERS = (Coordination, CoordinatorProcess, AgentProcess, Lease, AnswerStep)
SEEDS = 25
PLANTED = (
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
def test_steps_and_exclusive_tasks_hold() -> None:
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        report = run_options(draw_effects(seed))
        assert not report.violation, f"{report.violation}\n{report.options}"
        seen.update(report.sometimes)
    wanted = ("held back", "fenced itself off", "waited for a lease", "step given to a later attempt", "step stale")
    assert not [point for point in wanted if not seen[point]]


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, mended: None) -> None:
    mutants.MUTANTS[name]()
    assert any(run_options(draw_effects(seed)).violation for seed in range(4 * SEEDS))

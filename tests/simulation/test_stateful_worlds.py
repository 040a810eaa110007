"""Worlds with stateful agents and nothing else, many in little time. (Beside others they are in every fifth
seed that is drawn from everything there is.)"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from flowray.testing.drawing import Options, draw_anything
from flowray.testing.stateful_worlds import EVERY, STATEFUL_POINTS
from flowray.testing.swarm import run_options

SEEDS = 120


def options(number: int) -> Options:
    """A world of the swarm without its other agents and tasks."""
    drawn = draw_anything(EVERY * number + EVERY - 1)
    specs = tuple(spec for spec in drawn.specs if spec.stateful is not None)
    plans = tuple(plan for plan in drawn.plans if plan.task.agent == specs[0].name)
    return replace(drawn, specs=specs, plans=plans, rescales=())


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, SEEDS, 30))
def test_every_invariant_holds(start: int) -> None:
    for number in range(start, start + 30):
        report = run_options(options(number))
        assert not report.violation, f"{report.violation}\n{report.options}"


@pytest.mark.slow
def test_they_come_by_what_is_rare() -> None:
    seen: Counter[str] = Counter()
    for number in range(1000, 1000 + SEEDS):
        seen.update(run_options(options(number)).sometimes)
    assert not set(STATEFUL_POINTS) - set(seen)

"""Grades that come later: which outcomes they are about, and what they change in what was learned of them.

Evidence is a sum of residuals that fade with every later outcome (`flowray.routing.posteriors`). A grade changes one
of them, from (what was said then - what was expected) to (grade - expected quality), so it adds the difference to the
sum, as faded as that residual is by now, and no weight: there is not one outcome more. What the detector of changes
made of the outcome stays as it was: it follows what happens in the order in which it happens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowray.routing.estimates import Floats
from flowray.routing.posteriors import Doubles, Posteriors

MOST = 20_000  # answers that can be graded: the newest

Told = Sequence[tuple[Posteriors, str]]  # who heard of an outcome, and under which name of its agent


class _Answer(NamedTuple):
    """One answer that was learned of."""

    told: Told
    passed: tuple[Doubles, ...]  # by each of these, [1 + kinds] weight that had come of this agent, this one included
    kinds: Floats  # [kinds] shares
    residual: float  # as it counts now
    expected: float  # quality


class Gradable:
    """The newest answers that were learned of. Bounded in answers and in agents."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._answers: dict[str, _Answer] = {}  # by task
        self._passed: dict[str, Doubles] = {}  # name of an agent -> [1 + kinds] weight so far

    def __len__(self) -> int:
        return len(self._answers)

    def note(
        self, task_id: str, told: Told, kinds: Floats, residual: float, expected: float, *, answered: bool
    ) -> None:
        """An outcome was learned of. Only answers (`answered`) can be graded, but whatever comes makes them older."""
        if math.isnan(residual):
            return  # nobody learned anything
        if kinds.size and not math.isfinite(float(kinds.sum())):
            kinds = np.nan_to_num(kinds)
        for posteriors, name in told:
            passed = self._passed.pop(name, None)
            if passed is None:
                passed = np.zeros(1 + len(kinds))
            passed = passed.copy()  # answers noted before keep what it was then
            passed[0] += 1.0
            passed[1:] += kinds
            self._passed[name] = passed
            if len(self._passed) > 2 * posteriors.policy.max_agents:
                del self._passed[next(iter(self._passed))]
        if answered and not math.isnan(expected):
            self._answers.pop(task_id, None)
            passed_by = tuple(self._passed[name] for _, name in told)
            self._answers[task_id] = _Answer(told, passed_by, kinds, residual, expected)
            if len(self._answers) > self._most:
                del self._answers[next(iter(self._answers))]

    def regrade(self, task_id: str, quality: float) -> bool:
        """Somebody says what an answer was worth, 0..1. False where it is not among those remembered."""
        answer = self._answers.get(task_id)
        if answer is None:
            return False
        residual = quality - answer.expected
        change = residual - answer.residual
        for (posteriors, name), passed in zip(answer.told, answer.passed, strict=True):
            now = self._passed.get(name)
            if now is not None:
                posteriors.revise(name, answer.kinds, change, now - passed)
        self._answers[task_id] = answer._replace(residual=residual)
        return True

"""Grades that come later: which outcomes they are about, and what they change in what was learned of them.

Evidence is a sum of residuals that fade with every later outcome (`flowray.routing.posteriors`). A grade changes one
of them, from (what was said then - what was expected) to (grade - expected quality), so it adds the difference to the
sum, as faded as that residual is by now, and no weight: there is not one outcome more. What the detector of changes
made of the outcome stays as it was: it follows what happens in the order in which it happens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowray.routing.estimates import Floats
from flowray.routing.posteriors import Doubles, Posteriors

MOST = 20_000  # outcomes of which those that are answers can be graded: the newest
_TOGETHER = 256  # outcomes of an agent whose weights are added up at once

Told = Sequence[tuple[Posteriors, str]]  # who heard of an outcome, and under which name of its agent


class _Outcome(NamedTuple):
    """One outcome that was learned of."""

    task_id: str
    told: Told
    places: tuple[int, ...]  # by each of these: which outcome of this agent it is, from 1
    kinds: Floats  # [kinds] shares
    residual: float  # as it counts now
    expected: float  # quality


class Gradable:
    """The newest outcomes that were learned of. Costs little until somebody grades: weights are added up then."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._outcomes: deque[_Outcome] = deque()
        self._answers: dict[str, _Outcome] = {}  # by task
        self._weights: dict[str, _Weights] = {}  # by name of an agent; of those in `_outcomes`

    def __len__(self) -> int:
        return len(self._answers)

    def note(
        self, task_id: str, told: Told, kinds: Floats, residual: float, expected: float, *, answered: bool
    ) -> None:
        """An outcome was learned of. Only answers (`answered`) can be graded, but whatever comes makes them older."""
        if math.isnan(residual):
            return  # nobody learned anything
        places = tuple([self._weights_of(name).add(kinds) for _, name in told])
        outcome = _Outcome(task_id, told, places, kinds, residual, expected)
        self._outcomes.append(outcome)
        if answered:
            self._answers[task_id] = outcome
        if len(self._outcomes) > self._most:
            self._drop_oldest()

    def regrade(self, task_id: str, quality: float) -> bool:
        """Somebody says what an answer was worth, 0..1. False where it is not among those remembered."""
        answer = self._answers.get(task_id)
        if answer is None or math.isnan(answer.expected):
            return False
        residual = quality - answer.expected
        change = residual - answer.residual
        for (posteriors, name), place in zip(answer.told, answer.places, strict=True):
            posteriors.revise(name, answer.kinds, change, self._weights[name].since(place))
        self._answers[task_id] = answer._replace(residual=residual)
        return True

    def _weights_of(self, name: str) -> _Weights:
        found = self._weights.get(name)
        if found is None:
            found = self._weights[name] = _Weights()
        return found

    def _drop_oldest(self) -> None:
        oldest = self._outcomes.popleft()
        answer = self._answers.get(oldest.task_id)
        if answer is not None and answer.places == oldest.places:
            del self._answers[oldest.task_id]
        for (_, name), place in zip(oldest.told, oldest.places, strict=True):
            if self._weights[name].forget(place):
                del self._weights[name]


class _Weights:
    """How much weight of one agent's outcomes, overall and of each kind, had come with which of them."""

    __slots__ = ("_count", "_forgotten", "_sums", "_waiting")

    def __init__(self) -> None:
        self._count = 0  # outcomes so far
        self._forgotten = 0  # of these, the first ones
        self._waiting: list[Floats] = []  # [kinds] shares of the last ones, not added up yet
        self._sums: list[Doubles] = []  # [kinds] of those after the forgotten ones: with it and all before

    def add(self, kinds: Floats) -> int:
        """One more; gives its place, from 1."""
        self._waiting.append(kinds)
        if len(self._waiting) >= _TOGETHER:
            self._add_up()
        self._count += 1
        return self._count

    def since(self, place: int) -> Doubles:
        """[1 + kinds] the weight of all that came after this one."""
        self._add_up()
        return np.concatenate([[self._count - place], self._sums[-1] - self._sums[place - self._forgotten - 1]])

    def forget(self, place: int) -> bool:
        """Nobody asks for this one any more, nor for those before it. True: for none at all."""
        if place - self._forgotten >= _TOGETHER:
            self._add_up()
            del self._sums[: place - self._forgotten]
            self._forgotten = place
        return place == self._count

    def _add_up(self) -> None:
        if self._waiting:
            shares = np.nan_to_num(np.array(self._waiting, np.float64))
            if self._sums:
                shares[0] += self._sums[-1]
            self._sums.extend(shares.cumsum(axis=0))
            self._waiting.clear()

"""How far to believe that another agent would do better than the one that does best overall.

Whoever picks the highest of many estimates picks errors along with merits (the winner's curse; Smith & Winkler 2006).
With many agents of like strength the pick is then worse than always taking the leader, the agent with the best past,
although each single estimate is a good one. How much of a predicted lead is error shows in the past: tasks are given
away as they would have been without knowing their own outcomes, a challenger only where its lead exceeds a margin, and
the margin under which most tasks succeed is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flowray.routing.estimates import Floats, Outcomes
from flowray.routing.memory import Memory, Views

FOLDS = 4  # of the past, each foretold from the others
FOLD_LANDMARKS = 256  # of the memories that foretell: coarse ones will do
MARGINS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 1.0)  # the last one: nobody is preferred to the leader
_SURE = 1.64  # standard errors that a margin must gain over none: one in twenty would by chance
_BELOW = 0.01  # share of a lead within the margin that stays visible, so that no two agents become equal


def foretold(views: Views, outcomes: Outcomes, kinds: Sequence[str], seed: int = 0) -> Floats:
    """[past tasks, agents] success as a memory of the other tasks would have it.

    Leave-one-out is not honest enough here: noise and directions are chosen with the task in question, which is little
    for each estimate but much for the highest of many.
    """
    fold = np.random.default_rng(seed).integers(FOLDS, size=len(views))
    found = np.full_like(outcomes.success, np.nan)
    for number in range(FOLDS):
        learn, ask = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        if len(learn) and len(ask):
            said = tuple(kinds[row] for row in learn.tolist()) if kinds else ()
            memory = Memory.of(views.take(learn), outcomes.take(learn), said, n_landmarks=FOLD_LANDMARKS, seed=seed)
            found[ask] = memory.recall(views.take(ask)).success
    return found


def margin_of(estimated: Floats, success: Floats, leader: int) -> float:
    """The best of `MARGINS` on past tasks: probabilities and outcomes, both [tasks, agents], NaN where not tried.

    Of equally good ones the largest, for what was not seen to help is not done. 0 without a past, and where the best
    one does not surely gain over none.
    """
    tried = np.isfinite(success + estimated) & np.isfinite(success[:, [leader]])
    rows = np.flatnonzero(tried.sum(axis=1) > 1)
    if not len(rows):
        return 0.0
    open_to = np.where(tried[rows], estimated[rows], -np.inf)
    lead = open_to.max(axis=1) - estimated[rows, leader]
    gain = success[rows, open_to.argmax(axis=1)] - success[rows, leader]  # of leaving the leader: -1, 0 or 1
    lost = [np.where((lead > 0) & (lead <= margin), -gain, 0.0) for margin in MARGINS]  # by no margin against this one
    best = max(range(len(MARGINS)), key=lambda at: (lost[at].sum(), at))
    error = float(np.sqrt((lost[best] ** 2).sum()))  # of a sum of so many -1 and 1
    return MARGINS[best] if lost[best].sum() > _SURE * error else 0.0


def tempered(success: Floats, leader: int, margin: float) -> Floats:
    """Probabilities [tasks, agents] with every lead over the leader lessened by the margin; nobody else changes places.

    A lead within the margin becomes a small arrear, and arrears become as much larger, so that the order of the
    others stays as it was.
    """
    if margin <= 0:
        return success
    lead = success - success[:, [leader]]
    shift = np.where(lead > margin, -margin, np.where(lead > 0, _BELOW * (lead - margin) - lead, -_BELOW * margin))
    shift[:, leader] = 0.0
    return np.clip(success + shift, np.minimum(success, 0.005), np.maximum(success, 0.995)).astype(np.float32)


def leader_of(prior: npt.NDArray[np.floating]) -> int:
    """The agent with the best past [agents]; the first of equals."""
    return int(np.argmax(prior))

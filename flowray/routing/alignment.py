"""Labels of one set that say what labels of another say, in finer words: more texts for the coarser head.

Two sets may name the same things differently, as a subject "high school physics" and a category "physics". Where the
classifier of the coarse labels, on average over all tasks of one fine label, mostly says one thing, those tasks may be
taught it. It need not be sure of a single task for that: errors of thousands average out. A whole head is taken over or
left alone: one whose labels find a partner now and then by chance (intents of a household among school subjects), or
always the same one (every subject is "multiple choice"), would teach noise or nothing.
"""

from __future__ import annotations

import numpy as np

from flowray.routing.estimates import Floats
from flowray.routing.lexicon import Ids

DOMINANT = 0.5  # mean probability of the one coarse label from which a fine one is taken for a part of it
# Share of the tasks whose label finds a partner, at least. Of subjects among categories .70, .72 and more than .75 do
# with three seeds; of heads that do not say the same .31 at most, with one.
_MOST_TASKS = 0.5
_MOST_LABELS = 0.75  # share of the coarse labels that are found, at least


def aligned(fine: Ids, shares: Floats) -> Ids | None:
    """The coarse label of each task [tasks], -1 where none dominates; None where the heads do not say the same.

    `fine` [tasks] are numbers of labels, -1 where a task has none; `shares` [tasks, coarse labels] what a classifier
    that never saw these tasks with a coarse label makes of them.
    """
    partners: Ids = np.full(len(fine), -1, np.int64)
    for label in np.unique(fine[fine >= 0]):
        mean = shares[fine == label].mean(axis=0)
        if mean.max() >= DOMINANT:
            partners[fine == label] = int(mean.argmax())
    found = partners >= 0
    wide = len(np.unique(partners[found])) >= _MOST_LABELS * shares.shape[1]
    return partners if len(fine) and found.mean() >= _MOST_TASKS and wide else None

"""Who works well on whose work: what an agent makes of the answers of another one, beyond what it does otherwise.

A task may say whose answer it goes on from (`Task.builds_on`). What came of it, less what was expected of its agent
without regard to that, is kept for the pair of the two classes: decayed, by kind of task, and shrunk towards nothing,
as a correction of an agent is towards what the router says (`flowray.routing.posteriors`, where the arithmetic stands).
So a pair that was seen seldom changes nothing, and classes that make the same of everybody's work never learn a lead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flowray.routing.estimates import Floats
from flowray.routing.posteriors import Numbers, PosteriorPolicy, Posteriors

STRENGTH = 20.0  # outcomes of a pair that pull what is learned of it to nothing
KIND_STRENGTH = 40.0  # and those of a kind of task to the pair's
MAX_PAIRS = 4_096  # remembered: those seen last


class Relationships:
    """Of ordered pairs of classes of agents: (whose answer it was, who went on from it)."""

    def __init__(self, kinds: Sequence[str], policy: PosteriorPolicy) -> None:
        """`kinds` of tasks and `policy` are those of the agents' own corrections; strengths are of pairs."""
        self.posteriors = Posteriors(
            kinds,
            replace(policy, agent_strength=STRENGTH, kind_strength=KIND_STRENGTH, max_agents=MAX_PAIRS),
        )

    def related(self, builds_on: str, names: Sequence[str], kinds: Floats, success: Floats) -> tuple[Floats, Floats]:
        """`success` [tasks, agents] with what the relationships add, and the deviation of that, alike.

        `names` are the agents, `builds_on` the one whose answers all these tasks go on from; `kinds` [tasks, kinds].
        """
        return self.posteriors.corrected([pair(builds_on, name) for name in names], kinds, success)

    def observe_all(self, pairs: Sequence[str], kinds: Floats, expected: Numbers, grades: Numbers) -> None:
        """What came of tasks, and what had been expected without regard to whose answers they went on from."""
        self.posteriors.observe_all(pairs, kinds, expected, grades)

    def worth(self, builds_on: str, name: str) -> float:
        """What the relationship adds to success where one half is expected, whatever the kind of task."""
        nothing = np.zeros((1, len(self.posteriors.kinds)), np.float32)
        related, _ = self.related(builds_on, [name], nothing, np.full((1, 1), 0.5, np.float32))
        return float(related[0, 0]) - 0.5


def pair(builds_on: str, name: str) -> str:
    """How a pair is called among those that the posteriors know."""
    return f"{builds_on} > {name}"

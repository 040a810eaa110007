"""A router together with the outcomes that it goes by, asked by names: the same for a local copy and a served one.

Candidates that the history does not know are answered for by one column more, of an agent without a past: what the
network and the records say of anybody.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from flowray.core.model import Estimate
from flowray.routing import data, estimator
from flowray.routing.artifacts import ArtifactError
from flowray.routing.asked import batch_of, known
from flowray.routing.estimates import AgentBatch, Estimates, Floats, Histories, Outcomes, TaskBatch
from flowray.routing.estimator import Precision, RouterEstimator
from flowray.routing.queries import Answers, Queries, Query
from flowray.routing.versions import version_of

_PRIOR_ATTEMPTS = 15.0  # that a confidence of one half is worth, see `RouterEstimator.estimate`
_WARM = (1, 32)  # tasks, read once before the first real ones come


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """What answers queries. It never changes: another version is another scorer."""

    version: str
    router: RouterEstimator
    agents: AgentBatch  # those of the history, and a last one without a past
    histories: Histories  # of these

    @classmethod
    def load(cls, router: Path | str, history: Path | str = "", precision: Precision = "auto") -> Scorer:
        """Read a router and a history (a set, or an `agents.parquet`; "" for none), and answer once for practice.

        That reads the whole history, which takes seconds where it has thousands of tasks.

        Raises:
            ArtifactError: the router cannot be used, or was changed meanwhile.
            SchemaError: the history cannot.
        """
        version = version_of(router, history)
        network = estimator.load(router, precision)
        agents, histories = data.team(history) if str(history) else _nobody()
        if version_of(router, history) != version:
            raise ArtifactError(str(router), "it or its history was changed while it was read", "try again")
        columns = np.array([*range(len(agents)), -1], dtype=np.intp)
        scorer = cls(
            version=version,
            router=network,
            agents=_with_a_stranger(agents),
            histories=replace(histories, outcomes=histories.outcomes.of_columns(columns)),
        )
        for tasks in _WARM:
            scorer.practise(tasks)
        return scorer

    def score(self, asked: Queries) -> Answers:
        """What to expect of each query's candidates.

        Raises:
            ArtifactError: the network says something that is no number.
        """
        if not asked.queries:
            return Answers(version=self.version, estimates=())
        place = {agent_id: column for column, agent_id in enumerate(self.agents.agent_ids[:-1])}
        stranger = len(place)
        columns = [[place.get(name, stranger) for name in query.candidates] for query in asked.queries]
        tasks = batch_of(
            asked.queries, place, len(self.agents)
        )  # strangers' attempts are left out: they share a column
        found = self.router.estimate(tasks, self.agents, self.histories)
        if not (np.isfinite(found.success).all() and np.isfinite(found.quality).all()):
            raise ArtifactError(self.version, "the network says something that is no number", "train it again")
        deviation = deviations(found.success, found.confidence)
        return Answers(
            version=self.version,
            estimates=tuple(
                tuple(_estimate(found, deviation, row, column, name) for column, name in zip(at, names, strict=True))
                for row, (at, names) in enumerate(zip(columns, (q.candidates for q in asked.queries), strict=True))
            ),
        )

    def practise(self, tasks: int) -> None:
        """Answer for made-up tasks, so that whatever is only computed once has been. Raises as `score`."""
        query = Query("List the main findings of the report and say which to check first.", self.agents.agent_ids)
        self.score(Queries((query,) * tasks))


def deviations(success: Floats, confidence: Floats) -> Floats:
    """Standard deviations of probabilities of success, as of a Beta of as many attempts as the confidence is worth.

    A confidence c = n / (n + k) is that of n attempts; a Beta of mean p over n attempts deviates by
    sqrt(p (1 - p) / (n + 1)).
    """
    worth = _PRIOR_ATTEMPTS * confidence / np.maximum(1.0 - confidence, 1e-3)
    deviation: Floats = np.sqrt(success * (1.0 - success) / (worth + 1.0)).astype(np.float32)
    return deviation


def use_one_thread() -> None:
    """Let torch compute in the calling thread only: several processes share the processors, each with small batches."""
    torch.set_num_threads(1)


def threads() -> int:
    """How many threads torch computes with."""
    return torch.get_num_threads()


def _estimate(found: Estimates, deviation: Floats, row: int, column: int, name: str) -> Estimate:
    at = row, column
    return Estimate(
        candidate=name,
        success=float(found.success[at]),
        deviation=float(deviation[at]),
        quality=float(found.quality[at]),
        latency_s=known(found.latency_s[at]),
        cost_usd=known(found.cost_usd[at]),
    )


def _nobody() -> tuple[AgentBatch, Histories]:
    return AgentBatch.of_ids(()), Histories(tasks=TaskBatch.of_texts(()), outcomes=Outcomes.none(0, 0))


def _with_a_stranger(agents: AgentBatch) -> AgentBatch:
    def further(values: Floats) -> Floats:
        return np.append(values, np.float32(np.nan))

    return AgentBatch(
        agent_ids=(*agents.agent_ids, ""),
        descriptions=(*agents.descriptions, ""),
        price_in_per_m=further(agents.price_in_per_m),
        price_out_per_m=further(agents.price_out_per_m),
        params_b=further(agents.params_b),
        load=further(agents.load),
    )

"""A router together with the outcomes that it goes by, asked by names: the same for a local copy and a served one.

Candidates are named by their ids in the history, or as classes of agents are (`flowray.core.naming`). Those that it
does not know are taken for the mean of those it knows, as `flowray.routing.live` takes them: so what is learned on top
of an answer is the same wherever that was computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from flowray.core.model import Estimate
from flowray.core.naming import class_names
from flowray.routing import data, estimator
from flowray.routing.artifacts import ArtifactError
from flowray.routing.asked import batch_of, known
from flowray.routing.estimates import AgentBatch, Estimates, Floats, Histories, Outcomes, TaskBatch
from flowray.routing.estimator import Precision, RouterEstimator
from flowray.routing.live import UNKNOWN_SUCCESS, kinds_in
from flowray.routing.queries import Answers, Queries, Query
from flowray.routing.versions import version_of

_PRIOR_ATTEMPTS = 15.0  # that a confidence of one half is worth, see `RouterEstimator.estimate`
_STRANGER = -1  # column of whom the history does not know
_WARM = (1, 32)  # tasks, read once before the first real ones come


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """What answers queries. It never changes: another version is another scorer."""

    version: str
    router: RouterEstimator
    agents: AgentBatch  # those of the history
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
        scorer = cls(version=version, router=network, agents=agents, histories=histories)
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
        place = self._places
        columns = [[place.get(name, _STRANGER) for name in query.candidates] for query in asked.queries]
        found = self.router.estimate(batch_of(asked.queries, place, len(self.agents)), self.agents, self.histories)
        kinds, shares = kinds_in(found)
        checked = (found.success, found.quality, *(each.probabilities for each in found.capabilities.values()))
        if not all(np.isfinite(values).all() for values in checked):
            raise ArtifactError(self.version, "the network says something that is no number", "train it again")
        deviation = deviations(found.success, found.confidence)
        numbers = (found.success, deviation, found.quality, found.latency_s, found.cost_usd)
        rows = zip(columns, (query.candidates for query in asked.queries), *(v.tolist() for v in numbers), strict=True)
        nobody = _strangers(found, len(asked.queries))
        names = dict.fromkeys(name for query in asked.queries for name in query.candidates if name not in place)
        return Answers(
            version=self.version,
            estimates=tuple(
                tuple(
                    _estimate(name, *(nobody[row] if at == _STRANGER else [of_task[at] for of_task in said]))
                    for at, name in zip(places, candidates, strict=True)
                )
                for row, (places, candidates, *said) in enumerate(rows)
            ),
            kinds=kinds,
            shares=tuple(map(tuple, shares.tolist())),
            strangers=tuple(names),
        )

    @cached_property
    def _places(self) -> dict[str, int]:
        """Of the agents by their ids and by the names of their classes; where two claim a name, the class has it."""
        by_id = {agent_id: column for column, agent_id in enumerate(self.agents.agent_ids)}
        return by_id | {name: column for column, name in enumerate(class_names(self.agents.agent_ids))}

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


def _estimate(
    name: str, success: float, deviation: float, quality: float, latency_s: float, cost_usd: float
) -> Estimate:
    return Estimate(name, success, deviation, quality, known(latency_s), known(cost_usd))


def _strangers(found: Estimates, n_tasks: int) -> list[list[float]]:
    """What is said of somebody without a past: for each task success, deviation, quality, seconds and dollars."""
    if found.success.shape[1]:
        success, quality = found.success.mean(axis=1), found.quality.mean(axis=1)
    else:
        success = quality = np.full(n_tasks, UNKNOWN_SUCCESS, np.float32)
    unsure, unknown = deviations(success, np.zeros_like(success)), np.full(n_tasks, np.nan, np.float32)
    said: list[list[float]] = np.stack([success, unsure, quality, unknown, unknown], axis=1).tolist()
    return said


def _nobody() -> tuple[AgentBatch, Histories]:
    return AgentBatch.of_ids(()), Histories(tasks=TaskBatch.of_texts(()), outcomes=Outcomes.none(0, 0))

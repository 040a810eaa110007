"""Recorded outcomes replayed through a whole runtime: is a live router as good as the same router asked by hand?

Agents answer what was recorded of them. The router has the set's `train` outcomes as their past, and is asked about the
tasks of one split, each of which comes once. Costs are recorded dollars, of all attempts.

    live_minus_offline_success   mean success of the live choices, less that of the best by the same estimates
    live_minus_offline_low, _high    95 % of its noise: of that difference over tasks drawn again, in their groups
    live_otherwise_ratio         share of the tasks for which the live choice was another: what was learned meanwhile
    second_choice_mended_ratio   of the tasks at which the single choice failed and some other agent would have
                                 succeeded, the share that succeeds where an answer that is worth nothing goes to
                                 another class once (`least_quality`), the first choice being thrifty (`quality`)
    second_choice_cost_ratio     dollars of that, relative to the single choices
    third_choice_*               the same where a third class may be asked, too (`max_attempts` is three by default)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import flowray as fr
from bench.workers.common import main
from flowray.core.model import Outcome
from flowray.core.naming import class_names
from flowray.routing import data, estimator
from flowray.routing.judge import filled_costs
from flowray.testing import replay_requests, replay_specs

_WAIT_S = 300.0
_DRAWS = 2_000  # for an interval
_BY_SUCCESS_ALONE = dict.fromkeys(("good", "explore", "slowdown", "second", "usd", "use_quality"), 0.0)


def work(settings: dict[str, Any]) -> dict[str, float]:
    artifact, directory = Path(settings["artifact"]).resolve(), Path(settings["data"]).resolve()
    table = Table(artifact, directory, settings["split"])
    overrides = {
        "ray.agent_output": False,
        "core.routing": {"enabled": True, "within_s": 10.0, "shortlist": 256, **_BY_SUCCESS_ALONE},
        "router": {"artifact": str(artifact), "history": str(directory)},
        "tiers.secondary.agents": 2 * len(table.pool),  # what each reserves fits twice
        "tiers.secondary.agents_per_block": 1,
        "tiers.secondary.warm": 0,
    }
    with fr.Runtime.start(overrides=overrides) as rt:
        for spec in replay_specs(directory, slots=64, num_cpus=0.001):
            if spec.name in table.pool:
                rt.agents.add(**spec.arguments)
        rt.wait_ready(timeout_s=_WAIT_S)
        requests = replay_requests(directory, settings["split"], needs={"replay"})
        single = rt.submit_many(requests).outcomes(_WAIT_S)
        figures = table.single(single)
        for name, attempts in (("second", 2), ("third", 3)):
            ladder = {"least_quality": 0.5, "quality": settings["quality"], "max_attempts": attempts}
            again = rt.submit_many([{**request, **ladder} for request in requests]).outcomes(_WAIT_S)
            figures |= {f"{name}_choice_{key}": value for key, value in table.mended(single, again).items()}
    return figures


class Table:
    """What was recorded of the tasks, and what the same router says of them when asked by hand."""

    def __init__(self, artifact: Path, directory: Path, split: str) -> None:
        recorded = data.load(directory)
        judged, histories = recorded.split(split), recorded.histories()
        offline = estimator.load(artifact, "float32").estimate(judged.tasks, judged.agents, histories)
        names = class_names(judged.agents.agent_ids)
        self.pool = {name: at for at, name in enumerate(names) if judged.pool[at]}
        self._success = np.nan_to_num(judged.outcomes.success)
        costs = judged.outcomes.cost_usd
        self._costs = np.where(np.isfinite(costs), costs, filled_costs(offline, judged.agents, histories))
        columns = list(self.pool.values())
        self._groups = judged.groups
        self._offline = np.array(columns)[offline.success[:, columns].argmax(axis=1)]

    def single(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """Of tasks that one class tried, once."""
        rows, first = np.arange(len(outcomes)), self._first(outcomes)
        live, by_hand = self._success[rows, first], self._success[rows, self._offline]
        return {
            "live_success": float(live.mean()),
            "live_minus_offline_success": float(live.mean() - by_hand.mean()),
            **self._noise(live - by_hand),
            "live_otherwise_ratio": float((first != self._offline).mean()),
        }

    def mended(self, single: Sequence[Outcome], again: Sequence[Outcome]) -> dict[str, float]:
        """Of the same tasks where others may be asked after a failure."""
        rows, first = np.arange(len(single)), self._first(single)
        mendable = (self._success[rows, first] == 0) & (self._success[:, list(self.pool.values())].max(axis=1) > 0)
        tried = [self._tried(outcome) for outcome in again]
        success = np.array([self._success[row, columns].max() for row, columns in enumerate(tried)])
        dollars = sum(self._costs[row, columns].sum() for row, columns in enumerate(tried))
        return {
            "success": float(success.mean()),
            "mended_ratio": float(success[mendable].mean()),
            "cost_ratio": float(dollars / self._costs[rows, first].sum()),
        }

    def _first(self, outcomes: Sequence[Outcome]) -> npt.NDArray[np.intp]:
        return np.array([self._tried(outcome)[0] for outcome in outcomes])

    def _noise(self, differences: npt.NDArray[np.float64]) -> dict[str, float]:
        """The interval of their mean."""
        _, group = np.unique(self._groups, return_inverse=True)
        sums, sizes = np.bincount(group, differences), np.bincount(group)
        drawn = np.random.default_rng(0).integers(len(sums), size=(_DRAWS, len(sums)))
        low, high = np.quantile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), (0.025, 0.975))
        return {"live_minus_offline_low": float(low), "live_minus_offline_high": float(high)}

    def _tried(self, outcome: Outcome) -> list[int]:
        """The columns of the classes that tried a task, in order."""
        chosen = [choice.receipt.chosen for choice in outcome.choices if choice.receipt is not None]
        if len(chosen) < len(outcome.choices) or not chosen:
            raise RuntimeError(f"task {outcome.task_id} was not routed: {outcome.choices}")
        return [self.pool[name] for name in chosen]


if __name__ == "__main__":
    main(work)

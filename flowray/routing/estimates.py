"""The seam of routing: what an estimator is asked (tasks, agents, what is known of them) and what it answers.

Networks and baselines answer the same question, so that one evaluation judges them all. Everything is a frozen batch
of arrays; `tasks` is always the first axis and `agents` the second. A missing number is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.intp] | npt.NDArray[np.bool_] | list[int] | slice  # what selects tasks or agents


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskBatch:
    """What a router may read of some tasks; never a label."""

    texts: tuple[str, ...]  # what is asked
    choices: tuple[str, ...]  # answers to choose from, as JSON or text; "" where there are none
    tools: tuple[str, ...]  # names and descriptions of the tools offered; "" where there are none
    n_tools: Floats  # [tasks] how many tools are offered, NaN where unknown
    n_params: Floats  # [tasks] parameters of all these tools together, NaN where unknown
    n_options: Floats  # [tasks] answers to choose from, NaN where unknown
    attempts: Floats | None = None  # [tasks, agents] 1 or 0 where an agent tried this very task before, NaN elsewhere

    def __post_init__(self) -> None:
        for field in ("choices", "tools", "n_tools", "n_params", "n_options"):
            if len(getattr(self, field)) != len(self.texts):
                raise ValueError(f"{field} has {len(getattr(self, field))} entries for {len(self.texts)} tasks")

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Rows) -> TaskBatch:
        """Some of the tasks, in the order of `rows`."""
        chosen = np.arange(len(self))[rows]
        return TaskBatch(**{f.name: _taken(getattr(self, f.name), chosen) for f in fields(self)})

    @classmethod
    def of_texts(cls, texts: tuple[str, ...] | list[str]) -> TaskBatch:
        """Tasks of which only the text is known."""
        nothing = ("",) * len(texts)
        unknown = np.full(len(texts), np.nan, np.float32)
        return cls(
            texts=tuple(texts), choices=nothing, tools=nothing, n_tools=unknown, n_params=unknown, n_options=unknown
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBatch:
    """What is known of some agents without looking at what they did."""

    agent_ids: tuple[str, ...]
    descriptions: tuple[str, ...]  # in words: name, maker, model, what it is good at
    price_in_per_m: Floats  # [agents] dollars per million tokens read, NaN where unknown
    price_out_per_m: Floats  # [agents] dollars per million tokens written, NaN where unknown
    params_b: Floats  # [agents] size of its model in billions of parameters, NaN where unknown
    load: Floats  # [agents] share of its slots in use now, 0..1 and above when tasks queue, NaN where unknown

    def __post_init__(self) -> None:
        for field in ("descriptions", "price_in_per_m", "price_out_per_m", "params_b", "load"):
            if len(getattr(self, field)) != len(self.agent_ids):
                raise ValueError(f"{field} has {len(getattr(self, field))} entries for {len(self.agent_ids)} agents")

    def __len__(self) -> int:
        return len(self.agent_ids)

    def take(self, rows: Rows) -> AgentBatch:
        """Some of the agents, in the order of `rows`."""
        chosen = np.arange(len(self))[rows]
        return AgentBatch(**{f.name: _taken(getattr(self, f.name), chosen) for f in fields(self)})

    @classmethod
    def of_ids(cls, agent_ids: tuple[str, ...] | list[str]) -> AgentBatch:
        """Agents of which only the names are known."""
        unknown = np.full(len(agent_ids), np.nan, np.float32)
        return cls(
            agent_ids=tuple(agent_ids),
            descriptions=tuple(agent_ids),
            price_in_per_m=unknown,
            price_out_per_m=unknown,
            params_b=unknown,
            load=unknown,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """How attempts ended, one cell per task and agent; NaN where there was no attempt or nothing was recorded."""

    success: Floats  # [tasks, agents] 1 or 0
    quality: Floats  # [tasks, agents] 0..1; the success where no score is known
    latency_s: Floats  # [tasks, agents] seconds
    cost_usd: Floats  # [tasks, agents] dollars of the attempt (see `flowray.routing.data` where no tokens are known)
    tokens: Floats  # [tasks, agents] tokens read and written

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """[tasks, agents] where an attempt ended in success or failure."""
        return np.isfinite(self.success)

    def take(self, rows: Rows, agents: Rows = slice(None)) -> Outcomes:
        """Some of the tasks and agents."""
        return Outcomes(**{f.name: getattr(self, f.name)[rows][:, agents] for f in fields(self)})

    def of_columns(self, columns: npt.NDArray[np.intp]) -> Outcomes:
        """The agents at `columns`; -1 stands for one of whom nothing is known."""
        unknown = np.full((len(self.success), 1), np.nan, np.float32)  # the last column: what -1 points to
        return Outcomes(**{f.name: np.hstack([getattr(self, f.name), unknown])[:, columns] for f in fields(self)})

    @classmethod
    def none(cls, n_tasks: int, n_agents: int) -> Outcomes:
        """No attempt at all."""
        unknown = np.full((n_tasks, n_agents), np.nan, np.float32)
        return cls(**{f.name: unknown for f in fields(cls)})


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False)  # may be the key of a weak dictionary
class Histories:
    """What the agents did before: past tasks, oldest first, and how each agent's attempts at them ended.

    It is the log and not a table per capability, because the capability of a past task is itself an estimate, made by
    whoever reads the log (`flowray.routing.history` turns the two into a table). The agents are those of the
    `AgentBatch` that is asked about, in its order; one without a past is a column of NaN.
    """

    tasks: TaskBatch
    outcomes: Outcomes  # [past tasks, agents]
    kinds: tuple[str, ...] = ()  # [past tasks] of what kind each was said to be, "" where nobody did; () for nowhere
    timed: bool = False  # the order is that of time, so that older outcomes may count less

    def __post_init__(self) -> None:
        if self.kinds and len(self.kinds) != len(self.tasks):
            raise ValueError(f"kinds has {len(self.kinds)} entries for {len(self.tasks)} past tasks")

    def take(self, rows: Rows = slice(None), agents: Rows = slice(None)) -> Histories:
        """Some of the past tasks and agents."""
        chosen = np.arange(len(self.tasks))[rows]
        kinds = tuple(self.kinds[at] for at in chosen) if self.kinds else ()
        return replace(self, tasks=self.tasks.take(chosen), outcomes=self.outcomes.take(chosen, agents), kinds=kinds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Probabilities of labels."""

    labels: tuple[str, ...]
    probabilities: Floats  # [tasks, labels], rows sum to 1

    def best(self) -> tuple[str, ...]:
        """The most probable label of each task."""
        return tuple(self.labels[i] for i in self.probabilities.argmax(axis=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """What is expected of each agent at each task; never NaN but where a whole quantity is unknown to the estimator."""

    success: Floats  # [tasks, agents] calibrated probability
    quality: Floats  # [tasks, agents] expected score, 0..1
    latency_s: Floats  # [tasks, agents] median seconds, NaN where the estimator cannot tell
    cost_usd: Floats  # [tasks, agents] expected dollars, NaN where the estimator cannot tell
    confidence: Floats  # [tasks, agents] 0..1, how much the estimate rests on what was seen
    capabilities: Mapping[str, Labelled]  # head -> labels: "capability", "task", "category", "intent", "domain"


class Estimator(Protocol):
    """Whatever can be asked: the network, its quantized form, a baseline."""

    def estimate(self, tasks: TaskBatch, agents: AgentBatch, histories: Histories) -> Estimates:
        """What to expect of each agent at each task, given what the agents did before."""
        ...


def _taken(values: Any, chosen: npt.NDArray[np.intp]) -> Any:
    if values is None:
        return None
    return tuple(values[i] for i in chosen) if isinstance(values, tuple) else values[chosen]

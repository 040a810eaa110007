"""Queries as the batch that an estimator takes, and its numbers as the messages that answer them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from flowray.routing.estimates import Floats, TaskBatch
from flowray.routing.queries import Query


def batch_of(queries: Sequence[Query], columns: Mapping[str, int], n_agents: int) -> TaskBatch:
    """The tasks, with what is known of earlier attempts at them: `columns` has the places of the agents, of `n_agents`.

    Attempts of those who have no place are left out.
    """
    return TaskBatch(
        texts=tuple(query.text for query in queries),
        choices=tuple(query.choices for query in queries),
        tools=tuple(query.tools for query in queries),
        n_tools=_numbers([query.n_tools for query in queries]),
        n_params=_numbers([query.n_params for query in queries]),
        n_options=_numbers([query.n_options for query in queries]),
        attempts=_attempts(queries, columns, n_agents),
    )


def known(number: float) -> float | None:
    """As messages have it: None for NaN."""
    return float(number) if math.isfinite(number) else None


def _numbers(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], np.float32)


def _attempts(queries: Sequence[Query], columns: Mapping[str, int], n_agents: int) -> Floats | None:
    if not any(query.tried for query in queries):
        return None
    attempts = np.full((len(queries), n_agents), np.nan, np.float32)
    for row, query in enumerate(queries):
        for name, outcome in query.tried:
            if name in columns:
                attempts[row, columns[name]] = outcome
    return attempts

"""What another router says of tasks that one in force decided: recorded receipts, estimated again from their texts.

The router is asked as the coordinator would have asked it: the text that was kept, the candidates that could be chosen,
and who had failed at the task before. With the same router, nothing learned since it was loaded, texts that were not
cut and the same policy it says the same, and `flowray.routing.policies.routed` chooses with the same probabilities: to
the last bit where tasks are asked about in batches of the same sizes, else to about 1e-6, as sums in other orders are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowray.core.model import Estimate
from flowray.routing.decisions import Decisions, Numbers
from flowray.routing.estimates import Estimates
from flowray.routing.live import LiveRouter
from flowray.routing.queries import Query, counted
from flowray.routing.tables import SchemaError

BATCH = 64  # tasks asked about at once: as many as the coordinator does at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerouted:
    """Decisions whose text is known, and what another router says of their candidates."""

    decisions: Decisions
    estimates: Estimates  # [rows, candidates]
    deviations: Numbers  # [rows, candidates] of success, NaN where not offered
    version: str  # of that router


def with_column(table: pa.Table, column: str) -> tuple[pa.Table, int]:
    """The receipts of which a column that came later is known, and how many it is not known of."""
    known = table.filter(pc.is_valid(table.column(column)))
    return known, table.num_rows - known.num_rows


def reroute(table: pa.Table, router: LiveRouter, file: str = "receipts", *, batch: int = BATCH) -> Rerouted:
    """Ask a router about the decisions of a table of `flowray.routing.receipts`, all of which have their text.

    `batch` is how many it is asked about at once.

    Raises:
        SchemaError: it is empty, has a receipt without text, or contradicts itself.
    """
    missing = table.column("prompt").null_count
    if missing:
        raise SchemaError(file, "prompt", f"is null in {missing:,} receipts", "leave these out: see `with_column`")
    decisions = Decisions.of_table(table, file)
    queries = _queries(decisions)
    answers: list[Sequence[Estimate]] = []
    for start in range(0, len(queries), batch):
        together = queries[start : start + batch]
        keys = [f"{start + at}" for at in range(len(together))]
        answers += router.estimate(keys, together)
        for key in keys:
            router.forget(key)
    success, deviations, quality, latency_s, cost_usd = (
        _matrix(decisions, answers, name) for name in ("success", "deviation", "quality", "latency_s", "cost_usd")
    )
    estimates = Estimates(
        success=success.astype(np.float32),
        quality=quality.astype(np.float32),
        latency_s=latency_s.astype(np.float32),
        cost_usd=cost_usd.astype(np.float32),
        confidence=np.full(success.shape, np.nan, np.float32),
        capabilities={},
    )
    return Rerouted(decisions=decisions, estimates=estimates, deviations=deviations, version=router.version)


def _queries(decisions: Decisions) -> list[Query]:
    names = ("prompt", "choices", "tools", "counts", "candidates", "tried", "builds_on")
    return [
        Query(
            prompt,
            tuple(candidates),
            choices=choices or "",
            tools=tools or "",
            **counted(tools or "", dict(counts or ())),
            tried=tuple((name, 0.0) for name in tried or ()),
            builds_on=builds_on or "",
        )
        for prompt, choices, tools, counts, candidates, tried, builds_on in zip(
            *(decisions.table.column(name).to_pylist() for name in names), strict=True
        )
    ]


def _matrix(decisions: Decisions, answers: Sequence[Sequence[Estimate]], name: str) -> Numbers:
    """[rows, candidates] of one figure, NaN where it is not known or a candidate was not offered."""
    column = {candidate: at for at, candidate in enumerate(decisions.candidates)}
    filled: Numbers = np.full(decisions.offered.shape, np.nan)
    for row, answer in enumerate(answers):
        for estimate in answer:
            value: Any = getattr(estimate, name)
            filled[row, column[estimate.candidate]] = np.nan if value is None else value
    return filled

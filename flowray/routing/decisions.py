"""Receipts as arrays: what was known, chosen and earned, one row for each decision and one column for each candidate.

What `flowray.routing.offpolicy` and `flowray.routing.analytics` read. Rows are in the order of time. Not every
candidate could be chosen in every row: `offered` says where, and elsewhere estimates are NaN and propensities 0.
Attempts that were not drawn (an idle agent took the task over from the class that it waited for) have no propensities
and are no decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flowray.routing.estimates import Estimates, Floats
from flowray.routing.tables import SchemaError

Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

MAX_CELLS = 50_000_000  # decisions x candidates: eight arrays of that size are 2 GB


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """Recorded decisions. Made by `of_table`."""

    candidates: tuple[str, ...]  # [candidates] all that were ever offered, sorted
    task_ids: tuple[str, ...]  # [rows]
    attempts: Places  # [rows] numbers of the attempts, from 1
    prompts: tuple[str, ...]  # [rows] "" where not known
    versions: tuple[str, ...]  # [rows] of the router
    groups: Places  # [rows] numbers of the tasks, from 0: attempts at one task belong together
    at: Numbers  # [rows] when the attempt started, else when its task was accepted; ascending
    chosen: Places  # [rows] columns
    explored: Flags  # [rows]
    offered: Flags  # [rows, candidates]
    estimates: Estimates  # [rows, candidates], as the router in force made them; confidence is not recorded
    propensities: Numbers  # [rows, candidates] rows sum to 1
    graded: Flags  # [candidates] their answers come with a quality
    rewards: Numbers  # [rows] 0..1, NaN where not known
    run_s: Numbers  # [rows] seconds of the attempt, NaN where not known
    cost_usd: Numbers  # [rows] dollars of the attempt, NaN where not known
    deviations: Numbers  # [rows, candidates] of the estimated success, NaN where not offered
    table: pa.Table  # [rows] of `flowray.routing.receipts`: what else they say

    def __len__(self) -> int:
        return len(self.task_ids)

    def expected(self, estimates: Estimates | None = None) -> Floats:
        """[rows, candidates] the reward that estimates (default: the recorded ones) promise.

        The quality of candidates that report one, where it is estimated; else the success.
        """
        estimates = self.estimates if estimates is None else estimates
        quality = self.graded & np.isfinite(estimates.quality)
        return np.where(quality, estimates.quality, estimates.success)

    def of_chosen(self, values: npt.NDArray[Any]) -> Numbers:
        """[rows] what an array [rows, candidates] says of the chosen ones."""
        return np.asarray(values[np.arange(len(self)), self.chosen], np.float64)

    @classmethod
    def of_table(cls, table: pa.Table, file: str = "receipts") -> Decisions:
        """The decisions of a table of `flowray.routing.receipts`; `file` is what errors call it.

        Raises:
            SchemaError: it is empty, too large, or contradicts itself.
        """
        if not table.num_rows:
            raise SchemaError(file, "", "holds no receipts", "let a router choose some tasks' agents first")
        table = table.filter(pc.greater(pc.list_value_length(table.column("propensities")), 0))
        if not table.num_rows:
            raise SchemaError(file, "propensities", "are missing in all receipts", "none of them was a draw")
        started = pc.coalesce(table.column("started_at"), table.column("accepted_at"))
        order = np.argsort(started.to_numpy(), kind="stable")
        table = table.take(pa.array(order))
        lists = _Lists(table, file)
        chosen = lists.columns_of("chosen")
        quality, rewards = (table.column(name).to_numpy() for name in ("quality", "reward"))
        _check_share(rewards, file, "reward")
        graded = np.zeros(len(lists.names), np.bool_)
        graded[chosen[np.isfinite(quality)]] = True
        task_ids = table.column("task_id").to_pylist()
        return cls(
            candidates=lists.names,
            task_ids=tuple(task_ids),
            attempts=table.column("attempt").to_numpy().astype(np.intp),
            prompts=tuple(table.column("prompt").fill_null("").to_pylist()),
            versions=tuple(table.column("version").to_pylist()),
            groups=np.unique(np.array(task_ids, np.str_), return_inverse=True)[1].astype(np.intp),
            at=started.to_numpy()[order],
            chosen=chosen,
            explored=table.column("explored").to_numpy(),
            offered=lists.offered,
            estimates=lists.estimates(),
            propensities=lists.propensities(chosen),
            graded=graded,
            rewards=rewards,
            run_s=table.column("run_s").to_numpy(),
            cost_usd=table.column("cost_usd").to_numpy(),
            deviations=lists.matrix("estimated_deviation", np.nan, np.float64),
            table=table,
        )


class _Lists:
    """The columns of lists, spread over a matrix."""

    def __init__(self, table: pa.Table, file: str) -> None:
        self._table, self._file = table, file
        lists = table.column("candidates").combine_chunks()
        self._lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        listed = lists.flatten()
        self.names = tuple(sorted(pc.unique(listed).to_pylist()))
        if table.num_rows * len(self.names) > MAX_CELLS:
            problem = f"{table.num_rows:,} receipts x {len(self.names):,} candidates are too many"
            raise SchemaError(file, "", problem, f"keep below {MAX_CELLS:,} cells: leave old receipts out")
        self._rows = np.repeat(np.arange(table.num_rows), self._lengths)
        self._columns = self._places(listed)
        self.offered = np.zeros((table.num_rows, len(self.names)), np.bool_)
        self.offered[self._rows, self._columns] = True

    def columns_of(self, name: str) -> Places:
        """[rows] the columns that a column of names points to, each a candidate of its row."""
        columns = self._places(self._table.column(name).combine_chunks())
        stray = (columns < 0) | ~self.offered[np.arange(len(columns)), columns]
        if stray.any():
            task_id = self._table.column("task_id")[int(stray.argmax())].as_py()
            raise SchemaError(self._file, name, f"is not among the candidates of task {task_id}", "export it again")
        return columns

    def estimates(self) -> Estimates:
        success = self.matrix("estimated_success", np.nan, np.float32)
        _check_share(success, self._file, "estimated_success")
        return Estimates(
            success=success,
            quality=self.matrix("estimated_quality", np.nan, np.float32),
            latency_s=self.matrix("estimated_latency_s", np.nan, np.float32),
            cost_usd=self.matrix("estimated_cost_usd", np.nan, np.float32),
            confidence=np.full_like(success, np.nan),
            capabilities={},
        )

    def propensities(self, chosen: Places) -> Numbers:
        """Those of the chosen ones must be above 0: they were chosen."""
        found: Numbers = self.matrix("propensities", 0.0, np.float64)
        wrong = (found < 0).any(axis=1) | (np.abs(found.sum(axis=1) - 1) > 1e-6)
        wrong |= found[np.arange(len(found)), chosen] <= 0
        if wrong.any():
            task_id = self._table.column("task_id")[int(wrong.argmax())].as_py()
            problem = f"of task {task_id} do not sum to 1, or the chosen one has none"
            raise SchemaError(self._file, "propensities", problem, "leave out receipts of broken routers")
        return found

    def matrix(self, name: str, empty: float, kind: type[np.floating[Any]]) -> Any:
        """[rows, candidates] of one column of lists, `empty` where a candidate was not offered."""
        lists = self._table.column(name).combine_chunks()
        if not np.array_equal(pc.list_value_length(lists).to_numpy(zero_copy_only=False), self._lengths):
            raise SchemaError(self._file, name, "has not one entry for each candidate", "export it again")
        filled = np.full(self.offered.shape, empty, kind)
        filled[self._rows, self._columns] = lists.flatten().to_numpy(zero_copy_only=False)
        return filled

    def _places(self, names: Any) -> Places:
        """Columns of names, -1 for those that are nobody's."""
        found = pc.index_in(names, value_set=pa.array(self.names, pa.string())).fill_null(-1)
        return np.asarray(found.to_numpy(zero_copy_only=False), np.intp)


def _check_share(values: npt.NDArray[Any], file: str, column: str) -> None:
    wrong = (values < 0) | (values > 1)
    if wrong.any():
        raise SchemaError(file, column, f"holds {values[wrong][0]:g}, outside 0 to 1", "export it again")

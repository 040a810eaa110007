"""Receipts as tables: one row for each attempt that a router had a word in, with what came of it.

The schema, the same in memory (`tabled`) and in a Parquet file (`write`, `read`). Times are seconds on the
coordinator's time-line. A number that is not known is null.

    task_id, attempt       the key; attempts are numbered from 1
    accepted_at, resolved_at    of the task
    started_at             of the attempt; null where the task's story no longer has it
    prompt                 what was asked, null where it is not known (nothing is kept, `core.routing.keep_text`)
    chosen, agent_id       the class of agents, and which of them; agent_id is "" where the story no longer has it
    explored               chosen to learn of it, not as one of the good ones
    confidence             0..1 that nobody else was better
    path, version          who made the estimates (local, serve), and which router
    wait_s, took_s         expected wait of the chosen one; from asking for estimates to having them

Lists with one entry for each candidate, in one order:

    candidates             names
    estimated_success, estimated_deviation, estimated_quality, estimated_latency_s, estimated_cost_usd
    values, propensities   what each was worth to the policy, and with which probability it would have been chosen;
                           propensities are empty where nothing was drawn: an idle agent took over what waited for
                           another class

What came of it:

    reward                 the reported quality, else 1 for an answer; 0 where the agent's code failed or ran out of the
                           attempt's time; null where nobody can say: the agent was lost, or the task was cancelled or
                           expired meanwhile
    quality                0..1 as the agent reported it, or as it was graded later; null where neither was done
    run_s, cost_usd        of attempts that answered; null for others, of which neither is recorded
    state                  of the task: succeeded, dead, cancelled, expired

What came later to the schema; files from before it are read with nulls:

    choices, tools         the rest of what the router read; null where the prompt is
    counts                 what was told of their numbers (`flowray.offers.COUNTS`); null where the prompt is
    builds_on              the class of agents whose answer the task went on from; null where the prompt is
    tried                  the classes of agents whose attempts at this task had failed before
    waits_s                expected wait of each candidate; null where it was not recorded
    remaining_s            seconds to the task's deadline; null without one
    thrift, max_cost_usd   the task's `quality`, where it counted, and the most that it should cost
    grade                  0..1, given later for the answer, and then its quality and reward; null where it was not
    extras                 what the policy added to each candidate's value: for its tier, and for scarce memory
    weights                the task's own weights of the policy
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from flowray.core.model import AGENTS_FAULT, Outcome, Receipt, Recorded
from flowray.core.naming import class_of
from flowray.core.states import TaskState
from flowray.routing.tables import SchemaError

if TYPE_CHECKING:
    import pandas

Told = Outcome | Recorded  # an outcome, with what else is kept of its task where that is known

VERSION = b"1"
_MARK = b"flowray.receipts"  # in the file's metadata: which schema it follows
_ROWS = 10_000  # outcomes held at once while writing, and rows of one group in the file

_NUMBERS = pa.list_(pa.float64())
_LATER = (
    pa.field("choices", pa.string()),
    pa.field("tools", pa.string()),
    pa.field("tried", pa.list_(pa.string())),
    pa.field("waits_s", _NUMBERS),
    pa.field("remaining_s", pa.float64()),
    pa.field("thrift", pa.float64()),
    pa.field("max_cost_usd", pa.float64()),
    pa.field("grade", pa.float64()),
    pa.field("extras", _NUMBERS),
    pa.field("weights", pa.map_(pa.string(), pa.float64())),
    pa.field("builds_on", pa.string()),
    pa.field("counts", pa.map_(pa.string(), pa.float64())),
)
SCHEMA = pa.schema(
    [
        pa.field("task_id", pa.string(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("accepted_at", pa.float64(), nullable=False),
        pa.field("started_at", pa.float64()),
        pa.field("resolved_at", pa.float64(), nullable=False),
        pa.field("prompt", pa.string()),
        pa.field("chosen", pa.string(), nullable=False),
        pa.field("agent_id", pa.string(), nullable=False),
        pa.field("explored", pa.bool_(), nullable=False),
        pa.field("confidence", pa.float64(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("wait_s", pa.float64(), nullable=False),
        pa.field("took_s", pa.float64(), nullable=False),
        pa.field("candidates", pa.list_(pa.string()), nullable=False),
        pa.field("estimated_success", _NUMBERS, nullable=False),
        pa.field("estimated_deviation", _NUMBERS, nullable=False),
        pa.field("estimated_quality", _NUMBERS, nullable=False),
        pa.field("estimated_latency_s", _NUMBERS, nullable=False),
        pa.field("estimated_cost_usd", _NUMBERS, nullable=False),
        pa.field("values", _NUMBERS, nullable=False),
        pa.field("propensities", _NUMBERS, nullable=False),
        pa.field("reward", pa.float64()),
        pa.field("quality", pa.float64()),
        pa.field("run_s", pa.float64()),
        pa.field("cost_usd", pa.float64()),
        pa.field("state", pa.string(), nullable=False),
        *_LATER,
    ],
    metadata={_MARK: VERSION},
)


def tabled(outcomes: Iterable[Told]) -> pa.Table:
    """The rows of these outcomes, in their order; outcomes without a receipt have none."""
    return pa.Table.from_pylist([row for one in outcomes for row in _rows(one)], schema=SCHEMA)


def write(file: Path | str, outcomes: Iterable[Told]) -> int:
    """Write them to a Parquet file, which appears complete or not at all; returns the number of rows.

    Holds some thousand outcomes at a time.
    """
    file = Path(file)
    unfinished = file.with_name(f"{file.name}.part")
    written, remaining = 0, iter(outcomes)
    try:
        with pq.ParquetWriter(unfinished, SCHEMA, compression="zstd") as writer:
            while batch := list(itertools.islice(remaining, _ROWS)):
                table = tabled(batch)
                writer.write_table(table)
                written += table.num_rows
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return written


def read(file: Path | str) -> pa.Table:
    """Read a file that `write` made; columns that the schema does not name are left out.

    Raises:
        SchemaError: it is not there, is no Parquet, or follows another schema.
    """
    file = Path(file)
    if not file.is_file():
        raise SchemaError(str(file), "", "is not there", "`flowray router export` makes one")
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(str(file), "", f"cannot be read as Parquet: {error}", "export it again") from error
    version = (table.schema.metadata or {}).get(_MARK)
    if version is None:
        raise SchemaError(str(file), "", "does not hold receipts", "`flowray router export` makes such a file")
    if version != VERSION:
        problem = f"follows schema {version.decode(errors='replace')} of receipts"
        raise SchemaError(str(file), "", problem, f"this flowray reads schema {VERSION.decode()}: export it again")
    for field in _LATER:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    for field in SCHEMA:
        if field.name not in table.column_names:
            raise SchemaError(str(file), field.name, "is missing", "export it again")
        kind = table.schema.field(field.name).type
        if kind != field.type:
            raise SchemaError(str(file), field.name, f"is of type {kind}, not {field.type}", "export it again")
        nulls = table.column(field.name).null_count
        if nulls and not field.nullable:
            raise SchemaError(str(file), field.name, f"is null in {nulls} rows", "export it again")
    return table.select(SCHEMA.names)


def frame(source: Path | str | pa.Table | Iterable[Told]) -> pandas.DataFrame:
    """A pandas frame of a file, a table or outcomes; lists become arrays.

    Raises:
        SchemaError: as `read`.
    """
    if isinstance(source, Path | str):
        source = read(source)
    table = source if isinstance(source, pa.Table) else tabled(source)
    found: pandas.DataFrame = table.to_pandas()
    return found


def _rows(told: Told) -> Iterator[dict[str, Any]]:
    kept = told if isinstance(told, Recorded) else Recorded(outcome=told)
    outcome, asked = kept.outcome, kept.asked
    for made in attempts(kept):
        receipt = outcome.choices[made.place].receipt
        if receipt is None:
            continue
        yield {
            "task_id": outcome.task_id,
            "attempt": made.attempt,
            "accepted_at": outcome.accepted_at,
            "started_at": made.started_at,
            "resolved_at": outcome.resolved_at,
            "prompt": asked.text if asked is not None else None,
            "agent_id": made.agent_id,
            **_receipt(receipt),
            "reward": made.reward,
            "quality": made.quality,
            "run_s": made.run_s,
            "cost_usd": made.cost_usd,
            "state": outcome.state.value,
            "choices": asked.choices if asked is not None else None,
            "tools": asked.tools if asked is not None else None,
            "counts": list(asked.counts.items()) if asked is not None else None,
            "builds_on": asked.builds_on if asked is not None else None,
            "tried": made.tried,
            "grade": made.grade,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt of a recorded task, and what came of it."""

    place: int  # among the outcome's choices
    attempt: int  # its number
    agent_id: str  # "" where the story no longer has it
    started_at: float | None
    tried: list[str]  # classes of agents whose attempts had failed before
    accepted: bool = False  # its answer is the task's
    reward: float | None  # 0..1; None where nobody can say
    quality: float | None = None  # 0..1, of an answer: as reported, or as graded later
    grade: float | None = None
    run_s: float | None = None  # of an answer
    cost_usd: float | None = None


def attempts(kept: Recorded) -> Iterator[Attempt]:
    """The attempts of a task that has ended, in their order, those without a receipt too."""
    outcome = kept.outcome
    started = [line for line in outcome.story if line.what == "started"]
    end = outcome.story[-1] if outcome.story else None  # names the attempt that answered: not always the last started
    ended = end.attempt if end is not None and end.what == outcome.state.value else outcome.attempts
    if len(started) != len(outcome.choices):  # a long story loses its middle: then who is who is not known
        started = []
    failed = {line.attempt: class_of(line.agent_id) for line in outcome.story if line.what == "attempt_failed"}
    short = {one.attempt: one for one in outcome.not_enough}
    for place in range(len(outcome.choices)):
        attempt = started[place].attempt if started else place + 1
        last = (
            attempt == ended and outcome.agent_id != ""
        )  # it ran when the task ended, and was not stopped for another
        known: dict[str, Any] = {"reward": 0.0 if attempt in failed else None}
        if last and outcome.state is TaskState.SUCCEEDED:
            known = _answer(kept)
        elif last and outcome.state is TaskState.DEAD:
            blamed = outcome.failure is not None and outcome.failure.kind in AGENTS_FAULT
            known = {"reward": (outcome.quality or 0.0) if blamed else None}
            if blamed and outcome.quality is not None:
                known |= {"quality": outcome.quality, "run_s": outcome.run_s, "cost_usd": outcome.cost_usd}
        elif (one := short.get(attempt)) is not None:
            known = {"reward": one.quality, "quality": one.quality, "run_s": one.run_s, "cost_usd": one.cost_usd}
        yield Attempt(
            place=place,
            attempt=attempt,
            agent_id=started[place].agent_id if started else outcome.agent_id if last else "",
            started_at=started[place].at if started else None,
            tried=list(dict.fromkeys(name for number, name in failed.items() if number < attempt and name)),
            **known,
        )


def _answer(kept: Recorded) -> dict[str, Any]:
    """Of the attempt that was accepted. A grade says better than its agent what it was worth."""
    outcome, grade = kept.outcome, kept.grade.quality if kept.grade is not None else None
    quality = outcome.quality if grade is None else grade
    reward = 1.0 if quality is None else quality
    return {
        "accepted": True,
        "reward": reward,
        "quality": quality,
        "grade": grade,
        "run_s": outcome.run_s,
        "cost_usd": outcome.cost_usd,
    }


def _receipt(receipt: Receipt) -> dict[str, Any]:
    estimates = receipt.estimates
    waits_s = receipt.waits_s
    return {
        "chosen": receipt.chosen,
        "explored": receipt.explored,
        "confidence": receipt.confidence,
        "path": receipt.path,
        "version": receipt.version,
        "wait_s": receipt.wait_s,
        "took_s": receipt.took_s,
        "candidates": [estimate.candidate for estimate in estimates],
        "estimated_success": [estimate.success for estimate in estimates],
        "estimated_deviation": [estimate.deviation for estimate in estimates],
        "estimated_quality": [estimate.quality for estimate in estimates],
        "estimated_latency_s": [estimate.latency_s for estimate in estimates],
        "estimated_cost_usd": [estimate.cost_usd for estimate in estimates],
        "values": list(receipt.values),
        "propensities": list(receipt.propensities),
        "waits_s": None if waits_s is None else list(waits_s) or [0.0] * len(estimates),
        "remaining_s": receipt.remaining_s,
        "thrift": receipt.thrift,
        "max_cost_usd": receipt.max_cost_usd,
        "extras": list(receipt.extras) or [0.0] * len(estimates),
        "weights": list(receipt.weights.items()),
    }

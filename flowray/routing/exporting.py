"""A runtime's own outcomes as an outcome set: what `flowray router train` and `evaluate` read (`flowray.routing.data`).

A task is one row, whichever agents tried it; its outcomes are those of the attempts that were made, so most cells of
the set are empty. Left out are tasks whose text was not kept, and attempts of which nobody can say how good they were
(the agent was lost, or the task was cancelled meanwhile).

Rows are in the order in which tasks ended, and the splits follow it: `train`, then `val`, then the newest, `test`. So
a router is judged on what came after all that it learned from, as it will be in service.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from flowray.core.model import AgentSpec, Asked, Recorded
from flowray.core.naming import class_of
from flowray.errors import ConfigError
from flowray.offers import COUNTS
from flowray.routing.queries import counted
from flowray.routing.receipts import Told, attempts

GOOD = 0.5  # an answer that is known to be worth less is no success

_TEXT, _NUMBER = pa.string(), pa.float64()
_TASKS = pa.schema(
    {
        **dict.fromkeys(("prompt_id", "text", "split", "choices", "tools_text"), _TEXT),
        **dict.fromkeys(COUNTS, _NUMBER),
    }
)
_AGENTS = pa.schema({"agent_id": _TEXT, "description": _TEXT, "role": _TEXT})
_OUTCOMES = pa.schema(
    {
        "prompt_id": _TEXT,
        "agent_id": _TEXT,
        "success": pa.int8(),
        "score": _NUMBER,
        "latency_s": _NUMBER,
        "cost_usd": _NUMBER,
        "at_utc": _NUMBER,
    }
)


class _Ended(NamedTuple):
    """What of a task goes into the set."""

    at: float
    task_id: str
    asked: Asked
    outcomes: dict[str, dict[str, Any]]  # by class of agents


def write_set(
    directory: Path | str,
    told: Iterable[Told],
    *,
    specs: Mapping[str, AgentSpec] | None = None,
    val: float = 0.1,
    test: float = 0.1,
    most: int = 100_000,
) -> int:
    """Write the newest `most` tasks among these to a directory; returns how many. A set that is there is replaced.

    `specs` describe the classes of agents, by name, to a router that reads descriptions. `val` and `test` are shares
    of the tasks. Where there is no task to write nothing is written. Holds the texts of `most` tasks in memory.

    Raises:
        ConfigError: a share or `most` is out of range.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise ConfigError("split", f"val and test are shares that leave some for train, got {val:g} and {test:g}")
    if most < 1:
        raise ConfigError("most", f"must be at least 1, got {most}")
    kept: deque[_Ended] = deque(maxlen=most)
    kept.extend(one for one in map(_ended, told) if one is not None)
    if not kept:
        return 0
    ended = sorted(kept, key=lambda one: (one.at, one.task_id))
    names = sorted({name for one in ended for name in one.outcomes})
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Without its tasks a directory is no set: nobody reads half of an old one and half of a new one.
    (directory / "tasks.parquet").unlink(missing_ok=True)
    _write(directory / "agents.parquet", [_described(name, (specs or {}).get(name)) for name in names], _AGENTS)
    rows = [{"prompt_id": one.task_id, **row} for one in ended for row in one.outcomes.values()]
    _write(directory / "outcomes.parquet", rows, _OUTCOMES)
    _write(directory / "tasks.parquet", _tasks(ended, val, test), _TASKS)
    return len(ended)


def _ended(told: Told) -> _Ended | None:
    """None where the set can say nothing of the task."""
    kept = told if isinstance(told, Recorded) else Recorded(outcome=told)
    outcome, asked = kept.outcome, kept.asked
    if asked is None:
        return None
    outcomes: dict[str, dict[str, Any]] = {}
    for made in attempts(kept):
        receipt = outcome.choices[made.place].receipt
        name = class_of(made.agent_id) if made.agent_id else receipt.chosen if receipt is not None else ""
        if made.reward is None or not name:
            continue
        # Of several attempts of one class at one task the last counts: it is what the task was left with.
        outcomes[name] = {
            "agent_id": name,
            "success": int(made.accepted if made.quality is None else made.accepted and made.quality >= GOOD),
            "score": made.reward,
            "latency_s": made.run_s,
            "cost_usd": made.cost_usd,
            "at_utc": outcome.resolved_at if made.started_at is None else made.started_at,
        }
    return _Ended(outcome.resolved_at, outcome.task_id, asked, outcomes) if outcomes else None


def _tasks(ended: Sequence[_Ended], val: float, test: float) -> list[dict[str, Any]]:
    first_test = len(ended) - int(test * len(ended))
    first_val = first_test - int(val * len(ended))
    return [
        {
            "prompt_id": one.task_id,
            "text": one.asked.text,
            "split": "train" if place < first_val else "val" if place < first_test else "test",
            "choices": one.asked.choices,
            "tools_text": one.asked.tools,
            **counted(one.asked.tools, one.asked.counts),
        }
        for place, one in enumerate(ended)
    ]


def _described(name: str, spec: AgentSpec | None) -> dict[str, Any]:
    """In words, for a router that reads them."""
    if spec is None:
        return {"agent_id": name, "description": None, "role": None}
    return {"agent_id": name, "description": ", ".join(spec.capabilities) or None, "role": f"tier {spec.tier}"}


def _write(file: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """The file appears complete or not at all."""
    unfinished = file.with_name(f"{file.name}.part")
    try:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), unfinished, compression="zstd")
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)

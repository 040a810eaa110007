"""Small outcome sets for the tests of routing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = {"sums": "add multiply number total fraction", "poems": "rhyme verse sonnet stanza line"}


def write(directory: Path, **tables: dict[str, list[Any]]) -> Path:
    """A set with these columns: `write(path, tasks={...}, agents={...}, outcomes={...})`."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), directory / f"{name}.parquet")
    return directory


def small(**changes: dict[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """Three tasks and two agents; `changes` replace columns of a table, None takes one away."""
    tables: dict[str, dict[str, Any]] = {
        "tasks": {"prompt_id": ["a", "b", "c"], "text": ["one", "two", "three"], "split": ["train", "val", "test"]},
        "agents": {"agent_id": ["x", "y"]},
        "outcomes": {"prompt_id": ["a", "a", "b", "c"], "agent_id": ["x", "y", "x", "y"], "success": [1, 0, 1, 1]},
    }
    for name, columns in changes.items():
        tables[name] |= columns
    return {name: {c: v for c, v in columns.items() if v is not None} for name, columns in tables.items()}


def two_trades(directory: Path, n_tasks: int = 240, seed: int = 0, **options: Any) -> Path:
    """Two kinds of tasks and four agents: `counter` is good at sums, `poet` at poems, `sage` at both and dear, `fool`
    at nothing and cheap. A router that reads can be as good as `sage` for less.

    `splits` (names in turn), `drop` (columns of outcomes or agents to leave out).
    """
    rng = np.random.default_rng(seed)
    splits = options.get("splits", ("train", "train", "train", "val", "test", "test"))
    kinds = [("sums", "poems")[i] for i in rng.integers(2, size=n_tasks)]
    texts = [" ".join(rng.choice(WORDS[kind].split(), size=6)) for kind in kinds]
    skill = {"counter": {"sums": 0.9, "poems": 0.1}, "poet": {"sums": 0.1, "poems": 0.9},
             "sage": {"sums": 0.85, "poems": 0.85}, "fool": {"sums": 0.2, "poems": 0.2}}  # fmt: skip
    price = {"counter": 1.0, "poet": 1.0, "sage": 10.0, "fool": 0.5}
    rows = [(f"t{i}", agent, kind) for i, kind in enumerate(kinds) for agent in skill]
    seconds = [2.0 if kind == "sums" else 8.0 for _, _, kind in rows]
    outcomes: dict[str, list[Any]] = {
        "prompt_id": [task for task, _, _ in rows],
        "agent_id": [agent for _, agent, _ in rows],
        "success": [int(rng.random() < skill[agent][kind]) for _, agent, kind in rows],
        "latency_s": [s * float(np.exp(0.1 * rng.normal())) for s in seconds],
        "cost_usd": [price[agent] * 100 / 1e6 for _, agent, _ in rows],
        "input_tokens": [60] * len(rows),
        "output_tokens": [40] * len(rows),
    }
    agents: dict[str, list[Any]] = {
        "agent_id": list(skill),
        "agent_split": ["seen", "seen", "seen", "unseen"],
    }
    drop = options.get("drop", ())
    tasks = {
        "prompt_id": [f"t{i}" for i in range(n_tasks)],
        "text": texts,
        "split": [splits[i % len(splits)] for i in range(n_tasks)],
        "task_type": kinds,
    }
    tables = {"tasks": tasks, "agents": agents, "outcomes": outcomes}
    kept = {name: {c: v for c, v in table.items() if c not in drop} for name, table in tables.items()}
    return write(directory, **{name: table for name, table in kept.items() if name not in drop})

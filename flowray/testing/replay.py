"""Agents that answer from recorded outcomes: a whole runtime, run on what other agents once did.

    for spec in replay_specs("../shared/data/bfcl_agents"):
        rt.agents.add(**spec.arguments)
    handles = rt.submit_many(replay_requests("../shared/data/bfcl_agents", "test"))

It is the same with `Simulation().agents.add`. A set of outcomes is a directory of Parquet files, in the schema that
`models/README.md` describes; `flowray.testing.make_outcomes` makes a small one. Where a set holds no cost at all, an
attempt costs what 1,000 tokens do at its agent's price, half of them read and half written: the rule of that schema.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from msgspec import Struct

from flowray.agents import Context, Task
from flowray.core.naming import class_names
from flowray.errors import ConfigError, InvalidTask, RetryableError
from flowray.offers import COUNTS

_OFFERED = {"choices": "choices", "tools_text": "tools"}  # column of a set -> argument of `submit`
_NOMINAL_TOKENS = 1_000  # of an attempt whose cost nobody recorded
_SETS = 4  # kept in memory by one process
_KEYS = ("prompt_id", "agent_id")  # repeated in row after row: each is held once
_reading = threading.Lock()  # agents of one process are made in several threads: one reads, the others find it read


class Recorded(Struct, frozen=True, kw_only=True, gc=False):
    """What one agent once made of one task."""

    success: bool
    quality: float  # 0..1: the score, where there is one, else the success
    latency_s: float | None  # None where nobody measured it
    cost_usd: float | None  # None where neither it nor the agent's price is known


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySpec:
    """One recorded agent as a class of agents of its own."""

    name: str  # of the class
    agent_id: str  # in the set
    arguments: Mapping[str, Any]  # of `agents.add`


class ReplayAgent:
    """Answers as one agent of a set did, and reports the recorded quality and cost.

    The value is `{"agent": <its id in the set>, "success": <bool>}`. A task is looked up by its label `prompt_id`, or
    by its text where it has no such label (the first task of that text).

    The set is read here and not when the first task comes, which would be late then; once for each process.
    """

    def __init__(self, data: str, agent_id: str, time_scale: float = 0.0, fail: bool = False) -> None:
        """Read the set.

        Args:
            data: directory of the set, as the agent's process sees it.
            agent_id: whose outcomes to replay.
            time_scale: an attempt takes the recorded seconds times this; 0 answers at once.
            fail: a wrong answer raises RetryableError; else it is returned, and its quality says what it is worth.

        Raises:
            ConfigError: there is no such set or agent, or `time_scale` is negative.
        """
        self._time_scale = _checked_scale(time_scale)
        self._agent_id = agent_id
        self._fail = fail
        self._set = _recording(data)
        self._answers = self._set.of(agent_id)

    def recorded(self, task: Task) -> Recorded:
        """What was recorded of this task.

        For a simulation, where `time_scale` stays 0 because its seconds are real, this makes virtual time of them:
        `service_s=lambda task: agent.recorded(task).latency_s or 0.0`.

        Raises:
            InvalidTask: the set has no such task, or no outcome of this agent.
        """
        prompt_id = task.labels.get("prompt_id")
        if prompt_id is None:
            prompt_id = self._set.prompt_id(task.prompt)
        found = self._answers.get(prompt_id)
        if found is None:
            problem = f"{self._set.directory} has no outcome of agent {self._agent_id!r} at prompt_id {prompt_id!r}"
            raise InvalidTask("labels", f"{problem}; take tasks and labels from replay_tasks of the same directory")
        return found

    async def run(self, task: Task, ctx: Context) -> dict[str, Any]:
        """Wait, report, answer."""
        then = self.recorded(task)
        if self._time_scale and then.latency_s:
            await asyncio.sleep(then.latency_s * self._time_scale)
        ctx.report(quality=then.quality, cost_usd=then.cost_usd)
        if self._fail and not then.success:
            raise RetryableError(f"agent {self._agent_id!r} was wrong at this task")
        return {"agent": self._agent_id, "success": then.success}


def replay_specs(
    directory: Path | str,
    *,
    time_scale: float = 0.0,
    fail: bool = False,
    slots: int = 4,
    capability: str = "replay",
    **arguments: Any,
) -> list[ReplaySpec]:
    """A class of agents for each agent of a set that has outcomes, in the order of their ids.

    Names are the ids, in the characters that a class's name may have, and unique. `slots`, `capability` ("" for none)
    and further `arguments` of `agents.add` (count, tier, num_cpus) are the same for all.

    Raises:
        ConfigError: there is no such set, or `time_scale` is negative.
    """
    directory = Path(directory).resolve()
    scale = _checked_scale(time_scale)
    agent_ids = _ids_in(_read(directory / "outcomes.parquet", ("agent_id",)))
    return [
        ReplaySpec(
            name=name,
            agent_id=agent_id,
            arguments={
                "target": ReplayAgent,
                "name": name,
                "slots": slots,
                "capabilities": {capability} if capability else (),
                "options": {"data": str(directory), "agent_id": agent_id, "time_scale": scale, "fail": fail},
                **arguments,
            },
        )
        for name, agent_id in zip(class_names(agent_ids), agent_ids, strict=True)
    ]


def replay_tasks(directory: Path | str, split: str = "") -> list[tuple[str, dict[str, str]]]:
    """(text, labels) of the tasks of one split ("" for all), in the order of the set.

    Raises:
        ConfigError: there is no such set, or no task in this split.
    """
    file = Path(directory).resolve() / "tasks.parquet"
    table = _read(file, ("prompt_id", "text", "split"))
    splits = _values(table, "split")
    rows = zip(_values(table, "prompt_id"), _values(table, "text"), splits, strict=True)
    tasks = [(text, {"prompt_id": prompt_id}) for prompt_id, text, of in rows if split in ("", of)]
    if not tasks:
        raise ConfigError("split", f"no task of {file} is in {split!r}", f"it has {', '.join(sorted(set(splits)))}")
    return tasks


def replay_requests(directory: Path | str, split: str = "", **arguments: Any) -> list[dict[str, Any]]:
    """The tasks of one split as `submit_many` takes them: with all that a router reads of them in the set.

    `arguments` of `submit` are the same for all.

    Raises:
        ConfigError: there is no such set, or no task in this split.
    """
    table = _read(Path(directory).resolve() / "tasks.parquet", ("split",), (*_OFFERED, *COUNTS))
    offered = {argument: _texts(table, column) for column, argument in _OFFERED.items()}
    counted = {name: list(_numbers(table, name)) for name in COUNTS}
    rows = [row for row, of in enumerate(_values(table, "split")) if split in ("", of)]
    return [
        {
            "prompt": text,
            "labels": labels,
            **{argument: texts[row] for argument, texts in offered.items()},
            "counts": {name: number for name, values in counted.items() if (number := values[row]) is not None},
            **arguments,
        }
        for row, (text, labels) in zip(rows, replay_tasks(directory, split), strict=True)
    ]


class _Recording:
    """The outcomes of one set."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        optional = ("score", "latency_s", "cost_usd")
        self._outcomes = _read(directory / "outcomes.parquet", ("prompt_id", "agent_id", "success"), optional)
        self._costs_recorded = any(cost is not None for cost in _numbers(self._outcomes, "cost_usd"))
        self._of: dict[str, dict[str, Recorded]] = {}
        self._prompt_ids: dict[str, str] = {}  # text -> of its first task; filled when a task comes without a label

    def of(self, agent_id: str) -> dict[str, Recorded]:
        """prompt_id -> what this agent made of it. Raises ConfigError where there is no such agent."""
        import pyarrow.compute as pc

        if agent_id in self._of:
            return self._of[agent_id]
        rows = self._outcomes.filter(pc.equal(self._outcomes["agent_id"], agent_id))
        if not len(rows):
            known = _ids_in(self._outcomes)
            shown = ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
            raise ConfigError("agent_id", f"{self.directory} has no outcomes of {agent_id!r}", f"known: {shown}")
        nominal = None if self._costs_recorded else self._nominal_cost(agent_id)
        columns = zip(
            _values(rows, "prompt_id"),
            _values(rows, "success"),
            _numbers(rows, "score"),
            _numbers(rows, "latency_s"),
            _numbers(rows, "cost_usd"),
            strict=True,
        )
        self._of[agent_id] = {
            prompt_id: Recorded(
                success=bool(success),
                quality=float(success) if score is None else score,
                latency_s=latency_s,
                cost_usd=cost_usd if self._costs_recorded else nominal,
            )
            for prompt_id, success, score, latency_s, cost_usd in columns
        }
        return self._of[agent_id]

    def prompt_id(self, text: str) -> str:
        """Of the first task with this text. Raises InvalidTask where there is none."""
        file = self.directory / "tasks.parquet"
        if not self._prompt_ids:
            table = _read(file, ("prompt_id", "text"))
            for prompt_id, known in zip(_values(table, "prompt_id"), _values(table, "text"), strict=True):
                self._prompt_ids.setdefault(known, prompt_id)
        if text not in self._prompt_ids:
            way_out = "give the label prompt_id, or a text of replay_tasks of the same directory as it is"
            raise InvalidTask("prompt", f"no task of {file} has this text; {way_out}")
        return self._prompt_ids[text]

    def _nominal_cost(self, agent_id: str) -> float | None:
        file = self.directory / "agents.parquet"
        if not file.is_file():
            return None
        table = _read(file, ("agent_id",), ("price_in_per_m", "price_out_per_m"))
        prices = zip(_numbers(table, "price_in_per_m"), _numbers(table, "price_out_per_m"), strict=True)
        for described, (price_in, price_out) in zip(_values(table, "agent_id"), prices, strict=True):
            if described == agent_id and price_in is not None and price_out is not None:
                return (price_in + price_out) / 2 * _NOMINAL_TOKENS / 1e6
        return None


def _recording(directory: str) -> _Recording:
    with _reading:
        file = Path(directory).resolve() / "outcomes.parquet"
        return _kept(file.parent, file.stat().st_mtime_ns if file.is_file() else 0)


@lru_cache(maxsize=_SETS)
def _kept(directory: Path, written_at: int) -> _Recording:
    """`written_at` tells a set that was written anew from the one in memory."""
    return _Recording(directory)


def _read(file: Path, required: Iterable[str], optional: Iterable[str] = ()) -> Any:
    """Some columns of a Parquet file as an Arrow table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.is_file():
        hint = "name the directory of a set of outcomes, or make a small one with flowray.testing.make_outcomes"
        raise ConfigError("data", f"{file} is not there", hint)
    try:
        there = pq.read_schema(file).names
        missing = [column for column in required if column not in there]
        if missing:
            raise ConfigError("data", f"{file} has no column {missing[0]!r}", f"it has {', '.join(there)}")
        columns = [column for column in (*required, *optional) if column in there]
        with pq.ParquetFile(file, read_dictionary=[column for column in columns if column in _KEYS]) as opened:
            return opened.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError("data", f"{file} cannot be read as Parquet: {error}", "write it again") from error


def _values(table: Any, column: str) -> list[Any]:
    return list(table[column].to_pylist())


def _texts(table: Any, column: str) -> list[str]:
    """One for each row: "" where there is none, in a column that may be missing."""
    if column not in table.column_names:
        return [""] * len(table)
    return [value or "" for value in _values(table, column)]


def _numbers(table: Any, column: str) -> Iterator[float | None]:
    """One for each row: None where it is unknown, in a column that may be missing."""
    if column not in table.column_names:
        return iter((None,) * len(table))
    return (None if value is None or math.isnan(value) else float(value) for value in _values(table, column))


def _ids_in(outcomes: Any) -> list[str]:
    return sorted(outcomes["agent_id"].unique().to_pylist())


def _checked_scale(time_scale: float) -> float:
    if not (isinstance(time_scale, int | float) and math.isfinite(time_scale) and time_scale >= 0.0):
        raise ConfigError("time_scale", f"wants a number of at least 0, got {time_scale!r}", "0 answers at once")
    return time_scale

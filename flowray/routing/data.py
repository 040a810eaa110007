"""Outcome sets: directories of Parquet files that say which agent did how well at which task.

The schema, the same for the public sets, for a user's own outcomes and for the journal's export. Columns that are not
named here are ignored; a number that is unknown is null.

`tasks.parquet`, one row per task:

    prompt_id    key, text
    text         what the router may read
    split        `train`, `val`, `test` or another name
    group_id     optional: tasks that belong together (duplicates, one origin); a group lies in one split
    choices, tools_text, n_tools, n_params, n_options      optional inputs, see `TaskBatch`
    task_type, capability, intent, domain                  optional labels: targets, never inputs at evaluation
    benchmark, contaminated                                optional: part of the set a task belongs to; leave it out

`outcomes.parquet`, one row per task and agent; may be absent (a set of labels only):

    prompt_id, agent_id    the key
    success                0 or 1
    score                  optional, 0..1; else the success is the quality
    latency_s, cost_usd, input_tokens, output_tokens       optional, never negative
    at_utc                 optional: when, in seconds since 1970; old outcomes may then count less

`agents.parquet`, one row per agent; may be absent (then the agents are those of the outcomes):

    agent_id               key
    description, name, model, org, scaffold, mode, role    optional, in words: joined to one description, the id first
    price_in_per_m, price_out_per_m, params_b              optional numbers, see `AgentBatch`
    agent_split            optional: `unseen` keeps an agent out of training
    in_price_pool or has_cost      optional: the agents that cost routing chooses from; else all

Where no `cost_usd` is recorded but agents have prices, an attempt costs what 1,000 tokens cost, half of them read and
half written: enough to compare agents, not a bill.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowray.offers import count_choices, count_tools
from flowray.routing.estimates import AgentBatch, Floats, Histories, Outcomes, Rows, TaskBatch
from flowray.routing.tables import ParquetTable, SchemaError

LABELS = ("task_type", "capability", "intent", "domain", "benchmark", "contaminated")
KINDS = ("task_type", "capability")  # the labels that say of what kind a past task was: the first that is there
DESCRIBING = ("description", "name", "model", "org", "scaffold", "mode", "role")
POOLS = ("in_price_pool", "has_cost")
NOMINAL_TOKENS = 1_000  # of an attempt whose tokens nobody counted
MAX_CELLS = 100_000_000  # tasks x agents: five float32 arrays of that size are 2 GB


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeSet:
    """One directory of the schema, checked, as arrays: `tasks` rows and `agents` columns."""

    name: str  # of the directory; histories are looked up by it
    digest: str  # SHA-256 over the files, as hex
    prompt_ids: tuple[str, ...]  # [tasks]
    groups: npt.NDArray[np.intp]  # [tasks] numbers of the groups, from 0
    splits: tuple[str, ...]  # [tasks]
    tasks: TaskBatch
    labels: Mapping[str, tuple[str, ...]]  # column -> [tasks], "" where a task has none
    agents: AgentBatch
    seen: npt.NDArray[np.bool_]  # [agents] may be trained on
    pool: npt.NDArray[np.bool_]  # [agents] cost routing chooses from these
    outcomes: Outcomes
    timed: bool  # tasks are in the order of time

    def __len__(self) -> int:
        return len(self.tasks)

    def take(self, rows: Rows) -> OutcomeSet:
        """Some of the tasks, with all agents."""
        chosen = np.arange(len(self))[rows]
        return replace(
            self,
            prompt_ids=tuple(self.prompt_ids[i] for i in chosen),
            groups=self.groups[chosen],
            splits=tuple(self.splits[i] for i in chosen),
            tasks=self.tasks.take(chosen),
            labels={column: tuple(values[i] for i in chosen) for column, values in self.labels.items()},
            outcomes=self.outcomes.take(chosen),
        )

    def split(self, *names: str) -> OutcomeSet:
        """The tasks of these splits; none is a set without tasks."""
        return self.take(np.array([split in names for split in self.splits], dtype=np.bool_))

    def of_agents(self, rows: Rows) -> OutcomeSet:
        """Some of the agents, with all tasks."""
        return replace(
            self,
            agents=self.agents.take(rows),
            seen=self.seen[rows],
            pool=self.pool[rows],
            outcomes=self.outcomes.take(slice(None), rows),
        )

    def histories(self, *splits: str, agents: AgentBatch | None = None) -> Histories:
        """What the agents did at the tasks of some splits (default: `train`).

        The columns are in the order of `agents` (default: those of this set).
        """
        past = self.split(*(splits or ("train",)))
        place = {agent_id: column for column, agent_id in enumerate(self.agents.agent_ids)}
        wanted = (self.agents if agents is None else agents).agent_ids
        columns = np.array([place.get(agent_id, -1) for agent_id in wanted], dtype=np.intp)
        kinds = next((past.labels[column] for column in KINDS if column in past.labels), ())
        return Histories(tasks=past.tasks, outcomes=past.outcomes.of_columns(columns), kinds=kinds, timed=self.timed)


def load(directory: Path | str, *, like: OutcomeSet | None = None) -> OutcomeSet:
    """Read and check a directory of the schema; without an `agents.parquet` its agents are those of `like`.

    Raises:
        SchemaError: a file or column is missing or holds what it must not; it says which, and what to do.
    """
    directory = Path(directory).resolve()
    tasks = ParquetTable.read(directory / "tasks.parquet")
    if tasks is None:
        raise SchemaError(str(directory / "tasks.parquet"), "", "is not there", "every set has one")
    outcomes = ParquetTable.read(directory / "outcomes.parquet")
    described = ParquetTable.read(directory / "agents.parquet")
    prompt_ids = tasks.key("prompt_id")
    order = np.arange(len(prompt_ids))
    agent_batch, seen, pool = _agents(described, outcomes, like)
    matrices, at_utc = _outcomes(outcomes, prompt_ids, agent_batch.agent_ids)
    if at_utc is not None:
        order = np.argsort(at_utc, kind="stable")  # tasks without an attempt (NaN) come last
    groups = tasks.words("group_id", required=True) if "group_id" in tasks else prompt_ids
    whole = OutcomeSet(
        name=directory.name,
        digest=digest_of(directory),
        prompt_ids=prompt_ids,
        groups=np.unique(np.array(groups, dtype=np.str_), return_inverse=True)[1].astype(np.intp),
        splits=tasks.words("split", required=True),
        tasks=_tasks(tasks),
        labels={column: tasks.words(column) for column in LABELS if column in tasks},
        agents=agent_batch,
        seen=seen,
        pool=pool,
        outcomes=_priced(matrices, agent_batch),
        timed=at_utc is not None,
    )
    _check_groups(tasks, whole)
    return whole.take(order)


def team(directory: Path | str) -> tuple[AgentBatch, Histories]:
    """The agents of a directory and what they did there: a set, or an `agents.parquet` alone.

    Raises:
        SchemaError: as `load`, or there are no agents.
    """
    directory = Path(directory)
    if (directory / "tasks.parquet").is_file():
        whole = load(directory)
        agents, histories = whole.agents, whole.histories()
    else:
        described = ParquetTable.read(directory / "agents.parquet")
        agents = _agents(described, None, None)[0]
        histories = Histories(tasks=TaskBatch.of_texts(()), outcomes=Outcomes.none(0, len(agents)))
    if not len(agents):
        raise SchemaError(
            str(directory / "agents.parquet"), "agent_id", "there are no agents", "name a set with agents"
        )
    return agents, histories


def find(directories: Sequence[Path | str]) -> list[Path]:
    """The sets that are one of the directories or lie directly in one of them, by name.

    Raises:
        SchemaError: a directory is not there, or holds no set.
    """
    found: dict[Path, None] = {}
    for directory in map(Path, directories):
        inner = [file.parent for file in sorted(directory.glob("*/tasks.parquet"))]
        if not inner and not (directory / "tasks.parquet").is_file():
            problem = "holds no set of outcomes" if directory.is_dir() else "is not there"
            raise SchemaError(str(directory), "", problem, "name a directory with a tasks.parquet, or one of such")
        sets = [directory] if (directory / "tasks.parquet").is_file() else inner
        found.update((one.resolve(), None) for one in sets)
    return list(found)


def load_all(directories: Sequence[Path | str]) -> list[OutcomeSet]:
    """Every set that `find` finds."""
    return [load(directory) for directory in find(directories)]


def digest_of(directory: Path) -> str:
    """SHA-256 over the set's files, as hex: the same outcomes have the same digest wherever they lie."""
    digest = hashlib.sha256()
    for name in ("tasks.parquet", "agents.parquet", "outcomes.parquet"):
        content = (directory / name).read_bytes() if (directory / name).exists() else b""
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _tasks(table: ParquetTable) -> TaskBatch:
    def words(column: str) -> tuple[str, ...]:
        return table.words(column) if column in table else ("",) * len(table)

    choices, tools = words("choices"), words("tools_text")
    return TaskBatch(
        texts=table.words("text", required=True),
        choices=choices,
        tools=tools,
        n_tools=_counted(table.numbers("n_tools", 0), tools, count_tools),
        n_params=table.numbers("n_params", 0),
        n_options=_counted(table.numbers("n_options", 0), choices, count_choices),
    )


def _counted(told: Floats, texts: Sequence[str], count: Callable[[str], float | None]) -> Floats:
    """What is told, and what nobody told as the texts have it."""
    counts = [count(text) if np.isnan(number) else number for number, text in zip(told, texts, strict=True)]
    return np.array([np.nan if number is None else number for number in counts], np.float32)


def _agents(
    table: ParquetTable | None, outcomes: ParquetTable | None, like: OutcomeSet | None
) -> tuple[AgentBatch, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """The agents, which of them may be trained on, and which cost routing chooses from."""
    if table is None:
        if like is not None and len(like.agents):
            return like.agents, like.seen, like.pool
        ids = tuple(sorted(set(outcomes.words("agent_id", required=True)))) if outcomes is not None else ()
        return AgentBatch.of_ids(ids), np.ones(len(ids), np.bool_), np.ones(len(ids), np.bool_)
    ids = table.key("agent_id")
    columns = [ids, *(table.words(column) for column in DESCRIBING if column in table)]
    descriptions = tuple("; ".join(dict.fromkeys(filter(None, row))) for row in zip(*columns, strict=True))
    batch = AgentBatch(
        agent_ids=ids,
        descriptions=descriptions,
        price_in_per_m=table.numbers("price_in_per_m", 0),
        price_out_per_m=table.numbers("price_out_per_m", 0),
        params_b=table.numbers("params_b", 0),
        load=np.full(len(ids), np.nan, np.float32),
    )
    split = table.words("agent_split") if "agent_split" in table else ("seen",) * len(ids)
    pools = [table.numbers(column, 0, 1) == 1 for column in POOLS if column in table]
    seen = np.array([value != "unseen" for value in split], np.bool_)
    return batch, seen, pools[0] if pools else np.ones(len(ids), np.bool_)


def _outcomes(
    table: ParquetTable | None, prompt_ids: tuple[str, ...], agent_ids: tuple[str, ...]
) -> tuple[Outcomes, npt.NDArray[np.float64] | None]:
    """The outcomes as matrices, and when the first attempt at each task was."""
    shape = len(prompt_ids), len(agent_ids)
    if table is None:
        return Outcomes.none(*shape), None
    if shape[0] * shape[1] > MAX_CELLS:
        raise table.error(
            "", f"{shape[0]:,} tasks x {shape[1]:,} agents are too many", f"keep below {MAX_CELLS:,} cells"
        )
    rows = table.places("prompt_id", prompt_ids, "tasks.parquet")
    columns = table.places("agent_id", agent_ids, "agents.parquet of the set or its history")
    cells = rows * shape[1] + columns
    if len(np.unique(cells)) < len(cells):
        first = np.sort(cells)[np.flatnonzero(np.diff(np.sort(cells)) == 0)[0]]
        pair = f"{prompt_ids[first // shape[1]]!r} and agent {agent_ids[first % shape[1]]!r}"
        raise table.error("prompt_id", f"two rows for task {pair}", "keep the last attempt of each pair")

    def matrix(values: Floats) -> Floats:
        filled = np.full(shape, np.nan, np.float32)
        filled[rows, columns] = values
        return filled

    success = table.numbers("success", 0, 1)
    if "success" not in table or np.isnan(success).any() or (success % 1).any():
        problem = "is missing" if "success" not in table else "holds something else than 0 and 1"
        raise table.error("success", problem, "store 1 for a success and 0 for a failure in every row")
    score = table.numbers("score", 0, 1)
    outcomes = Outcomes(
        success=matrix(success),
        quality=matrix(np.where(np.isnan(score), success, score)),
        latency_s=matrix(table.numbers("latency_s", 0)),
        cost_usd=matrix(table.numbers("cost_usd", 0)),
        tokens=matrix(table.numbers("input_tokens", 0) + table.numbers("output_tokens", 0)),
    )
    if "at_utc" not in table:
        return outcomes, None
    first_at = np.full(shape[0], np.inf)
    np.fmin.at(first_at, rows, np.asarray(table.column("at_utc", pa.float64()).to_numpy(zero_copy_only=False)))
    return outcomes, first_at


def _priced(outcomes: Outcomes, agents: AgentBatch) -> Outcomes:
    """Give attempts the price of a nominal number of tokens where no cost at all was recorded."""
    if np.isfinite(outcomes.cost_usd).any():
        return outcomes
    price = (agents.price_in_per_m + agents.price_out_per_m) / 2 * NOMINAL_TOKENS / 1e6  # [agents]
    return replace(outcomes, cost_usd=np.where(outcomes.known, price[None, :], np.float32(np.nan)).astype(np.float32))


def _check_groups(table: ParquetTable, whole: OutcomeSet) -> None:
    """A group in two splits would let a router learn the answers that it is judged by."""
    split_of: dict[int, str] = {}
    for row, (group, split) in enumerate(zip(whole.groups.tolist(), whole.splits, strict=True)):
        if split_of.setdefault(group, split) != split:
            problem = f"the group of row {row} is in the splits {split_of[group]!r} and {split!r}"
            raise table.error("group_id", problem, "put all tasks of a group into one split")

"""A router trained further: from what is in force and from a runtime's own outcomes, a candidate for its place.

In: a trained router, the history that it goes by, and a set of outcomes of tasks that it routed (most cells of which
are empty: only who was chosen did anything). Out, in one directory:

    history/         what the candidate goes by: the newest outcomes, after the old history or instead of it
    router/          its weights; not there where the old ones are kept
    candidate.json   from what, how, and what that was worth on outcomes that nobody had seen

The newest tasks are held out: as many to stop by (`val`) as to judge by (`test`). First the history is chosen, with the
weights as they are: old and new together, or the new alone, where the old one speaks of agents that are no more what
they were. Then the weights are trained on from where they are, a few epochs, and stay only if the held-out outcomes
surprise them less. Whether the candidate is better in service is not said here: `flowray.core.rollout` finds out.

What a router chose says nothing of what it never tries: an agent that was sent sums alone looks good at everything in
these outcomes, and nobody held out contradicts it. The canary does.

Labels are not trained: outcomes have none. Nothing is drawn without the seed, and no input is changed. The same
comes of the same on the CPU; on a GPU sums are rounded otherwise from time to time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec.structs import replace

from flowray.core.naming import class_names
from flowray.core.retraining import RetrainConfig
from flowray.errors import FlowrayError
from flowray.routing import artifacts, data, devices, estimator, quantization, training
from flowray.routing.data import DESCRIBING, OutcomeSet
from flowray.routing.estimator import RouterEstimator
from flowray.routing.memory import MAX_PAST
from flowray.routing.training import Progress, TrainingConfig

HISTORY, ROUTER, CARD = "history", "router", "candidate.json"
MAX_CELLS = 4_000_000  # tasks x agents that are trained on: of each some hundred bytes are held
_LEARNING = ".learning"  # the set that is trained on, while it is
_PROBABLE = 1e-3  # what a probability is cut to before its surprise is counted
_TEXT, _NUMBER = pa.string(), pa.float64()
_COLUMNS: Mapping[str, Mapping[str, pa.DataType]] = {
    "tasks": {
        **dict.fromkeys(("prompt_id", "text", "split", "choices", "tools_text"), _TEXT),
        **dict.fromkeys(("n_tools", "n_params", "n_options"), _NUMBER),
        **dict.fromkeys(("task_type", "capability", "intent", "domain"), _TEXT),
    },
    "outcomes": {
        **dict.fromkeys(("prompt_id", "agent_id"), _TEXT),
        **dict.fromkeys(("success", "score", "latency_s", "cost_usd", "input_tokens", "output_tokens"), _NUMBER),
        "at_utc": _NUMBER,
    },
    "agents": {
        **dict.fromkeys(("agent_id", *DESCRIBING), _TEXT),
        **dict.fromkeys(("price_in_per_m", "price_out_per_m", "params_b"), _NUMBER),
    },
}


class NothingLearned(FlowrayError):
    """There is no candidate: too little to learn from, or nothing better than what there is."""


class _Overdue(Exception):
    """The time is over, between two epochs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What was made. `artifact` is the old router's directory where its weights are kept."""

    artifact: str
    history: str
    card: Mapping[str, Any]  # what `candidate.json` says


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tables:
    """A set as tables of known columns, tasks oldest first."""

    tasks: pa.Table
    outcomes: pa.Table
    agents: pa.Table


def retrain(
    artifact: Path | str, history: Path | str, receipts: Path | str, out: Path | str, config: RetrainConfig
) -> Candidate:
    """Make a candidate in `out`, which must not be there yet. `history` "" is none.

    Raises:
        NothingLearned: there are too few outcomes, or neither another history nor other weights are better.
        ArtifactError, SchemaError: what is in force, or the outcomes, cannot be read.
        FileExistsError: there is something in `out`.
        ConfigError: there is no such device here.
    """
    begun, out = time.monotonic(), Path(out)
    config = replace(config, device=devices.chosen(config.device, "retrain.device"))
    new = _graded(_newest(_read(Path(receipts)), config.newest))
    if (known := new.tasks.num_rows) < config.least:
        raise NothingLearned(f"{receipts} has {known} tasks to learn from; at least {config.least} are wanted")
    old = _read(Path(history)) if str(history) else None
    if old is not None:
        new = _as_in(old, new)
    out.mkdir(parents=True)
    try:
        return _retrain(Path(artifact), str(history), old, new, out, config, begun)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)  # half a candidate is none
        raise
    finally:
        shutil.rmtree(out / _LEARNING, ignore_errors=True)


def _retrain(
    artifact: Path, history: str, old: _Tables | None, new: _Tables, out: Path, config: RetrainConfig, begun: float
) -> Candidate:
    split = _split(new, config.held_out)
    router = estimator.load(artifact, "float32")
    learning = {"receipts": _written(split, out / _LEARNING / "receipts")}
    before = None
    if old is not None:
        learning["joined"] = _written(_joined(old, split), out / _LEARNING / "joined")
        before = _surprise(router, learning["joined"], "test", past=len(learning["joined"]) - split.tasks.num_rows)
    by_val = {name: _surprise(router, of_set, "val") for name, of_set in learning.items()}
    chosen = min(by_val, key=by_val.__getitem__)
    with_history = _surprise(router, learning[chosen], "test")
    trained, progress, why = _trained_on(router, learning[chosen], config, begun)
    with_weights = _surprise(trained, learning[chosen], "test") if trained is not None else None
    keep = with_weights is not None and with_weights < with_history
    best = with_weights if keep and with_weights is not None else with_history
    if before is not None and best >= before:
        raise NothingLearned(f"held-out outcomes surprise a candidate by {best:.4f}, what is in force by {before:.4f}")
    whole = new if chosen == "receipts" or old is None else _joined(old, new)
    made = _written(_all_for_training(whole), out / HISTORY)
    card = {
        "from": {"router": artifacts.card(artifact)["sha256"], "history": _digest(history), "at": str(artifact)},
        "tasks": {
            "new": new.tasks.num_rows,
            "all": len(made),
            "held_out": split.tasks["split"].to_pylist().count("test"),
        },
        "outcomes": {"new": new.outcomes.num_rows, "all": int(made.outcomes.known.sum())},
        "agents": len(made.agents),
        "history": {"chosen": chosen, "sha256": made.digest, "surprise_on_val": by_val},
        "surprise_on_test": {"in_force": before, "with_history": with_history, "with_weights": with_weights},
        "weights": "new" if keep else "old",
        "weights_why": why or ("less surprised" if keep else "not less surprised"),
        "epochs": progress,
        "seconds": round(time.monotonic() - begun, 1),
        "device": config.device,
        "seed": config.seed,
    }
    if keep and trained is not None:
        header = {**dict(router.header), "network": trained.network.config.as_dict()}
        header["retrained"] = {
            name: said for name, said in card.items() if name != "seconds"
        }  # else no two are the same
        header["temperature"] = float(trained.network.temperature)
        for of_the_file in ("format", "features_version"):
            header.pop(of_the_file, None)
        artifacts.save(out / ROUTER, quantization.arrays_of(trained.network), header)
    (out / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return Candidate(artifact=str(out / ROUTER) if keep else str(artifact), history=str(out / HISTORY), card=card)


def _trained_on(
    router: RouterEstimator, learning: OutcomeSet, config: RetrainConfig, begun: float
) -> tuple[RouterEstimator | None, int, str]:
    """The weights trained on, epochs, and why there are none."""
    epochs = 0

    def note(progress: Progress) -> None:
        nonlocal epochs
        epochs += progress.phase == "outcomes"
        if time.monotonic() - begun > config.deadline_s:
            raise _Overdue

    # One fold: without labels there is nothing that networks of other folds could be trained on.
    how = TrainingConfig(
        seed=config.seed,
        device=config.device,
        folds=1,
        align_epochs=0,
        outcome_epochs=config.epochs,
        outcome_rate=3e-4,
        patience=1,
    )
    if time.monotonic() - begun > config.deadline_s:
        return None, 0, f"not done in {config.deadline_s:g} s"
    try:
        trained = training.train([learning], how, start=router.network, report=note)
    except _Overdue:
        return None, epochs, f"not done in {config.deadline_s:g} s"
    return RouterEstimator(trained.network), epochs, ""


def _surprise(router: RouterEstimator, of_set: OutcomeSet, split: str, past: int | None = None) -> float:
    """Mean log loss of a split's outcomes, with what came before it as the past; or its first `past` tasks alone.

    Of their quality, which is their success where none was reported: it is what routing counts by, and an answer that
    came is a success whatever it was worth.
    """
    asked = of_set.split(split)
    before = of_set.split(*(("train",) if split == "val" else ("train", "val")))
    if past is not None:
        before = of_set.take(slice(0, past))
    histories = before.histories("train", "val", "test", agents=of_set.agents)
    said = router.estimate(asked.tasks, of_set.agents, histories).quality
    known = asked.outcomes.known
    p = np.clip(said[known].astype(np.float64), _PROBABLE, 1 - _PROBABLE)
    worth = asked.outcomes.quality[known].astype(np.float64)
    return float(-(worth * np.log(p) + (1.0 - worth) * np.log(1.0 - p)).mean())


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read(directory: Path) -> _Tables:
    """A set in known columns, checked by its reader first."""
    checked = data.load(directory)
    tables = {name: _known(directory / f"{name}.parquet", columns) for name, columns in _COLUMNS.items()}
    if not tables["agents"].num_rows:
        tables["agents"] = pa.table({"agent_id": pa.array(checked.agents.agent_ids, _TEXT)})
    order = {prompt_id: row for row, prompt_id in enumerate(tables["tasks"]["prompt_id"].to_pylist())}
    in_time = pa.array([order[prompt_id] for prompt_id in checked.prompt_ids])
    return _Tables(tasks=tables["tasks"].take(in_time), outcomes=tables["outcomes"], agents=tables["agents"])


def _known(file: Path, columns: Mapping[str, pa.DataType]) -> pa.Table:
    if not file.is_file():
        return pa.table({name: pa.array([], of) for name, of in columns.items()})
    there = pq.read_schema(file).names
    table = pq.read_table(file, columns=[name for name in columns if name in there])
    return pa.table({name: table[name].cast(columns[name]) for name in table.column_names})


def _newest(whole: _Tables, most: int) -> _Tables:
    """The newest tasks that have outcomes, and what they had."""
    tasks = whole.tasks.filter(pc.is_in(whole.tasks["prompt_id"], value_set=_values(whole.outcomes, "prompt_id")))
    agents = max(1, whole.agents.num_rows)
    return _of_tasks(whole, tasks.slice(max(0, tasks.num_rows - min(most, MAX_CELLS // agents))))


def _of_tasks(whole: _Tables, tasks: pa.Table) -> _Tables:
    outcomes = whole.outcomes.filter(pc.is_in(whole.outcomes["prompt_id"], value_set=_values(tasks, "prompt_id")))
    return _Tables(tasks=tasks, outcomes=outcomes, agents=whole.agents)


def _graded(new: _Tables) -> _Tables:
    """Where a quality was reported, it decides about success: of answers worth 0.3 each, three in ten are successes.

    In a runtime an answer that came is a success whatever it was worth, and what a router remembers of agents is their
    success. Which answers are the three is a hash: the same each time, and on average what they were worth.
    """
    if "score" not in new.outcomes.column_names:
        return new
    columns = (new.outcomes[name].to_pylist() for name in ("prompt_id", "agent_id", "success", "score"))
    success = [
        came if score is None else float(_place(f"{task}/{agent}") < score)
        for task, agent, came, score in zip(*columns, strict=True)
    ]
    at = new.outcomes.column_names.index("success")
    outcomes = new.outcomes.set_column(at, "success", pa.array(success, _NUMBER))
    return _Tables(tasks=new.tasks, outcomes=outcomes, agents=new.agents)


def _place(name: str) -> float:
    """Where a name lies between 0 and 1."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2.0**64


def _as_in(old: _Tables, new: _Tables) -> _Tables:
    """The new outcomes under the old agents' ids: a runtime knows agents by names made of these, and describes less."""
    ids = old.agents["agent_id"].to_pylist()
    id_of = {**dict(zip(class_names(ids), ids, strict=True)), **{one: one for one in ids}}

    def renamed(table: pa.Table) -> pa.Table:
        names = [id_of.get(name, name) for name in table["agent_id"].to_pylist()]
        return table.set_column(table.column_names.index("agent_id"), "agent_id", pa.array(names, _TEXT))

    agents = renamed(new.agents)
    strangers = agents.filter(pc.invert(pc.is_in(agents["agent_id"], value_set=_values(old.agents, "agent_id"))))
    both = pa.concat_tables([old.agents, strangers], promote_options="default")
    return _Tables(tasks=new.tasks, outcomes=renamed(new.outcomes), agents=both)


def _joined(old: _Tables, new: _Tables) -> _Tables:
    """Old tasks and then new ones, no more than a memory reads; a task of both is a new one."""
    agents = max(1, new.agents.num_rows)
    room = max(0, min(MAX_PAST, MAX_CELLS // agents) - new.tasks.num_rows)
    others = pc.invert(pc.is_in(old.tasks["prompt_id"], value_set=_values(new.tasks, "prompt_id")))
    before = old.tasks.filter(others)
    before = before.filter(pc.is_in(before["prompt_id"], value_set=_values(old.outcomes, "prompt_id")))
    if "split" in before.column_names:
        before = before.filter(pc.equal(before["split"], "train"))  # what a history is read of
    before = before.slice(max(0, before.num_rows - room))
    kept = _of_tasks(old, before)
    return _Tables(
        tasks=pa.concat_tables([kept.tasks, new.tasks], promote_options="default"),
        outcomes=pa.concat_tables([_dated(kept, new), new.outcomes], promote_options="default"),
        agents=new.agents,
    )


def _dated(old: _Tables, new: _Tables) -> pa.Table:
    """Old outcomes with a time, where the new ones have one: what has none would be taken for the newest."""
    if "at_utc" not in new.outcomes.column_names:
        return old.outcomes.drop_columns(["at_utc"]) if "at_utc" in old.outcomes.column_names else old.outcomes
    first = pc.min(new.outcomes["at_utc"]).as_py()
    place = {prompt_id: row for row, prompt_id in enumerate(old.tasks["prompt_id"].to_pylist())}
    rows = len(place) + 1.0
    # Whatever clock the old ones went by: their order is what counts.
    at = [(first or 0.0) - rows + place[prompt_id] for prompt_id in old.outcomes["prompt_id"].to_pylist()]
    undated = old.outcomes.drop_columns(["at_utc"]) if "at_utc" in old.outcomes.column_names else old.outcomes
    return undated.append_column("at_utc", pa.array(at, _NUMBER))


def _split(new: _Tables, held_out: float) -> _Tables:
    """Oldest to learn from, newer to stop by, the newest to judge by."""
    count = new.tasks.num_rows
    held = max(1, round(count * held_out))
    return _with_splits(new, ["train"] * (count - 2 * held) + ["val"] * held + ["test"] * held)


def _all_for_training(whole: _Tables) -> _Tables:
    return _with_splits(whole, ["train"] * whole.tasks.num_rows)


def _with_splits(whole: _Tables, splits: list[str]) -> _Tables:
    at = whole.tasks.column_names.index("split")
    tasks = whole.tasks.set_column(at, "split", pa.array(splits, _TEXT))
    return _Tables(tasks=tasks, outcomes=whole.outcomes, agents=whole.agents)


def _written(whole: _Tables, directory: Path) -> OutcomeSet:
    directory.mkdir(parents=True)
    for name in _COLUMNS:
        pq.write_table(getattr(whole, name), directory / f"{name}.parquet", compression="zstd")
    return data.load(directory)


def _values(table: pa.Table, column: str) -> pa.Array:
    return pc.unique(table[column])


def _digest(history: str) -> str:
    return data.digest_of(Path(history)) if history else ""

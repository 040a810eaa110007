"""The trainer: a Ray actor on the journal's node that makes candidates for the router's place, and gives way to all.

It reads what the journal has of ended tasks (beside the coordinator that writes it), trains on from what is in force
(`flowray.routing.retraining`) with one thread at the lowest priority, and leaves a candidate in the directory
`routers` beside the journal. It lives for one training; if it dies, nothing else notices.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import ray
from msgspec import Struct
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flowray.core.retraining import RetrainConfig
from flowray.store import StoreConfig
from flowray.store.reader import Reader

DIRECTORY = "routers"  # beside the journal
_PREFIX = "candidate-"
_LOWEST = 19  # priority
Export = Callable[[Path, Path, int], int]  # (journal, directory of the set to write, tasks at most) -> tasks


class TrainOrder(Struct, frozen=True, array_like=True):
    """What to train on from."""

    artifact: str  # the router in force,
    history: str  # and its history; "" for none
    config: RetrainConfig
    in_use: tuple[str, ...] = ()  # directories that must stay


class Trained(Struct, frozen=True, array_like=True):
    """What came of it."""

    artifact: str = ""
    history: str = ""
    card: str = ""  # JSON
    nothing: str = ""  # why there is no candidate


class Trainer:
    """See the module. One call at a time."""

    def __init__(self, journal: str, export: Export) -> None:
        os.nice(_LOWEST - os.nice(0))
        from flowray.routing import scoring

        scoring.use_one_thread()
        self._journal, self._export = Path(journal), export

    def train(self, body: bytes) -> bytes:
        """Trained, for a TrainOrder, both encoded. Raises what is wrong with the journal or with what is in force."""
        order = msgspec.msgpack.decode(body, type=TrainOrder)
        return msgspec.msgpack.encode(train(self._journal, order, self._export))


def train(journal: Path, order: TrainOrder, export: Export) -> Trained:
    """Export, train, and tidy up. Takes minutes and a core."""
    from flowray.routing.retraining import NothingLearned, retrain

    place = journal / DIRECTORY
    place.mkdir(mode=0o700, exist_ok=True)
    tidy(place, order.in_use, order.config.keep - 1)
    with tempfile.TemporaryDirectory(prefix="export-", dir=place) as scratch:
        receipts = Path(scratch) / "receipts"
        if not export(journal, receipts, order.config.newest):
            return Trained(nothing="no ended task has a text to learn from")
        try:
            made = retrain(order.artifact, order.history, receipts, _next(place), order.config)
        except NothingLearned as nothing:
            return Trained(nothing=str(nothing))
    return Trained(made.artifact, made.history, json.dumps(made.card))


def tidy(place: Path, in_use: Sequence[str], keep: int) -> list[str]:
    """Delete the oldest candidates, but for the newest `keep` and for those in use; gives the names of what went.

    What a training left that died half-way goes too.
    """
    used = [Path(each).resolve() for each in in_use if each]
    candidates = sorted(place.glob(f"{_PREFIX}*"), key=_number)
    spare = [each for each in candidates if not any(one.is_relative_to(each.resolve()) for one in used)]
    doomed = spare[: max(0, len(spare) - max(0, keep))] + list(place.glob("export-*"))
    for each in doomed:
        shutil.rmtree(each)
    return [each.name for each in doomed]


def exported(journal: Path, directory: Path, most: int) -> int:
    """Write what the journal has of ended tasks as a set of outcomes; gives how many tasks."""
    from flowray.routing.exporting import write_set

    with contextlib.closing(Reader(journal, StoreConfig())) as reader:
        return write_set(directory, reader.all_recorded(), specs=reader.specs(), val=0.0, test=0.0, most=most)


async def train_on_ray(journal: Path, node_id: str, order: TrainOrder, export: Export = exported) -> Trained:
    """In an actor on this node, which lives no longer than that, nor than who asks."""
    actor = (
        ray.remote(Trainer)
        .options(num_cpus=0, max_restarts=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))
        .remote(str(journal), export)
    )
    try:
        body: bytes = await actor.train.remote(msgspec.msgpack.encode(order))
    finally:
        ray.kill(actor, no_restart=True)
    return msgspec.msgpack.decode(body, type=Trained)


def _next(place: Path) -> Path:
    return place / f"{_PREFIX}{max((_number(each) for each in place.glob(f'{_PREFIX}*')), default=0) + 1:06d}"


def _number(candidate: Path) -> int:
    end = candidate.name.removeprefix(_PREFIX)
    return int(end) if end.isdecimal() else 0

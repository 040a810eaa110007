"""Every crash point of the real store: `python tests/store/crash_points.py` (or `make crash-points`).

The process that plays the script is killed at, or has an error at, or is late at, each of its system calls that
change a file. Then the store is opened again, by another process, and has to hold what was answered: all of it, once,
and whole; and to go on from there. Afterwards bits of it are flipped and its files cut (see `damage`).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # this file is part of the package `store`

from msgspec import msgpack, structs

from flowray.core.model import Snapshot
from flowray.errors import StoreError
from flowray.store import PayloadStore, SqliteStore, verify
from store.builders import life as task_life
from store.builders import write
from store.damage import damaged
from store.damage import images as damage_images
from store.faults import CALLS, SYNCS, Life, NoTracing, counted, early, live, scratch, synced_after_failure
from store.script import CONFIG, FAILED, PAYLOADS, State, is_between, opened, script

LATE = "delay_enter=60000"  # microseconds
FAULTS = ("signal=KILL", "error=EIO", "error=ENOSPC")


class Point(NamedTuple):
    """One fault at one call."""

    part: str
    call: str
    fault: str
    number: int

    @property
    def inject(self) -> str:
        return f"{self.call}:{self.fault}:when={self.number}"


@dataclass
class Tally:
    """What became of the points of one kind."""

    points: int = 0
    stopped: int = 0  # the process was killed, or stopped by itself because of the error
    lost: int = 0  # something answered was not there
    twice: int = 0  # something was there twice, or was made up
    wrong: int = 0  # anything else that may not be
    problems: list[str] = field(default_factory=list)

    def blame(self, kind: str, what: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        self.problems.append(what)


class Images:
    """Stores for the parts that begin with one: made once, copied for each point. `steps`: only the points of these."""

    def __init__(self, directory: Path, steps: Collection[int] | None = None) -> None:
        self._directory = directory
        made = directory / "made"
        SqliteStore.open(made, CONFIG).close()
        self._of = {"0": made}
        self.counts: dict[str, Counter[str]] = {}  # part -> call -> how often
        for part in ("first", *map(str, range(len(script().steps))), "again", "payloads"):
            self._dry(part, traced=steps is None or not part.isdigit() or int(part) in steps)

    def place(self, part: str, name: str) -> Path:
        """A fresh store for a point of this part."""
        path = self._directory / name
        if part in self._of:
            shutil.copytree(self._of[part], path)
        return path

    def _dry(self, part: str, *, traced: bool) -> None:
        path = self.place(part, f"dry-{part}")
        found = live(part if not part.isdigit() else f"{part} only", path, traced=traced)
        assert found.status == 0 and not early(found), found
        if traced:
            self.counts[part] = counted(found)
        following = str(int(part) + 1) if part.isdigit() else ""
        if following:
            self._of[following if int(following) < len(script().steps) else "again"] = path
        else:
            shutil.rmtree(path)


def points(counts: dict[str, Counter[str]]) -> list[Point]:
    """All of them: a kill and two errors at each call, a delay at each sync of a step."""
    return [
        Point(part, call, fault, number)
        for part, of_part in counts.items()
        for call in CALLS
        for fault in (*FAULTS, *((LATE,) if part.isdigit() and call in SYNCS else ()))
        for number in range(1, of_part[call] + 1)
    ]


def try_point(point: Point, images: Images, tally: Tally) -> None:
    path = images.place(point.part, "point")
    try:
        tally.points += 1
        found = live(point.part, path, point.inject)
        tally.stopped += found.status != 0
        name = f"{point.part} {point.inject}"
        _check_life(point, found, tally, name)
        if point.part == "payloads":
            _check_payloads(found, path, tally, name)
        else:
            _check_store(point, found, path, tally, name)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _check_life(point: Point, found: Life, tally: Tally, name: str) -> None:
    """How it ended, and that it said nothing too early."""
    killed = point.fault == FAULTS[0]
    expected = (-9, 0) if killed else (0,) if point.fault == LATE else (0, FAILED)  # 0: the call was not reached
    if found.status not in expected:
        tally.blame("wrong", f"{name}: it ended with {found.status}: {found.said[-3:]}")
    steps = len(script().steps[int(point.part) :][:2]) if point.part.isdigit() else 0
    if point.fault == LATE and found.acks != steps:
        tally.blame("wrong", f"{name}: {found.acks} answers: {found.said[-1:]}")
    if point.fault.startswith("error") and point.call in SYNCS and synced_after_failure(found):
        tally.blame("wrong", f"{name}: it synced again what could not be synced")
    if point.part != "payloads" and (promises := early(found)):
        tally.blame("lost", f"{name}: answered before it was on disk: {promises[0]}")


def _check_store(point: Point, found: Life, path: Path, tally: Tally, name: str) -> None:
    """Everything answered is there, once; a new epoch can write; and that is there too."""
    states, last = script().states, len(script().steps)
    low = high = 0 if point.part == "first" else last
    if point.part.isdigit():
        low = int(point.part) + found.acks
        high = min(low + 1, last)
    try:
        if (path / "flowray.db").exists() and (problems := verify(path, CONFIG).problems):
            tally.blame("wrong", f"{name}: {problems}")
        with opened(path) as (got, store):
            if not is_between(got, states[low], states[high]):
                kind = "lost" if _misses(got, states[low], states[high]) else "twice"
                what = f"it has {_brief(got)}, not {_brief(states[low])}"
                tally.blame(kind, f"{name}: after {found.acks} answers: {what}")
            if (error := write(store, task_life(900_000))) is not None:
                raise error
        with opened(path) as (after, _):
            assert _open(after) == _open(got), "open tasks changed by a write after the crash"
            assert list(after.outcomes) == [*got.outcomes, "t-900000"], "outcomes changed by a write after the crash"
    except AssertionError as error:
        tally.blame("twice", f"{name}: {error}")
    except StoreError as error:
        tally.blame("lost", f"{name}: after {found.acks} answers it does not open or go on: {error}")


def _open(state: State) -> Snapshot:
    return structs.replace(msgpack.decode(state.book, type=Snapshot), next_seq=0)  # the task more has a number too


def _misses(got: State, low: State, high: State) -> bool:
    needed = low.outcomes.keys() & high.outcomes.keys()
    return not needed <= got.outcomes.keys() or got.book not in (low.book, high.book)


def _brief(state: State) -> str:
    return f"{len(state.book)} bytes of open tasks, {len(state.outcomes)} outcomes, {len(state.dead)} dead letters"


def _check_payloads(found: Life, path: Path, tally: Tally, name: str) -> None:
    """What was answered can be read and is what was put; and the directory takes the rest."""
    payloads = PayloadStore(path)
    for line in found.said:
        if line.startswith("ack "):
            _, number, ref = line.split()
            try:
                if payloads.get(ref) != PAYLOADS[int(number)]:
                    tally.blame("wrong", f"{name}: payload {number} is another")
            except StoreError as error:
                tally.blame("lost", f"{name}: {error}")
    try:
        for data in PAYLOADS:
            if payloads.get(payloads.put(data)) != data:
                tally.blame("wrong", f"{name}: a payload put afterwards is another")
    except StoreError as error:
        tally.blame("wrong", f"{name}: nothing can be put afterwards: {error}")


def tried(
    chosen: Sequence[Point], images: Images, *, every_s: float = math.inf, for_s: float = math.inf
) -> dict[tuple[str, str, str], Tally]:
    """These points, by part, call and fault; as many as `for_s` allows. Says `every_s` how far it is."""
    found: dict[tuple[str, str, str], Tally] = {}
    began_at = said_at = time.monotonic()
    for number, point in enumerate(chosen):
        try_point(point, images, found.setdefault((_part(point), point.call, point.fault), Tally()))
        if time.monotonic() - began_at > for_s:
            break
        if time.monotonic() - said_at > every_s:
            said_at = time.monotonic()
            print(f"{number + 1} of {len(chosen)} points", file=sys.stderr, flush=True)  # noqa: T201
    return found


def sample(all_points: Sequence[Point], count: int, seed: int) -> list[Point]:
    """Some of each part and call, whatever their number."""
    rng = random.Random(seed)
    kinds: dict[tuple[str, str], list[Point]] = {}
    for point in all_points:
        kinds.setdefault((_part(point), point.call), []).append(point)
    chosen: list[Point] = []
    for turn in _turns(kinds, count):
        chosen.append(kinds[turn].pop(rng.randrange(len(kinds[turn]))))
    return chosen


def _turns(kinds: dict[tuple[str, str], list[Point]], count: int) -> Iterator[tuple[str, str]]:
    left = count
    while left and any(kinds.values()):
        for kind, those in kinds.items():
            if those and left:
                left -= 1
                yield kind


def _part(point: Point) -> str:
    return "step" if point.part.isdigit() else point.part


def show(found: dict[tuple[str, str, str], Tally]) -> None:
    print(f"{'part':9} {'system call':11} {'fault':18} {'n':>5} {'stopped':>7} {'lost':>5} {'twice':>5} {'wrong':>5}")  # noqa: T201
    for (part, call, fault), tally in sorted(found.items()):
        figures = f"{tally.points:5} {tally.stopped:7} {tally.lost:5} {tally.twice:5} {tally.wrong:5}"
        print(f"{part:9} {call:11} {fault:18} {figures}")  # noqa: T201
        for problem in tally.problems[:3]:
            print(f"    {problem}")  # noqa: T201


def main(arguments: Sequence[str] | None = None) -> int:
    """0: nothing lost, twice or wrong. 1: something was. 2: it cannot be tried here."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, help="only so many, chosen by --seed")
    parser.add_argument("--for-s", type=float, default=math.inf, help="no more points after so many seconds")
    parser.add_argument("--faults", default="", help="only those with this in their name: KILL, EIO, ENOSPC, delay")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--flips", type=int, default=2_000, help="bits flipped and files cut (%(default)s)")
    chosen = parser.parse_args(arguments)
    began_at = time.monotonic()
    with scratch() as directory:
        try:
            images = Images(directory)
        except NoTracing as error:
            print(error, file=sys.stderr)  # noqa: T201
            return 2
        every = [point for point in points(images.counts) if chosen.faults in point.fault]
        some = every if chosen.points is None else sample(every, chosen.points, chosen.seed)
        found = tried(some, images, every_s=30.0, for_s=chosen.for_s)
        flips = damaged(directory, damage_images(directory), chosen.flips, chosen.seed)
    show(found)
    print(f"bits flipped and files cut: {flips.detected} detected, {flips.harmless} harmless, {flips.silent} silent")  # noqa: T201
    for problem in flips.problems[:10]:
        print(f"    {problem}")  # noqa: T201
    totals = {
        name: sum(getattr(tally, name) for tally in found.values())
        for name in ("points", "stopped", "lost", "twice", "wrong")
    }
    damage = {"detected": flips.detected, "harmless": flips.harmless, "silent": flips.silent}
    totals["of"] = len(every)
    print(json.dumps({"crash_points": totals, "damage": damage, "took_s": round(time.monotonic() - began_at, 1)}))  # noqa: T201
    return int(any(totals[name] for name in ("lost", "twice", "wrong")) or flips.silent > 0)


if __name__ == "__main__":
    sys.exit(main())

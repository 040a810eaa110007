"""Bits flip in a store, and its files are cut: what becomes of it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flowray.errors import StoreError
from flowray.store import SqliteStore

from .builders import Answers
from .script import CONFIG, State, opened, script

FILES = ("flowray.db", "flowray.db-wal", "witness")
# Words by which a message says what is damaged.
_NAMES = ("journal", "snapshot", "outcome", "dead letter", "chunks", "database", "flowray.db")


@dataclass
class Damage:
    """What became of damaged stores."""

    detected: int = 0  # an error that says what is damaged
    harmless: int = 0  # everything is there all the same
    silent: int = 0  # wrong, and nobody is told
    problems: list[str] = field(default_factory=list)


def images(directory: Path) -> list[Path]:
    """The script's store as a crash leaves it, after a third and after all of it, and closed."""
    running = directory / "running"
    store = SqliteStore.open(running, CONFIG)
    store.begin_epoch("script")
    answers = Answers()
    found: list[Path] = []
    steps = script().steps
    for number, step in enumerate(steps):
        step.ask(store, answers)
        answers.wait(number + 1)
        if number in (len(steps) // 3, len(steps) - 1):
            found.append(_copied(running, directory / f"image-{number}"))
    assert not any(answers.errors)
    store.close()
    found.append(_copied(running, directory / "closed"))
    return found


def _copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for name in FILES:
        if (source / name).exists():
            shutil.copy(source / name, target)
    return target


def read(directory: Path) -> Iterator[State]:
    """What can be learned from a store; then, when half of its outcomes are trimmed, again."""
    with opened(directory) as (state, store):
        yield state
        at = [outcome.resolved_at for outcome in state.outcomes.values()]
        answers = Answers()
        store.trim(sorted(at)[len(at) // 2], answers, dead_letters_older_than_at=0.0)
        if (error := answers.wait()[0]) is not None:
            raise error
    with opened(directory) as (state, _):
        yield state


def damaged(directory: Path, sources: list[Path], rounds: int, seed: int) -> Damage:
    """Flip one bit, or cut one file, in a copy of one of these; so many times."""
    rng = random.Random(seed)
    target = directory / "damaged"
    expected: dict[Path, list[State]] = {}
    for source in sources:
        shutil.copytree(source, target)
        expected[source] = list(read(target))
        shutil.rmtree(target)
    found = Damage()
    for _ in range(rounds):
        source = rng.choice(sources)
        shutil.copytree(source, target)
        what = _harm(target, rng)
        try:
            same = list(read(target)) == expected[source]
        except StoreError as error:
            if any(name in str(error) for name in _NAMES):
                found.detected += 1
            else:
                found.silent += 1
                found.problems.append(f"{what} of {source.name}: it does not say what is damaged: {error}")
        except Exception as error:
            found.silent += 1
            found.problems.append(f"{what} of {source.name}: {type(error).__name__}: {error}")
        else:
            found.harmless += same
            if not same:
                found.silent += 1
                found.problems.append(f"{what} of {source.name}: something is wrong and nobody is told")
        shutil.rmtree(target)
    return found


def _harm(directory: Path, rng: random.Random) -> str:
    names = [name for name in FILES[:2] if (directory / name).exists() and (directory / name).stat().st_size]
    path = directory / ("witness" if rng.random() < 0.05 else rng.choice(names))
    data = bytearray(path.read_bytes())
    position = rng.randrange(len(data))
    if rng.random() < 0.15:
        del data[position:]
        what = f"{path.name} cut at {position}"
    else:
        bit = rng.randrange(8)
        data[position] ^= 1 << bit
        what = f"bit {bit} of byte {position} of {path.name}"
    path.write_bytes(data)
    return what

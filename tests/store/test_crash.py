"""Real processes, really killed: what was acknowledged must be there, and nothing else may be made up."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flowray.store import SqliteStore, verify

from .builders import config, life, outcome
from .places import Place, SqlitePlace

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
STRACE = shutil.which("strace")
needs_strace = pytest.mark.skipif(STRACE is None, reason="strace is not installed (apt-get install strace)")


def child(where: Path | str, count: int, pace: str) -> list[str]:
    return [sys.executable, "-m", "store.child", str(where), str(count), pace]


def acknowledged(output: str) -> list[int]:
    # The last line may be cut off by the kill, and then it does not count: nobody read it.
    whole = output[: output.rfind("\n") + 1]
    return [int(line.split()[1]) for line in whole.splitlines() if line.startswith("ack ")]


def check(place: Place, acks: list[int], *, unknown: int) -> None:
    """Everything acknowledged is there, in order and whole, and at most `unknown` tasks more."""
    report = place.verify()
    assert report.ok, report.problems
    store = place.open()
    recovery = store.begin_epoch("check")
    found = [outcome.task_id for outcome in store.recent_outcomes(10**6)][::-1]
    assert found[: len(acks)] == [f"t-{number:06d}" for number in acks]
    assert len(found) - len(acks) <= unknown
    for number in [*acks[:3], *acks[-3:]]:
        got = store.outcome(f"t-{number:06d}")
        assert got is not None
        if number % 5 != 4:
            assert got == outcome(number)
    tail = recovery.commands
    numbers = [int(command.task.id[2:]) for command in tail[::3]]  # type: ignore[union-attr]
    assert tail == [command for number in numbers for command in life(number)]
    assert [f"t-{number:06d}" for number in numbers] == found[len(found) - len(numbers) :]
    assert recovery.snapshot is not None or len(numbers) == len(found)
    store.close()


def test_sigkill_at_random_moments_loses_nothing_acknowledged(place: Place) -> None:
    """Many lives of one store, each killed in the middle of its work, checkpoints and snapshots included."""
    rng = random.Random(7)
    acks: list[int] = []
    for life_number in range(1, 16 if place.kind == "sqlite" else 7):
        process = subprocess.Popen(
            child(place.argument, 10**6, "rushing"), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT
        )
        assert process.stdout is not None
        assert process.stdout.readline() == f"began {life_number}\n"
        lines = [process.stdout.readline() for _ in range(rng.randrange(1, 1500))]
        process.kill()
        rest = process.stdout.read()
        process.stdout.close()
        assert process.wait() == -9
        fresh = acknowledged("".join(lines) + rest)
        assert len(fresh) >= len(lines) - 1
        acks += fresh
        # Commits that were never announced become part of the history that the next life continues.
        acks = recorded(place, acks)
    check(place, acks, unknown=0)


def recorded(place: Place, acks: list[int]) -> list[int]:
    """All tasks in the store, without opening it for writing; checks that they begin with those acknowledged."""
    report = place.verify()
    assert report.ok, report.problems
    reader = place.open()
    found = [int(outcome.task_id[2:]) for outcome in reader.recent_outcomes(10**6)][::-1]
    reader.close()
    assert found[: len(acks)] == acks
    assert len(found) - len(acks) <= 500
    return found


def ran(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, timeout=60, check=False)


def traced(directory: Path, inject: str, log: Path, count: int = 30) -> subprocess.CompletedProcess[str]:
    assert STRACE is not None
    command = [STRACE, "-f", "-o", str(log), "-e", "trace=fdatasync,fsync", "-e", f"inject={inject}"]
    done = ran([*command, *child(directory, count, "waiting")])
    if "ptrace" in done.stderr and "not permitted" in done.stderr:
        pytest.skip(f"no tracing here: {done.stderr.strip()}")
    return done


@needs_strace
@pytest.mark.parametrize("position", [1, 2, 3, 4, 5, 6])
def test_a_kill_during_the_first_open_leaves_a_whole_store_or_none(tmp_path: Path, position: int) -> None:
    store = tmp_path / "store"
    done = traced(store, f"fdatasync:signal=KILL:when={position}", tmp_path / "log")
    assert done.returncode in (-9, 137), done.stderr
    if (store / "flowray.db").exists():
        assert verify(store, config()).problems == ()
    again = SqliteStore.open(store, config())
    assert again.begin_epoch("check").commands == []
    again.close()


@needs_strace
@pytest.mark.parametrize("position", [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 15, 19, 24, 30])
def test_a_kill_at_a_sync_leaves_at_most_that_one_commit_unknown(tmp_path: Path, position: int) -> None:
    store = tmp_path / "store"
    SqliteStore.open(store, config()).close()
    done = traced(store, f"fdatasync:signal=KILL:when={position}", tmp_path / "log")
    assert done.returncode in (-9, 137), done.stderr
    acks = acknowledged(done.stdout)
    assert len(acks) < position
    check(SqlitePlace(store), acks, unknown=1)


@needs_strace
@pytest.mark.parametrize("position", [2, 9, 10, 11, 20])
def test_a_sync_that_fails_is_reported_and_never_repeated(tmp_path: Path, position: int) -> None:
    """After a failed fsync the kernel may call dirty pages clean: a second one that succeeds proves nothing."""
    store = tmp_path / "store"
    SqliteStore.open(store, config()).close()
    done = traced(store, f"fdatasync:error=EIO:when={position}", tmp_path / "log")
    assert re.search(r"(fail \d+ StoreError|refused) (write to|checkpoint) the journal: .*IOERR", done.stdout)
    assert done.stdout.endswith("closed\n")
    log = (tmp_path / "log").read_text()
    # strace counts for each thread. One of the main thread's is the directory's, which SQLite does without.
    assert log[log.rindex("EIO") :].count("sync(") == 0
    acks = acknowledged(done.stdout)
    assert len(acks) >= position - 7  # the others were for copies of the log and for its beginnings
    check(SqlitePlace(store), acks, unknown=1)


def test_a_full_disk_is_a_clear_error_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting needs root and unshare")
    mount, kept = tmp_path / "mount", tmp_path / "kept"
    mount.mkdir()
    script = (
        f'mount -t tmpfs -o size=1500k tmpfs {mount} || exit 77; "$0" -m store.child {mount} 100000 waiting volatile; '
        f"cp -r {mount} {kept}"
    )
    done = ran(["unshare", "-m", "sh", "-c", script, sys.executable])
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr.strip()}")
    acks = acknowledged(done.stdout)
    assert len(acks) > 20
    assert re.search(r"(fail \d+ StoreError|refused).*full", done.stdout), done.stdout[-500:]
    check(SqlitePlace(kept), acks, unknown=1)

"""Stateful agents on real Ray: whatever ends, every acknowledged input is applied once.

Each input adds one, so the outputs of n inputs are the numbers from 1 to n, each once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ray_ledgers import ColdLedger, Dice, WarmLedger

import flowray as fr

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 90.0


class Answer(NamedTuple):
    at: float  # monotonic, when it was here
    total: int
    pid: int


class Answers:
    """The outputs of inputs under way, as they come."""

    def __init__(self, runtime: fr.Runtime, agent: str, count: int, takes_s: float) -> None:
        self.handles = runtime.map([{"add": 1, "takes_s": takes_s}] * count, agent=agent)
        self.came: list[Answer] = []
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        for handle in self.handles.as_completed(WAIT_S):
            total, pid = handle.result(0.0)
            self.came.append(Answer(time.monotonic(), total, pid))

    def all(self) -> list[Answer]:
        self._thread.join(WAIT_S)
        assert len(self.came) == len(self.handles)
        return self.came


@pytest.fixture(scope="module")
def bank(start_runtime: Callable[..., fr.Runtime]) -> Iterator[fr.Runtime]:
    with start_runtime("bank") as runtime:
        yield runtime


def say(what: str, value: object) -> None:
    """A figure, for whoever runs this with -s."""
    sys.stdout.write(f"\n{what} {value}\n")


def added(runtime: fr.Runtime, agent: str, add: int = 0) -> tuple[int, int]:
    """The total after adding so much, and the process that says so."""
    total, pid = runtime.submit({"add": add}, agent=agent).result(WAIT_S)
    return total, pid


def name(runtime: fr.Runtime, kind: type, label: str) -> str:
    return runtime.agents.add(kind, name=label, num_cpus=0.02)


def settled(runtime: fr.Runtime, eventually: Callable[..., Any], agent: str) -> None:
    """Both of its processes are there."""
    ids = {f"{agent}-0", f"{agent}.standby-0"}

    def ready() -> bool:
        return ids <= {one.agent_id for one in runtime.status().agents if one.state == "ready"}

    eventually(ready, "an active process and a standby", timeout_s=WAIT_S)


def test_a_killed_process_and_its_standby(bank: fr.Runtime, eventually: Callable[..., Any]) -> None:
    agent, gaps, done = name(bank, WarmLedger, "killed"), [], 0
    for _ in range(4):
        settled(bank, eventually, agent)
        answers = Answers(bank, agent, 150, 0.004)
        eventually(lambda answers=answers: len(answers.came) > 40, "some are done")
        pid = answers.came[-1].pid
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        came = answers.all()
        gaps.append(min(one.at for one in came if one.pid != pid) - killed_at)
        assert sorted(one.total for one in came) == list(range(done + 1, done + 151))
        done += 150
    say("kill -9 to the next output, s:", [round(gap, 3) for gap in gaps])


def test_a_stopped_process(bank: fr.Runtime, eventually: Callable[..., Any]) -> None:
    """It dies of nothing and answers nobody, until the keeper of its node ends it."""
    agent = name(bank, WarmLedger, "stopped")
    settled(bank, eventually, agent)
    answers = Answers(bank, agent, 150, 0.004)
    eventually(lambda: len(answers.came) > 40, "some are done")
    pid, stopped_at = answers.came[-1].pid, time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    came = answers.all()
    assert sorted(one.total for one in came) == list(range(1, 151))
    say("SIGSTOP to the next output, s:", round(min(one.at for one in came if one.pid != pid) - stopped_at, 3))


@pytest.mark.parametrize("also", [False, True])
def test_a_killed_coordinator(bank: fr.Runtime, eventually: Callable[..., Any], also: bool) -> None:
    """With inputs under way; and the active process at the same time, when nobody is there to see it die."""
    agent = name(bank, WarmLedger, f"led-{also}".lower())
    settled(bank, eventually, agent)
    answers = Answers(bank, agent, 300, 0.004)
    eventually(lambda: len(answers.came) > 40, "some are done")
    pid, before = answers.came[-1].pid, bank.status()
    os.kill(before.pid, signal.SIGKILL)
    if also:
        os.kill(pid, signal.SIGKILL)
    came = answers.all()
    assert sorted(one.total for one in came) == list(range(1, 301))
    assert bank.status().epoch > before.epoch
    assert (pid in {one.pid for one in came[-50:]}) is not also


def test_without_a_standby_the_state_is_restored(bank: fr.Runtime, eventually: Callable[..., Any]) -> None:
    agent = name(bank, ColdLedger, "cold")
    answers = Answers(bank, agent, 150, 0.004)
    eventually(lambda: len(answers.came) > 60, "some are done, and snapshots were taken")
    pid, killed_at = answers.came[-1].pid, time.monotonic()
    os.kill(pid, signal.SIGKILL)
    came = answers.all()
    assert sorted(one.total for one in came) == list(range(1, 151))
    say("kill -9 to the next output, cold, s:", round(min(o.at for o in came if o.pid != pid) - killed_at, 3))


def test_what_apply_raises_is_the_outcome_and_the_state_goes_on(bank: fr.Runtime) -> None:
    agent = name(bank, ColdLedger, "strict")
    assert added(bank, agent, 5)[0] == 5
    with pytest.raises(fr.TaskFailed, match="less than nothing"):
        added(bank, agent, -1)
    assert added(bank, agent, 2)[0] == 7


def test_an_input_that_kills_is_left_out(bank: fr.Runtime) -> None:
    agent = name(bank, WarmLedger, "deadly")
    assert added(bank, agent, 5)[0] == 5
    deadly = bank.submit({"add": 100, "kill": True}, agent=agent)
    after = bank.submit({"add": 1}, agent=agent)
    with pytest.raises(fr.TaskFailed, match="left out"):
        deadly.result(WAIT_S)
    assert after.result(WAIT_S)[0] == 6


def test_another_state_is_found(bank: fr.Runtime, eventually: Callable[..., Any]) -> None:
    agent = name(bank, Dice, "dice")
    settled(bank, eventually, agent)
    bank.map([{"add": 1}] * 12, agent=agent).results(WAIT_S)
    eventually(lambda: bank.figures()["mismatches"] > 0, "the standby is found to have another state")


def test_instances_by_entity(bank: fr.Runtime) -> None:
    agent = bank.agents.add(ColdLedger, name="many", count=3, num_cpus=0.02)
    tasks = [
        (f"account-{number % 7}", bank.submit({"add": 1}, agent=agent, entity=f"account-{number % 7}"))
        for number in range(70)
    ]
    pids: dict[str, set[int]] = {}
    for entity, handle in tasks:
        pids.setdefault(entity, set()).add(handle.result(WAIT_S)[1])
    assert all(len(found) == 1 for found in pids.values()) and len(set.union(*pids.values())) > 1
    with pytest.raises(fr.FlowrayError, match="instances with a state"):
        bank.agents.add(ColdLedger, name="many", count=4, num_cpus=0.02)


def test_a_later_run_on_the_journal_goes_on_with_the_state(
    start_runtime: Callable[..., fr.Runtime], tmp_path: Path
) -> None:
    journal = str(tmp_path / "journal")
    with start_runtime("first", journal=journal, store__allow_filesystems=["overlay"]) as runtime:
        assert added(runtime, name(runtime, ColdLedger, "kept"), 5)[0] == 5
    with start_runtime("first", journal=journal, store__allow_filesystems=["overlay"]) as runtime:
        assert added(runtime, name(runtime, ColdLedger, "kept"), 2)[0] == 7

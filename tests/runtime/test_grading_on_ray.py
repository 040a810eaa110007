"""Grades, graders and verifiers on real Ray: what is said later of an answer, and what an agent says at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import flowray as fr
from flowray.cli import main
from flowray.errors import ConfigError, GradeRefused, TaskFailed, UnknownTask
from flowray.store import StoreConfig
from flowray.store.reader import Reader

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 120.0


class Guess:
    """Its first answer to a task is a guess, and its verifier can tell."""

    def run(self, task: fr.Task, ctx: fr.Context) -> str:
        ctx.report(cost_usd=0.001)
        if task.prompt == "reported":
            ctx.report(quality=0.5)
        return "guess" if task.attempt == 1 else f"knowledge of {task.prompt}"

    def verify(self, task: fr.Task, answer: str) -> float:
        if task.prompt == "broken":
            raise ValueError("no test machine")
        return 0.2 if answer == "guess" else 0.9


class Later(Guess):
    async def run(self, task: fr.Task) -> str:  # type: ignore[override]
        return "guess"

    async def verify(self, task: fr.Task, answer: str) -> bool:  # type: ignore[override]
        return task.prompt == "fine"


class Mixed(Guess):
    """Sync code with an async verifier, which runs on the loop of its process."""

    def run(self, task: fr.Task) -> str:  # type: ignore[override]
        return "guess"

    async def verify(self, task: fr.Task, answer: str) -> float:  # type: ignore[override]
        return 0.75


def judge(task: fr.Task) -> float:
    """What it is asked is `question <number>`, and it thinks that even numbers deserve good grades."""
    assert set(task.payload) == {"answer"}
    return 1.0 if int(task.prompt.split()[1]) % 2 == 0 else 0.25


@pytest.fixture(scope="module")
def rt(start_runtime: Callable[..., fr.Runtime], tmp_path_factory: pytest.TempPathFactory) -> Iterator[fr.Runtime]:
    journal = str(tmp_path_factory.mktemp("graded") / "journal")
    store = {"allow_volatile": True, "allow_filesystems": ["overlay", "overlayfs", "unknown"]}
    with start_runtime(
        "graded", journal=journal, store=store, core__routing={"enabled": True, "within_s": 5.0, "keep_text": 12}
    ) as runtime:
        runtime.agents.add(Guess, name="one", capabilities={"guess"})
        runtime.agents.add(Guess, name="other", capabilities={"guess"})
        runtime.agents.add(Later, capabilities={"later"})
        runtime.agents.add(Mixed, capabilities={"mixed"})
        runtime.agents.add(judge, capabilities={"judge"})
        runtime.wait_ready(timeout_s=WAIT_S)
        yield runtime


def recorded(rt: fr.Runtime) -> dict[str, Any]:
    with contextlib.closing(Reader(Path(rt.status().journal), StoreConfig())) as reader:
        return {one.outcome.task_id: one for one in reader.all_recorded()}


def test_a_verifier_says_what_answers_are_worth_and_drives_the_ladder(rt: fr.Runtime) -> None:
    assert rt.submit("x", needs={"guess"}).outcome(WAIT_S).quality == 0.2
    assert rt.submit("reported", needs={"guess"}).outcome(WAIT_S).quality == 0.5
    ladder = rt.submit("x", needs={"guess"}, least_quality=0.8, max_attempts=3)
    assert ladder.result(WAIT_S) == "knowledge of x"
    outcome = ladder.outcome()
    assert (outcome.quality, outcome.attempts) == (0.9, 2)
    assert [(one.attempt, one.quality, one.cost_usd) for one in outcome.not_enough] == [(1, 0.2, 0.001)]
    classes = [choice.receipt.chosen for choice in outcome.choices if choice.receipt is not None]
    assert len(set(classes)) == 2, "another class of agents was asked"
    broken = rt.submit("broken", needs={"guess"})
    with pytest.raises(TaskFailed, match="ValueError: verify, after run had answered: no test machine"):
        broken.result(WAIT_S)


def test_verifiers_of_async_code_and_async_verifiers(rt: fr.Runtime) -> None:
    assert rt.submit("fine", needs={"later"}).outcome(WAIT_S).quality == 1.0
    assert rt.submit("poor", needs={"later"}).outcome(WAIT_S).quality == 0.0
    assert rt.submit("x", needs={"mixed"}).outcome(WAIT_S).quality == 0.75


def test_a_grade_is_on_disk_when_it_is_answered_and_outlives_the_coordinator(
    rt: fr.Runtime, eventually: Callable[..., Any]
) -> None:
    handle = rt.submit("what is the answer?", needs={"guess"})
    handle.result(WAIT_S)
    handle.grade(0.25, by="first look")
    kept = recorded(rt)[handle.task_id]
    assert (kept.grade.quality, kept.grade.by) == (0.25, "first look")
    assert kept.asked.text == "what is the ", "cut to core.routing.keep_text"
    assert handle.outcome().quality == 0.2, "an outcome does not change"
    assert "Its answer was graded 0.25 by first look" in handle.explain()

    before = rt.status()
    os.kill(before.pid, signal.SIGKILL)
    eventually(lambda: rt.status().pid != before.pid, "another coordinator", timeout_s=WAIT_S)
    assert rt.handle(handle.task_id).story().grade.quality == 0.25
    handle.grade(1.0)  # this coordinator never asked about the task, and keeps the grade all the same
    with fr.Runtime.connect(rt.name) as client:
        client.grade(handle.task_id, 0.75, by="a client")
        assert client.handle(handle.task_id).story().grade.quality == 0.75
    assert recorded(rt)[handle.task_id].grade.by == "a client"
    rt.wait_ready(timeout_s=WAIT_S)


def test_what_cannot_be_graded_says_why(rt: fr.Runtime) -> None:
    handle = rt.submit("broken", needs={"guess"})
    with pytest.raises(TaskFailed):
        handle.result(WAIT_S)
    with pytest.raises(GradeRefused, match="it ended dead, without an answer") as refused:
        handle.grade(0.5)
    assert refused.value.task_id == handle.task_id
    with pytest.raises(UnknownTask, match="nothing-such"):
        rt.grade("nothing-such", 0.5)
    for wrong in (-0.5, 1.5, float("nan"), True, "good"):
        with pytest.raises(ConfigError, match="quality"):
            handle.grade(wrong)  # type: ignore[arg-type]


def test_an_agent_grades_what_it_is_shown(rt: fr.Runtime) -> None:
    handles = rt.map([f"question {number}" for number in range(6)], needs={"guess"})
    graded = rt.grade_with(handles, "judge", timeout_s=WAIT_S)
    assert [one.error for one in graded] == [None] * 6
    assert [one.quality for one in graded] == [1.0, 0.25] * 3
    kept = recorded(rt)
    assert {kept[handle.task_id].grade.by for handle in handles} == {"judge"}
    mixed = rt.grade_with([*handles, rt.handle("nothing-such")], lambda answer: len(answer) / 10, timeout_s=WAIT_S)
    assert [one.quality for one in mixed] == [0.5] * 6 + [None]
    assert isinstance(mixed[-1].error, UnknownTask)


def test_its_own_outcomes_become_a_set(rt: fr.Runtime, tmp_path: Path) -> None:
    from flowray.routing import data
    from flowray.routing.exporting import write_set

    handle = rt.submit("the last one", needs={"guess"})
    handle.result(WAIT_S)
    handle.grade(0.0)
    with contextlib.closing(Reader(Path(rt.status().journal), StoreConfig())) as reader:
        count = write_set(tmp_path / "own", reader.all_recorded(), specs=reader.specs())
    whole = data.load(tmp_path / "own")
    assert len(whole) == count > 10
    assert whole.agents.agent_ids == ("one", "other")
    assert whole.agents.descriptions[0].startswith("one; guess")
    assert whole.prompt_ids[-1] == handle.task_id and whole.splits[-1] == "test"
    assert float(whole.outcomes.quality[-1][~(whole.outcomes.quality[-1] != whole.outcomes.quality[-1])][0]) == 0.0


def test_on_the_command_line(rt: fr.Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    handle = rt.submit("x", needs={"guess"})
    handle.result(WAIT_S)

    def cli(*words: str) -> tuple[int | str | None, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--name", rt.name])
        return (ended.value.code, *capsys.readouterr())

    code, out, err = cli("grade", handle.task_id, "0.4", "--by", "me", "--json")
    assert not code, err
    assert json.loads(out) == {"task_id": handle.task_id, "quality": 0.4, "by": "me"}
    assert recorded(rt)[handle.task_id].grade.quality == 0.4
    code, out, err = cli("story", handle.task_id)
    assert not code and "graded 0.4 by me" in out, err
    code, out, err = cli("grade", handle.task_id, "4")
    assert code == 2 and "quality: wants a number from 0 to 1" in err
    code, out, err = cli("grade", "nothing-such", "0.4")
    assert code == 1 and "nothing-such" in err

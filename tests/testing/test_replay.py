"""Agents that answer from recorded outcomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowray.agents import Context, Task
from flowray.config import load as load_config
from flowray.errors import ConfigError, InvalidTask, RetryableError, TaskFailed
from flowray.routing import data
from flowray.runtime.specs import make_spec
from flowray.testing import (
    ReplayAgent,
    Simulation,
    make_outcomes,
    replay,
    replay_requests,
    replay_specs,
    replay_tasks,
)


def write(directory: Path, name: str, **columns: list[Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), directory / f"{name}.parquet")


def small(directory: Path, **changes: Any) -> Path:
    """Three tasks and two agents; `changes` replace columns of the outcomes, None takes one away."""
    write(
        directory,
        "tasks",
        prompt_id=["a", "b", "c"],
        text=["one", "two", "two"],
        split=["train", "test", "test"],
    )
    write(directory, "agents", agent_id=["x/1", "y"], price_in_per_m=[1.0, 2.0], price_out_per_m=[3.0, None])
    outcomes: dict[str, Any] = {
        "prompt_id": ["a", "a", "b", "c"],
        "agent_id": ["x/1", "y", "x/1", "x/1"],
        "success": [1, 0, 0, 1],
        "score": [0.75, 0.25, 0.125, None],
        "latency_s": [2.0, 4.0, None, float("nan")],
        "cost_usd": [0.5, 0.25, None, 0.125],
    } | changes
    write(directory, "outcomes", **{name: column for name, column in outcomes.items() if column is not None})
    return directory


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_outcomes(tmp_path_factory.mktemp("sets") / "made", tasks=60, agents=3)


def labelled(prompt_id: str) -> Task:
    return Task(id="t", labels={"prompt_id": prompt_id})


async def answered(agent: ReplayAgent, task: Task) -> tuple[Any, float | None, float | None]:
    ctx = Context(agent_id="replay-0")
    value = await agent.run(task, ctx)
    return value, ctx.quality, ctx.cost_usd


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_recorded_answer_comes_back_with_its_quality_and_cost(tmp_path):
    directory = small(tmp_path)
    good, poor = ReplayAgent(str(directory), "x/1"), ReplayAgent(str(directory), "y")
    assert await answered(good, labelled("a")) == ({"agent": "x/1", "success": True}, 0.75, 0.5)
    assert await answered(poor, labelled("a")) == ({"agent": "y", "success": False}, 0.25, 0.25)
    assert await answered(good, labelled("b")) == ({"agent": "x/1", "success": False}, 0.125, None)
    assert await answered(good, labelled("c")) == ({"agent": "x/1", "success": True}, 1.0, 0.125)


async def test_without_a_label_the_text_tells_which_task_it_is(tmp_path):
    agent = ReplayAgent(str(small(tmp_path)), "x/1")
    assert (await answered(agent, Task(id="t", prompt="one")))[1:] == (0.75, 0.5)
    assert (await answered(agent, Task(id="t", prompt="two")))[1:] == (0.125, None), "the first of that text"
    with pytest.raises(
        InvalidTask, match=r"^prompt: no task of .*tasks\.parquet has this text; give the label prompt_id"
    ):
        await answered(agent, Task(id="t", prompt="three"))


@pytest.mark.parametrize("missing", [{"cost_usd": None}, {"cost_usd": [None, float("nan"), None, None]}])
async def test_where_no_cost_is_recorded_a_thousand_tokens_are_paid_at_the_agents_price(tmp_path, missing):
    directory = str(small(tmp_path, score=None, **missing))
    assert (await answered(ReplayAgent(directory, "x/1"), labelled("b")))[1:] == (0.0, 0.002)
    assert (await answered(ReplayAgent(directory, "y"), labelled("a")))[1:] == (0.0, None), "its price is not known"


async def test_without_agents_file_and_costs_there_is_no_cost(tmp_path):
    directory = small(tmp_path, cost_usd=None)
    (directory / "agents.parquet").unlink()
    assert (await answered(ReplayAgent(str(directory), "x/1"), labelled("a")))[1:] == (0.75, None)


async def test_it_takes_the_recorded_seconds_times_the_scale(tmp_path, monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(replay.asyncio, "sleep", sleep)
    directory = str(small(tmp_path))
    for scale in (0.0, 1.0, 0.25):
        agent = ReplayAgent(directory, "x/1", time_scale=scale)
        for prompt_id in "abc":  # nobody knows how long it took at b and c
            await answered(agent, labelled(prompt_id))
    assert slept == [2.0, 0.5]


async def test_wrong_answers_can_raise_and_still_say_what_they_cost(tmp_path):
    agent = ReplayAgent(str(small(tmp_path)), "y", fail=True)
    ctx = Context(agent_id="replay-0")
    with pytest.raises(RetryableError, match="agent 'y' was wrong"):
        await agent.run(labelled("a"), ctx)
    assert (ctx.quality, ctx.cost_usd) == (0.25, 0.25)
    right = ReplayAgent(str(tmp_path), "x/1", fail=True)
    assert (await answered(right, labelled("a")))[0] == {"agent": "x/1", "success": True}


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_task_names_the_label_and_where_labels_come_from(tmp_path):
    agent = ReplayAgent(str(small(tmp_path)), "y")
    for prompt_id in ("b", "nowhere"):  # y did not try b
        with pytest.raises(
            InvalidTask, match=f"no outcome of agent 'y' at prompt_id '{prompt_id}'; take .* replay_tasks"
        ):
            agent.recorded(labelled(prompt_id))


def test_an_unknown_agent_is_told_with_those_that_are_known(tmp_path):
    with pytest.raises(ConfigError, match=r"^agent_id: .* has no outcomes of 'z' \(known: x/1, y\)$"):
        ReplayAgent(str(small(tmp_path)), "z")
    small(tmp_path, prompt_id=list("abcd"), agent_id=list("ABCD"))
    write(tmp_path, "outcomes", prompt_id=["a"] * 7, agent_id=list("ABCDEFG"), success=[1] * 7)
    with pytest.raises(ConfigError, match="known: A, B, C, D, E and 2 more"):
        ReplayAgent(str(tmp_path), "z")


def test_a_directory_that_is_no_set_is_refused(tmp_path):
    for read in (replay_specs, replay_tasks, lambda directory: ReplayAgent(str(directory), "x")):
        with pytest.raises(ConfigError, match=r"^data: .*parquet is not there \(name the directory of a set"):
            read(tmp_path / "nowhere")
    small(tmp_path, success=None)
    with pytest.raises(
        ConfigError, match=r"^data: .*outcomes\.parquet has no column 'success' \(it has prompt_id, agent_id"
    ):
        ReplayAgent(str(tmp_path), "y")
    (tmp_path / "outcomes.parquet").write_bytes(b"no table")
    with pytest.raises(ConfigError, match=r"^data: .*outcomes\.parquet cannot be read as Parquet"):
        replay_specs(tmp_path)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf"), "fast"])
def test_a_time_scale_out_of_range_is_refused_before_anything_is_read(tmp_path, scale):
    for read in (
        lambda: ReplayAgent(str(tmp_path), "x", time_scale=scale),
        lambda: replay_specs(tmp_path, time_scale=scale),
    ):
        with pytest.raises(ConfigError, match="time_scale: wants a number of at least 0"):
            read()


# ── reading once ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_agents_of_one_process_read_a_set_once_and_again_when_it_was_written_anew(tmp_path, monkeypatch):
    read = []
    really = replay._read

    def counting(file, *columns):
        read.append(file.name)
        return really(file, *columns)

    monkeypatch.setattr(replay, "_read", counting)
    directory = small(tmp_path)
    for agent_id in ("x/1", "y", "x/1"):
        ReplayAgent(str(directory), agent_id)
    assert read == ["outcomes.parquet"]
    small(tmp_path, success=[0, 0, 0, 0])
    assert not ReplayAgent(str(directory), "x/1").recorded(labelled("a")).success
    assert read == ["outcomes.parquet"] * 2


# ── classes and tasks ────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_recorded_agent_becomes_a_class_of_agents_with_a_legal_name_of_its_own(tmp_path):
    ids = ["acme/Big 7b", "acme/Big.7b", "acme Big-7b", "acme?Big-7b", "агент", "agent", "-_.", "x" * 300, "x" * 301]
    write(tmp_path, "outcomes", prompt_id=["a"] * len(ids), agent_id=ids, success=[1] * len(ids))
    specs = replay_specs(tmp_path, time_scale=0.5, fail=True, slots=3, capability="old", count=2, tier="primary")
    assert [spec.agent_id for spec in specs] == sorted(ids)
    assert len({spec.name for spec in specs}) == len(ids)
    tiers = load_config(None, {}).tiers
    for spec in specs:
        made = make_spec(tiers=tiers, **spec.arguments)
        assert (made.name, made.count, made.tier, made.slots) == (spec.name, 2, "primary", 3)
        assert made.capabilities == ("old",) and made.target == "flowray.testing.replay:ReplayAgent"
        assert ReplayAgent(**made.options).recorded(labelled("a")).success
        assert made.options["agent_id"] == spec.agent_id
    by_id = {spec.agent_id: spec.name for spec in specs}
    assert by_id["acme/Big.7b"] == "acme-Big.7b"
    assert replay_specs(tmp_path, capability="")[0].arguments["capabilities"] == ()


def test_tasks_come_in_order_with_the_label_that_finds_their_outcome(tmp_path):
    small(tmp_path)
    assert replay_tasks(tmp_path, "test") == [("two", {"prompt_id": "b"}), ("two", {"prompt_id": "c"})]
    assert [labels["prompt_id"] for _, labels in replay_tasks(tmp_path)] == ["a", "b", "c"]
    with pytest.raises(
        ConfigError, match=r"^split: no task of .*tasks\.parquet is in 'holdout' \(it has test, train\)$"
    ):
        replay_tasks(tmp_path, "holdout")


# ── whole runs ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_simulated_runtime_gives_the_outcomes_of_the_table_in_its_time(made):
    sim = Simulation(seed=3)
    specs = replay_specs(made)
    for spec in specs:
        agent = ReplayAgent(**spec.arguments["options"])
        sim.agents.add(**spec.arguments, service_s=lambda task, agent=agent: agent.recorded(task).latency_s)
    table = {(row["prompt_id"], row["agent_id"]): row for row in pq.read_table(made / "outcomes.parquet").to_pylist()}
    handles = {
        (labels["prompt_id"], spec.agent_id): sim.submit(text, labels=labels, agent=spec.name, needs={"replay"})
        for text, labels in replay_tasks(made)
        for spec in specs
    }
    assert len(handles) == len(table) == 180
    for key, handle in handles.items():
        then, outcome = table[key], handle.outcome()
        assert handle.result() == {"agent": key[1], "success": then["success"] == 1}
        assert (outcome.quality, outcome.cost_usd) == (then["score"], then["cost_usd"])
        assert outcome.run_s == pytest.approx(then["latency_s"])


def test_in_a_simulation_the_errors_reach_the_caller(made):
    sim = Simulation()
    spec = replay_specs(made)[0]
    sim.agents.add(**spec.arguments)
    with pytest.raises(TaskFailed, match="InvalidTask: prompt: no task of"):
        sim.submit("never asked").result()
    unknown = {**spec.arguments, "name": "unknown", "options": {"data": str(made), "agent_id": "nobody"}}
    sim.agents.add(**unknown)
    with pytest.raises(TaskFailed, match=r"agent_id: .* has no outcomes of 'nobody'"):
        sim.submit("x", agent="unknown").result()


def test_it_reads_what_the_routers_reader_reads(made):
    """Another reader of the same schema, which fills what was not recorded by the same rules."""
    whole = data.load(made)
    specs = replay_specs(made)
    assert {spec.agent_id for spec in specs} == set(whole.agents.agent_ids)
    assert sorted(labels["prompt_id"] for _, labels in replay_tasks(made)) == sorted(whole.prompt_ids)
    for spec in (specs[0], specs[-1]):
        agent = ReplayAgent(**spec.arguments["options"])
        column = whole.outcomes.take(slice(None), [whole.agents.agent_ids.index(spec.agent_id)])
        then = [agent.recorded(labelled(prompt_id)) for prompt_id in whole.prompt_ids]
        for field in ("success", "quality", "latency_s", "cost_usd"):
            mine = np.array([getattr(one, field) for one in then], dtype=np.float32)
            np.testing.assert_allclose(
                mine, getattr(column, field)[:, 0], rtol=1e-6, err_msg=f"{spec.agent_id} {field}"
            )


def test_requests_have_what_a_router_reads_of_the_tasks(tmp_path):
    directory = small(tmp_path)
    assert replay_requests(directory, "train", needs={"replay"}) == [
        {"prompt": "one", "labels": {"prompt_id": "a"}, "choices": "", "tools": "", "counts": {}, "needs": {"replay"}}
    ]
    write(
        directory,
        "tasks",
        prompt_id=["a", "b"],
        text=["one", "two"],
        split=["train", "test"],
        tools_text=["add: adds", None],
        choices=[None, "['yes', 'no']"],
        n_params=[2.0, None],
        n_options=[float("nan"), 2.0],
    )
    first, second = replay_requests(directory)
    assert (first["tools"], first["choices"], first["counts"]) == ("add: adds", "", {"n_params": 2.0})
    assert (second["tools"], second["choices"], second["counts"]) == ("", "['yes', 'no']", {"n_options": 2.0})
    with pytest.raises(ConfigError, match=r"no task of .* is in 'val'"):
        replay_requests(directory, "val")

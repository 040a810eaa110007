"""A runtime's own outcomes as an outcome set: what was recorded comes back, and a router learns from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.core.model import AgentSpec, Asked, Choice, Grade, NotEnough, Recorded, TaskId
from flowray.core.states import TaskState
from flowray.errors import ConfigError
from flowray.routing import data, evaluation, exporting, training
from flowray.routing.estimator import RouterEstimator
from flowray.routing.exporting import write_set

from .logs import outcome, routed
from .routers import CONFIG, SHAPE, trades


def kept(number: int = 1, *, text: str | None = None, grade: float | None = None, **fields) -> Recorded:
    return Recorded(
        outcome=outcome(number, **fields),
        asked=Asked(text or f"question {number}"),
        grade=None if grade is None else Grade(TaskId(f"t-{number:06d}"), grade, 99.0),
    )


def cell(whole: data.OutcomeSet, task_id: str, agent_id: str) -> tuple[float, float, float, float]:
    row, column = whole.prompt_ids.index(task_id), whole.agents.agent_ids.index(agent_id)
    made = whole.outcomes
    return tuple(float(m[row, column]) for m in (made.success, made.quality, made.latency_s, made.cost_usd))


def test_tasks_come_back_in_the_order_in_which_they_ended_and_are_split_by_it(tmp_path):
    given = [kept(number, cost_usd=0.25) for number in range(20)]
    assert write_set(tmp_path / "own", reversed(given), val=0.2, test=0.1) == 20
    whole = data.load(tmp_path / "own")
    assert whole.prompt_ids == tuple(f"t-{number:06d}" for number in range(20))
    assert whole.splits == ("train",) * 14 + ("val",) * 4 + ("test",) * 2
    assert whole.tasks.texts[3] == "question 3"
    assert whole.timed
    assert cell(whole, "t-000003", "small") == (1.0, 1.0, 0.5, 0.25)


def test_a_task_that_several_agents_tried_has_several_outcomes(tmp_path):
    """The first was not enough, the second broke down, the third was lost, the fourth answered."""
    choices = tuple(routed(name) for name in ("small", "middle", "middle2", "large"))
    one = outcome(
        choices=choices,
        ends=("attempt_failed", "attempt_failed", "requeued"),
        quality=0.9,
        cost_usd=0.5,
        not_enough=(NotEnough(1, 0.3, 1.5, 0.01),),
    )
    assert write_set(tmp_path, [Recorded(outcome=one, asked=Asked("hard", "a\nb", "x: one ; y: two"))]) == 1
    whole = data.load(tmp_path)
    assert whole.agents.agent_ids == ("large", "middle", "small")
    assert cell(whole, "t-000001", "small") == pytest.approx((0.0, 0.3, 1.5, 0.01))
    assert cell(whole, "t-000001", "middle") == pytest.approx((0.0, 0.0, np.nan, np.nan), nan_ok=True)
    assert cell(whole, "t-000001", "large") == pytest.approx((1.0, 0.9, 0.5, 0.5))
    assert (whole.tasks.choices, whole.tasks.tools, whole.tasks.n_tools[0]) == (("a\nb",), ("x: one ; y: two",), 2.0)


def test_the_last_attempt_of_a_class_at_a_task_counts(tmp_path):
    one = kept(choices=(routed("small"), routed("small")), ends=("attempt_failed",), quality=0.7)
    assert write_set(tmp_path, [one]) == 1
    assert cell(data.load(tmp_path), "t-000001", "small")[:2] == pytest.approx((1.0, 0.7))


def test_a_grade_is_the_score(tmp_path):
    write_set(tmp_path, [kept(1, quality=0.9, grade=0.2), kept(2, grade=0.0), kept(3)])
    whole = data.load(tmp_path)
    assert whole.outcomes.quality[:, 0] == pytest.approx([0.2, 0.0, 1.0])
    assert whole.outcomes.success[:, 0] == pytest.approx([0.0, 0.0, 1.0])  # known to be worth less than half


def test_what_nobody_can_judge_and_what_has_no_text_is_left_out(tmp_path):
    given = [
        outcome(1),  # nothing was kept
        kept(2, state=TaskState.CANCELLED, kind="cancelled"),
        kept(3, state=TaskState.DEAD, kind="agent_lost"),
        kept(4, state=TaskState.DEAD),
        kept(5, choices=(Choice("only_one", 1, (("middle-0", 0.0),)), routed("large")), ends=("attempt_failed",)),
    ]
    assert write_set(tmp_path, given) == 2
    whole = data.load(tmp_path)
    assert whole.prompt_ids == ("t-000004", "t-000005")
    assert cell(whole, "t-000004", "small")[0] == 0.0
    assert cell(whole, "t-000005", "middle")[0] == 0.0  # not routed, and tried all the same


def test_classes_are_described_where_they_are_known(tmp_path):
    spec = AgentSpec(name="small", tier="primary", capabilities=("rhyme", "write"))
    write_set(tmp_path, [kept(1), kept(2, choices=(routed("large"),))], specs={"small": spec, "other": spec})
    assert data.load(tmp_path).agents.descriptions == ("large", "small; rhyme, write; tier primary")


def test_only_the_newest_are_kept_and_an_older_set_is_replaced(tmp_path):
    write_set(tmp_path, [kept(number) for number in range(9)])
    assert write_set(tmp_path, [kept(number, choices=(routed("large"),)) for number in range(30)], most=10) == 10
    whole = data.load(tmp_path)
    assert whole.prompt_ids == tuple(f"t-{number:06d}" for number in range(20, 30))
    assert whole.agents.agent_ids == ("large",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agents.parquet", "outcomes.parquet", "tasks.parquet"]
    assert write_set(tmp_path, []) == 0
    assert data.load(tmp_path).prompt_ids == whole.prompt_ids  # nothing to write, nothing written


@pytest.mark.parametrize("wrong", [{"val": -0.1}, {"test": 1.0}, {"val": 0.5, "test": 0.5}, {"most": 0}])
def test_what_makes_no_set_is_refused(tmp_path, wrong):
    with pytest.raises(ConfigError):
        write_set(tmp_path, [kept()], **wrong)


@given(st.integers(1, 60), st.floats(0, 0.49), st.floats(0, 0.49))
def test_every_split_comes_after_the_one_before_and_train_is_never_empty(count, val, test):
    ended = [exporting._ended(kept(number)) for number in range(count)]
    splits = [row["split"] for row in exporting._tasks(ended, val, test)]
    assert splits == sorted(splits, key=["train", "val", "test"].index)
    assert "train" in splits and len(splits) == count


def own(tmp_path) -> data.OutcomeSet:
    """The two trades as a runtime would have seen them: of each task one or two agents."""
    rng, whole = np.random.default_rng(3), trades()
    names = whole.agents.agent_ids
    told = []
    for number, text in enumerate(whole.tasks.texts):
        first, second = rng.permutation(len(names))[:2]
        good = [bool(whole.outcomes.success[number, place]) for place in (first, second)]
        made = [names[first]] if good[0] else [names[first], names[second]]
        state = TaskState.SUCCEEDED if any(good) else TaskState.DEAD
        choices = tuple(routed(name) for name in made)
        told.append(kept(number, text=text, state=state, choices=choices, ends=("attempt_failed",) * (len(made) - 1)))
    assert write_set(tmp_path / "own", told, val=0.2, test=0.2) == len(whole)
    return data.load(tmp_path / "own")


@pytest.mark.parametrize("with_baselines", [False, True])
def test_a_router_is_trained_and_judged_on_it(tmp_path, with_baselines):
    mine = own(tmp_path)
    assert np.isnan(mine.outcomes.success).mean() > 0.5
    made = training.train([mine], replace(CONFIG, outcome_epochs=2), SHAPE)
    assert set(made.digests) == {"own"}
    found = evaluation.evaluate(RouterEstimator(made.network), mine, with_baselines=with_baselines, resamples=0)
    assert found.n_tasks == 48
    success = found.metrics["success_accuracy"].router
    assert success is not None and success > 0.5

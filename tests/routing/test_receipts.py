"""Receipts as tables: one row for each routed attempt, with what came of that attempt and of no other."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec import structs

from flowray.core.model import Asked, Choice, Grade, NotEnough, Recorded, StoryLine, TaskId
from flowray.core.states import TaskState
from flowray.routing import receipts
from flowray.routing.tables import SchemaError

from .logs import outcome, routed


def rows(*outcomes):
    return receipts.tabled(outcomes).to_pylist()


def test_a_row_has_the_receipt_and_what_came_of_it():
    [row] = rows(Recorded(outcome=outcome(quality=0.7, cost_usd=0.02), asked=Asked("Summarise")))
    assert (row["task_id"], row["attempt"], row["prompt"]) == ("t-000001", 1, "Summarise")
    assert (row["accepted_at"], row["started_at"], row["resolved_at"]) == (1.0, 1.25, 2.0)
    assert (row["chosen"], row["agent_id"]) == ("small", "small-0")
    assert row["candidates"] == ["large", "small"]
    assert row["estimated_quality"] == [0.8, None] and row["estimated_cost_usd"] == [0.03, None]
    assert row["values"] == [0.8, 0.6] and row["propensities"] == [0.75, 0.25]
    assert (row["reward"], row["quality"], row["run_s"], row["cost_usd"]) == (0.7, 0.7, 0.5, 0.02)
    assert row["state"] == "succeeded"


def test_an_answer_without_a_quality_earns_one():
    [row] = rows(outcome())
    assert (row["reward"], row["quality"], row["cost_usd"], row["prompt"]) == (1.0, None, None, None)


def test_a_grade_is_the_quality_and_the_reward_of_the_answer_alone():
    made = outcome(choices=(routed("small"), routed("large")), ends=("attempt_failed",), quality=0.9)
    first, last = rows(Recorded(outcome=made, grade=Grade(TaskId("t-000001"), 0.0, 9.0)))
    assert (first["reward"], first["quality"], first["grade"]) == (0.0, None, None)
    assert (last["reward"], last["quality"], last["grade"]) == (0.0, 0.0, 0.0)


def test_an_earlier_answer_that_was_not_enough_earns_what_it_was_worth():
    made = outcome(
        choices=(routed("small"), routed("large")),
        ends=("attempt_failed",),
        not_enough=(NotEnough(1, 0.3, 1.5, 0.01),),
    )
    first, last = rows(made)
    assert (first["reward"], first["quality"], first["run_s"], first["cost_usd"]) == (0.3, 0.3, 1.5, 0.01)
    assert (first["tried"], last["tried"]) == ([], ["small"])


def test_what_a_choice_followed_from_is_told():
    told = {"waits_s": (0.0, 2.0), "remaining_s": 9.0, "thrift": 0.9, "max_cost_usd": 0.1}
    names = ("waits_s", "remaining_s", "thrift", "max_cost_usd")
    free, busy, old = (routed(**fields) for fields in ({"waits_s": ()}, told, {}))
    found = [
        [row[name] for name in names]
        for row in rows(*(outcome(n, choices=(c,)) for n, c in enumerate((free, busy, old))))
    ]
    assert found == [[[0.0, 0.0], None, None, None], [[0.0, 2.0], 9.0, 0.9, 0.1], [None, None, None, None]]


def test_a_file_from_before_the_later_columns_is_read_with_nulls(tmp_path):
    file = tmp_path / "old.parquet"
    table = receipts.tabled([outcome(1), outcome(2)])
    later = [
        "choices",
        "tools",
        "tried",
        "waits_s",
        "remaining_s",
        "thrift",
        "max_cost_usd",
        "grade",
        "extras",
        "weights",
    ]
    pq.write_table(table.drop_columns(later), file)
    found = receipts.read(file)
    assert found.column_names == receipts.SCHEMA.names
    assert all(found.column(name).null_count == 2 for name in later)
    assert found.column("reward").to_pylist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("state", "kind", "reward"),
    [
        (TaskState.DEAD, "application", 0.0),
        (TaskState.DEAD, "timeout", 0.0),
        (TaskState.DEAD, "quality", 0.0),
        (TaskState.DEAD, "agent_lost", None),
        (TaskState.DEAD, "poison", None),
        (TaskState.CANCELLED, "cancelled", None),
        (TaskState.EXPIRED, "deadline", None),
    ],
)
def test_without_an_answer_only_the_agents_own_failure_earns_nothing(state, kind, reward):
    [row] = rows(outcome(state=state, kind=kind))
    assert (row["reward"], row["run_s"], row["state"]) == (reward, None, state.value)


def test_an_answer_that_was_not_enough_earns_what_it_was_worth():
    [row] = rows(outcome(state=TaskState.DEAD, kind="quality", quality=0.3))
    assert (row["reward"], row["state"]) == (0.3, "dead")


def test_each_attempt_earns_what_came_of_itself():
    """The first failed, the second's agent was lost, the third answered."""
    choices = (routed("small"), routed("large"), routed("large"))
    made = rows(outcome(choices=choices, ends=("attempt_failed", "requeued"), quality=0.9, cost_usd=0.5))
    assert [row["attempt"] for row in made] == [1, 2, 3]
    assert [row["reward"] for row in made] == [0.0, None, 0.9]
    assert [row["cost_usd"] for row in made] == [None, None, 0.5]
    assert [row["started_at"] for row in made] == [1.25, 2.25, 3.25]


def test_of_two_attempts_the_one_that_answered_earned_it():
    """The second was started beside the first, which answered: nobody knows what the second would have earned."""
    first, second = routed("small"), structs.replace(routed("large"), policy="copy")
    made = outcome(choices=(first, second), quality=0.9)
    end = StoryLine(made.resolved_at, "succeeded", 1, "small-0")
    made = structs.replace(made, agent_id="small-0", story=(*made.story[:-1], end))
    assert [(row["attempt"], row["agent_id"], row["reward"]) for row in rows(made)] == [
        (1, "small-0", 0.9),
        (2, "large-0", None),
    ]


def test_a_task_given_up_while_it_waited_keeps_what_its_attempts_earned():
    [row] = rows(outcome(state=TaskState.DEAD, kind="no_agent", ends=("attempt_failed",)))
    assert (row["reward"], row["agent_id"]) == (0.0, "small-0")


def test_attempts_without_a_receipt_have_no_row_and_keep_their_number():
    made = rows(outcome(choices=(Choice("only_one", 1, (("small-0", 0.0),)), routed("large")), ends=("requeued",)))
    assert [(row["attempt"], row["chosen"]) for row in made] == [(2, "large")]


def test_a_story_that_lost_its_middle_makes_nothing_up():
    [first, last] = rows(outcome(choices=(routed("small"), routed("large")), ends=("attempt_failed",), told=2))
    assert (first["started_at"], first["agent_id"], first["reward"]) == (None, "", None)
    assert (last["attempt"], last["agent_id"], last["reward"]) == (2, "large-0", 1.0)


def test_a_file_gives_back_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(receipts, "_ROWS", 3)  # so that it is written in parts
    given = [outcome(number, quality=number / 10) for number in range(8)]
    file = tmp_path / "receipts.parquet"
    assert receipts.write(file, iter(given)) == 8
    assert receipts.read(file).equals(receipts.tabled(given))
    assert pq.ParquetFile(file).num_row_groups == 3
    assert [path.name for path in tmp_path.iterdir()] == ["receipts.parquet"]


def test_what_breaks_while_writing_leaves_the_old_file(tmp_path):
    file = tmp_path / "receipts.parquet"
    receipts.write(file, [outcome()])

    def broken():
        yield outcome()
        raise RuntimeError("the journal is torn")

    with pytest.raises(RuntimeError):
        receipts.write(file, broken())
    assert receipts.read(file).num_rows == 1
    assert [path.name for path in tmp_path.iterdir()] == ["receipts.parquet"]


def test_a_frame_is_one_call(tmp_path):
    file = tmp_path / "receipts.parquet"
    receipts.write(file, [outcome(1), outcome(2)])
    for source in (file, receipts.read(file), [outcome(1), outcome(2)]):
        frame = receipts.frame(source)
        assert list(frame.columns) == receipts.SCHEMA.names and list(frame["reward"]) == [1.0, 1.0]


WRONG = [
    (lambda table: None, "is not there"),
    (lambda table: table.replace_schema_metadata({}), "does not hold receipts"),
    (lambda table: table.replace_schema_metadata({"flowray.receipts": "9"}), "follows schema 9 of receipts"),
    (lambda table: table.drop_columns("reward"), "column 'reward': is missing"),
    (lambda table: table.set_column(1, "attempt", pa.array(["one"])), "column 'attempt': is of type string"),
    (lambda table: table.set_column(6, "chosen", pa.array([None], pa.string())), "column 'chosen': is null in 1 rows"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_a_file_of_another_schema_is_refused_by_name(tmp_path, change, words):
    file = tmp_path / "other.parquet"
    changed = change(receipts.tabled([outcome()]))
    if changed is not None:
        pq.write_table(changed, file)
    with pytest.raises(SchemaError, match=words) as caught:
        receipts.read(file)
    assert caught.value.file == str(file)


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "x").write_text("hello")
    with pytest.raises(SchemaError, match="cannot be read as Parquet"):
        receipts.read(tmp_path / "x")

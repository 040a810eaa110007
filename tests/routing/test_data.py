"""Outcome sets: what is read, what is refused and in which words."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from flowray.routing import data
from flowray.routing.estimates import AgentBatch
from flowray.routing.tables import SchemaError

from .sets import small, two_trades, write


def test_outcomes_become_matrices_with_nan_where_nobody_tried(tmp_path):
    read = data.load(write(tmp_path / "mine", **small()))
    assert read.name == "mine"
    nan = np.nan
    np.testing.assert_array_equal(read.outcomes.success, [[1, 0], [1, nan], [nan, 1]])
    np.testing.assert_array_equal(read.outcomes.quality, read.outcomes.success)  # no score: the success
    assert np.isnan(read.outcomes.cost_usd).all()
    assert read.agents.descriptions == ("x", "y")


def test_a_split_is_a_set_of_its_own(tmp_path):
    val = data.load(write(tmp_path, **small())).split("val")
    assert (val.prompt_ids, len(val)) == (("b",), 1)
    assert len(val.split("train")) == 0


def test_histories_follow_the_agents_that_are_asked_about(tmp_path):
    read = data.load(write(tmp_path, **small()))
    past = read.histories(agents=AgentBatch.of_ids(("y", "stranger", "x")))
    np.testing.assert_array_equal(past.outcomes.success, [[0, np.nan, 1]])
    assert past.tasks.texts == ("one",)


def test_an_agent_is_described_by_all_the_words_there_are(tmp_path):
    agents = {"description": ["good at sums", ""], "model": ["gpt", "gpt"], "params_b": [7.0, None]}
    read = data.load(write(tmp_path, **small(agents=agents)))
    assert read.agents.descriptions == ("x; good at sums; gpt", "y; gpt")
    np.testing.assert_array_equal(read.agents.params_b, [7, np.nan])


def test_without_a_recorded_cost_an_attempt_costs_a_thousand_tokens(tmp_path):
    agents = {"price_in_per_m": [1.0, 10.0], "price_out_per_m": [3.0, 10.0]}
    read = data.load(write(tmp_path, **small(agents=agents)))
    np.testing.assert_allclose(read.outcomes.cost_usd, [[0.002, 0.01], [0.002, np.nan], [np.nan, 0.01]])


def test_a_recorded_cost_is_kept(tmp_path):
    agents = {"price_in_per_m": [1.0, 10.0], "price_out_per_m": [3.0, 10.0]}
    read = data.load(write(tmp_path, **small(agents=agents, outcomes={"cost_usd": [0.5, None, None, None]})))
    assert np.nansum(read.outcomes.cost_usd) == 0.5


@pytest.mark.parametrize(
    ("choices", "n_options"),
    [
        ("['a', 'b']", 2),
        ('["a", "b", "c"]', 3),
        ("{'text': ['a', 'b'], 'label': ['A', 'B']}", 2),
        ("a) yes b) no", np.nan),
        ("", np.nan),
        ("[" * 5000, np.nan),
    ],
)
def test_choices_are_counted(tmp_path, choices, n_options):
    read = data.load(write(tmp_path, **small(tasks={"choices": [choices, "", ""]})))
    np.testing.assert_array_equal(read.tasks.n_options[0], n_options)


def test_tasks_with_a_time_are_put_in_order(tmp_path):
    read = data.load(write(tmp_path, **small(outcomes={"at_utc": [30.0, 20.0, 10.0, 40.0]})))
    assert read.timed
    assert read.prompt_ids == ("b", "a", "c")
    np.testing.assert_array_equal(read.outcomes.success, [[1, np.nan], [1, 0], [np.nan, 1]])


def test_a_set_may_have_labels_alone(tmp_path):
    tables = small(tasks={"intent": ["greet", "oos", None]})
    read = data.load(write(tmp_path, tasks=tables["tasks"]))
    assert (len(read.agents), read.labels["intent"]) == (0, ("greet", "oos", ""))


def test_agents_may_come_from_the_outcomes_or_from_another_set(tmp_path):
    tables = small(agents={"has_cost": [True, False], "agent_split": ["seen", "unseen"]})
    whole = data.load(write(tmp_path / "whole", **tables))
    bare = write(tmp_path / "bare", tasks=tables["tasks"], outcomes=tables["outcomes"])
    alone, like = data.load(bare), data.load(bare, like=whole)
    assert alone.agents.agent_ids == ("x", "y")
    assert alone.pool.tolist() == [True, True]
    assert (like.pool.tolist(), like.seen.tolist()) == ([True, False], [True, False])


WRONG = [
    ("tasks", {"text": None}, "text", "add it; the file has prompt_id, split"),
    ("tasks", {"text": ["one", None, "three"]}, "text", "null in 1 of 3 rows"),
    ("tasks", {"prompt_id": ["a", "a", "c"]}, "prompt_id", "'a' is in two rows"),
    ("tasks", {"split": None}, "split", "is missing"),
    ("tasks", {"group_id": ["g", "g", "h"]}, "group_id", "the splits 'train' and 'val'"),
    ("tasks", {"n_tools": [1, -1, 1]}, "n_tools", "row 1 holds -1, outside 0 to inf"),
    ("agents", {"agent_id": None, "name": ["x", "y"]}, "agent_id", "is missing"),
    ("agents", {"price_in_per_m": ["cheap", "dear"]}, "price_in_per_m", "store it as double"),
    ("outcomes", {"success": None}, "success", "is missing"),
    ("outcomes", {"success": [1.0, 0.5, 0.0, 1.0]}, "success", "something else than 0 and 1"),
    ("outcomes", {"success": [1, 0, 2, 1]}, "success", "row 2 holds 2"),
    ("outcomes", {"success": [1, 0, None, 1]}, "success", "something else than 0 and 1"),
    ("outcomes", {"score": [1.0, 0.5, 1.5, 1.0]}, "score", "outside 0 to 1"),
    ("outcomes", {"cost_usd": [1.0, float("inf"), 1.0, 1.0]}, "cost_usd", "holds inf"),
    ("outcomes", {"latency_s": [1.0, -0.5, 1.0, 1.0]}, "latency_s", "store null where it is unknown"),
    ("outcomes", {"prompt_id": ["a", "a", "b", "z"]}, "prompt_id", "'z' is not in tasks.parquet"),
    ("outcomes", {"agent_id": ["x", "y", "x", "z"]}, "agent_id", "'z' is not in agents.parquet"),
    ("outcomes", {"agent_id": ["x", "x", "x", "y"]}, "prompt_id", "two rows for task 'a' and agent 'x'"),
]


@pytest.mark.parametrize(("table", "change", "column", "words"), WRONG)
def test_what_breaks_the_schema_is_refused_by_file_and_column(tmp_path, table, change, column, words):
    directory = write(tmp_path, **small(**{table: change}))
    with pytest.raises(SchemaError) as caught:
        data.load(directory)
    assert (caught.value.file, caught.value.column) == (str(directory / f"{table}.parquet"), column)
    assert words in str(caught.value)


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    directory = write(tmp_path, **small())
    (directory / "agents.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(SchemaError, match="cannot be read as Parquet"):
        data.load(directory)


def test_more_cells_than_fit_into_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MAX_CELLS", 5)
    with pytest.raises(SchemaError, match="3 tasks x 2 agents are too many"):
        data.load(write(tmp_path, **small()))


def test_a_schema_error_survives_a_process_boundary():
    error = SchemaError("f", "c", "is odd", "make it even")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.file, again.column) == (str(error), "f", "c")


def test_sets_are_found_in_a_directory_of_sets(tmp_path):
    for name in ("two", "one"):
        write(tmp_path / name, **small())
    (tmp_path / "no-set").mkdir()
    assert [path.name for path in data.find([tmp_path, tmp_path / "two"])] == ["one", "two"]
    with pytest.raises(SchemaError, match="holds no set"):
        data.find([tmp_path / "no-set"])
    with pytest.raises(SchemaError, match="is not there"):
        data.find([tmp_path / "nowhere"])


def test_the_digest_knows_the_content_and_not_the_place(tmp_path):
    first, same = (two_trades(tmp_path / name, n_tasks=12) for name in ("first", "same"))
    other = two_trades(tmp_path / "other", n_tasks=12, seed=1)
    assert data.digest_of(first) == data.digest_of(same) != data.digest_of(other)


def test_dictionary_columns_are_text(tmp_path):
    tables = small()
    tables["tasks"]["split"] = pa.array(tables["tasks"]["split"]).dictionary_encode()
    assert data.load(write(tmp_path, **tables)).splits == ("train", "val", "test")

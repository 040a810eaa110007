"""Inputs as people have them: fine, broken in one line, or not there at all; and the tables that come out."""

from __future__ import annotations

import itertools
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.config import JobConfig
from flowray.errors import ConfigError
from flowray.jobs import Result
from flowray.mapping import MappingJob
from flowray.results import Spool, as_scalar, output_file
from flowray.sources import Row, open_source


def rows(path: Path, **options: Any) -> list[Row]:
    source = open_source(path, **options)
    found = list(source.rows())
    assert source.check() == len(found)
    return found


def problem(path: Path, **options: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        open_source(path, **options).check()
    return caught.value


def test_jsonl_rows_are_payloads_and_blank_lines_are_nothing(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"a": 1}\n\n{"a": [2, "x"]}\n')
    assert rows(file) == [
        Row(key="00000000", prompt="", payload={"a": 1}),
        Row(key="00000001", prompt="", payload={"a": [2, "x"]}),
    ]


def test_prompt_and_key_columns(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"id": 7, "text": "hello"}\n')
    assert rows(file, prompt="text", key="id") == [Row(key="7", prompt="hello", payload={"id": 7})]


def test_a_row_of_nothing_but_a_prompt_has_no_payload(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"text": "hello"}\n')
    assert rows(file, prompt="text")[0].payload is None


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ('{"a": 1}\n{"a": \n', "in.jsonl:2", "is not JSON"),
        ('{"a": 1}\n\n[1]\n', "in.jsonl:3", "wants an object, got list"),
        ('{"a": "\udcff"}\n', "in.jsonl:1", "is not JSON"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, text: str, where: str, what: str) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    error = problem(file)
    assert error.field.endswith(where)
    assert what in error.problem


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"text": "x"}\n{"txt": "y"}\n')
    error = problem(file, prompt="text")
    assert error.field.endswith("in.jsonl:2")
    assert "no column 'text' (job.prompt)" in error.problem
    assert error.hint == "it has: txt"


def test_a_key_that_appears_twice_names_both_lines(tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_text("id,x\na,1\nb,2\na,3\n")
    error = problem(file, key="id")
    assert error.field.endswith("in.csv:4")
    assert (error.problem, error.hint) == ("id 'a' appears again", "first on line 2")


def test_csv_with_quotes_newlines_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_bytes('\ufeffid,text\n1,"a, ""b""\nc"\n2,ü\n'.encode())
    assert [row.payload for row in rows(file)] == [{"id": "1", "text": 'a, "b"\nc'}, {"id": "2", "text": "ü"}]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        (b"a,b\n1\n", "in.csv:2", "has 1 cells and the header has 2"),
        (b"a,a\n1,2\n", "in.csv:1", "appears twice"),
        (b'a,b\n1,"x\n', "in.csv:2", "is not CSV"),
        (b"a,b\n1,\xff\n", "in.csv", "is not UTF-8"),
    ],
)
def test_a_malformed_csv_is_named(tmp_path: Path, text: bytes, where: str, what: str) -> None:
    file = tmp_path / "in.csv"
    file.write_bytes(text)
    error = problem(file)
    assert error.field.endswith(where)
    assert what in error.problem


def test_parquet_rows(tmp_path: Path) -> None:
    file = tmp_path / "in.parquet"
    pd.DataFrame({"id": [1, 2], "text": ["x", None]}).to_parquet(file)
    assert [row.payload["id"] for row in rows(file)] == [1, 2]
    assert rows(file, prompt="text")[1].prompt == ""


def test_a_file_that_only_says_it_is_parquet(tmp_path: Path) -> None:
    file = tmp_path / "in.parquet"
    file.write_text("no")
    assert "is no Parquet file" in problem(file).problem


def test_what_is_not_there_or_not_known(tmp_path: Path) -> None:
    assert "no such file" in problem(tmp_path / "none.jsonl").problem
    (tmp_path / "in.xlsx").touch()
    error = problem(tmp_path / "in.xlsx")
    assert "cannot read .xlsx" in error.problem
    assert ".jsonl, .ndjson, .csv, .parquet, or a directory" in error.hint


def test_a_directory_is_its_visible_files_but_not_our_own_output(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.txt", ".git/config", "a/.hidden", "out/results.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = rows(tmp_path, leave_out=tmp_path / "out")
    assert [row.prompt for row in found] == ["a/c.txt", "b.txt"]
    assert found[1].payload == {"path": str(tmp_path / "b.txt")}
    assert [row.prompt for row in rows(tmp_path, glob=".git/*")] == [".git/config"]


def test_a_changed_file_is_another_request_under_the_same_key(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("one")
    before = rows(tmp_path)[0]
    (tmp_path / "x.txt").write_text("two")
    after = rows(tmp_path)[0]
    assert (before.key, before.payload) == (after.key, after.payload)
    assert before.digest != after.digest


def test_a_directory_without_a_match(tmp_path: Path) -> None:
    assert "no file that matches '*.md'" in problem(tmp_path, glob="*.md").problem
    assert "cannot be used" in problem(tmp_path, glob="/abs").problem


# ── results ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def written(results: list[Result], file: Path, *, timing: bool = True) -> Path:
    spool = Spool()
    for result in results:
        spool.add(result)
    assert spool.write(file, timing=timing) == len({result.key for result in results})
    spool.close()
    return file


RESULTS = [
    Result(key="b", value={"z": 1, "a": [True, None]}, agent_id="x-1", attempts=2, run_s=0.5),
    Result(key="a", value="text", agent_id="x-0"),
    Result(key="c", error="ValueError: no", state="dead"),
]


def test_jsonl_is_sorted_by_key_and_keeps_errors(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in written(RESULTS, tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["a", "b", "c"]
    assert lines[1]["value"] == '{"a":[true,null],"z":1}'
    assert lines[2]["state"] == "dead"
    assert (lines[2]["value"], lines[2]["error"], lines[2]["agent_id"]) == (None, "ValueError: no", None)


@pytest.mark.parametrize("extension", ["jsonl", "parquet"])
def test_the_order_of_results_does_not_show(tmp_path: Path, extension: str) -> None:
    seen = set()
    for number, order in enumerate(itertools.permutations(RESULTS)):
        seen.add(written(list(order), tmp_path / f"{number}.{extension}", timing=False).read_bytes())
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1, 2], "int64"), ([1.5, None], "float64"), (["a", "b"], "str"), ([True, False], "bool"), ([1, "a"], "str")],
)
def test_a_value_column_has_the_type_of_its_values(tmp_path: Path, values: list[Any], kind: str) -> None:
    results = [Result(key=str(n), value=value) for n, value in enumerate(values)]
    frame = pd.read_parquet(written(results, tmp_path / "r.parquet"))
    assert str(frame["value"].dtype) == kind
    assert list(frame.columns) == ["key", "state", "value", "error", "agent_id", "attempts", "run_s"]


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    frame = pd.read_parquet(written([], tmp_path / "r.parquet", timing=False))
    assert list(frame.columns) == ["key", "state", "value", "error"]
    assert len(frame) == 0


def test_values_that_json_does_not_know() -> None:
    assert as_scalar(np.float32(1.5)) == 1.5
    assert as_scalar({"a": np.arange(2), "p": Path("/x")}) == '{"a":[0,1],"p":"/x"}'
    assert as_scalar(float("nan")) == "nan"
    assert as_scalar(1 << 70) == str(1 << 70)
    assert as_scalar({(1, 2): "x"}) == "{(1, 2): 'x'}"
    circle: list[Any] = []
    circle.append(circle)
    assert as_scalar(circle) == "[[...]]"


def test_half_characters_are_spelled_out_and_spoil_no_table(tmp_path: Path) -> None:
    results = [
        Result(key="\ud800", value="x\ud800"),
        Result(key="b", value={"a": "\ud800"}),
        Result(key="c", error="\udc80"),
    ]
    lines = [json.loads(line) for line in written(results, tmp_path / "r.jsonl").read_text().splitlines()]
    assert [(line["key"], line["value"]) for line in lines[:1]] == [("\\ud800", "x\\ud800")]
    assert len(pd.read_parquet(written(results, tmp_path / "r.parquet"))) == 3


TEXT = st.text(st.characters())  # half characters too


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | TEXT, st.lists, max_leaves=10))
def test_whatever_an_agent_returns_becomes_a_scalar(value: Any) -> None:
    scalar = as_scalar(value)
    assert scalar is None or isinstance(scalar, (str, int, float, bool))


def test_an_output_that_cannot_be(tmp_path: Path) -> None:
    assert output_file(tmp_path / "new" / "dir") == tmp_path / "new" / "dir" / "results.parquet"
    with pytest.raises(ConfigError, match=r"cannot write \.xlsx"):
        output_file(tmp_path / "r.xlsx")
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(ConfigError, match="is a directory"):
        output_file(tmp_path / "d.jsonl")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        output_file(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be made"):
        output_file(tmp_path / "file" / "below")


def test_a_table_that_fails_to_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    file = written(RESULTS, tmp_path / "r.jsonl")
    before = file.read_bytes()
    spool = Spool()
    spool.close()
    with pytest.raises(sqlite3.ProgrammingError):
        spool.write(file)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.jsonl"]


# ── the mapping job ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_mapping_job_asks_for_each_row_and_writes_each_outcome(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\nk1,hello\nk2,bye\n")
    config = JobConfig(prompt="text", key="id", needs=["greet"], priority=3, max_attempts=2)
    job = MappingJob.of(tmp_path / "in.csv", config, tmp_path / "out")
    requests = list(job.begin())
    assert [(r.key, r.prompt, r.needs, r.priority, r.max_attempts) for r in requests] == [
        ("k1", "hello", ("greet",), 3, 2),
        ("k2", "bye", ("greet",), 3, 2),
    ]
    assert job.expected() == 2
    assert job.on_result(Result(key="k2", value="BYE")) == ()
    job.on_result(Result(key="k1", error="no", state="dead"))
    report = job.finish(tmp_path / "out")
    assert report.headline == "2 results, 1 of them failed"
    assert report.files == (tmp_path / "out" / "results.parquet",)
    assert pd.read_parquet(report.files[0])["state"].tolist() == ["dead", "succeeded"]

"""What a task offers: the texts that a router reads, counted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.errors import InvalidTask
from flowray.offers import MOST, checked_counts, choices_of, count_tools, tools_of

WEATHER = {
    "name": "weather",
    "description": "What it is like outside",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "day": {"type": "string"}}},
}


@pytest.mark.parametrize(
    ("given", "text", "counts"),
    [
        ("", "", {}),
        ([], "", {}),
        ("weather: outside ; clock: now", "weather: outside ; clock: now", {"n_tools": 2.0}),
        (["weather: outside", "clock"], "weather: outside ; clock", {"n_tools": 2.0}),
        ([WEATHER], "weather: What it is like outside", {"n_tools": 1.0, "n_params": 2.0}),
        (
            [{"type": "function", "function": WEATHER}],
            "weather: What it is like outside",
            {"n_tools": 1, "n_params": 2},
        ),
        ([WEATHER, {"name": "clock", "input_schema": {}}], None, {"n_tools": 2, "n_params": 2}),
        ([{"name": "clock", "inputSchema": {"properties": {"zone": {}}}}], "clock", {"n_tools": 1, "n_params": 1}),
        ([{"name": "add", "parameters": ["a", "b"]}], "add", {"n_tools": 1, "n_params": 2}),
        ([WEATHER, {"name": "clock"}], None, {"n_tools": 2}),  # nobody says how many parameters the clock has
        ([WEATHER, "clock: now"], None, {"n_tools": 2}),
        ([{"name": "odd", "description": "one ; two"}], "odd: one; two", {"n_tools": 1}),  # it is one tool
        (["odd: one ; two"], "odd: one; two", {"n_tools": 1}),
    ],
)
def test_tools(given: Any, text: str | None, counts: dict[str, float]) -> None:
    said, counted = tools_of(given)
    assert counted == counts
    assert text is None or said == text
    assert count_tools(said) == counted.get("n_tools")


@pytest.mark.parametrize(
    ("given", "text", "counts"),
    [
        ("", "", {}),
        ((), "", {}),
        ("A. yes B. no", "A. yes B. no", {}),
        ("['yes', 'no']", "['yes', 'no']", {"n_options": 2.0}),
        (
            "{'label': ['A', 'B'], 'text': ['yes', 'no']}",
            "{'label': ['A', 'B'], 'text': ['yes', 'no']}",
            {"n_options": 2},
        ),
        (["yes", "it isn't"], "['yes', \"it isn't\"]", {"n_options": 2.0}),
        (iter("ab"), "['a', 'b']", {"n_options": 2.0}),
    ],
)
def test_choices(given: Any, text: str, counts: dict[str, float]) -> None:
    assert choices_of(given) == (text, counts)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([3], "got int"),
        ([{"description": "of nothing"}], "has a name"),
        ([{"name": ""}], "has a name"),
        ([{"name": "a", "description": 3}], "'a' must be a str"),
        ([{"name": "a", "parameters": 3}], "JSON schema or a list"),
        ([{"name": "a", "parameters": {"properties": "x"}}], "JSON schema or a list"),
        ("x" * (MOST + 1), "longer than"),
        (["x" * MOST, "y"], "longer than"),
    ],
)
def test_tools_that_are_none(given: Any, problem: str) -> None:
    with pytest.raises(InvalidTask, match=problem) as caught:
        tools_of(given)
    assert caught.value.field == "tools"


@pytest.mark.parametrize("given", [[3], ["x" * MOST], "x" * (MOST + 1)])
def test_choices_that_are_none(given: Any) -> None:
    with pytest.raises(InvalidTask) as caught:
        choices_of(given)
    assert caught.value.field == "choices"


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({"n_tolls": 1}, "has no 'n_tolls'; there are n_tools, n_params, n_options"),
        ({"n_tools": -1}, "n_tools must be a number"),
        ({"n_tools": True}, "got True"),
        ({"n_params": float("nan")}, "got nan"),
        ({"n_params": float("inf")}, "got inf"),
        ({"n_options": "4"}, "got '4'"),
        ([("n_tools", 1)], "got list"),
    ],
)
def test_counts_that_are_none(told: Any, problem: str) -> None:
    with pytest.raises(InvalidTask, match=problem) as caught:
        checked_counts(told)
    assert caught.value.field == "counts"


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=6))
def test_as_many_tools_as_were_listed(tools: list[str]) -> None:
    said, counted = tools_of([{"name": f"n{number}", "description": text} for number, text in enumerate(tools)])
    assert counted == {"n_tools": len(tools)} and said.startswith("n0: ")

"""From a caller's arguments to a task."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.core.model import Payload, Task
from flowray.errors import InvalidTask, PayloadError
from flowray.tasks import make_task, new_task_id
from flowray.values import decode_value, encode_value


def pack(value: Any, field: str) -> Payload | None:
    if value is None:
        return None
    codec, data = encode_value(value, field)
    return Payload(codec=codec, data=data, size_bytes=len(data))


def task(*args: Any, **kwargs: Any) -> Task:
    return make_task(pack, *args, **kwargs)


def test_a_str_is_the_prompt_and_anything_else_the_payload() -> None:
    assert task("hello").prompt == "hello"
    assert task("hello").payload is None
    made = task({"a": 1})
    assert made.prompt == ""
    assert made.payload is not None
    assert decode_value(made.payload.codec, made.payload.data) == {"a": 1}


def test_what_a_router_may_read_besides_the_prompt() -> None:
    made = task("x", choices=["yes", "no"], tools=["add: adds numbers", "div: divides"])
    assert (made.choices, made.tools) == ("['yes', 'no']", "add: adds numbers ; div: divides")
    assert made.counts == {"n_options": 2.0, "n_tools": 2.0}
    made = task("x", tools="add: adds")
    assert (made.tools, made.counts) == ("add: adds", {"n_tools": 1.0})
    assert task("x", choices="A. yes, B. no").counts == {}
    different = ({}, {"choices": "a"}, {"tools": "b"}, {"choices": "a", "tools": "b"})
    assert len({task("x", key="k", **more).fingerprint for more in different}) == 4


def test_needs_are_sorted_and_unique() -> None:
    assert task("x", needs=["b", "a", "b"]).needs == ("a", "b")


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("deadline_s", {"deadline_s": 0}),
        ("quality", {"quality": 0}),
        ("quality", {"quality": 1.5}),
        ("least_quality", {"least_quality": -0.1}),
        ("least_quality", {"least_quality": "good"}),
        ("weights", {"weights": {"beauty": 1.0}}),
        ("weights", {"weights": {"usd": -1.0}}),
        ("weights", {"weights": {"usd": "much"}}),
        ("exclusive", {"exclusive": "yes"}),
        ("builds_on", {"builds_on": "writer"}),
        ("builds_on", {"builds_on": "-3"}),
        ("builds_on", {"builds_on": 3}),
        ("exclusive", {"exclusive": True, "idempotent": True}),
        ("max_cost_usd", {"max_cost_usd": math.inf}),
        ("max_cost_usd", {"max_cost_usd": 0.0}),
        ("tools", {"tools": ["sum: adds", 3]}),
        ("choices", {"choices": ["x" * (1 << 20), "y"]}),
        ("deadline_s", {"deadline_s": -1.5}),
        ("deadline_s", {"deadline_s": math.nan}),
        ("deadline_s", {"deadline_s": math.inf}),
        ("deadline_s", {"deadline_s": "soon"}),
        ("deadline_s", {"deadline_s": True}),
        ("attempt_timeout_s", {"attempt_timeout_s": 0}),
        ("needs", {"needs": "one"}),
        ("needs", {"needs": [""]}),
        ("needs", {"needs": [3]}),
        ("needs", {"needs": [str(n) for n in range(65)]}),
        ("priority", {"priority": 1001}),
        ("priority", {"priority": 1.5}),
        ("priority", {"priority": True}),
        ("max_attempts", {"max_attempts": 0}),
        ("key", {"key": "k" * 513}),
        ("key", {"key": 7}),
        ("labels", {"labels": {"a": 1}}),
        ("prompt", {"prompt": 3}),
        ("prompt", {"prompt": "lone surrogate \ud800"}),
        ("prompt", {"prompt": "x" * ((1 << 20) + 1)}),
    ],
)
def test_an_argument_out_of_range_is_named(field: str, arguments: dict[str, Any]) -> None:
    work = None if "prompt" in arguments else "work"
    with pytest.raises(InvalidTask) as caught:
        task(work, **arguments)
    assert caught.value.field == field
    assert str(caught.value).startswith(field)


def test_a_deadline_in_the_past_says_so() -> None:
    with pytest.raises(InvalidTask, match="in the past"):
        task("x", deadline_s=-3)


def test_a_payload_that_cannot_be_pickled_is_refused_with_its_type() -> None:
    with pytest.raises(PayloadError, match="generator that cannot be pickled"):
        task(n for n in range(3))


def test_the_fingerprint_tells_content_apart_and_not_urgency() -> None:
    first = task("x", key="k", priority=1)
    assert task("x", key="k", priority=9, deadline_s=3).fingerprint == first.fingerprint
    assert task("y", key="k").fingerprint != first.fingerprint
    assert task("x", key="k", needs=["a"]).fingerprint != first.fingerprint
    assert task({"x": 1}, key="k").fingerprint != task({"x": 2}, key="k").fingerprint


def test_ids_sort_by_the_order_in_which_they_were_made() -> None:
    ids = [new_task_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert ids == sorted(ids)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
anything = (
    plain
    | st.tuples(st.integers(), st.text())
    | st.sets(st.integers(), max_size=5)
    | st.integers()
    | st.complex_numbers(allow_nan=False)
)


@given(anything)
def test_every_value_comes_back_as_it_was(value: Any) -> None:
    codec, data = encode_value(value, "payload")
    again = decode_value(codec, data)
    assert again == value
    assert type(again) is type(value)


def test_plain_data_is_never_pickled() -> None:
    assert encode_value({"a": [1, 2.5, None, "x", b"y", True]}, "payload")[0] == "msgpack"
    assert encode_value({"a": (1, 2)}, "payload")[0] == "pickle"  # msgpack would give back a list


class Text(str):
    pass


def test_a_subclass_of_a_plain_type_keeps_its_type() -> None:
    codec, data = encode_value(Text("x"), "payload")
    assert type(decode_value(codec, data)) is Text

"""The text statistics agent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.agents import Task
from flowray.skills.text import TextStatistics


def test_it_counts_what_a_person_would() -> None:
    counted = TextStatistics(top=2).run(Task(id="t", prompt="To be, or not to be?\nThat isn't a question."))
    assert counted["words"] == 10
    assert counted["distinct_words"] == 8
    assert counted["sentences"] == 2
    assert counted["lines"] == 2
    assert counted["most_frequent"] == [["be", 2], ["to", 2]]


def test_a_payload_that_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="not int"):
        TextStatistics().run(Task(id="t", payload=3))


@given(st.text())
def test_any_text_is_measured(text: str) -> None:
    counted = TextStatistics().run(Task(id="t", payload=text))
    assert counted["characters"] == len(text)
    assert counted["distinct_words"] <= counted["words"]
    assert sum(count for _, count in counted["most_frequent"]) <= counted["words"]

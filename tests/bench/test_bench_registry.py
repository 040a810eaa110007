"""Members by name."""

from __future__ import annotations

import pytest

from bench import registry
from bench.measure import Measurement


class Fake:
    """A member that needs nothing."""

    name = "fake"
    description = "nothing at all"

    def run(self, quick: bool, repeats: int | None = None) -> list[Measurement]:
        return [Measurement(metric="m", unit="s", flowray=[1.0] * (repeats or 1))]


@pytest.mark.parametrize("name", registry.names())
def test_every_member_is_found_under_its_own_name_and_says_what_it_is(name: str) -> None:
    member = registry.find(name)
    assert member.name == name
    assert member.description
    assert "\n" not in member.description


def test_a_misspelt_name_is_answered_with_the_one_that_was_meant() -> None:
    with pytest.raises(registry.UnknownMember, match="'task'; did you mean 'tasks'"):
        registry.find("task")
    with pytest.raises(registry.UnknownMember, match="known: tasks, core"):
        registry.find("zzzzzz")


def test_a_new_member_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._PLACES, "fake", f"{__name__}:Fake")
    assert registry.names()[-1] == "fake"
    assert registry.find("fake").description == "nothing at all"

"""Members by name."""

from __future__ import annotations

import pytest

from bench import registry
from bench.measure import Found, Measurement, Plan


class Fake:
    """A member that needs nothing."""

    name = "fake"
    description = "nothing at all"
    peers = ("ray", "xoscar")

    def run(self, plan: Plan) -> Found:
        return Found(measurements=[Measurement(metric="m", unit="s", flowray=[1.0] * (plan.repeats or 1))])


@pytest.mark.parametrize("name", registry.names())
def test_every_member_is_found_under_its_own_name_and_says_what_it_is(name: str) -> None:
    member = registry.find(name)
    assert member.name == name
    assert member.description
    assert "\n" not in member.description


def test_a_misspelt_name_is_answered_with_the_one_that_was_meant() -> None:
    with pytest.raises(registry.UnknownMember, match="'task'; did you mean 'tasks'"):
        registry.find("task")
    with pytest.raises(registry.UnknownMember, match="known: messaging, tasks"):
        registry.find("zzzzzz")


def test_a_new_member_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._PLACES, "fake", f"{__name__}:Fake")
    assert registry.names()[-1] == "fake"
    assert registry.find("fake").description == "nothing at all"


@pytest.mark.parametrize(
    ("text", "chosen"), [(None, None), ("", ()), ("xoscar, ray", ("ray", "xoscar")), ("xoscar,xoscar", ("xoscar",))]
)
def test_peers_are_chosen_by_name_in_the_members_order(text: str | None, chosen: tuple[str, ...] | None) -> None:
    assert registry.chosen_peers(Fake(), text) == chosen


def test_an_unknown_peer_is_answered_with_those_there_are() -> None:
    with pytest.raises(registry.UnknownPeer, match="--peers: fake has no peer 'xosca'; did you mean 'xoscar'"):
        registry.chosen_peers(Fake(), "xosca")
    with pytest.raises(registry.UnknownPeer, match="it has ray, xoscar"):
        registry.chosen_peers(Fake(), "zzz")
    with pytest.raises(registry.UnknownPeer, match="core has no peer 'ray'; it has none"):
        registry.chosen_peers(registry.find("core"), "ray")

"""The directory, its changes, and copies that lag behind."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowray.errors import ConfigError
from flowray.mesh import topics
from flowray.mesh.topics import Changes, Directory, DirectoryCopy, Listing

AGENTS = [f"a-{n}" for n in range(6)]
CHANGE = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(AGENTS), st.sampled_from(["p1", "p2"]), st.sets(st.sampled_from("xyz"))),
    st.tuples(st.just("remove"), st.sampled_from(AGENTS)),
    st.tuples(st.just("remove_process"), st.sampled_from(["p1", "p2"])),
    st.tuples(st.just("restart")),
    st.tuples(st.just("sync"), st.integers(0, 2)),
)


def sync(directory: Directory, copy: DirectoryCopy) -> None:
    changes = directory.changes_since(copy.epoch, copy.version)
    if changes is not None:
        assert copy.apply(changes) is not None
        assert directory.changes_since(copy.epoch, copy.version) is None


def same(directory: Directory, copy: DirectoryCopy, model: dict[str, tuple[str, tuple[str, ...]]]) -> None:
    assert sorted(copy.agents()) == sorted(model)
    for agent in AGENTS:
        assert copy.process_of(agent) == model.get(agent, ("",))[0]
    for topic in "xyz":
        wanted = {agent for agent, (_, subscribed) in model.items() if topic in subscribed}
        found = copy.subscribers(topic)
        assert set(found) == wanted and len(found) == len(wanted)


@settings(deadline=None)
@given(st.lists(CHANGE, max_size=60))
def test_a_copy_that_catches_up_knows_what_the_directory_knows(steps):
    directory, copies = Directory(1), [DirectoryCopy() for _ in range(3)]
    model: dict[str, tuple[str, tuple[str, ...]]] = {}
    for step in steps:
        match step:
            case ("put", agent, process, subscribed):
                entry = (process, tuple(sorted(subscribed)))
                assert directory.put(agent, process, subscribed) == (model.get(agent) != entry)
                model[agent] = entry
            case ("remove", agent):
                assert directory.remove(agent) == (model.pop(agent, None) is not None)
            case ("remove_process", process):
                gone = {agent for agent, entry in model.items() if entry[0] == process}
                assert set(directory.remove_process(process)) == gone
                for agent in gone:
                    del model[agent]
            case ("restart",):
                directory, model = Directory(directory.epoch + 1), {}
            case ("sync", number):
                sync(directory, copies[number])
                same(directory, copies[number], model)
    for copy in copies:
        sync(directory, copy)
        same(directory, copy, model)


def test_changes_are_no_longer_than_what_changed():
    directory, copy = Directory(1), DirectoryCopy()
    for n in range(1000):
        directory.put(f"a-{n}", "p")
    sync(directory, copy)
    directory.put("a-7", "q", {"news"})
    directory.remove("a-9")
    changes = directory.changes_since(copy.epoch, copy.version)
    assert changes is not None
    assert changes.listings == (Listing("a-7", "q", ("news",)), Listing("a-9", ""))


def test_a_gap_is_noticed_and_a_repeat_does_no_harm():
    directory, copy = Directory(1), DirectoryCopy()
    directory.put("a", "p")
    sync(directory, copy)
    directory.put("b", "p")
    first = directory.changes_since(copy.epoch, copy.version)
    assert first is not None
    directory.put("c", "p")
    second = directory.changes_since(1, first.version)
    assert second is not None
    assert copy.apply(second) is None and copy.agents() == ["a"]
    assert copy.apply(first) == ["b"] and copy.apply(second) == ["c"]
    assert copy.apply(first) == [] and sorted(copy.agents()) == ["a", "b", "c"]
    assert copy.apply(Changes(2, 5, 6, ())) is None  # of a directory it has never heard


def test_those_that_left_are_not_remembered_for_ever(monkeypatch):
    monkeypatch.setattr(topics, "_MAX_LEFT", 10)
    directory, copy = Directory(1), DirectoryCopy()
    directory.put("stays", "p")
    directory.put("goes", "p")
    sync(directory, copy)
    for n in range(500):
        directory.put(f"a-{n}", "p")
        directory.remove(f"a-{n}")
        assert len(directory._changed_at) <= 10 + 3
    directory.remove("goes")
    changes = directory.changes_since(copy.epoch, copy.version)
    assert changes is not None and changes.since == 0, "too old for changes: it gets everything"
    assert copy.apply(changes) is not None
    assert copy.agents() == ["stays"]


@pytest.mark.parametrize("topic", ["", " news", "news ", "a\nb", "x" * 201, "\x00", 7])
def test_names_that_are_no_topics(topic):
    with pytest.raises(ConfigError, match="is no topic"):
        Directory(1).put("a", "p", [topic])


def test_topics_of_one_agent_are_bounded():
    Directory(1).put("a", "p", [str(n) for n in range(100)])
    with pytest.raises(ConfigError, match="101 topics"):
        Directory(1).put("a", "p", [str(n) for n in range(101)])
    with pytest.raises(ConfigError, match="not one string"):
        Directory(1).put("a", "p", "news")
    assert Directory(1).put("a", "p", ["sports", "a b", "ünïcode", "x"])

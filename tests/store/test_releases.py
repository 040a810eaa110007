"""Every journal that a release wrote is recovered to the state that it stood for, by this version and all to come."""

from __future__ import annotations

import json

import pytest

from flowray.core.states import TERMINAL, TaskState

from .releases import FIXTURES, open_store, recover, state_of, unpack

JOURNALS = sorted(FIXTURES.glob("*/*.tar.gz"))


@pytest.mark.parametrize("archive", JOURNALS, ids=lambda path: f"{path.parent.name}-{path.name.split('.')[0]}")
def test_a_journal_of_a_release_is_recovered_to_the_same_state(archive, tmp_path):
    expected = json.loads(archive.with_name(archive.name.replace(".tar.gz", ".json")).read_text())
    unpack(archive, tmp_path)
    store = open_store(tmp_path)
    try:
        recovery = store.begin_epoch("this version")
        core = recover(recovery)
        core.check()
        assert differences(expected, state_of(store, core)) == []
        assert core.registry.agents() or not expected["book"]["specs"]
    finally:
        store.close()


def differences(expected, found, path=""):
    """Where what a release knew is not so now. Fields that came later are not looked at."""
    if isinstance(expected, dict) and isinstance(found, dict):
        known = [differences(value, found.get(name), f"{path}.{name}") for name, value in expected.items()]
        return [one for many in known for one in many]
    if isinstance(expected, list) and isinstance(found, list) and not any(found[len(expected) :]):
        # What is written as a row has its later fields at the end, and they have their defaults.
        found = [*found, *["missing"] * (len(expected) - len(found))]
        known = [differences(*both, f"{path}[{at}]") for at, both in enumerate(zip(expected, found, strict=False))]
        return [one for many in known for one in many]
    return [] if expected == found else [f"{path}: {expected!r} was recorded, {found!r} is recovered"]


def test_the_journals_have_tasks_in_every_state_and_are_small():
    assert len(JOURNALS) >= 4
    states = set()
    for archive in JOURNALS:
        told = json.loads(archive.with_name(archive.name.replace(".tar.gz", ".json")).read_text())
        states |= {task["state"] for task in told["book"]["tasks"]}
        states |= {outcome["state"] for outcome in told["outcomes"].values()}
    assert states == {state.value for state in TaskState}
    assert len(TERMINAL) < len(states)
    size = sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file())
    assert size < 200_000 * len({path.parent for path in JOURNALS})


def test_what_differs_is_named_and_what_came_later_is_not():
    assert differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3, "later": 0}], "new": 1}) == [
        ".a[1].b: 2 was recorded, 3 is recovered"
    ]
    assert differences({"row": ["x", 1]}, {"row": ["x", 1, "", None]}) == []
    assert differences({"list": ["x"]}, {"list": ["x", "y"]}) != []
    assert differences({"list": ["x", ""]}, {"list": ["x"]}) != []

"""What is started again after deaths on a head node, and how soon."""

from __future__ import annotations

import pytest

from flowray.core.relaunching import NODE, STORE, Again, GiveUp, Relaunching


def test_a_store_on_disk_comes_back_alone_and_at_once() -> None:
    assert Relaunching(store_lasts=True).on_deaths([STORE], 10.0) == Again((STORE,), 0.0)


@pytest.mark.parametrize("dead", [[NODE], [NODE, STORE], [STORE, "log_monitor", NODE]])
def test_with_its_raylet_the_whole_node_starts_anew(dead: list[str]) -> None:
    assert Relaunching(store_lasts=True).on_deaths(dead, 0.0) == Again((NODE,), 0.0)


def test_what_runs_beside_comes_back_and_touches_nothing_else() -> None:
    again = Relaunching(store_lasts=False).on_deaths(["monitor", "log_monitor"], 0.0)
    assert again == Again(("log_monitor", "monitor"), 0.0)


@pytest.mark.parametrize(("dead", "named"), [([STORE], "control store"), ([NODE], "raylet"), ([NODE, STORE], "store")])
def test_a_store_in_memory_cannot_be_put_together_again(dead: list[str], named: str) -> None:
    decided = Relaunching(store_lasts=False).on_deaths(dead, 0.0)
    assert isinstance(decided, GiveUp)
    assert named in decided.reason


def test_what_dies_again_and_again_waits_longer_each_time_up_to_a_bound() -> None:
    relaunching = Relaunching(store_lasts=True)
    waits = [relaunching.on_deaths([STORE], float(n)) for n in range(9)]
    assert [one.after_s for one in waits if isinstance(one, Again)] == [0, 0, 0, 0.5, 1, 2, 4, 5, 5]


def test_each_kind_has_its_own_count_and_old_starts_are_forgotten() -> None:
    relaunching = Relaunching(store_lasts=True, free=1)
    assert relaunching.on_deaths([STORE], 0.0) == Again((STORE,), 0.0)
    assert relaunching.on_deaths([NODE], 1.0) == Again((NODE,), 0.0)
    assert relaunching.on_deaths([STORE], 2.0) == Again((STORE,), 0.5)
    assert relaunching.on_deaths([STORE], 70.0) == Again((STORE,), 0.0)


def test_what_is_remembered_is_bounded() -> None:
    relaunching = Relaunching(store_lasts=True)
    for n in range(10_000):
        relaunching.on_deaths([STORE], n / 1000)
    assert len(relaunching._starts[STORE]) < 30
    assert relaunching.on_deaths([STORE], 10.1) == Again((STORE,), 5.0)

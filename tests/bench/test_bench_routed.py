"""Who waits how long: the sides of the virtual clock."""

from __future__ import annotations

import pytest

from bench.workers.routed_alone import LEAST_LOADED, P2C, ROUTED, SPEEDS, Loads, run


def test_the_class_with_the_fewest_open_tasks_gets_the_next_one():
    loads = Loads(("a", "b", "c"), seed=0)
    assert sorted(loads.took() for _ in range(3)) == ["a", "b", "c"]
    loads.ended("b")
    assert loads.took() == "b"
    drawn = {Loads(SPEEDS, seed).took() for seed in range(50)}
    assert drawn == set(SPEEDS)  # of equals, any


@pytest.mark.parametrize("side", [ROUTED, P2C, LEAST_LOADED])
def test_all_sides_do_all_tasks(side):
    found = run(side, 150, seed=1)
    assert found.succeeded == 1.0 and len(found.took_s) == 120 and min(found.took_s) > 0.0
    assert found == run(side, 150, seed=1)

"""What replicas are told while a version is on trial, and when somebody else's word counts more."""

from __future__ import annotations

import pytest

from flowray.core.arranging import Held, plan_arrangement

BY_HAND, BY_TRIAL = False, True


@pytest.mark.parametrize(
    ("live", "other", "held", "step"),
    [
        ("v1", "", [Held("v1", "", BY_HAND)], "done"),
        ("v1", "v2", [Held("v1", "", BY_HAND)], "tell"),  # a trial begins
        ("v1", "v2", [Held("v1", "v2", BY_TRIAL), Held("v1", "", BY_TRIAL)], "tell"),  # one has not loaded it
        ("v1", "v2", [Held("v1", "v2", BY_TRIAL)] * 2, "done"),
        ("v2", "v1", [Held("v1", "v2", BY_TRIAL)], "tell"),  # it was promoted
        ("v1", "", [Held("v2", "v1", BY_TRIAL)], "tell"),  # it was rolled back, and nobody was told before a restart
        ("v1", "v2", [Held("v1", "", BY_HAND)], "tell"),  # the same version was deployed again by hand: the trial stays
        ("v2", "v1", [Held("v1", "", BY_HAND)], "yield"),  # the older one was: that is what shall be
        ("v1", "v2", [Held("v3", "", BY_HAND)], "yield"),
        ("v1", "", [Held("v1", "", BY_HAND), Held("v3", "", BY_HAND)], "yield"),  # that is being rolled out
        ("v1", "", [], "done"),  # nobody is there who could hold anything else
    ],
)
def test_who_is_told_what(live: str, other: str, held: list[Held], step: str) -> None:
    assert plan_arrangement(live, other, held) == step

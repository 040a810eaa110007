from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.core.retraining import RetrainConfig, Schedule
from flowray.errors import ConfigError

CONFIG = RetrainConfig(
    enabled=True, every_s=1_000.0, outcomes=5_000, least=100, after_drift=50, wait_s=10.0, longest_wait_s=40.0
)


def test_off_by_default():
    assert Schedule(RetrainConfig(), 0.0).due(1e9, 10**9, "v1", 5) == ""


def test_on_a_schedule_where_there_is_something_to_learn():
    schedule = Schedule(CONFIG, 0.0)
    assert schedule.due(999.0, 200) == ""
    assert schedule.due(1_000.0, 99) == ""
    assert "1000 s since the last time, 200 new outcomes" in schedule.due(1_000.0, 200)


def test_after_enough_outcomes():
    schedule = Schedule(CONFIG, 0.0)
    assert schedule.due(1.0, 4_999) == ""
    assert schedule.due(1.0, 5_000) == "5000 new outcomes"


def test_some_outcomes_after_a_change():
    schedule = Schedule(CONFIG, 0.0)
    assert schedule.due(1.0, 300, "v1", 0) == ""
    assert schedule.due(1.0, 310, "v1", 305) == "", "hardly anything of it was seen"
    assert schedule.due(1.0, 340, "v1", 330) == "", "a second change does not put it off"
    assert "agents changed, 50 outcomes ago" in schedule.due(1.0, 360, "v1", 330)
    schedule.began()
    schedule.ended(2.0, 360)
    assert schedule.due(3.0, 600, "v1", 330) == "", "that change was learned from"
    assert schedule.due(3.0, 610, "v1", 605) == ""
    assert "agents changed" in schedule.due(3.0, 700, "v1", 605)


def test_a_change_that_came_during_the_training_is_not_forgotten():
    schedule = Schedule(CONFIG, 0.0)
    schedule.due(0.0, 0, "v1", 0)
    schedule.began()
    assert schedule.due(1.0, 400, "v1", 390) == ""
    schedule.ended(2.0, 300)
    assert "agents changed" in schedule.due(3.0, 460, "v1", 390)


def test_what_another_version_had_found_before_is_no_news():
    schedule = Schedule(CONFIG, 0.0)
    schedule.due(1.0, 300, "v1", 100)
    assert schedule.due(1.0, 400, "v2", 700) == ""
    assert schedule.due(1.0, 900, "v2", 700) == ""


def test_one_at_a_time_and_failures_wait_longer_and_longer():
    schedule, now, waits = Schedule(CONFIG, 0.0), 2_000.0, []
    for _ in range(4):
        assert schedule.due(now, 500)
        schedule.began()
        assert schedule.due(now + 1e6, 500) == ""
        waits.append(schedule.failed(now))
        assert schedule.due(now + waits[-1] - 0.1, 500) == ""
        now += waits[-1]
    assert waits == [10.0, 20.0, 40.0, 40.0]
    schedule.began()
    schedule.ended(now, 500)
    assert schedule.due(now + 5_000.0, 599) == ""
    assert schedule.due(now + 5_000.0, 600)


@given(st.lists(st.tuples(st.floats(0.0, 500.0), st.integers(0, 3_000), st.booleans(), st.booleans()), max_size=40))
def test_never_twice_for_the_same_outcomes(steps):
    """However times and counts go: between two trainings that ended lie at least `least` outcomes."""
    schedule, now, outcomes, learned = Schedule(CONFIG, 0.0), 0.0, 0, 0
    for later_s, more, changed, fails in steps:
        now, outcomes = now + later_s, outcomes + more
        if schedule.due(now, outcomes, "v1", outcomes if changed else 0):
            assert outcomes - learned >= CONFIG.least
            schedule.began()
            if fails:
                assert schedule.failed(now) > 0
            else:
                schedule.ended(now, outcomes)
                learned = outcomes


@pytest.mark.parametrize(
    "wrong",
    [
        {"every_s": -1.0}, {"outcomes": -1}, {"least": 0}, {"newest": 10}, {"held_out": 0.0}, {"epochs": 0},
        {"deadline_s": 0.0}, {"keep": 0}, {"longest_wait_s": 1.0},
    ],
)  # fmt: skip
def test_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ConfigError, match="retrain"):
        RetrainConfig(**wrong)

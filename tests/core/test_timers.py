from hypothesis import given
from hypothesis import strategies as st

from flowray.core.timers import Timers


def test_the_earliest_is_due_first_and_only_once():
    timers = Timers()
    timers.set("a", "x", 2.0)
    timers.set("b", "x", 1.0)
    assert timers.next_due() == 1.0
    assert timers.pop_due(1.5) == ("b", "x")
    assert timers.pop_due(1.5) is None
    assert timers.pop_due(2.0) == ("a", "x")
    assert timers.next_due() is None


def test_setting_again_replaces():
    timers = Timers()
    timers.set("a", "x", 1.0)
    timers.set("a", "x", 5.0)
    assert timers.pop_due(4.0) is None
    assert len(timers) == 1
    assert timers.pop_due(5.0) == ("a", "x")


def test_equal_times_come_in_the_order_of_setting():
    timers = Timers()
    for key in "cab":
        timers.set("a", key, 1.0)
    assert [timers.pop_due(1.0) for _ in range(3)] == [("a", "c"), ("a", "a"), ("a", "b")]


def test_memory_follows_the_live_timers():
    timers = Timers()
    for number in range(10_000):
        timers.set("a", "x", float(number))
    assert len(timers._heap) <= 66


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.none() | st.floats(0, 10))))
def test_agrees_with_a_plain_dict(steps):
    timers, model = Timers(), {}
    for kind, key, at in steps:
        if at is None:
            timers.clear(kind, key)
            model.pop((kind, key), None)
        else:
            timers.set(kind, key, at)
            model[kind, key] = at
        assert timers.next_due() == min(model.values(), default=None)
        assert all(timer in timers for timer in model)
    popped = []
    while (due := timers.pop_due(10.0)) is not None:
        popped.append(due)
    assert sorted(popped) == sorted(model)
    assert [model[timer] for timer in popped] == sorted(model.values())


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 10)), max_size=12), st.lists(st.sampled_from("abcdef"))
)
def test_many_set_at_once_are_due_as_if_set_one_by_one(due: list[tuple[str, float]], before: list[str]) -> None:
    at_once, one_by_one = Timers(), Timers()
    for timers in (at_once, one_by_one):
        for key in before:
            timers.set("kind", key, 5.0)
    at_once.set_all("kind", due)
    for key, at in due:
        one_by_one.set("kind", key, at)
    assert len(at_once) == len(one_by_one)
    while (next_due := one_by_one.next_due()) is not None:
        assert at_once.next_due() == next_due
        assert at_once.pop_due(next_due) == one_by_one.pop_due(next_due)
    assert at_once.next_due() is None

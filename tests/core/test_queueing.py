from hypothesis import given
from hypothesis import strategies as st

from flowray.core.queueing import Lane, LaneKey, Queue
from flowray.core.registry import Registry, RestartPolicy

from .builders import spec, task

KEY = LaneKey("", "", ())


@given(st.lists(st.integers(-2, 2), max_size=40), st.sets(st.integers(0, 39)))
def test_priority_first_then_age_and_never_what_was_removed(priorities, removed):
    lane = Lane(KEY)
    for seq, priority in enumerate(priorities):
        lane.push(task(str(seq), priority=priority), seq)
    for seq in removed:
        lane.remove(str(seq))
    expected = [seq for seq in sorted(range(len(priorities)), key=lambda s: (-priorities[s], s)) if seq not in removed]
    taken = []
    while lane.head() is not None:
        taken.append(int(lane.pop()))
    assert taken == expected
    assert len(lane) == 0


def test_a_task_that_comes_back_keeps_its_age():
    lane = Lane(KEY)
    lane.push(task("young"), 2)
    lane.push(task("old"), 1)
    assert lane.head()[2] == "old"
    lane.remove("old")
    lane.push(task("old"), 1)
    assert lane.head()[2] == "old"
    assert lane.pop() == "old"
    assert lane.head()[2] == "young"


def test_removing_leaves_no_heap_behind():
    lane = Lane(KEY)
    for seq in range(5000):
        lane.push(task("t"), seq)
        lane.remove("t")
    assert len(lane._heap) <= 66


def test_a_lane_joins_the_classes_that_can_serve_it():
    registry, queue = Registry(RestartPolicy()), Queue()
    able, _, _ = registry.add(spec("able", capabilities=("a", "b")))
    registry.add(spec("unable", capabilities=("b",)))
    lane = queue.lane(task(needs=("a",)), registry.classes())
    assert lane.classes == [able]
    assert queue.lane(task(needs=("a",)), registry.classes()) is lane
    late, _, _ = registry.add(spec("late", capabilities=("a",)))
    queue.join(late)
    assert lane.classes == [able, late]


def test_tier_and_agent_restrict_a_lane():
    registry, queue = Registry(RestartPolicy()), Queue()
    first, _, _ = registry.add(spec("first", tier="primary"))
    second, _, _ = registry.add(spec("second", tier="secondary"))
    assert queue.lane(task(tier="secondary"), registry.classes()).classes == [second]
    assert queue.lane(task(agent="first"), registry.classes()).classes == [first]
    assert queue.lane(task(agent="first", tier="secondary"), registry.classes()).classes == []


def test_idle_lanes_are_bounded():
    registry, queue = Registry(RestartPolicy()), Queue()
    one, _, _ = registry.add(spec())
    for number in range(3000):
        queue.lane(task(agent="writer", labels={}, tier="" if number % 2 else "primary", needs=()), registry.classes())
        queue.lane(task(needs=(), agent=f"nobody{number}"), registry.classes())
    assert len(queue.lanes()) <= 1024
    assert len(one.lanes) <= 2

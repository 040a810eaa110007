from flowray.testing.clock import VirtualClock


def test_time_jumps_from_one_entry_to_the_next_in_order():
    clock, seen = VirtualClock(), []
    clock.after(2.0, lambda: seen.append(("b", clock.now)))
    clock.after(1.0, lambda: seen.append(("a", clock.now)))
    clock.at(2.0, lambda: seen.append(("c", clock.now)))
    assert not clock.run(1.5)
    assert (seen, clock.now) == ([("a", 1.0)], 1.5)
    clock.run(10.0)
    assert seen == [("a", 1.0), ("b", 2.0), ("c", 2.0)]
    assert clock.now == 10.0


def test_the_past_is_now():
    clock, seen = VirtualClock(), []
    clock.run(5.0)
    clock.at(1.0, lambda: seen.append(clock.now))
    clock.run(5.0)
    assert seen == [5.0]


def test_running_stops_where_it_is_when_done():
    clock, seen = VirtualClock(), []
    for number in range(5):
        clock.at(float(number), lambda number=number: seen.append(number))
    assert clock.run(100.0, lambda: len(seen) == 3)
    assert (seen, clock.now) == ([0, 1, 2], 2.0)

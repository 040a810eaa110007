"""When exclusive attempts may run, and what ends them: the clock is the test's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.core.fencing import RENEWALS, STOP_S, Lease
from flowray.runtime.leases import LeaseKeeper, SelfFence, Tokens

ONE: Tokens = frozenset({("t", 1, 1)})


class Attempts:
    def __init__(self, running: Tokens = ONE, *, begun: bool = True) -> None:
        self.running = running
        self.begun = begun
        self.told: list[Tokens] = []
        self.released = 0

    def held(self) -> bool:
        return bool(self.running)

    def stop(self) -> Tokens:
        if not self.begun:
            return frozenset()
        if self.running:
            self.told.append(self.running)
        return self.running

    def runs(self, tokens: Tokens) -> bool:
        return self.begun and bool(self.running & tokens)

    def release(self) -> None:
        self.begun = True
        self.released += 1


def test_a_lease_runs_from_the_question_not_from_the_answer() -> None:
    lease = Lease(10.0)
    assert not lease.valid(0.0)
    number = lease.ask(5.0)
    lease.granted(number)
    assert lease.valid(14.9) and not lease.valid(15.0)


def test_late_repeated_and_unknown_answers_do_no_harm() -> None:
    lease = Lease(10.0)
    old, new = lease.ask(0.0), lease.ask(8.0)
    lease.granted(new)
    lease.granted(old)
    lease.granted(new)
    lease.granted(99)
    assert lease.until == 18.0
    forgotten = lease.ask(9.0)
    lease.ask(30.0)
    lease.granted(forgotten)
    assert lease.until == 18.0, "an answer that would be over already"


@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(0.0, 60.0)), max_size=30))
def test_no_lease_outlives_the_last_answered_question(rounds: list[tuple[float, float]]) -> None:
    """The safety of it: whoever answers at `at` or later, the lease ends by the time of the question and its length."""
    lease, now, due = Lease(10.0), 0.0, []
    asked: list[float] = []
    for pause, delay in rounds:
        now += pause
        asked.append(now)
        due.append((now + delay, lease.ask(now), now))
        for _, number, at in sorted(one for one in due if one[0] <= now):
            lease.granted(number)
            assert lease.until <= max(a for a in asked if a <= now) + 10.0
            assert lease.until >= min(at + 10.0, lease.until)
        due = [one for one in due if one[0] > now]


def test_what_stops_when_told_leaves_the_process_alone() -> None:
    lease, attempts, ended = Lease(10.0), Attempts(), []
    fence = SelfFence(lease, attempts, lambda: ended.append(True))
    lease.granted(lease.ask(0.0))
    assert fence.look(3.0) == 10.0 and not attempts.told
    assert fence.look(10.0) == pytest.approx(10.0 + 0.8 * STOP_S)
    assert attempts.told == [ONE]
    attempts.running = frozenset()
    assert fence.look(10.8) is None and not ended


def test_what_does_not_stop_is_ended_with_its_process_in_time() -> None:
    lease, attempts, ended = Lease(10.0), Attempts(), []
    fence = SelfFence(lease, attempts, lambda: ended.append(True))
    lease.granted(lease.ask(0.0))
    at = fence.look(10.0)
    assert at is not None and at < 10.0 + STOP_S
    lease.granted(lease.ask(10.1))
    assert fence.look(10.5) == at and not ended, "a lease that comes now is for others"
    fence.look(at)
    assert ended == [True]


def test_a_process_that_was_stopped_for_long_ends_at_once() -> None:
    """Another attempt has begun by now, so there is no time to stop in."""
    lease, attempts, ended = Lease(10.0), Attempts(), []
    fence = SelfFence(lease, attempts, lambda: ended.append(True))
    lease.granted(lease.ask(0.0))
    fence.look(60.0)
    assert ended == [True]


def test_it_asks_as_long_as_there_is_something_exclusive() -> None:
    # Nothing begins before there is a lease: else the keeper's thread, if it gets there first, ends this very process.
    attempts, asked, due = Attempts(begun=False), [], []
    keeper = LeaseKeeper(600.0, attempts, ask=asked.append, later=lambda delay_s, call: due.append((delay_s, call)))
    keeper.renew_now()
    assert not asked
    keeper.need()
    keeper.need()
    assert asked == [1] and [delay_s for delay_s, _ in due] == [600.0 / RENEWALS]
    keeper.renew_now()
    run(due)
    assert asked == [1, 2, 3]
    assert not keeper.valid()
    keeper.granted(2)
    assert keeper.valid() and attempts.released == 1
    attempts.running = frozenset()
    run(due)
    assert asked == [1, 2, 3] and not due
    attempts.running = ONE
    keeper.need()
    assert asked == [1, 2, 3, 4]
    attempts.running = frozenset()  # or its thread would end this process once the lease is over


def test_what_a_coordinator_starts_is_a_word_of_it() -> None:
    attempts, asked, due = Attempts(), [], []
    keeper = LeaseKeeper(
        600.0, attempts, ask=asked.append, later=lambda delay_s, call: due.append((delay_s, call)), trusts=True
    )
    keeper.need()
    assert keeper.valid() and asked == [1] and not attempts.told
    attempts.running = frozenset()  # or its thread would end this process once the lease is over
    run(due)
    assert asked == [1] and not due


def test_a_word_makes_a_lease_longer_and_never_shorter() -> None:
    lease = Lease(10.0)
    lease.heard(5.0)
    assert lease.valid(14.9) and not lease.valid(15.0)
    lease.heard(3.0)
    lease.granted(lease.ask(4.0))
    assert lease.until == 15.0


def run(due: list[tuple[float, Callable[[], Any]]]) -> None:
    due.pop()[1]()

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from flowray.core.breaker import Breaker, BreakerPolicy, BreakerState
from flowray.errors import ConfigError

POLICY = BreakerPolicy(failures=3, wait_s=1.0, longest_wait_s=4.0, probes=1)


def tripped(now: float = 0.0, policy: BreakerPolicy = POLICY) -> Breaker:
    breaker = Breaker(policy)
    for _ in range(policy.failures):
        asked = breaker.may_ask(now)
        assert asked is not None
        breaker.failed(asked, now)
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_only_failures_in_a_row_open_it():
    breaker = Breaker(POLICY)
    for outcome in (False, False, True, False, False):
        asked = breaker.may_ask(0.0)
        breaker.succeeded(asked) if outcome else breaker.failed(asked, 0.0)
    assert breaker.state is BreakerState.CLOSED


def test_while_open_nobody_is_let_through_until_the_wait_is_over():
    breaker = tripped(now=10.0)
    assert breaker.may_ask(10.99) is None
    assert breaker.open_until == 11.0
    assert breaker.may_ask(11.0) is not None
    assert breaker.state is BreakerState.HALF_OPEN


def test_half_open_admits_one_probe():
    breaker = tripped()
    assert breaker.may_ask(1.0) is not None
    assert breaker.may_ask(1.0) is None


def test_an_answered_probe_closes_it():
    breaker = tripped()
    breaker.succeeded(breaker.may_ask(1.0))
    assert breaker.state is BreakerState.CLOSED


def test_several_probes_must_all_be_answered():
    breaker = tripped(policy=BreakerPolicy(failures=1, probes=2))
    first, second = breaker.may_ask(1.0), breaker.may_ask(1.0)
    breaker.succeeded(first)
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.may_ask(1.0) is None, "two were let through, which is all that it takes"
    breaker.succeeded(second)
    assert breaker.state is BreakerState.CLOSED


def test_each_probe_that_fails_doubles_the_wait_up_to_its_bound_and_a_mended_one_starts_anew():
    breaker, now, waits = tripped(), 0.0, []
    for _ in range(4):
        waits.append(breaker.open_until - now)
        now = breaker.open_until
        breaker.failed(breaker.may_ask(now), now)
    assert waits == [1.0, 2.0, 4.0, 4.0]
    now = breaker.open_until
    breaker.succeeded(breaker.may_ask(now))
    for _ in range(3):
        breaker.failed(breaker.may_ask(now), now)
    assert breaker.open_until - now == 1.0


def test_a_probe_that_is_withdrawn_makes_room_for_another():
    """The caller of the only probe goes away: it must not keep everybody else out for ever."""
    breaker = tripped()
    breaker.withdrew(breaker.may_ask(1.0))
    assert breaker.may_ask(1.0) is not None


def test_what_comes_late_says_nothing_about_a_later_state():
    breaker = Breaker(POLICY)
    late = breaker.may_ask(0.0)
    for _ in range(3):
        breaker.failed(breaker.may_ask(0.0), 0.0)
    breaker.succeeded(late)
    assert breaker.state is BreakerState.OPEN
    probe = breaker.may_ask(1.0)
    breaker.failed(late, 1.0)
    assert breaker.state is BreakerState.HALF_OPEN
    breaker.succeeded(probe)
    assert breaker.state is BreakerState.CLOSED


@pytest.mark.parametrize("wrong", [{"failures": 0}, {"probes": 0}, {"wait_s": 0.0}, {"longest_wait_s": 0.5}])
def test_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ConfigError, match="breaker"):
        BreakerPolicy(**wrong)


class AnyOrder(RuleBasedStateMachine):
    """However questions and reports interleave, the state holds together and a breaker left alone can be asked."""

    questions = Bundle("questions")

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(BreakerPolicy(failures=2, wait_s=1.0, longest_wait_s=4.0, probes=2))
        self.now = 0.0
        self.open = 0

    @rule(target=questions, later_s=st.sampled_from([0.0, 0.5, 3.0]))
    def ask(self, later_s):
        self.now += later_s
        asked = self.breaker.may_ask(self.now)
        self.open += asked is not None
        return asked

    @rule(asked=consumes(questions), how=st.sampled_from(["succeeded", "failed", "withdrew"]))
    def report(self, asked, how):
        if asked is None:
            return
        self.open -= 1
        if how == "failed":
            self.breaker.failed(asked, self.now)
        else:
            getattr(self.breaker, how)(asked)

    @invariant()
    def holds_together(self):
        self.breaker.check()
        if self.open == 0 and self.breaker.state is BreakerState.OPEN:
            assert self.breaker.open_until - self.now <= 4.0

    def teardown(self):
        if self.open == 0:
            assert self.breaker.may_ask(self.now + 4.0) is not None


TestAnyOrder = AnyOrder.TestCase

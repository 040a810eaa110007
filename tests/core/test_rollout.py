"""The rollout of a version: what it does, and how often and how soon it is right on simulated tasks."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import structs

from flowray.core.comparing import chances, compare, seen, sound
from flowray.core.model import Estimate, Receipt
from flowray.core.rollout import Evidence, Rollout, RolloutPolicy, RolloutStage, Seen
from flowray.core.routing import RoutingPolicy
from flowray.errors import ConfigError, InvalidTransition

S = RolloutStage
ROUTING = RoutingPolicy(enabled=True)
QUICK = RolloutPolicy(shadow_least=5, shadow_most=50, canary_least=5, canary_most=40, watch=30, canary_share=0.2)


def unheard(saved: float, **more) -> Seen:
    return Seen(False, 1.0, saved, **more)


def until(rollout: Rollout, *outcomes: Seen, most: int = 10_000):
    """The decision that these outcomes, over and over, lead to."""
    for number in range(most):
        decision = rollout.saw(outcomes[number % len(outcomes)])
        rollout.check()
        if decision is not None:
            return decision
    raise AssertionError("nothing was decided")


def at(stage: RolloutStage, policy: RolloutPolicy = QUICK) -> Rollout:
    return Rollout(policy, stage, "v2")


class TestWays:
    def test_all_the_way(self):
        rollout = Rollout(QUICK)
        assert rollout.offered("v2").stage is S.SHADOW
        assert until(rollout, unheard(0.3)).arrow == "passed"
        decision = until(rollout, Seen(True, 1.0, apart=1.0), Seen(False, 0.0, apart=1.0))
        assert (decision.arrow, decision.stage) == ("promoted", S.WATCHED)
        assert "+1.000" in decision.why
        decision = until(rollout, Seen(True, 1.0, apart=1.0), Seen(False, 0.5, apart=1.0))
        assert (decision.arrow, decision.stage) == ("settled", S.IDLE)

    def test_one_that_says_worse_things_ends_in_shadow(self):
        decision = until(at(S.SHADOW), unheard(-0.3))
        assert decision.arrow == "rejected"
        assert "squared error was 0.3000 greater" in decision.why

    def test_one_whose_choices_would_have_earned_less_ends_in_shadow_though_it_says_the_same(self):
        decision = until(at(S.SHADOW, RolloutPolicy(shadow_least=4_999)), unheard(0.0, gain=-1.0))
        assert decision.arrow == "rejected"
        assert "would have earned -1.000" in decision.why

    def test_a_canary_that_earns_less_goes(self):
        decision = until(at(S.CANARY), Seen(True, 0.0, apart=1.0), Seen(False, 1.0, apart=1.0))
        assert (decision.arrow, decision.stage) == ("rejected", S.IDLE)

    def test_a_canary_that_says_worse_things_of_the_others_tasks_goes_too(self):
        assert until(at(S.CANARY), unheard(-0.3)).arrow == "rejected"

    def test_what_is_not_shown_is_not_promoted(self):
        decision = until(at(S.CANARY), Seen(True, 1.0, apart=1.0), Seen(False, 1.0, apart=1.0))
        assert decision.arrow == "rejected"
        assert "not shown to be better in 40 canary outcomes" in decision.why

    def test_a_trial_of_two_that_hardly_differ_is_given_up(self):
        policy = structs.replace(QUICK, canary_most=1_000)
        decision = until(at(S.CANARY, policy), Seen(True, 1.0, apart=0.01), Seen(False, 1.0, apart=0.01))
        assert decision.arrow == "rejected"
        assert "the two chose otherwise in 0 of 50 canary outcomes" in decision.why

    def test_two_that_choose_alike_are_not_told_apart_by_luck(self):
        decision = until(at(S.CANARY), Seen(True, 1.0, apart=0.01), Seen(False, 0.0, apart=0.01))
        assert decision.arrow == "rejected"
        assert "0 pairs" in decision.why

    def test_one_in_force_that_the_earlier_one_beats_is_rolled_back(self):
        decision = until(at(S.WATCHED), Seen(True, 0.0, apart=1.0), Seen(False, 1.0, apart=1.0))
        assert (decision.arrow, decision.stage) == ("rolled_back", S.IDLE)

    @pytest.mark.parametrize(
        ("stage", "arrow"), [(S.SHADOW, "rejected"), (S.CANARY, "rejected"), (S.WATCHED, "rolled_back")]
    )
    def test_one_that_breaks_goes_at_once(self, stage, arrow):
        rollout = at(stage)
        assert rollout.broke("it raised").arrow == arrow
        assert rollout.stage is S.IDLE
        assert rollout.broke("again") is None

    def test_an_earlier_version_that_breaks_leaves_the_one_in_force_alone(self):
        rollout = at(S.WATCHED)
        assert rollout.older_broke("it raised").arrow == "settled"
        assert at(S.CANARY).older_broke("it raised") is None

    def test_second_attempts_are_of_no_arm(self):
        rollout = at(S.CANARY)
        for _ in range(200):
            assert rollout.saw(Seen(True, 0.0, apart=1.0, first=False)) is None
            assert rollout.saw(Seen(False, 1.0, apart=1.0, first=False)) is None
        assert rollout.evidence().canaries == 0

    def test_one_at_a_time(self):
        with pytest.raises(InvalidTransition, match="shadow"):
            at(S.SHADOW).offered("v3")

    def test_it_goes_on_after_a_restart(self):
        whole, first = at(S.CANARY), at(S.CANARY)
        pair = Seen(True, 1.0, apart=1.0), Seen(False, 0.5, apart=1.0)
        for number in range(6):
            assert whole.saw(pair[number % 2]) == first.saw(pair[number % 2])
        second = Rollout(QUICK, first.stage, "v2", first.evidence())
        for number in range(200):
            one, other = whole.saw(pair[number % 2]), second.saw(pair[number % 2])
            assert one == other
            if one is not None:
                return
        raise AssertionError("nothing was decided")


class TestShares:
    def shares(self, stage: RolloutStage, tasks: int = 40_000) -> tuple[float, float]:
        rollout = Rollout(RolloutPolicy(), stage, "v2")
        parts = [rollout.part(f"task-{number}") for number in range(tasks)]
        assert all(part.both for part in parts if part.by_newer is not (stage is S.WATCHED))
        return sum(p.by_newer for p in parts) / tasks, sum(p.both for p in parts) / tasks

    def test_of_the_stages(self):
        assert self.shares(S.IDLE) == (0.0, 0.0)
        newer, both = self.shares(S.SHADOW)
        assert newer == 0.0 and both == pytest.approx(0.11, abs=0.006)
        newer, both = self.shares(S.CANARY)
        assert newer == pytest.approx(0.01, abs=0.002) and both == pytest.approx(0.11, abs=0.006)
        newer, both = self.shares(S.WATCHED)
        assert newer == pytest.approx(0.99, abs=0.002) and both == pytest.approx(0.11, abs=0.006)

    def test_the_same_after_a_restart_and_others_for_another_version(self):
        one, again, other = (Rollout(RolloutPolicy(), S.CANARY, version) for version in ("v2", "v2", "v3"))
        names = [f"task-{number}" for number in range(5_000)]
        canaries = {name for name in names if one.part(name).by_newer}
        assert canaries == {name for name in names if again.part(name).by_newer}
        assert canaries != {name for name in names if other.part(name).by_newer}


class TestComparing:
    older = (Estimate("a", 0.9, 0.02, latency_s=1.0), Estimate("b", 0.5, 0.1, latency_s=1.0))
    newer = (Estimate("a", 0.4, 0.02, latency_s=1.0), Estimate("b", 0.8, 0.02, latency_s=1.0))

    def test_choices_and_how_far_they_are_apart(self):
        pair = compare(self.older, self.newer, ROUTING, by_newer=False)
        assert (pair.older_choice, pair.newer_choice) == ("a", "b")
        assert pair.apart > 0.9
        assert compare(self.older, self.older, ROUTING, by_newer=False).apart == 0.0

    def test_error(self):
        pair = compare(self.older, self.newer, ROUTING, by_newer=False)
        found = seen(pair, "a", True, None, None, least_propensity=0.05, first=True)
        assert found.error_saved == pytest.approx(0.1**2 - 0.6**2)
        found = seen(pair, "a", True, 0.5, None, least_propensity=0.05, first=True)
        assert found.error_saved == pytest.approx(0.4**2 - 0.1**2)
        assert seen(pair, "stranger", True, None, None, least_propensity=0.05, first=True).error_saved is None

    @pytest.mark.parametrize("worth", [{"a": 0.9, "b": 0.2}, {"a": 0.3, "b": 0.9}, {"a": 0.6, "b": 0.6}])
    def test_the_gain_is_unbiased_whatever_the_older_one_believes(self, worth):
        pair = compare(self.older, self.newer, ROUTING, by_newer=False)
        chances, mean = {"a": 0.8, "b": 0.2}, 0.0
        for name, chance in chances.items():
            receipt = Receipt("local", "v", self.older, (0.9, 0.5), tuple(chances.values()), name, False, 1.0, 0.0, 0.0)
            found = seen(pair, name, True, worth[name], receipt, least_propensity=0.05, first=True)
            mean += chance * found.gain
        assert mean == pytest.approx(worth["b"] - worth["a"])

    def test_no_gain_where_a_choice_had_hardly_a_chance_or_nothing_was_drawn(self):
        pair = compare(self.older, self.newer, ROUTING, by_newer=False)
        for drawn in ((0.99, 0.01), (1.0, 0.0), ()):
            receipt = Receipt("local", "v", self.older, (0.9, 0.5), drawn, "a", False, 1.0, 0.0, 0.0)
            assert seen(pair, "a", True, None, receipt, least_propensity=0.05, first=True).gain is None

    @pytest.mark.parametrize(
        "wrong", [{"success": math.nan}, {"success": 1.5}, {"deviation": math.inf}, {"latency_s": -1.0}]
    )
    def test_nonsense(self, wrong):
        assert sound(self.older)
        assert not sound([Estimate(**{"candidate": "a", "success": 0.5, **wrong})])


# ── simulated tasks ──────────────────────────────────────────────────────────────────────────────────────────────────

AGENTS = ("a", "b", "c", "d")
KINDS = 4


class World:
    """Four kinds of tasks, four agents; of each kind one is good. What the routers believe is given."""

    def __init__(self, seed: int, truth, older, newer) -> None:
        self.rng, self.truth, self.older, self.newer = Random(seed), truth, older, newer
        self.tasks = self.touched = 0

    def run(self, policy: RolloutPolicy, most: int):
        """(arrow, stage before it) of the end of the trial, or of the promotion. Tasks that say nothing are counted."""
        rollout, stage, number = Rollout(policy), S.SHADOW, 0
        rollout.offered("v2")
        said = {False: self.older, True: self.newer}
        odds = {by: [chances(each, ROUTING) for each in said[by]] for by in said}
        pairs = {
            by: [compare(*both, ROUTING, by_newer=by) for both in zip(self.older, self.newer, strict=True)]
            for by in said
        }
        while self.tasks < most:
            number += 1
            self.tasks += 1
            part = rollout.part(f"{number}")
            if not part.both:
                continue
            self.touched += part.by_newer
            kind = self.rng.randrange(KINDS)
            estimates, propensities = said[part.by_newer][kind], odds[part.by_newer][kind]
            (place,) = self.rng.choices(range(len(AGENTS)), propensities)
            chosen = AGENTS[place]
            receipt = Receipt("local", "v", estimates, (), propensities, chosen, False, 1.0, 0.0, 0.0)
            pair = pairs[part.by_newer][kind]
            good = self.rng.random() < self.truth[kind][place]
            found = seen(pair, chosen, good, None, receipt, least_propensity=policy.least_propensity, first=True)
            decision = rollout.saw(found)
            if decision is not None:
                if decision.arrow in ("rejected", "promoted"):
                    return decision.arrow, stage
                stage = decision.stage
        return "undecided", stage


def believed(rows) -> list[tuple[Estimate, ...]]:
    return [tuple(Estimate(name, p, 0.03, latency_s=1.0) for name, p in zip(AGENTS, row, strict=True)) for row in rows]


def worlds(seed: int, points: float):
    """The newer one's choices earn `points` more (or less) than the older one's on half of the kinds."""
    truth = [[0.3, 0.3, 0.3, 0.3] for _ in range(KINDS)]
    old = [[0.3, 0.3, 0.3, 0.3] for _ in range(KINDS)]
    new = [[0.3, 0.3, 0.3, 0.3] for _ in range(KINDS)]
    for kind in range(KINDS):
        truth[kind][kind] = old[kind][kind] = new[kind][kind] = 0.6
    for kind in (0, 1):  # here the newer one prefers another agent
        truth[kind][kind + 1] = 0.6 + 2 * points
        new[kind][kind + 1] = max(0.7, 0.6 + 2 * points)
        old[kind][kind + 1] = 0.45
    return World(seed, truth, believed(old), believed(new))


# More canaries than by default, so that a trial is soon over: what is shown is of the tests alone.
SIMULATED = RolloutPolicy(canary_share=0.3, shadow_share=0.7, canary_most=600, margin=0.05)


def test_one_that_is_no_better_is_promoted_at_most_as_often_as_alpha_says():
    runs = 60
    promoted = sum(worlds(seed, 0.0).run(SIMULATED, 40_000)[0] == "promoted" for seed in range(runs))
    assert promoted / runs <= SIMULATED.alpha + 3 * math.sqrt(SIMULATED.alpha * (1 - SIMULATED.alpha) / runs)


def test_a_better_one_is_promoted():
    found = [worlds(seed, 0.1).run(SIMULATED, 60_000)[0] for seed in range(20)]
    assert found.count("promoted") >= 18, found


def test_a_bad_one_is_caught_and_touches_at_most_a_hundredth():
    """By the shares that are the defaults: here it is too sure of agents that are bad."""
    for seed in range(10):
        world = worlds(seed, -0.1)
        arrow, _ = world.run(RolloutPolicy(), 400_000)
        assert arrow == "rejected"
        assert world.touched / world.tasks <= 0.01


def test_one_with_shuffled_beliefs_ends_in_shadow_and_touches_nothing():
    for seed in range(10):
        world = worlds(seed, 0.0)
        world.newer = [row[1:] + row[:1] for row in world.older]
        world.newer = believed([[e.success for e in row] for row in world.newer])
        assert world.run(RolloutPolicy(), 100_000) == ("rejected", S.SHADOW)
        assert world.touched == 0


# ── anything in any order ────────────────────────────────────────────────────────────────────────────────────────────

SHARES = st.floats(0.0, 1.0)


class AnyOrder(RuleBasedStateMachine):
    """Whatever comes, the state holds together, survives a restart, and every trial ends."""

    def __init__(self) -> None:
        super().__init__()
        self.rollout = Rollout(QUICK)
        self.version = 0
        self.since = 0

    @precondition(lambda self: self.rollout.stage is S.IDLE)
    @rule()
    def offer(self):
        self.version += 1
        self.since = 0
        assert self.rollout.offered(f"v{self.version}").stage is S.SHADOW

    @rule(
        newer=st.booleans(), reward=SHARES, saved=st.none() | st.floats(-1.0, 1.0),
        gain=st.none() | st.floats(-21.0, 21.0), apart=SHARES, first=st.booleans(), times=st.integers(1, 20),
    )  # fmt: skip
    def outcomes(self, newer, reward, saved, gain, apart, first, times):
        for _ in range(times):
            heard = newer and self.rollout.stage is not S.SHADOW
            self.rollout.saw(Seen(heard, reward, saved, gain, apart, first))

    @rule()
    def breaks(self):
        decision = self.rollout.broke("odd")
        assert (decision is None) == (self.rollout.stage is S.IDLE and decision is None)
        assert self.rollout.stage is S.IDLE

    @rule()
    def restart(self):
        kept = self.rollout.evidence()
        self.rollout = Rollout(QUICK, self.rollout.stage, f"v{self.version}", kept)
        assert self.rollout.evidence() == kept

    @invariant()
    def holds_together(self):
        self.rollout.check()
        if self.rollout.stage is S.IDLE:
            assert self.rollout.evidence() == Evidence()
            assert self.rollout.saw(Seen(False, 1.0, 0.5)) is None


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0}, {"alpha": 1.0}, {"canary_share": 0.0}, {"shadow_share": 0.99, "canary_share": 0.02},
        {"shadow_least": 0}, {"shadow_most": 100}, {"canary_most": 10}, {"margin": -0.1}, {"slow_factor": 1.0},
        {"watch": 0}, {"least_propensity": 0.0},
    ],
)  # fmt: skip
def test_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ConfigError, match="rollout"):
        RolloutPolicy(**wrong)

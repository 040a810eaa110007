"""Agents that talk at random over a simulated mesh, compared with an onlooker who sees all of them at once."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from talk_world import World

AGENTS = {"a": "p1", "b": "p1", "c": "p2", "d": "p2", "e": "p3", "f": "p4"}
NAMES = st.sampled_from(sorted(AGENTS))


class Talking(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(AGENTS, reentrant=frozenset("f"))

    @rule(sender=NAMES, receiver=NAMES, count=st.integers(1, 12))
    def tell(self, sender, receiver, count):
        for _ in range(count):
            self.world.tell(sender, receiver)

    @rule(sender=NAMES, receiver=NAMES, timeout_s=st.sampled_from([1.0, 10.0, 1e9]))
    def ask_from_run(self, sender, receiver, timeout_s):
        self.world.ask(sender, receiver, None, timeout_s)

    @rule(sender=NAMES, receivers=st.lists(NAMES, min_size=1, max_size=2), timeout_s=st.sampled_from([5.0, 1e9]))
    def ask_in_turn(self, sender, receivers, timeout_s):
        turn = next(iter(self.world.turns(sender)), None) or self.world.take(sender)
        for receiver in receivers if turn is not None else ():
            self.world.ask(sender, receiver, turn, timeout_s)

    @rule(agent=NAMES)
    def take(self, agent):
        self.world.take(agent)

    @rule(agent=NAMES)
    def end(self, agent):
        for turn in self.world.turns(agent)[:1]:
            self.world.end(agent, turn)

    @precondition(lambda self: self.world.busy_wires())
    @rule(data=st.data(), count=st.integers(1, 5))
    def deliver(self, data, count):
        for _ in range(count):
            wires = self.world.busy_wires()
            if wires:
                self.world.deliver(data.draw(st.sampled_from(wires)))

    @rule(seconds=st.sampled_from([0.5, 3.0]))
    def time_passes(self, seconds):
        self.world.advance(seconds)

    @rule(process=st.sampled_from(sorted(set(AGENTS.values()))))
    def die(self, process):
        if self.world.deaths < 2:
            self.world.kill(process)

    @rule()
    def withdraw(self):
        for token, asked in list(self.world.asks.items()):
            if not self.world.settled[token]:
                if self.world.processes[AGENTS[asked.asker]].withdraw(asked):
                    del self.world.asks[token], self.world.settled[token]
                    self.world.after()
                return

    @invariant()
    def laws_hold(self):
        self.world.check()

    def teardown(self):
        self.world.settle()
        self.world.advance(1e10)
        self.world.settle()
        self.world.check_settled()


Talking.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestTalking = Talking.TestCase


def live(seed: int, *, steps: int, timeouts: bool, agents: int, processes: int) -> World:
    """Agents that mostly ask each other while they are asked, which is how circles come about."""
    rng = random.Random(seed)
    names = [f"agent-{n:02}" for n in range(agents)]
    world = World({name: f"p{rng.randrange(processes)}" for name in names}, frozenset(names[: seed % 3]))
    for _ in range(steps):
        agent, other = rng.choice(names), rng.choice(names)
        match rng.randrange(10):
            case 0 | 1:
                world.ask(agent, other)
            case 2 | 3 | 4:
                turn = next(iter(world.turns(agent)), None) or world.take(agent)
                if turn is not None and len(turn.asks or {}) < 3:
                    world.ask(agent, other, turn, rng.choice([2.0, 1e9]) if timeouts else 1e9)
            case 5:
                for turn in world.turns(agent):
                    if not turn.asks or rng.random() < 0.1:
                        world.end(agent, turn)
            case 6 if timeouts and rng.random() < 0.02 and world.deaths < 3:
                world.kill(world.agents[agent])
            case 6 if timeouts:
                world.advance(rng.random())
            case _:
                if wires := world.busy_wires():
                    world.deliver(rng.choice(wires))
        world.check()
    world.settle()
    return world


@pytest.mark.parametrize("timeouts", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_every_circle_is_found_and_none_that_is_not_there(seed, timeouts):
    """`World.after` asserts that what is reported existed, `World.check` that nothing is left when all has arrived."""
    world = live(seed, steps=300, timeouts=timeouts, agents=3 + seed % 5, processes=1 + seed % 4)
    world.advance(1e10)
    world.settle()
    world.check_settled()


def test_the_worlds_have_circles_to_find():
    """Otherwise the test above would say nothing."""
    worlds = [live(seed, steps=300, timeouts=True, agents=4, processes=3) for seed in range(20)]
    victims = [victim for world in worlds for victim in world.victims]
    lengths = {len(cycle) for _, cycle in victims}
    assert len(victims) > 20 and len(lengths) >= 3
    assert any(set(world.circles) - {asks for _, asks in world.victims} for world in worlds)  # broken by time or others

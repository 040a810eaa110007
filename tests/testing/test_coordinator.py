"""The simulated coordinator keeps its side of the protocol, also where it was replaced and does not know it."""

from __future__ import annotations

import pytest

from flowray.core.model import AgentId, AgentSpec
from flowray.testing.callers import Operator
from flowray.testing.swarm import RandomWork
from flowray.testing.world import World

AGENT = AgentId("reader-0")


@pytest.fixture
def world() -> World:
    """One coordinator, and one agent that it knows."""
    made = World(seed=1, behaviour=RandomWork(1, 1.0))
    Operator(made).add(AgentSpec(name="reader", tier="primary", count=1))
    made.clock.run(5.0)
    assert (AGENT, 1) in made.processes
    return made


def test_a_coordinator_gives_leases_to_the_agents_that_it_knows(world: World) -> None:
    given: list[int] = []
    assert world.leader is not None
    world.leader.lease(AGENT, 1, lambda: given.append(1))
    world.leader.lease(AGENT, 2, lambda: given.append(2))
    world.clock.run(10.0)
    assert given == [1]


def test_a_coordinator_that_was_replaced_gives_no_lease_and_ends(world: World) -> None:
    """It was stopped and goes on; nothing that it has to write has told it yet that its epoch is over."""
    given: list[int] = []
    old = world.leader
    assert old is not None
    old.pause()
    world.start_coordinator()
    old.resume()
    assert old.alive
    old.lease(AGENT, 1, lambda: given.append(1))
    world.clock.run(10.0)
    assert given == []
    assert not old.alive

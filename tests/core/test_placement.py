from collections import Counter
from random import Random

import pytest

from flowray.core.placement import PlacementPolicy, choose_agent
from flowray.core.queueing import Queue
from flowray.core.registry import Registry, RestartPolicy
from flowray.core.states import AgentState
from flowray.errors import ConfigError

from .builders import spec, task

POLICY = PlacementPolicy()


def lane_of(**counts):
    """A lane served by classes of ready agents."""
    registry, queue = Registry(RestartPolicy()), Queue()
    for name, count in counts.items():
        one, added, _ = registry.add(spec(name, count=count, slots=4))
        queue.join(one)
        for agent in added:
            agent.state = AgentState.READY
            one.update(agent)
    return queue.lane(task(), registry.classes()), registry


def hold(agent, count):
    for number in range(count):
        agent.outstanding[f"t{number}"] = 1
    agent.agent_class.update(agent)


def test_of_two_the_less_loaded_is_taken():
    lane, registry = lane_of(a=2)
    busy, idle = registry.agents()
    hold(busy, 3)
    for seed in range(50):
        agent, choice = choose_agent(lane, POLICY, 0.0, Random(seed))
        assert agent is idle
        assert (choice.policy, choice.candidates) == ("power_of_two", 2)
        assert dict(choice.considered) == {busy.id: 0.75, idle.id: 0.0}


def test_nobody_with_room_is_nobody():
    lane, registry = lane_of(a=1)
    hold(registry.agents()[0], 4)
    assert choose_agent(lane, POLICY, 0.0, Random(0)) is None


def test_the_only_one_is_named_so():
    lane, registry = lane_of(a=1)
    agent, choice = choose_agent(lane, POLICY, 0.0, Random(0))
    assert (agent, choice.policy) == (registry.agents()[0], "only_one")


def test_equal_loads_spread_evenly():
    lane, _ = lane_of(a=3, b=1)
    rng = Random(5)
    drawn = Counter(choose_agent(lane, POLICY, 0.0, rng)[0].id for _ in range(4000))
    assert len(drawn) == 4
    assert all(700 < count < 1300 for count in drawn.values())


def test_two_choices_keep_the_fullest_agent_close_to_the_average():
    """The reason for two choices: with one the fullest of 50 agents would hold about 12 at an average of 4."""
    registry, queue = Registry(RestartPolicy()), Queue()
    one, added, _ = registry.add(spec("a", count=50, slots=100))
    queue.join(one)
    for agent in added:
        agent.state = AgentState.READY
        one.update(agent)
    lane, rng = queue.lane(task(), registry.classes()), Random(3)
    for number in range(200):
        agent, _ = choose_agent(lane, POLICY, 0.0, rng)
        agent.outstanding[f"t{number}"] = 1
        one.update(agent)
    assert max(a.held for a in added) <= 6


def test_an_idle_slot_is_better_than_any_prefetch():
    lane, registry = lane_of(a=2)
    quick, other = registry.agents()
    quick.prefetch, quick.service_s = 10, 0.001
    hold(quick, 4)
    hold(other, 3)
    assert choose_agent(lane, POLICY, 0.0, Random(0))[0] is other
    hold(other, 4)
    agent, choice = choose_agent(lane, POLICY, 0.0, Random(0))
    assert agent is quick
    assert choice.policy == "only_one"


def test_quick_tasks_that_come_together_go_together():
    lane, registry = lane_of(a=8)
    for agent in registry.agents():
        agent.prefetch, agent.service_s = 64, 0.00005
    first, _ = choose_agent(lane, POLICY, 10.0, Random(0))
    together = 0
    while True:
        hold(first, first.held + 1)
        agent, choice = choose_agent(lane, POLICY, 10.0, Random(together))
        if choice.policy != "batch":
            break
        assert agent is first
        together += 1
    assert together == 9  # with the first they make 10 of 50 us: the batch_s of 0.5 ms


def test_nothing_goes_together_that_is_slow_unknown_late_or_has_no_room():
    lane, registry = lane_of(a=8)
    for agent in registry.agents():
        agent.prefetch = 64
    first, _ = choose_agent(lane, POLICY, 10.0, Random(0))
    hold(first, 1)
    for service_s, now in ((0.001, 10.0), (-1.0, 10.0), (0.00005, 10.1)):
        first.service_s, lane.last_chosen, lane.last_chosen_at = service_s, first, 10.0
        assert choose_agent(lane, POLICY, now, Random(1))[1].policy == "power_of_two"
    first.outstanding.clear()
    first.service_s, first.state = 0.00005, AgentState.STOPPED
    first.agent_class.update(first)
    lane.last_chosen, lane.last_chosen_at = first, 10.0
    agent, choice = choose_agent(lane, POLICY, 10.0, Random(1))
    assert (agent is first, choice.policy) == (False, "power_of_two")
    first.state = AgentState.READY
    first.agent_class.update(first)
    lane.last_chosen, lane.last_chosen_at = first, 10.0
    off = PlacementPolicy(batch_s=0)
    assert choose_agent(lane, off, 10.0, Random(1))[1].policy == "power_of_two"


def test_an_idle_agent_that_is_quick_gets_the_next_one_too_however_much_later():
    lane, _ = lane_of(a=8)
    first, _ = choose_agent(lane, POLICY, 10.0, Random(0))
    drawn = {choose_agent(lane, POLICY, 10.0, Random(seed))[0].id for seed in range(20)}
    assert len(drawn) > 1, "how quick it is, nobody knows yet"
    first.service_s, first.prefetch, lane.last_chosen = 0.00005, 64, first
    for seed in range(20):
        agent, choice = choose_agent(lane, POLICY, 99.0 + seed, Random(seed))
        assert (agent, choice.policy) == (first, "same")
    first.service_s = 0.001
    assert {choose_agent(lane, POLICY, 99.0, Random(seed))[0].id for seed in range(20)} != {first.id}


def quick_agents(count):
    """A lane served by agents that do its tasks in 50 us each, one at a time, and may hold 64 ahead."""
    registry, queue = Registry(RestartPolicy()), Queue()
    one, added, _ = registry.add(spec("a", count=count, slots=1))
    queue.join(one)
    for agent in added:
        agent.state, agent.service_s, agent.prefetch = AgentState.READY, 0.00005, 64
        one.update(agent)
    return queue.lane(task(), registry.classes()), added


def give(lane, rng, now, policy=POLICY):
    agent, choice = choose_agent(lane, policy, now, rng)
    agent.outstanding[f"t{len(agent.outstanding)}"] = 1
    agent.agent_class.update(agent)
    return agent, choice


def test_quick_tasks_stay_with_few_agents_each_with_its_batch_and_then_more():
    lane, agents = quick_agents(100)
    rng = Random(1)
    for number in range(160):
        give(lane, rng, 10.0 + number * 0.00001)
    assert sum(1 for agent in agents if agent.held) == 16
    assert {agent.held for agent in agents if agent.held} == {10}, "half a millisecond of work each"
    for number in range(600):
        _, choice = give(lane, rng, 11.0 + number * 0.01)
        assert choice.policy == "recent"
    held = [agent.held for agent in agents if agent.held]
    assert len(held) == 16
    assert max(held) - min(held) <= 8, "of two the less loaded"


def test_when_those_few_are_full_others_take_their_places_and_nobody_is_overfull():
    lane, agents = quick_agents(100)
    rng = Random(2)
    for number in range(3000):
        give(lane, rng, 10.0 + number * 0.002)
    assert max(agent.held for agent in agents) <= 65
    assert sum(agent.held for agent in agents) == 3000
    assert len(lane.recent) <= 16


def test_one_that_is_gone_stuck_or_slow_by_now_is_not_among_the_few():
    lane, agents = quick_agents(40)
    rng = Random(3)
    for number in range(160):
        give(lane, rng, 10.0 + number * 0.00001)
    gone, slow, stuck = [agent for agent in agents if agent.held][:3]
    gone.state = AgentState.STOPPED
    slow.service_s = 0.02
    stuck.prefetch = 0
    for agent in (gone, slow, stuck):
        agent.agent_class.update(agent)
    before = gone.held, slow.held, stuck.held
    for number in range(200):
        agent, choice = give(lane, rng, 20.0 + number)
        assert choice.policy != "recent" or agent not in (gone, slow, stuck)
    assert (gone.held, stuck.held) == (before[0], before[2])


def test_slow_tasks_go_to_all_agents_and_so_do_quick_ones_if_that_is_wanted():
    lane, agents = quick_agents(100)
    for agent in agents:
        agent.service_s = 0.01
    for number in range(90):
        assert give(lane, Random(number), 10.0 + number)[1].policy == "power_of_two"
    lane, agents = quick_agents(100)
    everywhere = PlacementPolicy(recent=0, batch_s=0.0005)
    for number in range(400):
        assert give(lane, Random(number), 10.0 + number * 0.01, everywhere)[1].policy != "recent"
    assert sum(1 for agent in agents if agent.held) > 60


@pytest.mark.parametrize("wrong", [{"recent": -1}, {"recent": 1001}])
def test_refuses_a_senseless_number_of_recent_agents(wrong):
    with pytest.raises(ConfigError, match=r"placement\.recent"):
        PlacementPolicy(**wrong)


@pytest.mark.parametrize("wrong", [{"prefetch_s": -1}, {"max_prefetch": -1}, {"batch_s": -1}, {"batch_within_s": -1}])
def test_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ConfigError, match="placement"):
        PlacementPolicy(**wrong)

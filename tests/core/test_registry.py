import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.core.registry import Registry, RestartPolicy
from flowray.core.states import AgentState
from flowray.errors import ConfigError, InvalidTransition

from .builders import failure, spec


def team(count=1, **fields):
    registry = Registry(RestartPolicy())
    one, added, _ = registry.add(spec(count=count, **fields))
    return registry, one, added


def test_the_first_loss_is_made_good_at_once_and_further_ones_are_spaced_out():
    registry, _, (agent,) = team()
    assert [registry.lost(agent, 100.0) - 100.0 for _ in range(4)] == [0.0, 0.5, 1.0, 2.0]
    assert RestartPolicy().wait_s(100) == 30.0


def test_losses_far_apart_do_not_add_up():
    registry, _, (agent,) = team()
    assert [registry.lost(agent, at) - at for at in (0.0, 61.0, 200.0)] == [0.0, 0.0, 0.0]


def test_too_many_failed_starts_in_a_row_are_reported():
    registry, _, (agent,) = team()
    assert [registry.start_failed(agent, failure()) for _ in range(3)] == [False, False, True]
    assert agent.failure == failure()


def test_a_known_name_changes_the_count():
    registry, one, added = team(count=2)
    assert [a.id for a in added] == ["writer-0", "writer-1"]
    _, added, surplus = registry.add(spec(count=1))
    assert (added, [a.id for a in surplus]) == ([], ["writer-1"])
    registry.forget(surplus[0])
    _, added, surplus = registry.add(spec(count=2))
    assert ([a.id for a in added], surplus) == (["writer-1"], [])
    assert len(one.agents) == 2


def test_a_class_without_an_agent_that_may_come_back_is_hopeless():
    registry, one, (agent,) = team()
    assert not one.hopeless
    for arrow in ("requested", "gave_up"):
        registry.move(agent, arrow)
    assert one.hopeless
    assert registry.broken("writer") == [agent]


def test_an_illegal_arrow_names_the_agent():
    registry, _, (agent,) = team()
    with pytest.raises(InvalidTransition, match="writer-0 is waiting"):
        registry.move(agent, "drain")


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["hold", "release", "lose", "ready"]))))
def test_the_lists_of_agents_with_room_follow_their_state_and_load(steps):
    _, one, agents = team(count=3, slots=2)
    for agent in agents:
        agent.state = AgentState.READY
        one.update(agent)
    for number, what in steps:
        agent = agents[number]
        if what == "hold" and agent.state is AgentState.READY:
            agent.outstanding[f"t{len(agent.outstanding)}"] = 1
        elif what == "release" and agent.outstanding:
            agent.outstanding.popitem()
        elif what == "lose":
            agent.state = AgentState.WAITING
        elif what == "ready":
            agent.state = AgentState.READY
        one.update(agent)
        assert set(one.free) == {a for a in agents if a.state is AgentState.READY and a.held < a.slots}


@pytest.mark.parametrize(
    ("run_s", "prefetch_s", "expected"),
    [(0.001, 0.01, 10), (0.0, 0.01, 64), (1.0, 0.01, 0), (0.0001, 0.01, 64), (0.0, 0.0, 0), (1.0, 0.0, 0)],
)
def test_only_short_tasks_are_prefetched(run_s, prefetch_s, expected):
    _, _, (agent,) = team()
    agent.observe(run_s, prefetch_s, 64)
    assert agent.prefetch == expected


@pytest.mark.parametrize("wrong", [{"window_s": 0}, {"delay_s": -1.0}, {"delay_max_s": 0}, {"max_start_failures": 0}])
def test_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ConfigError, match="restart"):
        RestartPolicy(**wrong)

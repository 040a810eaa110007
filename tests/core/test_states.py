import pytest

from flowray.core.states import (
    AGENT_TRANSITIONS,
    TASK_TRANSITIONS,
    TERMINAL,
    AgentState,
    TaskState,
    next_agent_state,
    next_task_state,
)
from flowray.errors import InvalidTransition


def reachable(table, start):
    found, frontier = {start}, [start]
    while frontier:
        state = frontier.pop()
        for (origin, _), target in table.items():
            if origin is state and target not in found:
                found.add(target)
                frontier.append(target)
    return found


def test_every_task_state_is_reached_and_the_ends_are_ends():
    assert reachable(TASK_TRANSITIONS, TaskState.QUEUED) == set(TaskState)
    assert {origin for origin, _ in TASK_TRANSITIONS} == set(TaskState) - TERMINAL
    assert all(state.terminal == (state in TERMINAL) for state in TaskState)


def test_every_agent_state_is_reached_and_only_stopped_is_an_end():
    assert reachable(AGENT_TRANSITIONS, AgentState.WAITING) == set(AgentState)
    assert {origin for origin, _ in AGENT_TRANSITIONS} == set(AgentState) - {AgentState.STOPPED}


def test_every_open_state_can_end_in_every_way_that_comes_from_outside():
    for state in set(TaskState) - TERMINAL:
        assert next_task_state(state, "cancelled", "t") is TaskState.CANCELLED
        assert next_task_state(state, "expired", "t") is TaskState.EXPIRED
        assert next_task_state(state, "gave_up", "t") is TaskState.DEAD


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_nothing_leads_out_of_an_end(state):
    for arrow in {arrow for _, arrow in TASK_TRANSITIONS}:
        with pytest.raises(InvalidTransition, match="task t7 is"):
            next_task_state(state, arrow, "t7")


def test_an_unknown_arrow_names_the_agent():
    with pytest.raises(InvalidTransition, match="agent a-1 is stopped: no arrow 'ready'"):
        next_agent_state(AgentState.STOPPED, "ready", "a-1")

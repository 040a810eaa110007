"""What agents say of their attempts, as the core hears it."""

from __future__ import annotations

from flowray.core.events import (
    AgentReady,
    AttemptFinished,
    AttemptReturned,
    Event,
    OutputGiven,
    SnapshotMade,
    StateRefused,
)
from flowray.core.model import AgentId, TaskId
from flowray.runtime.messages import Finished, Held, Output, Result, Returned, Snapshotted


def results_as_events(agent_id: str, incarnation: int, results: list[Result]) -> list[Event]:
    """What an agent reports, as the core hears it."""
    events: list[Event] = []
    agent = AgentId(agent_id)
    for one in results:
        if isinstance(one, Finished):
            events.append(
                AttemptFinished(
                    TaskId(one.task_id),
                    one.attempt,
                    one.epoch,
                    agent,
                    one.value,
                    one.failure,
                    one.run_s,
                    one.quality,
                    one.cost_usd,
                    one.chunks,
                )
            )
        elif isinstance(one, Returned):
            events.append(AttemptReturned(TaskId(one.task_id), one.attempt, one.epoch, agent))
        elif isinstance(one, Output):
            task_id = TaskId(one.task_id)
            events.append(
                OutputGiven(agent, incarnation, one.term, one.seq, task_id, one.value, one.failure, one.run_s)
            )
        elif isinstance(one, Snapshotted):
            events.append(SnapshotMade(agent, incarnation, one.term, one.seq, one.digest, one.value, one.failure))
        else:
            events.append(StateRefused(agent, incarnation, one.failure))
    return events


def ready(held: Held, node_id: str) -> AgentReady:
    """An agent that a new coordinator found, and the attempts that it holds."""
    return AgentReady(AgentId(held.agent_id), held.incarnation, tuple(held.running), held.received, held.term, node_id)

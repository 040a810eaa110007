"""Nobody waits in vain: a task beside an idle agent that could do it, long after the faults stopped, is a violation.

The core asserts the same of its own lists. Here it is judged from outside: by what the journal says of tasks and by
what processes are doing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowray.core.model import AgentSpec, Task, TaskId
from flowray.core.naming import class_of
from flowray.core.states import TaskState
from flowray.testing.violations import Violation

if TYPE_CHECKING:
    from flowray.testing.world import World

IDLE_S = 1.0  # an agent beside a task that waits may be idle for less, as messages take time
Waiting = dict[TaskId, int]  # task -> attempts so far
Idle = dict[tuple[str, int], float]  # process -> when it last began or ended something


def look_for_idleness(world: World) -> None:
    """Look now and again a little later; raises Violation then."""
    waiting, idle = _waiting(world), _idle(world)
    if waiting and idle:
        world.clock.after(IDLE_S, lambda: _look_again(world, waiting, idle))


def _waiting(world: World) -> Waiting:
    open_tasks = world.observer.book.open.items()
    return {task_id: entry.attempt for task_id, entry in open_tasks if entry.state is TaskState.QUEUED}


def _idle(world: World) -> Idle:
    return {key: process.last_end for key, process in world.processes.items() if process.idle}


def _look_again(world: World, waiting: Waiting, idle: Idle) -> None:
    now_waiting, now_idle = _waiting(world), _idle(world)
    book = world.observer.book
    routed = world.policy.routing.enabled  # then a task may wait for another class that is better
    for task_id in [name for name, attempt in waiting.items() if now_waiting.get(name) == attempt]:
        task = book.open[task_id].task
        if task.fallback:  # it may have been given to that while nobody else was there, and waits for it
            continue
        for (agent_id, incarnation), since in idle.items():
            still, spec = now_idle.get((agent_id, incarnation)) == since, book.specs[class_of(agent_id)]
            leaves = int(agent_id.rpartition("-")[2]) >= spec.count  # it may still have an attempt, and gets no other
            if still and not leaves and _serves(spec, task) and (task.agent or not routed):
                raise Violation("17", f"{task_id} waits and {agent_id} is idle, long after the faults stopped")


def _serves(spec: AgentSpec, task: Task) -> bool:
    fits = set(task.needs) <= set(spec.capabilities) and task.tier in ("", spec.tier)
    return fits and task.agent in ("", spec.name)

"""What must hold after every event. `Coordination.check()` comes here; tests and simulation call it all the time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from flowray.core.model import AgentId, TaskId
from flowray.core.naming import attempt_key
from flowray.core.stateful_checks import check_instances, check_stateful
from flowray.core.states import AgentState, TaskState
from flowray.errors import InvariantBroken

if TYPE_CHECKING:
    from flowray.core.book import Entry
    from flowray.core.coordination import Coordination
    from flowray.core.model import Held
    from flowray.core.registry import Agent
    from flowray.core.streaming import Stream

# Looked up once: in Python 3.11 an enum's member takes four times as long to find as another class's attribute.
_QUEUED, _RUNNING, _BACKING_OFF = TaskState.QUEUED, TaskState.RUNNING, TaskState.BACKING_OFF
_READY, _DRAINING = AgentState.READY, AgentState.DRAINING
_OPEN = tuple(state for state in TaskState if not state.terminal)


def check_coordination(core: Coordination) -> None:
    """Raise InvariantBroken, with what is wrong, if the state contradicts itself."""
    _check_each_task_is_in_one_place(core)
    _check_counts(core)
    for agent in core.registry.agents():
        _check_agent(core, agent)
    _check_lists(core)
    _check_nobody_waits_in_vain(core)
    check_stateful(core)


def check_touched(core: Coordination, task_ids: Iterable[TaskId], agent_ids: Iterable[AgentId]) -> None:
    """The same for these tasks and agents alone, and for what can be looked at without looking at everything.

    Enough after an event that touched no others; what it misses (a task held by an agent that nobody named, a sum that
    is wrong) the whole check finds later.
    """
    registry, open_tasks = core.registry, core.book.open
    for task_id in task_ids:
        in_lanes, entry = core.queue.holding(task_id) + core.stateful.holding(task_id), open_tasks.get(task_id)
        if entry is not None:
            running = entry.running() if entry.agent_id else ()
            holders = [registry.agent(AgentId(one.agent_id)) for one in running]
            held_by = [agent.id for agent in holders if agent is not None and task_id in agent.outstanding]
            _check_task(core, task_id, entry, in_lanes, held_by, running)
        elif in_lanes:
            raise InvariantBroken(f"{in_lanes} lanes hold {task_id}, which is closed")
    for agent_id in agent_ids:
        agent = registry.agent(agent_id)
        if agent is None:
            continue
        for task_id in agent.outstanding:
            entry = open_tasks.get(task_id)
            if entry is None or (
                entry.agent_id != agent_id and (entry.extra is None or entry.extra.agent_id != agent_id)
            ):
                raise InvariantBroken(f"{agent_id} holds {task_id}, which it does not run")
        _check_agent(core, agent)
    if agent_ids:
        check_instances(core, core.stateful.instances_of(agent_ids))
    _check_open_tasks(core)
    _check_nobody_waits_in_vain(core)


def _hold(condition: bool, what: str) -> None:
    if not condition:
        raise InvariantBroken(what)


def _check_each_task_is_in_one_place(core: Coordination) -> None:
    holders: dict[str, list[str]] = {}
    for agent in core.registry.agents():
        for task_id in agent.outstanding:
            holders.setdefault(task_id, []).append(agent.id)
    lanes_of: dict[str, int] = {}
    for lane in (*core.queue.lanes(), *(instance.lane for instance in core.stateful.instances())):
        for task_id in lane.ids():
            lanes_of[task_id] = lanes_of.get(task_id, 0) + 1
    for task_id, entry in core.book.open.items():
        _check_task(core, task_id, entry, lanes_of.get(task_id, 0), holders.pop(task_id, []), entry.running())
    _hold(not holders, f"agents hold tasks that are not open: {holders}")
    _hold(len(core.asking) <= len(core.book.open), f"{len(core.asking)} questions for {len(core.book.open)} tasks")
    closed = lanes_of.keys() - core.book.open.keys()
    _hold(not closed, f"lanes hold closed tasks: {sorted(closed)[:5]}")


def _check_task(
    core: Coordination,
    task_id: TaskId,
    entry: Entry,
    in_lanes: int,
    held_by: Sequence[str],
    running: Sequence[Held],
) -> None:
    """One open task, which so many lanes and these agents have. What is wrong is put into words only when it is."""
    state, timers, task = entry.state, core.timers.live, entry.task
    runs_on = [one.agent_id for one in running] if state is _RUNNING else []
    if held_by != runs_on:
        awaited = [one.agent_id for one in running if ("adoption", attempt_key(task_id, one.attempt)) in timers]
        if state is not _RUNNING or sorted([*held_by, *awaited]) != sorted(runs_on):
            raise InvariantBroken(f"{task_id} {state.value} on {runs_on}, held by {held_by}, awaited {awaited}")
    asked, decided = core.asking.is_asked(task_id), core.asking.standing(task_id)
    waits = state is _QUEUED and not asked
    if state not in _OPEN:
        raise InvariantBroken(f"{task_id} is open and {state.value}")
    if in_lanes != waits:
        raise InvariantBroken(f"{task_id} {state.value}: {in_lanes} lanes")
    if asked and ("estimates", "") not in timers:
        raise InvariantBroken(f"{task_id}: estimates asked for, without a timer")
    if asked and state is not _QUEUED:
        raise InvariantBroken(f"{task_id} {state.value}: estimates asked for")
    if decided is not None and not waits:
        raise InvariantBroken(f"{task_id} {state.value}: decided and does not wait")
    if (("backoff", task_id) in timers) != (state is _BACKING_OFF):
        raise InvariantBroken(f"{task_id} {state.value}: back-off timer")
    if (("deadline", task_id) in timers) != (entry.deadline_at is not None):
        raise InvariantBroken(f"{task_id}: deadline timer")
    if entry.failures >= task.max_attempts:
        raise InvariantBroken(f"{task_id}: {entry.failures} failures and still open")
    if entry.extra is not None:
        _check_second_attempt(entry, runs_on)
    if entry.stream is not None:
        _check_stream(core, task_id, entry.stream)
    alone = len(runs_on) == 1 and task.idempotent
    if not alone and ("hedge", task_id) in timers:
        raise InvariantBroken(f"{task_id}: will be hedged, and runs on {runs_on}")


def _check_second_attempt(entry: Entry, runs_on: list[str]) -> None:
    name = entry.task.id
    _hold(len(runs_on) == 2, f"{name} {entry.state.value}: a second attempt and no first")
    _hold(entry.task.idempotent, f"{name} has two attempts and is not idempotent")
    _hold(runs_on[0] != runs_on[1], f"{name} has two attempts on {runs_on}")


def _check_stream(core: Coordination, task_id: TaskId, stream: Stream) -> None:
    policy, open_bytes = core.policy.streaming, core.streaming.open_bytes
    if stream.count > stream.recorded:
        raise InvariantBroken(f"{task_id}: {stream.count} chunks stand, {stream.recorded} were recorded")
    if stream.recorded > policy.max_chunks or stream.size_bytes > policy.max_bytes:
        raise InvariantBroken(f"{task_id}: {stream.recorded} chunks of {stream.size_bytes} bytes are more than allowed")
    if not stream.size_bytes <= open_bytes <= policy.max_open_bytes:
        raise InvariantBroken(f"{open_bytes} bytes of chunks counted, {stream.size_bytes} are of {task_id} alone")


def _check_open_tasks(core: Coordination) -> None:
    admission = core.admission
    if admission.open_tasks != len(core.book.open):
        raise InvariantBroken(f"{admission.open_tasks} counted, {len(core.book.open)} open")
    if admission.open_tasks > core.policy.admission.max_open_tasks:
        raise InvariantBroken("more tasks open than admission allows")


def _check_counts(core: Coordination) -> None:
    _check_open_tasks(core)
    entries = core.book.open.values()
    size = sum(entry.task.size_bytes + entry.grown_bytes for entry in entries)
    _hold(core.admission.open_bytes == size, f"{core.admission.open_bytes} bytes counted, {size} held")
    size = sum(entry.stream.size_bytes for entry in entries if entry.stream is not None)
    _hold(core.streaming.open_bytes == size, f"{core.streaming.open_bytes} bytes of chunks counted, {size} recorded")


def _check_agent(core: Coordination, agent: Agent) -> None:
    one, state, held, slots, timers = agent.agent_class, agent.state, agent.held, agent.slots, core.timers.live
    ready = state is _READY
    if (agent in one.free) != (ready and held < slots):
        raise InvariantBroken(f"{agent.id}: free list")
    if (agent in one.spare) != (ready and slots <= held < slots + agent.prefetch):
        raise InvariantBroken(f"{agent.id}: spare list")
    if agent.room != ("free" if agent in one.free else "spare" if agent in one.spare else ""):
        raise InvariantBroken(f"{agent.id}: {agent.room or 'no'} room, by its own account")
    if agent.stopping and ("grace", agent.id) not in timers:
        raise InvariantBroken(f"{agent.id}: stopping for ever")
    if ready and agent.node in core.book.drained:
        _hold(core.draining.is_to_leave(agent.id), f"{agent.id} stays on {agent.node}, which is drained")
    if ready and core.draining.is_to_leave(agent.id):
        _hold(("drain", agent.id) in timers, f"{agent.id}: to leave some day")
    if state is _DRAINING and core.draining.is_leaving(agent.id):
        _hold(("drain", agent.id) in timers, f"{agent.id}: leaving for ever")
    if ready or state is _DRAINING:
        return
    if agent.outstanding:
        raise InvariantBroken(f"{agent.id} is {state.value} and holds attempts")
    if state is AgentState.STARTING and ("start", agent.id) not in timers:
        raise InvariantBroken(f"{agent.id}: starting for ever")
    if state is AgentState.WAITING and ("restart", agent.id) not in timers:
        raise InvariantBroken(f"{agent.id}: waiting for ever")


def _check_lists(core: Coordination) -> None:
    for one in core.registry.classes():
        free, spare = bool(one.free), bool(one.spare)
        for lane in one.lanes:
            if (one in lane.free) != free or (one in lane.spare) != spare:
                raise InvariantBroken(f"{one.spec.name}: lane {lane.key}: free {free}, spare {spare}, not so there")


def _check_nobody_waits_in_vain(core: Coordination) -> None:
    lane = core.queue.in_vain()
    if lane is not None:
        raise InvariantBroken(f"{len(lane)} tasks wait in {lane.key} beside an idle capable agent")

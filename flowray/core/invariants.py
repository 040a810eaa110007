"""What must hold after every event. `Coordination.check()` comes here; tests and simulation call it all the time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowray.core.states import AgentState, TaskState
from flowray.errors import InvariantBroken

if TYPE_CHECKING:
    from flowray.core.coordination import Coordination


def check_coordination(core: Coordination) -> None:
    """Raise InvariantBroken, with what is wrong, if the state contradicts itself."""
    _check_each_task_is_in_one_place(core)
    _check_counts(core)
    _check_agents(core)
    _check_nobody_waits_in_vain(core)


def _hold(condition: bool, what: str) -> None:
    if not condition:
        raise InvariantBroken(what)


def _check_each_task_is_in_one_place(core: Coordination) -> None:
    holders: dict[str, list[str]] = {}
    for agent in core.registry.agents():
        for task_id in agent.outstanding:
            holders.setdefault(task_id, []).append(agent.id)
    for task_id, entry in core.book.open.items():
        in_lane = [lane for lane in core.queue.lanes() if task_id in lane]
        held_by = holders.pop(task_id, [])
        backing_off = ("backoff", task_id) in core.timers
        unconfirmed = ("adoption", task_id) in core.timers
        _hold(not entry.state.terminal, f"{task_id} is open and {entry.state.value}")
        asked = core.asking.is_asked(task_id)
        waits = entry.state is TaskState.QUEUED and not asked
        _hold(len(in_lane) == waits, f"{task_id} {entry.state.value}: {len(in_lane)} lanes")
        _hold(not asked or ("estimates", "") in core.timers, f"{task_id}: estimates asked for, without a timer")
        _hold(not asked or entry.state is TaskState.QUEUED, f"{task_id} {entry.state.value}: estimates asked for")
        decided = core.asking.standing(task_id)
        _hold(decided is None or waits, f"{task_id} {entry.state.value}: decided and does not wait")
        _hold(backing_off == (entry.state is TaskState.BACKING_OFF), f"{task_id} {entry.state.value}: back-off timer")
        if entry.state is TaskState.RUNNING:
            _hold(unconfirmed or held_by == [entry.agent_id], f"{task_id} runs on {entry.agent_id}, held by {held_by}")
        else:
            _hold(not held_by and not unconfirmed, f"{task_id} {entry.state.value} but held by {held_by}")
        timed = ("deadline", task_id) in core.timers
        _hold(timed == (entry.deadline_at is not None), f"{task_id}: deadline timer")
        _hold(entry.failures < entry.task.max_attempts, f"{task_id}: {entry.failures} failures and still open")
    _hold(not holders, f"agents hold tasks that are not open: {holders}")
    _hold(len(core.asking) <= len(core.book.open), f"{len(core.asking)} questions for {len(core.book.open)} tasks")
    for lane in core.queue.lanes():
        _hold(all(task_id in core.book.open for task_id in lane.ids()), f"lane {lane.key} holds closed tasks")


def _check_counts(core: Coordination) -> None:
    admission, policy = core.admission, core.policy.admission
    _hold(admission.open_tasks == len(core.book.open), f"{admission.open_tasks} counted, {len(core.book.open)} open")
    size = sum(entry.task.size_bytes + entry.steps_bytes for entry in core.book.open.values())
    _hold(admission.open_bytes == size, f"{admission.open_bytes} bytes counted, {size} held")
    _hold(admission.open_tasks <= policy.max_open_tasks, "more tasks open than admission allows")


def _check_agents(core: Coordination) -> None:
    for agent in core.registry.agents():
        one = agent.agent_class
        ready = agent.state is AgentState.READY
        _hold((agent in one.free) == (ready and agent.held < agent.slots), f"{agent.id}: free list")
        spare = ready and agent.slots <= agent.held < agent.slots + agent.prefetch
        _hold((agent in one.spare) == spare, f"{agent.id}: spare list")
        if agent.state in (AgentState.WAITING, AgentState.STARTING, AgentState.BROKEN, AgentState.STOPPED):
            _hold(not agent.outstanding, f"{agent.id} is {agent.state.value} and holds attempts")
        _hold(not agent.stopping or ("grace", agent.id) in core.timers, f"{agent.id}: stopping for ever")
        if agent.state is AgentState.STARTING:
            _hold(("start", agent.id) in core.timers, f"{agent.id}: starting for ever")
        if agent.state is AgentState.WAITING:
            _hold(("restart", agent.id) in core.timers, f"{agent.id}: waiting for ever")
    for one in core.registry.classes():
        for lane in one.lanes:
            _hold((one in lane.free) == bool(one.free), f"{one.spec.name}: lane {lane.key} free")
            _hold((one in lane.spare) == bool(one.spare), f"{one.spec.name}: lane {lane.key} spare")


def _check_nobody_waits_in_vain(core: Coordination) -> None:
    for lane in core.queue.lanes():
        if len(lane):
            _hold(not lane.free, f"{len(lane)} tasks wait in {lane.key} beside an idle capable agent")

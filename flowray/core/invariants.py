"""What must hold after every event. `Coordination.check()` comes here; tests and simulation call it all the time."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from flowray.core.naming import attempt_key
from flowray.core.stateful_checks import check_stateful
from flowray.core.states import AgentState, TaskState
from flowray.errors import InvariantBroken

if TYPE_CHECKING:
    from flowray.core.book import Entry
    from flowray.core.coordination import Coordination


def check_coordination(core: Coordination) -> None:
    """Raise InvariantBroken, with what is wrong, if the state contradicts itself."""
    _check_each_task_is_in_one_place(core)
    _check_counts(core)
    _check_agents(core)
    _check_nobody_waits_in_vain(core)
    check_stateful(core)


def _hold(condition: bool, what: str) -> None:
    if not condition:
        raise InvariantBroken(what)


def _check_each_task_is_in_one_place(core: Coordination) -> None:
    holders: dict[str, list[str]] = {}
    for agent in core.registry.agents():
        for task_id in agent.outstanding:
            holders.setdefault(task_id, []).append(agent.id)
    lanes = [*core.queue.lanes(), *(instance.lane for instance in core.stateful.instances())]
    lanes_of = Counter(task_id for lane in lanes for task_id in lane.ids())
    for task_id, entry in core.book.open.items():
        in_lanes = lanes_of[task_id]
        held_by = holders.pop(task_id, [])
        backing_off = ("backoff", task_id) in core.timers
        running = entry.running() if entry.state is TaskState.RUNNING else ()
        unconfirmed = [
            one.agent_id for one in running if ("adoption", attempt_key(task_id, one.attempt)) in core.timers
        ]
        _hold(not entry.state.terminal, f"{task_id} is open and {entry.state.value}")
        asked = core.asking.is_asked(task_id)
        waits = entry.state is TaskState.QUEUED and not asked
        _hold(in_lanes == waits, f"{task_id} {entry.state.value}: {in_lanes} lanes")
        _hold(not asked or ("estimates", "") in core.timers, f"{task_id}: estimates asked for, without a timer")
        _hold(not asked or entry.state is TaskState.QUEUED, f"{task_id} {entry.state.value}: estimates asked for")
        decided = core.asking.standing(task_id)
        _hold(decided is None or waits, f"{task_id} {entry.state.value}: decided and does not wait")
        _hold(backing_off == (entry.state is TaskState.BACKING_OFF), f"{task_id} {entry.state.value}: back-off timer")
        runs_on = [one.agent_id for one in running]
        holders_known = sorted(held_by + unconfirmed) == sorted(runs_on)
        _hold(holders_known, f"{task_id} {entry.state.value} on {runs_on}, held by {held_by}, awaited {unconfirmed}")
        _check_second_attempt(core, entry, runs_on)
        timed = ("deadline", task_id) in core.timers
        _hold(timed == (entry.deadline_at is not None), f"{task_id}: deadline timer")
        _hold(entry.failures < entry.task.max_attempts, f"{task_id}: {entry.failures} failures and still open")
    _hold(not holders, f"agents hold tasks that are not open: {holders}")
    _hold(len(core.asking) <= len(core.book.open), f"{len(core.asking)} questions for {len(core.book.open)} tasks")
    closed = lanes_of.keys() - core.book.open.keys()
    _hold(not closed, f"lanes hold closed tasks: {sorted(closed)[:5]}")


def _check_second_attempt(core: Coordination, entry: Entry, runs_on: list[str]) -> None:
    name = entry.task.id
    _hold(entry.extra is None or len(runs_on) == 2, f"{name} {entry.state.value}: a second attempt and no first")
    _hold(entry.extra is None or entry.task.idempotent, f"{name} has two attempts and is not idempotent")
    _hold(len(set(runs_on)) == len(runs_on), f"{name} has two attempts on {runs_on}")
    alone = len(runs_on) == 1 and entry.task.idempotent
    _hold(alone or ("hedge", name) not in core.timers, f"{name}: will be hedged, and runs on {runs_on}")


def _check_counts(core: Coordination) -> None:
    admission, policy = core.admission, core.policy.admission
    _hold(admission.open_tasks == len(core.book.open), f"{admission.open_tasks} counted, {len(core.book.open)} open")
    size = sum(entry.task.size_bytes + entry.grown_bytes for entry in core.book.open.values())
    _hold(admission.open_bytes == size, f"{admission.open_bytes} bytes counted, {size} held")
    streams = [entry.stream for entry in core.book.open.values() if entry.stream is not None]
    size = sum(stream.size_bytes for stream in streams)
    _hold(core.streaming.open_bytes == size, f"{core.streaming.open_bytes} bytes of chunks counted, {size} recorded")
    _hold(admission.open_tasks <= policy.max_open_tasks, "more tasks open than admission allows")


def _check_agents(core: Coordination) -> None:
    timers = core.timers
    for agent in core.registry.agents():
        one, state, held = agent.agent_class, agent.state, agent.held
        ready = state is AgentState.READY
        if (agent in one.free) != (ready and held < agent.slots):
            raise InvariantBroken(f"{agent.id}: free list")
        if (agent in one.spare) != (ready and agent.slots <= held < agent.slots + agent.prefetch):
            raise InvariantBroken(f"{agent.id}: spare list")
        if agent.stopping and ("grace", agent.id) not in timers:
            raise InvariantBroken(f"{agent.id}: stopping for ever")
        if ready or state is AgentState.DRAINING:
            continue
        _hold(not agent.outstanding, f"{agent.id} is {state.value} and holds attempts")
        if state is AgentState.STARTING:
            _hold(("start", agent.id) in timers, f"{agent.id}: starting for ever")
        if state is AgentState.WAITING:
            _hold(("restart", agent.id) in timers, f"{agent.id}: waiting for ever")
    for one in core.registry.classes():
        free, spare = bool(one.free), bool(one.spare)
        for lane in one.lanes:
            if (one in lane.free) != free or (one in lane.spare) != spare:
                raise InvariantBroken(f"{one.spec.name}: lane {lane.key}: free {free}, spare {spare}, not so there")


def _check_nobody_waits_in_vain(core: Coordination) -> None:
    for lane in core.queue.lanes():
        if len(lane) and lane.free:
            raise InvariantBroken(f"{len(lane)} tasks wait in {lane.key} beside an idle capable agent")

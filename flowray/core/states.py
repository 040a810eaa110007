"""The life of a task and of an agent, as tables. An arrow that is not here cannot happen.

           ┌────────── requeued ◀──────────┐
accepted ▶ queued ── started ▶ running ── failed ▶ backing_off ── due ▶ queued
           │                   │ answered ▶ succeeded
           └── any open state: cancelled · expired · dead
"""

from __future__ import annotations

from enum import Enum

from flowray.errors import InvalidTransition


class TaskState(str, Enum):
    QUEUED = "queued"  # accepted and waiting for an agent
    RUNNING = "running"  # an attempt is with an agent; where it may do no harm, a second one with another
    BACKING_OFF = "backing_off"  # an attempt failed; waiting before the next
    SUCCEEDED = "succeeded"
    DEAD = "dead"  # a dead letter: failed for good, kept with its story, can be replayed
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL


STATE_NAMES = {state: state.value for state in TaskState}  # for hot paths: an enum's `value` takes longer to look up
TERMINAL = frozenset({TaskState.SUCCEEDED, TaskState.DEAD, TaskState.CANCELLED, TaskState.EXPIRED})

_S = TaskState
TASK_TRANSITIONS: dict[tuple[TaskState, str], TaskState] = {
    (_S.QUEUED, "started"): _S.RUNNING,  # placement chose an agent
    (_S.BACKING_OFF, "started"): _S.RUNNING,  # an agent of an earlier epoch turns out to be running it: adopted
    (_S.RUNNING, "joined"): _S.RUNNING,  # a second attempt was started beside it
    (_S.RUNNING, "outlived"): _S.RUNNING,  # one of two attempts ended without an outcome; the other goes on
    (_S.RUNNING, "answered"): _S.SUCCEEDED,  # the current attempt, or one of the two, returned a value
    (_S.RUNNING, "requeued"): _S.QUEUED,  # its agent was lost, hung, or handed it back unstarted
    (_S.RUNNING, "held_back"): _S.BACKING_OFF,  # the same, of an exclusive task: the attempt may still be running
    (_S.RUNNING, "failed"): _S.BACKING_OFF,  # the agent's code raised something worth another attempt
    (_S.RUNNING, "gave_up"): _S.DEAD,  # not retryable, attempts used up, or it kills its agents
    (_S.QUEUED, "gave_up"): _S.DEAD,  # no agent that could run it can be started
    (_S.BACKING_OFF, "gave_up"): _S.DEAD,  # the same, while it waited
    (_S.BACKING_OFF, "due"): _S.QUEUED,  # its back-off is over
    (_S.QUEUED, "cancelled"): _S.CANCELLED,
    (_S.RUNNING, "cancelled"): _S.CANCELLED,  # the attempt is told to stop; its answer no longer counts
    (_S.BACKING_OFF, "cancelled"): _S.CANCELLED,
    (_S.QUEUED, "expired"): _S.EXPIRED,  # the deadline passed
    (_S.RUNNING, "expired"): _S.EXPIRED,
    (_S.BACKING_OFF, "expired"): _S.EXPIRED,
}


class AgentState(str, Enum):
    WAITING = "waiting"  # will be started when its restart delay is over
    STARTING = "starting"  # asked for; not there yet
    READY = "ready"  # takes attempts
    DRAINING = "draining"  # finishes what it has, takes nothing new
    STOPPED = "stopped"  # gone on purpose
    BROKEN = "broken"  # does not start, again and again; no longer tried


_A = AgentState
AGENT_TRANSITIONS: dict[tuple[AgentState, str], AgentState] = {
    (_A.WAITING, "requested"): _A.STARTING,  # the shell was asked for a process
    (_A.STARTING, "ready"): _A.READY,  # its process is up and its constructor returned
    (_A.WAITING, "ready"): _A.READY,  # found alive by a restarted coordinator
    (_A.READY, "ready"): _A.READY,  # reports again (a new epoch asked it)
    (_A.DRAINING, "ready"): _A.DRAINING,
    (_A.STARTING, "lost"): _A.WAITING,  # process or node gone, or the constructor failed
    (_A.READY, "lost"): _A.WAITING,
    (_A.DRAINING, "lost"): _A.STOPPED,  # it was leaving anyway
    (_A.STARTING, "gave_up"): _A.BROKEN,  # too many failed starts in a row
    (_A.WAITING, "gave_up"): _A.BROKEN,  # its processes ended one after the other, before they had done anything
    (_A.BROKEN, "retried"): _A.WAITING,  # its class was added again: its author may have mended it
    (_A.READY, "drain"): _A.DRAINING,  # the target shrank
    (_A.DRAINING, "moved"): _A.WAITING,  # drained, or handed over, to be started again elsewhere
    (_A.READY, "moved"): _A.WAITING,  # the same of one that had nothing to finish
    (_A.DRAINING, "kept"): _A.READY,  # wanted again before it had left
    (_A.DRAINING, "stopped"): _A.STOPPED,  # drained
    (_A.WAITING, "stopped"): _A.STOPPED,
    (_A.STARTING, "stopped"): _A.STOPPED,
    (_A.READY, "stopped"): _A.STOPPED,
    (_A.BROKEN, "stopped"): _A.STOPPED,
}


def next_task_state(state: TaskState, arrow: str, task_id: str) -> TaskState:
    """Follow an arrow. Raises InvalidTransition where there is none."""
    try:
        return TASK_TRANSITIONS[state, arrow]
    except KeyError:
        raise InvalidTransition(f"task {task_id} is {state.value}: no arrow {arrow!r}") from None


def next_agent_state(state: AgentState, arrow: str, agent_id: str) -> AgentState:
    """Follow an arrow. Raises InvalidTransition where there is none."""
    try:
        return AGENT_TRANSITIONS[state, arrow]
    except KeyError:
        raise InvalidTransition(f"agent {agent_id} is {state.value}: no arrow {arrow!r}") from None

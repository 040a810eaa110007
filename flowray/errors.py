"""Every error flowray raises, in one tree.

FlowrayError
├── ConfigError                a configuration value is wrong; `field` names it
│   └── SchemaError            (flowray.routing.tables) data that does not follow the schema: file and column
├── InvalidTask                a task that can never be accepted; `field` names what is wrong with it
│   └── PayloadError           its payload cannot be serialised, or is larger than the limit
├── TaskRefused                not accepted, nothing stored; `retry_after_s` says when to try again, if ever
│   ├── QueueFull              too many open tasks or bytes; retryable
│   ├── UnknownCapability      no agent of this team has what the task needs
│   └── IdempotencyConflict    the key belongs to an earlier task with another content
├── TaskError                  an accepted task that did not succeed; `.result()` raises one of these
│   ├── TaskFailed             dead letter: the agent's code failed for good; carries its traceback and the story
│   ├── TaskCancelled          cancelled before it finished
│   └── TaskExpired            its deadline passed
├── WaitTimeout                `.result(timeout_s=...)` ran out; the task itself goes on
├── UnknownTask                no task has this id
├── GradeRefused               a task without an answer that a grade could be about: it is open, or did not succeed
├── RetryableError             for agents to raise: this attempt failed, another may succeed
├── StaleAttempt               `ctx.step`, `ctx.emit`: this attempt is not a current one of its task any more
├── StepLimit                  `ctx.step`: one more than a task may have
├── StreamLimit                `ctx.emit`: more chunks than a task, or all of them, may have
├── InvalidTransition          a state machine was asked for an arrow that it does not have: our bug
├── InvariantBroken            `check()` found the state contradicting itself: our bug
├── StoreError                 the journal cannot be used
│   ├── StoreUnsupported       the place cannot give the durability promised (network file system, no fsync)
│   ├── StoreCorrupt           a committed row does not match its checksum
│   └── StoreFenced            a later coordinator owns the journal; this one must stop
├── CoordinatorUnavailable     the coordinator did not answer in time; `outcome` says what is known
├── MeshError                  processes cannot talk to one another: refused, malformed, too large
│   └── TokenRefused           (flowray.mesh.tokens) a token that opens nothing, and why
├── AgentUnreachable           nobody of this name is there, or its process died with the message
├── NoRoom                     the receiver, or what leads to it, takes nothing more at present; retryable
├── AskError                   an ask that got no answer
│   ├── AskTimeout             not within its budget; retryable
│   ├── AskFailed              the other side raised: its exception's type and message
│   └── AskDeadlock            agents wait for one another in a circle; this ask was given up to break it
├── AgentStartFailed           an agent's constructor fails again and again
├── RouterRefused              a router, or this version of it, cannot be used; tasks go on without it
├── NotConnected               the runtime is stopped, or there is none to connect to
│   └── TicketUnusable         (flowray.mesh.tickets) there is no ticket, or it opens nothing any more
└── MissingExtra               an optional dependency is absent; the message is the install command
"""

from __future__ import annotations


class FlowrayError(Exception):
    """The root of the tree."""

    retryable: bool = False  # may the same call succeed later without a change?


class ConfigError(FlowrayError):
    """A configuration value is wrong. `field` is its dotted path, `hint` a way out or ''."""

    def __init__(self, field: str, problem: str, hint: str = "") -> None:
        super().__init__(field, problem, hint)
        self.field, self.problem, self.hint = field, problem, hint

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}" + (f" ({self.hint})" if self.hint else "")


class InvalidTask(FlowrayError):
    """A task that can never be accepted as it is. `field` names the argument."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field, self.problem = field, problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class PayloadError(InvalidTask):
    """A payload or result that cannot be serialised, or is larger than the limit."""


class TaskRefused(FlowrayError):
    """The task was not accepted and nothing was stored.

    `task_id` is the id it would have had; `retry_after_s` is None where waiting does not help.
    """

    def __init__(self, task_id: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(task_id, detail, retry_after_s)
        self.task_id, self.detail, self.retry_after_s = task_id, detail, retry_after_s

    def __str__(self) -> str:
        later = f"; try again in {self.retry_after_s:.1f} s" if self.retry_after_s is not None else ""
        return f"task {self.task_id} refused: {self.detail}{later}"


class QueueFull(TaskRefused):
    """Too many open tasks, or too many bytes in them."""

    retryable = True


class UnknownCapability(TaskRefused):
    """No agent of this team, live or starting, has what the task needs."""


class IdempotencyConflict(TaskRefused):
    """The idempotency key belongs to an earlier task with another content."""


class TaskError(FlowrayError):
    """An accepted task that ended without a result. `story` is the task's ordered log as text."""

    def __init__(self, task_id: str, detail: str, story: str = "") -> None:
        super().__init__(task_id, detail, story)
        self.task_id, self.detail, self.story = task_id, detail, story

    def __str__(self) -> str:
        return f"task {self.task_id}: {self.detail}"


class TaskFailed(TaskError):
    """The task is a dead letter: agents' code failed for good.

    `error_type` is the class name of the last failure, `agent_traceback` its traceback as text.
    """

    def __init__(
        self, task_id: str, detail: str, story: str = "", error_type: str = "", agent_traceback: str = ""
    ) -> None:
        super().__init__(task_id, detail, story)
        self.args = (task_id, detail, story, error_type, agent_traceback)
        self.error_type, self.agent_traceback = error_type, agent_traceback

    def __str__(self) -> str:
        tail = f"\n\nIn the agent:\n{self.agent_traceback.rstrip()}" if self.agent_traceback else ""
        return f"task {self.task_id}: {self.detail}{tail}"


class TaskCancelled(TaskError):
    """The task was cancelled before it finished."""


class TaskExpired(TaskError):
    """The task's deadline passed before it finished."""


class WaitTimeout(FlowrayError):
    """Waiting ran out of time; what was waited for goes on. `what` did not come, `hint` says more."""

    retryable = True

    def __init__(self, what: str, timeout_s: float, hint: str = "the task goes on") -> None:
        super().__init__(what, timeout_s, hint)
        self.what, self.timeout_s, self.hint = what, timeout_s, hint

    def __str__(self) -> str:
        return f"{self.what} within {self.timeout_s:g} s; {self.hint}"


class UnknownTask(FlowrayError):
    """No task has this id, or it left the journal's retention."""


class GradeRefused(FlowrayError):
    """The task has no answer that a grade could be about: it is still open, or ended without one."""

    def __init__(self, task_id: str, detail: str) -> None:
        super().__init__(task_id, detail)
        self.task_id, self.detail = task_id, detail

    def __str__(self) -> str:
        return f"task {self.task_id} cannot be graded: {self.detail}"


class RetryableError(FlowrayError):
    """Raised by an agent: this attempt failed, another one may succeed."""

    retryable = True


class StaleAttempt(FlowrayError):
    """This attempt is not a current one of its task any more: what it does is not recorded, and nobody waits for it.

    The task has ended, or another attempt has taken over. Let it out of `run`.
    """

    def __init__(self, task_id: str, attempt: int, step: str, what: str = "step") -> None:
        super().__init__(task_id, attempt, step, what)
        self.task_id, self.attempt, self.step, self.what = task_id, attempt, step, what

    def __str__(self) -> str:
        return (
            f"{self.what} {self.step!r} was not recorded: attempt {self.attempt} is not a current one of task "
            f"{self.task_id} any more (it ended, or another attempt has taken over)"
        )


class StepLimit(FlowrayError):
    """A task has as many recorded steps as it may have, or this one is no step that can be recorded."""

    def __init__(self, step: str, detail: str) -> None:
        super().__init__(step, detail)
        self.step, self.detail = step, detail

    def __str__(self) -> str:
        return f"step {self.step!r} cannot be recorded: {self.detail}"


class StreamLimit(FlowrayError):
    """A task has as many chunks as it may have, or all open tasks together have. Let it out of `run`."""

    def __init__(self, task_id: str, detail: str) -> None:
        super().__init__(task_id, detail)
        self.task_id, self.detail = task_id, detail

    def __str__(self) -> str:
        return f"a chunk of task {self.task_id} cannot be recorded: {self.detail}"


class InvalidTransition(FlowrayError):
    """A state machine was asked for an arrow that it does not have. Always our bug."""


class InvariantBroken(FlowrayError):
    """`check()` found the state contradicting itself. Always our bug."""


class StoreError(FlowrayError):
    """The journal cannot be used."""


class StoreUnsupported(StoreError):
    """The place cannot give the durability promised."""


class StoreCorrupt(StoreError):
    """A committed row does not match its checksum; nothing after it can be trusted."""


class StoreFenced(StoreError):
    """A later coordinator owns the journal; this one must stop at once."""


class CoordinatorUnavailable(FlowrayError):
    """The coordinator did not answer in time.

    `outcome` is what is known of the call: "accepted", "unknown" or "none" (nothing was sent).
    """

    retryable = True

    def __init__(self, detail: str, outcome: str = "unknown") -> None:
        super().__init__(detail, outcome)
        self.detail, self.outcome = detail, outcome

    def __str__(self) -> str:
        return f"{self.detail} (outcome: {self.outcome})"


class MeshError(FlowrayError):
    """A message between processes: refused by the other side, malformed, or larger than the limit."""


class AgentUnreachable(FlowrayError):
    """The agent is not there. Of what was sent it may have seen all, some or nothing; `agent_id` names it."""

    retryable = True

    def __init__(self, agent_id: str, detail: str) -> None:
        super().__init__(agent_id, detail)
        self.agent_id, self.detail = agent_id, detail

    def __str__(self) -> str:
        return f"agent {self.agent_id!r} cannot be reached: {self.detail}"


class NoRoom(FlowrayError):
    """A bound is reached, so the message was not sent. `agent_id` is whom it was for."""

    retryable = True

    def __init__(self, agent_id: str, detail: str) -> None:
        super().__init__(agent_id, detail)
        self.agent_id, self.detail = agent_id, detail

    def __str__(self) -> str:
        return f"nothing was sent to {self.agent_id!r}: {self.detail}"


class AskError(FlowrayError):
    """An ask without an answer. `agent_id` is who was asked."""

    def __init__(self, agent_id: str, detail: str) -> None:
        super().__init__(agent_id, detail)
        self.agent_id, self.detail = agent_id, detail

    def __str__(self) -> str:
        return f"asking {self.agent_id!r}: {self.detail}"


class AskTimeout(AskError):
    """No answer within the budget. The other side may have handled the question, or may do so still."""

    retryable = True


class AskFailed(AskError):
    """The other side raised. `error_type` is its exception's class name, `message` its text."""

    def __init__(self, agent_id: str, error_type: str, message: str) -> None:
        super().__init__(agent_id, f"it raised {error_type}: {message}")
        self.args = (agent_id, error_type, message)
        self.error_type, self.message = error_type, message


class AskDeadlock(AskError):
    """Agents wait for one another in a circle. `cycle` names them in order, the asker of this ask first.

    Let agents of the circle handle messages while they wait (`reentrant=True`), or ask from `run` instead of from
    `on_message`, or send one way.
    """

    def __init__(self, agent_id: str, cycle: tuple[str, ...]) -> None:
        super().__init__(agent_id, f"deadlock, each waits for the next: {' -> '.join((*cycle, cycle[0]))}")
        self.args = (agent_id, cycle)
        self.cycle = cycle


class AgentStartFailed(FlowrayError):
    """An agent's constructor fails again and again."""


class RouterRefused(FlowrayError):
    """A router that cannot be used. `router` is its directory, `kept` the version that stays or ""."""

    def __init__(self, router: str, detail: str, kept: str = "") -> None:
        super().__init__(router, detail, kept)
        self.router, self.detail, self.kept = router, detail, kept

    def __str__(self) -> str:
        return f"{self.router} was not taken: {self.detail}; " + (
            f"version {self.kept} stays" if self.kept else "there are no estimates"
        )

    @classmethod
    def told(cls, text: str) -> RouterRefused:
        """From what `str` made of one, elsewhere."""
        router, _, rest = text.partition(" was not taken: ")
        detail, _, end = rest.rpartition("; ")
        return cls(router, detail, end.removeprefix("version ").removesuffix(" stays") if " stays" in end else "")


class NotConnected(FlowrayError):
    """The runtime is stopped, or there is none to connect to."""


class MissingExtra(FlowrayError):
    """An optional dependency is absent; the message is the install command."""

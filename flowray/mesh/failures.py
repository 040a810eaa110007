"""What can become of a message between agents besides being answered.

FlowrayError
├── AgentUnreachable     nobody of this name is there, or its process died with the message
├── NoRoom               the receiver, or what leads to it, takes nothing more at present; retryable
└── AskError             an ask that got no answer
    ├── AskTimeout       not within its budget; retryable
    ├── AskFailed        the other side raised: its exception's type and message
    └── AskDeadlock      agents wait for one another in a circle; this ask was given up to break it
"""

from __future__ import annotations

from flowray.errors import FlowrayError


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

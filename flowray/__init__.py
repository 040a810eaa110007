"""flowray: a distributed runtime for teams of agents on Ray.

    import flowray as fr

    @fr.agent(capabilities={"shout"})
    class Shouter:
        def run(self, task: fr.Task) -> str:
            return task.prompt.upper()

    with fr.Runtime.start() as rt:
        rt.agents.add(Shouter, count=2)
        print(rt.submit("hello", needs={"shout"}).result(timeout_s=60))

Names are loaded when they are first used: importing flowray loads neither Ray nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flowray import errors
from flowray.agents import Context, Message, Task, agent
from flowray.stateful import Moment

if TYPE_CHECKING:
    from flowray.chunks import Chunk, Restarted
    from flowray.config import Config
    from flowray.core.model import Outcome
    from flowray.errors import (
        AgentUnreachable,
        AskDeadlock,
        AskError,
        AskFailed,
        AskTimeout,
        FlowrayError,
        NoRoom,
        QueueFull,
        RetryableError,
        TaskCancelled,
        TaskExpired,
        TaskFailed,
        TaskRefused,
        UnknownCapability,
        WaitTimeout,
    )
    from flowray.runtime.handle import Handle, Handles
    from flowray.runtime.runtime import Runtime

__version__ = "0.2.0"

_PLACES = {
    "Chunk": "flowray.chunks",
    "Restarted": "flowray.chunks",
    "Runtime": "flowray.runtime.runtime",
    "Handle": "flowray.runtime.handle",
    "Handles": "flowray.runtime.handle",
    "Config": "flowray.config",
    "Outcome": "flowray.core.model",
    **dict.fromkeys(
        (
            "AgentUnreachable",
            "AskDeadlock",
            "AskError",
            "AskFailed",
            "AskTimeout",
            "FlowrayError",
            "NoRoom",
            "QueueFull",
            "RetryableError",
            "TaskCancelled",
            "TaskExpired",
            "TaskFailed",
            "TaskRefused",
            "UnknownCapability",
            "WaitTimeout",
        ),
        "flowray.errors",
    ),
}

__all__ = [
    "AgentUnreachable",
    "AskDeadlock",
    "AskError",
    "AskFailed",
    "AskTimeout",
    "Chunk",
    "Config",
    "Context",
    "FlowrayError",
    "Handle",
    "Handles",
    "Message",
    "Moment",
    "NoRoom",
    "Outcome",
    "QueueFull",
    "Restarted",
    "RetryableError",
    "Runtime",
    "Task",
    "TaskCancelled",
    "TaskExpired",
    "TaskFailed",
    "TaskRefused",
    "UnknownCapability",
    "WaitTimeout",
    "__version__",
    "agent",
    "errors",
]


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'flowray' has no attribute {name!r}")
    value = getattr(import_module(place), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

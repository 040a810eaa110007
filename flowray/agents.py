"""What an agent is to its author: a plain class (or function) with `run(task, ctx)`.

    @fr.agent(capabilities={"summarise"}, tier="primary")
    class Writer:
        def run(self, task: fr.Task, ctx: fr.Context) -> str: ...

The decorator only attaches a description; the class stays plain, can be made and called without any runtime, and may
be sync or async. A function of one or two arguments is an agent too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from flowray.errors import ConfigError

_ATTRIBUTE = "__flowray_agent__"
C = TypeVar("C", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What `run` receives."""

    id: str
    prompt: str = ""
    payload: Any = None  # decoded; None when the caller gave none
    needs: tuple[str, ...] = ()  # capabilities asked for, sorted
    priority: int = 0
    attempt: int = 1  # 1 for the first
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Context:
    """Where an attempt runs. One for each attempt."""

    agent_id: str
    tier: str = ""
    attempt: int = 1
    remaining_s: float | None = None  # until the task's deadline, measured when the attempt began; None without one
    cancelled: bool = False  # becomes True when nobody wants the answer any more; long loops should look


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentDescription:
    """What the decorator attaches."""

    capabilities: frozenset[str] = frozenset()
    tier: str = ""  # "" lets the place that adds the agent decide
    slots: int = 1  # attempts that one agent runs at once; more than 1 is for async code
    num_cpus: float = 0.0  # 0 means its tier's share
    memory_bytes: int = 0  # reserved for placement; no limit
    retry_on: tuple[type[BaseException], ...] = ()  # besides RetryableError, ConnectionError and TimeoutError

    def __post_init__(self) -> None:
        if any(not isinstance(c, str) or not c or c != c.strip() for c in self.capabilities):
            raise ConfigError("capabilities", "every capability is a non-empty string without outer blanks")
        if self.slots < 1:
            raise ConfigError("slots", f"must be at least 1, got {self.slots}")
        if self.num_cpus < 0:
            raise ConfigError("num_cpus", f"must not be negative, got {self.num_cpus}")
        if self.memory_bytes < 0:
            raise ConfigError("memory_bytes", f"must not be negative, got {self.memory_bytes}")


def agent(
    *,
    capabilities: Iterable[str] = (),
    tier: str = "",
    slots: int = 1,
    num_cpus: float = 0.0,
    memory_bytes: int = 0,
    retry_on: tuple[type[BaseException], ...] = (),
) -> Callable[[C], C]:
    """Describe a class or function as an agent.

    Raises:
        ConfigError: a value is out of range, or the decorated thing has no usable `run`.
    """
    if isinstance(capabilities, str):
        raise ConfigError("capabilities", "a set of strings is wanted, not one string", f'{{"{capabilities}"}}')
    description = AgentDescription(
        capabilities=frozenset(capabilities),
        tier=tier,
        slots=slots,
        num_cpus=num_cpus,
        memory_bytes=memory_bytes,
        retry_on=retry_on,
    )

    def attach(target: C) -> C:
        check_runnable(target)
        setattr(target, _ATTRIBUTE, description)
        return target

    return attach


def describe(target: Callable[..., Any]) -> AgentDescription:
    """The description of a class or function; the default one where no decorator was used."""
    found = getattr(target, _ATTRIBUTE, None)
    return found if isinstance(found, AgentDescription) else AgentDescription()


def with_description(target: Callable[..., Any], **changes: Any) -> AgentDescription:
    """The target's description with some fields changed (None leaves a field as it is)."""
    return replace(describe(target), **{k: v for k, v in changes.items() if v is not None})


def check_runnable(target: Callable[..., Any]) -> None:
    """Raise ConfigError unless `target` is a class with `run(task, ctx)` or a function of one or two arguments."""
    name = getattr(target, "__qualname__", repr(target))
    if inspect.isclass(target):
        run = getattr(target, "run", None)
        if not callable(run):
            raise ConfigError(name, "an agent class needs a method run(self, task, ctx)")
        arguments = list(inspect.signature(run).parameters.values())[1:]
    elif callable(target):
        arguments = list(inspect.signature(target).parameters.values())
    else:
        raise ConfigError(name, "an agent is a class or a function")
    positional = [p for p in arguments if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    catch_all = any(p.kind is p.VAR_POSITIONAL for p in arguments)
    if len(required) > 2 or (not positional and not catch_all):
        raise ConfigError(name, "run takes the task and, if it wants it, the context: run(task) or run(task, ctx)")


def wants_context(run: Callable[..., Any]) -> bool:
    """Does a bound `run` (or a plain function) take the context as its second argument?"""
    arguments = inspect.signature(run).parameters.values()
    positional = [p for p in arguments if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in arguments)

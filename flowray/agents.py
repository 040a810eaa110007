"""What an agent is to its author: a plain class (or function) with `run(task, ctx)`.

    @fr.agent(capabilities={"summarise"}, tier="primary")
    class Writer:
        def run(self, task: fr.Task, ctx: fr.Context) -> str: ...

The decorator only attaches a description; the class stays plain, can be made and called without any runtime, and may
be sync or async. A function of one or two arguments is an agent too.

Agents talk to one another: `ctx.ask`, `ctx.send` and `ctx.publish` say something, `on_message(message, ctx)` hears it,
one message at a time beside the attempts of `run`; what it returns answers an ask.

`ctx.report` says what an answer was worth and what it cost, where the agent knows. `verify(task, answer)`, where a
class has it, is called with each answer for which `run` did not say so; the number it returns, 0 to 1, is the quality.
`ctx.step` runs what a later attempt shall not run again; `ctx.fence` and `ctx.idempotency_key` are for side effects
outside (`flowray.steps`).

An agent may give out chunks while it works, by `ctx.emit(chunk)` or by being a generator: what `run` yields are chunks,
and what a generator returns is its answer (an async generator cannot: its answer is what it yielded last). A caller
reads them as they come (`Handle.stream`). An attempt after a lost one begins again, and is held to what was shown
already (`flowray.core.streaming`). A class that can go on in the middle says so with `resumes=True`, and begins with
the chunk of the number `ctx.cursor`. One that shall not work for nobody says `ahead=100`: its attempts wait while they
are so many chunks ahead of the foremost reader.
A class with `apply`, `snapshot` and `restore` instead of `run` keeps a state (`flowray.stateful`).
"""

from __future__ import annotations

import asyncio
import inspect
import math
import re
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from flowray.errors import ConfigError, NotConnected
from flowray.stateful import check_stateful, is_stateful
from flowray.steps import InMemory, Recorder, Steps

_ATTRIBUTE = "__flowray_agent__"
_making = threading.Lock()  # held while a context makes what only some of them need
C = TypeVar("C", bound=Callable[..., Any])
_MAX_TOPICS = 100  # subscribed to by one agent
_MAX_TOPIC = 200  # characters of its name
_TOPIC = re.compile(r"[^\x00-\x20\x7f](?:[^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?")


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


class Message(Struct, frozen=True, weakref=False):
    """What `on_message` receives."""

    body: Any  # decoded; a copy of the sender's
    sender: str  # id of the agent or driver
    topic: str = ""  # "" unless it was published
    wants_reply: bool = False  # is the return value of `on_message` awaited?
    message_id: str = ""  # of the publisher's choosing, to tell a repeat by; "" if it gave none


class Awaited(Protocol):
    """Something under way: await it on an event loop, call `.result()` on a thread without one."""

    @property
    def done(self) -> bool: ...

    def result(self, timeout_s: float | None = None) -> Any: ...

    def __await__(self) -> Generator[Any, None, Any]: ...


class Voice(Protocol):
    """How an agent speaks to others. Made by a runtime; see Context for what it does."""

    def ask(self, receiver: str, body: Any, timeout_s: float | None) -> Awaited: ...

    def send(self, receiver: str, body: Any) -> Awaited: ...

    def publish(self, topic: str, body: Any, message_id: str = "") -> Awaited: ...


class Emitter(Protocol):
    """Where the chunks of one attempt go. Made by a runtime; any thread may use it."""

    def emit(self, value: Any) -> None:
        """Give out a chunk. Waits while there is no room."""
        ...

    def emit_beside(self, value: Any) -> Coroutine[Any, Any, None]:
        """The same on an event loop, which goes on meanwhile."""
        ...


class Collected(list[Any]):
    """For contexts made by hand: chunks are kept in this list."""

    def emit(self, value: Any) -> None:
        self.append(value)

    async def emit_beside(self, value: Any) -> None:
        self.append(value)


@dataclass(slots=True, kw_only=True)
class Context:
    """Where an attempt runs, or a message is handled. One for each."""

    agent_id: str
    tier: str = ""
    attempt: int = 1
    # Until the task's deadline, or until nobody waits for the answer any more; measured at the beginning; None: no end.
    remaining_s: float | None = None
    cancelled: bool = False  # becomes True when nobody wants the answer any more; long loops should look
    voice: Voice | None = field(default=None, repr=False)  # None where there is nobody to talk to
    task_id: str = ""  # "" while a message is handled
    epoch: int = 0  # of the coordinator that started the attempt
    recorder: Callable[[], Recorder] | None = field(default=None, repr=False)  # None: in memory, for tests by hand
    cursor: int = 0  # number of the first chunk that this attempt gives out; 0 unless its class says `resumes`
    emitter: Callable[[], Emitter] | None = field(default=None, repr=False)  # None: into `emitted`, for tests by hand
    emitted: Collected = field(default_factory=Collected, repr=False)  # chunks, where there is no runtime
    _quality: float | None = field(default=None, init=False, repr=False)
    _cost_usd: float | None = field(default=None, init=False, repr=False)
    _steps: Steps | None = field(default=None, init=False, repr=False)

    @property
    def quality(self) -> float | None:
        """What the answer is worth, 0..1, as reported so far."""
        return self._quality

    @property
    def cost_usd(self) -> float | None:
        """What the attempt cost, in dollars, as reported so far."""
        return self._cost_usd

    def report(self, *, quality: float | None = None, cost_usd: float | None = None) -> None:
        """Say what this attempt's answer is worth (0 to 1) and what making it cost in all, in dollars.

        As often as there is something new to say, until `run` ends; the last value of each holds, and None leaves it
        as it is. Both arrive with the outcome (`Outcome.quality`, `.cost_usd`). While a message is handled there is no
        outcome that they could go to.

        Raises:
            ConfigError: a value is out of range; neither is changed.
        """
        worth = self._quality if quality is None else check_number("quality", quality, 0.0, 1.0)
        cost = self._cost_usd if cost_usd is None else check_number("cost_usd", cost_usd, 0.0, math.inf)
        self._quality, self._cost_usd = worth, cost

    def step(self, name: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run `fn(*args, **kwargs)` once and record its result: a later attempt of this task is given that instead.

        The result is on disk before this returns it; while no coordinator is there, it waits. In async code `await` it,
        `fn` being async or not; in sync code it returns the value. Results are encoded as payloads are. A name is
        used once in an attempt, and what is recorded under it is the same for all attempts, so name steps by what they
        do. A function that raises records nothing, and may be tried again.

        Raises:
            ConfigError: the name was used in this attempt, or no attempt is under way (a message is being handled).
            StaleAttempt: this attempt is not a current one any more: nothing was recorded.
            StepLimit: the task has 256 steps already. PayloadError: the result cannot be pickled, or is too large.
        """
        return self._effects("step").take(name, fn, args, kwargs)

    def emit(self, chunk: Any) -> Any:
        """Give out a chunk of the answer before `run` ends. In async code `await` it.

        Readers of the task (`Handle.stream`) are shown it, with its number, as soon as it is on disk. Chunks are
        encoded as payloads are, up to 256 KiB each. Returns as soon as the chunk is taken; while too many are
        not on disk, it waits.

        Raises:
            ConfigError: no attempt is under way (a message is being handled).
            StaleAttempt: this attempt is not a current one any more. StreamLimit: the task has as many as it may
            (`core.streaming`). PayloadError: the chunk cannot be pickled, or is too large.
        """
        self._check_task("emit")
        emitter = self.emitted if self.emitter is None else self.emitter()
        if asyncio._get_running_loop() is not None:
            return emitter.emit_beside(chunk)
        return emitter.emit(chunk)

    @property
    def fence(self) -> int:
        """A number for this attempt, higher than that of every earlier one of this task, coordinators' restarts or not.

        Give it to what can refuse a lower number than the highest it has seen: then an attempt that was given up, and
        does not know it, changes nothing there.
        """
        return self._effects("fence").fence

    def idempotency_key(self, step: str) -> str:
        """A key for one side effect of this task, the same for every attempt: 43 characters of a-z, 0-9 and "-".

        A replay of a dead letter is another task, with other keys.
        """
        return self._effects("idempotency_key").idempotency_key(step)

    def _effects(self, what: str) -> Steps:
        self._check_task(what)
        with _making:
            if self._steps is None:
                make = self.recorder or InMemory
                self._steps = Steps(self.task_id, self.attempt, self.epoch, make())
            return self._steps

    def _check_task(self, what: str) -> None:
        if not self.task_id:
            problem = f"{self.agent_id} runs no task here, and this belongs to one"
            raise ConfigError(f"ctx.{what}", problem, "use it in `run`; a context made by hand wants a task_id")

    def ask(self, receiver: str, body: Any = None, *, timeout_s: float | None = None) -> Awaited:
        """Ask another agent; the value is what its `on_message` returns. Sent at once, whether awaited or not.

        Plain data and bytes travel as they are, other values pickled. `timeout_s` (None: the configured one) covers
        everything until the answer is here; an ask made while answering another has no more time than that one.

        Raises, when awaited or in `.result()`:
            AskTimeout: no answer in time.
            AskFailed: the other side raised; its exception's type and message.
            AskDeadlock: agents wait for one another in a circle; it names them.
            AgentUnreachable: nobody of this name is there, or its process died.
            NoRoom: too many asks are open already.
        """
        return self._speak().ask(receiver, body, timeout_s)

    def send(self, receiver: str, body: Any) -> Awaited:
        """Send a message that nobody answers. `await` it in async code; in sync code calling is enough.

        Costs next to nothing while the receiver keeps up. When it does not, the sender waits: a thread in this very
        call, async code in its `await` (what is not awaited then is not sent, and a warning says so). Messages of one
        sender arrive in order. Each arrives at most once: not at all if the receiver's process dies.

        Raises:
            AgentUnreachable: nobody of this name is there.
            NoRoom: the receiver took nothing for too long.
            PayloadError: the message cannot be pickled, or is too large.
        """
        return self._speak().send(receiver, body)

    def publish(self, topic: str, body: Any, *, message_id: str = "") -> Awaited:
        """Send a message to all subscribers of a topic, like `send`. The value is how many they were.

        `message_id` arrives with it: who publishes a message again gives the same one.
        """
        return self._speak().publish(topic, body, message_id)

    def _speak(self) -> Voice:
        if self.voice is None:
            raise NotConnected(f"{self.agent_id} has nobody to talk to here: this context was made without a mesh")
        return self.voice


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentDescription:
    """What the decorator attaches."""

    capabilities: frozenset[str] = frozenset()
    tier: str = ""  # "" lets the place that adds the agent decide
    slots: int = 1  # attempts that one agent runs at once; more than 1 is for async code
    num_cpus: float = 0.0  # 0 means its tier's share
    memory_bytes: int = 0  # reserved for placement; no limit
    retry_on: tuple[type[BaseException], ...] = ()  # besides RetryableError, ConnectionError and TimeoutError
    topics: frozenset[str] = frozenset()  # what is published to these comes to `on_message`
    resumes: bool = False  # does an attempt go on with the chunk of the number `ctx.cursor`?
    ahead: int = 0  # chunks that an attempt may be ahead of the foremost reader; 0: readers do not stop it
    reentrant: bool = False  # may `on_message` begin while earlier messages still wait in it? For async code
    standby: str = ""  # of a stateful agent: cold (what "" means) or warm
    snapshot_every: int = 0  # inputs of a stateful agent; 0 means 100
    snapshot_every_s: float = 0.0  # seconds after an input; 0 means 5

    def __post_init__(self) -> None:
        if any(not isinstance(c, str) or not c or c != c.strip() for c in self.capabilities):
            raise ConfigError("capabilities", "every capability is a non-empty string without outer blanks")
        if self.slots < 1:
            raise ConfigError("slots", f"must be at least 1, got {self.slots}")
        if self.num_cpus < 0:
            raise ConfigError("num_cpus", f"must not be negative, got {self.num_cpus}")
        if self.memory_bytes < 0:
            raise ConfigError("memory_bytes", f"must not be negative, got {self.memory_bytes}")
        if self.ahead < 0:
            raise ConfigError("ahead", f"must not be negative, got {self.ahead}", "0 lets readers not stop it")
        check_topics(self.topics)


def agent(
    *,
    capabilities: Iterable[str] = (),
    tier: str = "",
    slots: int = 1,
    num_cpus: float = 0.0,
    memory_bytes: int = 0,
    retry_on: tuple[type[BaseException], ...] = (),
    topics: Iterable[str] = (),
    reentrant: bool = False,
    resumes: bool = False,
    ahead: int = 0,
    standby: str = "",
    snapshot_every: int = 0,
    snapshot_every_s: float = 0.0,
) -> Callable[[C], C]:
    """Describe a class or function as an agent.

    `standby`, `snapshot_every` and `snapshot_every_s` are for stateful ones (`flowray.stateful`). After the loss of its
    process a "cold" one (the default) is restored in a new process, from its last snapshot and the inputs since. With
    "warm" a second process, on another node where there is one, has all inputs and takes over. A snapshot is taken
    after so many inputs (100), or so long after one (5 s).

    Raises:
        ConfigError: a value is out of range, or the decorated thing has no usable `run` or `on_message`.
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
        topics=frozenset(check_topics(topics)),
        reentrant=reentrant,
        resumes=resumes,
        ahead=ahead,
        standby=standby,
        snapshot_every=snapshot_every,
        snapshot_every_s=snapshot_every_s,
    )

    def attach(target: C) -> C:
        check_runnable(target)
        if is_stateful(target) and (slots != 1 or retry_on):
            field = "slots" if slots != 1 else "retry_on"
            problem = "cannot be had for a stateful agent: its inputs are applied one after the other, and once"
            raise ConfigError(field, problem, "leave it out")
        check_stateful(target, standby=standby, snapshot_every=snapshot_every, snapshot_every_s=snapshot_every_s)
        check_listening(target, description)
        check_verifying(target)
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
    if is_stateful(target):
        check_stateful(target, standby="", snapshot_every=0, snapshot_every_s=0.0)
        return
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


def check_number(name: str, value: object, low: float, high: float) -> float:
    """A finite number within bounds, of any type of number, as a float. Raises ConfigError, which names it."""
    shape = f"wants a number from {low:g} to {high:g}" if high < math.inf else f"wants a number of at least {low:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(name, f"{shape}, got {value!r}", "leave it out where it is not known")
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high):
        raise ConfigError(name, f"{shape}, got {number:g}", "leave it out where it is not known")
    return number


def check_topics(topics: Iterable[str], field: str = "topics") -> tuple[str, ...]:
    """Sorted and unique.

    Raises:
        ConfigError: one of them is no name of a topic, or there are too many.
    """
    if isinstance(topics, str):
        raise ConfigError(field, "a set of strings is wanted, not one string", f'{{"{topics}"}}')
    unique = set(topics)
    for topic in unique:
        if not isinstance(topic, str) or len(topic) > _MAX_TOPIC or not _TOPIC.fullmatch(topic):
            shape = f"a non-empty string of at most {_MAX_TOPIC} characters without outer blanks or control characters"
            raise ConfigError(field, f"{topic!r} is no topic: {shape}")
    if len(unique) > _MAX_TOPICS:
        raise ConfigError(field, f"{len(unique)} topics; one agent may subscribe to {_MAX_TOPICS}")
    return tuple(sorted(unique))


def check_listening(target: Callable[..., Any], description: AgentDescription) -> None:
    """Raise ConfigError unless the target's `on_message`, if it has one, can be called and fits its description."""
    name = getattr(target, "__qualname__", repr(target))
    hears = getattr(target, "on_message", None) if inspect.isclass(target) else None
    if hears is None:
        if description.topics:
            raise ConfigError(name, "it subscribes to topics and has no method on_message(self, message, ctx)")
        if description.reentrant:
            raise ConfigError(name, "reentrant is about on_message(self, message, ctx), which it does not have")
        return
    arguments = list(inspect.signature(hears).parameters.values())[1:] if callable(hears) else []
    positional = [p for p in arguments if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    catch_all = any(p.kind is p.VAR_POSITIONAL for p in arguments)
    if len([p for p in positional if p.default is p.empty]) > 2 or (not positional and not catch_all):
        raise ConfigError(name, "on_message takes the message and, if it wants it, the context")
    if description.reentrant and not inspect.iscoroutinefunction(hears):
        raise ConfigError(name, "reentrant needs an async on_message: sync code handles one message at a time")


def check_verifying(target: Callable[..., Any]) -> None:
    """Raise ConfigError unless the target's `verify`, if it has one, can be called with a task and its answer."""
    verify = getattr(target, "verify", None) if inspect.isclass(target) else None
    if verify is None:
        return
    arguments = list(inspect.signature(verify).parameters.values()) if callable(verify) else []
    if inspect.isclass(target) and not isinstance(inspect.getattr_static(target, "verify"), staticmethod | classmethod):
        arguments = arguments[1:]
    positional = [p for p in arguments if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in arguments if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    catch_all = any(p.kind is p.VAR_POSITIONAL for p in arguments)
    if len(required) > 2 or (len(positional) < 2 and not catch_all) or any(p not in positional for p in required):
        name = getattr(target, "__qualname__", repr(target))
        raise ConfigError(
            f"{name}.verify", "takes the task and its answer: verify(self, task, answer)", "or give it another name"
        )


def verified_quality(said: object) -> float:
    """What a verifier said, as a quality. Raises ConfigError when it is no number from 0 to 1, nor True or False."""
    return float(said) if isinstance(said, bool) else check_number("verify", said, 0.0, 1.0)

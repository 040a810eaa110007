"""The runtime's API against a simulated cluster: the same calls, virtual time, faults on demand, no Ray.

    sim = Simulation(seed=7, faults=[Crash(share=0.5, at_s=3)])
    sim.agents.add(Writer, count=4)
    handle = sim.submit("Summarise the report", needs={"summarise"}, deadline_s=30)
    handle.result(timeout_s=60)        # virtual seconds
    print(handle.story())

Agents' own `run` is called, at the virtual moment when its attempt begins; `service_s` says how long it takes. Equal
seeds give equal runs. All invariants of the core and of the world round it are checked on the way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flowray.agents import check_number, check_runnable, with_description
from flowray.chunks import Chunk, Restarted
from flowray.core.commands import RefuseTask
from flowray.core.model import AgentSpec, Choice, Outcome, StoryLine, Task, TaskId
from flowray.core.policy import CorePolicy
from flowray.core.states import TaskState
from flowray.errors import (
    ConfigError,
    CoordinatorUnavailable,
    GradeRefused,
    IdempotencyConflict,
    QueueFull,
    TaskRefused,
    UnknownCapability,
    WaitTimeout,
)
from flowray.outcomes import error_of, story_line
from flowray.stateful import is_stateful
from flowray.tasks import make_task
from flowray.testing.callers import Caller, Operator, Plan
from flowray.testing.chunks import Reader, Shown
from flowray.testing.faults import Fault
from flowray.testing.work import ServiceTime, Target, UserWork, pack, unpack
from flowray.testing.world import World
from flowray.values import decode_value

_REFUSALS: dict[str, type[TaskRefused]] = {
    "queue_full": QueueFull,
    "unknown_capability": UnknownCapability,
    "conflict": IdempotencyConflict,
}
SETTLE_S = 300.0  # virtual, after the last outcome: agents come back, stopped attempts end
UNAVAILABLE_AFTER_S = 120.0  # no answer of the coordinator for so long, in virtual time


class Simulation:
    """A simulated runtime. `agents` is a number of ready-made ones that answer with what they are given."""

    def __init__(
        self,
        *,
        seed: int = 0,
        agents: int = 0,
        faults: Sequence[Fault] = (),
        service_s: ServiceTime = 0.1,
        policy: CorePolicy | None = None,
    ) -> None:
        self._work = UserWork(seed, service_s)
        self.world = World(seed=seed, behaviour=self._work, faults=faults, policy=policy, trace=True)
        self.agents = Agents(self, self._work)
        self._number = 0
        if agents:
            self.agents.add(echo, name="echo", count=agents)

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def now(self) -> float:
        """Virtual seconds since the beginning."""
        return self.world.clock.now

    def run_for(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.world.clock.run(self.now + seconds)

    def settle(self, timeout_s: float = 3600.0) -> None:
        """Stop the faults, let everything end, and check that nothing is left behind.

        Raises:
            Violation: something did not end, or was left: a bug in flowray, or an attempt that takes that long.
        """
        self.stop_faults()
        self.wait(lambda: self.world.leader is not None and not self.world.leader.core.book.open, timeout_s)
        self.run_for(SETTLE_S)
        self.world.observer.finish()

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to stop: a simulation has no processes."""

    def stop_faults(self) -> None:
        """No more faults from now on; what hangs wakes up or is ended."""
        self.world.heal()

    @property
    def trace(self) -> str:
        """Every event and command so far, as text."""
        return "\n".join(self.world.trace.lines)

    # ── tasks ────────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(
        self,
        work: Any = None,
        *,
        prompt: str | None = None,
        payload: Any = None,
        needs: Iterable[str] = (),
        priority: int = 0,
        deadline_s: float | None = None,
        attempt_timeout_s: float | None = None,
        max_attempts: int = 3,
        key: str = "",
        tier: str = "",
        agent: str = "",
        labels: Mapping[str, str] | None = None,
        choices: str | Iterable[str] = "",
        tools: str | Iterable[str | Mapping[str, Any]] = "",
        counts: Mapping[str, float] | None = None,
        quality: float | None = None,
        least_quality: float | None = None,
        max_cost_usd: float | None = None,
        weights: Mapping[str, float] | None = None,
        idempotent: bool = False,
        fallback: str = "",
        exclusive: bool = False,
        entity: str = "",
    ) -> Handle:
        """Hand in one task; when this returns it is on the simulated disk. See `flowray.Runtime.submit`.

        Raises:
            InvalidTask, QueueFull, UnknownCapability, IdempotencyConflict, CoordinatorUnavailable.
        """
        task = self._task(
            work,
            prompt=prompt,
            payload=payload,
            needs=needs,
            priority=priority,
            deadline_s=deadline_s,
            attempt_timeout_s=attempt_timeout_s,
            max_attempts=max_attempts,
            key=key,
            tier=tier,
            agent=agent,
            labels=labels,
            choices=choices,
            tools=tools,
            counts=counts,
            quality=quality,
            least_quality=least_quality,
            max_cost_usd=max_cost_usd,
            weights=weights,
            idempotent=idempotent,
            fallback=fallback,
            exclusive=exclusive,
            entity=entity,
        )
        handle = Handle(self, self._caller(task, resubmits=0))
        self._accepted([handle])
        return handle

    def map(self, items: Iterable[Any], **arguments: Any) -> Handles:
        """Hand in one task for each item, all with the same arguments; waits for room where the queue is full."""
        handles = [Handle(self, self._caller(self._task(item, **arguments), resubmits=1_000)) for item in items]
        self._accepted(handles)
        return Handles(handles)

    def _task(self, work: Any, **arguments: Any) -> Task:
        return make_task(pack, work, new_id=self._next_id, **arguments)

    def _next_id(self) -> TaskId:
        self._number += 1
        return TaskId(f"task-{self._number}")

    def _caller(self, task: Task, resubmits: int) -> Caller:
        caller = Caller(self.world, Plan(task=task, at_s=self.now, resubmits=resubmits))
        caller.submit()
        return caller

    def _accepted(self, handles: Sequence[Handle]) -> None:
        def answered() -> bool:
            return all(handle.caller.accepted or handle.caller.refused for handle in handles)

        if not self.world.clock.run(self.now + UNAVAILABLE_AFTER_S, answered):
            raise CoordinatorUnavailable(f"no answer within {UNAVAILABLE_AFTER_S:.0f} virtual seconds")
        for handle in handles:
            if handle.caller.refusal is not None:
                raise refusal_of(handle.caller.refusal)

    def wait(self, until: Callable[[], bool], timeout_s: float | None) -> bool:
        """Let virtual time pass until something holds. Without a limit it gives up after a virtual day."""
        return self.world.clock.run(self.now + (86_400.0 if timeout_s is None else timeout_s), until)


class Agents:
    """The agents of a simulation: `sim.agents`."""

    def __init__(self, simulation: Simulation, work: UserWork) -> None:
        self._simulation = simulation
        self._work = work
        self._operator = Operator(simulation.world)

    def add(
        self,
        target: Any,
        *,
        name: str | None = None,
        count: int = 1,
        tier: str | None = None,
        capabilities: Iterable[str] | None = None,
        slots: int | None = None,
        num_cpus: float | None = None,
        options: Mapping[str, Any] | None = None,
        service_s: ServiceTime | None = None,
    ) -> str:
        """Add agents of a class or function; returns the name of their class. See `flowray.Runtime.agents.add`.

        `service_s` is how long their attempts take, in virtual seconds: a number, a function of the task, or a
        distribution; None for the simulation's own.
        """
        check_runnable(target)
        if is_stateful(target):
            problem = "keeps a state, and a simulation runs tasks only"
            raise ConfigError(target.__name__, problem, "flowray.replicas.rehearse tries it out")
        if count < 0:
            raise ConfigError("count", f"must not be negative, got {count}")
        wanted = frozenset(capabilities) if capabilities is not None else None
        described = with_description(target, tier=tier, capabilities=wanted, slots=slots, num_cpus=num_cpus)
        spec = AgentSpec(
            name=name or target.__name__.lower(),
            tier=described.tier or "primary",
            capabilities=tuple(sorted(described.capabilities)),
            count=count,
            slots=described.slots,
            num_cpus=described.num_cpus,
        )
        self._work.targets[spec.name] = Target(
            make=target, description=described, options=dict(options or {}), service_s=service_s
        )
        self._operator.add(spec)
        if not self._simulation.wait(lambda: self._operator.done, UNAVAILABLE_AFTER_S):
            raise CoordinatorUnavailable(f"no answer within {UNAVAILABLE_AFTER_S:.0f} virtual seconds")
        return spec.name

    def __len__(self) -> int:
        return len(self._simulation.world.processes)


class Handle:
    """One task as its caller sees it."""

    def __init__(self, simulation: Simulation, caller: Caller) -> None:
        self.caller = caller
        self._simulation = simulation

    @property
    def task_id(self) -> str:
        """The task's id; that of the earlier task when the key was known."""
        return self.caller.follows

    @property
    def done(self) -> bool:
        """Is the outcome here?"""
        return self.caller.outcome is not None

    @property
    def state(self) -> str:
        """Where the task is: queued, running, backing_off, succeeded, dead, cancelled or expired."""
        if self.caller.outcome is not None:
            return self.caller.outcome.state.value
        entry = self._simulation.world.observer.book.open.get(self.caller.follows)
        if entry is not None:
            return entry.state.value
        return self._simulation.world.disk.outcomes[self.caller.follows].state.value

    def result(self, timeout_s: float | None = None) -> Any:
        """Let virtual time pass until the task's value is here.

        Raises:
            TaskFailed, TaskCancelled, TaskExpired: it ended without a value.
            WaitTimeout: not within `timeout_s` of virtual time; the task goes on.
        """
        outcome = self.outcome(timeout_s)
        if outcome.state is TaskState.SUCCEEDED:
            return unpack(outcome.value)
        raise error_of(outcome)

    def outcome(self, timeout_s: float | None = None) -> Outcome:
        """Let virtual time pass until the task's outcome is here, whatever it is."""
        if not self._simulation.wait(lambda: self.done, timeout_s):
            raise WaitTimeout(f"no outcome of task {self.task_id}", timeout_s or 0.0)
        assert self.caller.outcome is not None
        return self.caller.outcome

    def __await__(self) -> Generator[Any, None, Any]:
        return self._resulting().__await__()

    async def _resulting(self) -> Any:
        return self.result()

    def stream(self, start: int = 0) -> Iterator[Chunk | Restarted]:
        """The task's chunks from the number `start` on, while virtual time passes. See `flowray.Handle.stream`.

        An agent's own code runs in no time here, and what it gave out is spread over its service time: so `ctx.cursor`
        is 0 at each attempt.
        """
        shown: deque[Chunk | Restarted] = deque()

        def show(page: Shown) -> None:
            if page.withdrawn:
                shown.append(Restarted(page.seq, page.restarts))
            for seq, (codec, data) in enumerate(page.pieces, page.seq):
                shown.append(Chunk(seq, decode_value(codec, data), page.restarts))

        reader = Reader(self._simulation.world, self.caller.follows, first=start)
        reader.on_shown = show
        reader.ask()
        while not reader.ended or shown:
            if not self._simulation.wait(lambda: bool(shown) or reader.ended, None):
                raise WaitTimeout(f"no further chunk of task {self.task_id}", 86_400.0)
            while shown:
                yield shown.popleft()
        self.result()

    def cancel(self) -> str:
        """Cancel the task unless it has ended: the state it is in for good, "cancelled" or an earlier one."""
        self.caller.cancel()
        if not self._simulation.wait(lambda: self.caller.cancel_answer is not None, UNAVAILABLE_AFTER_S):
            raise CoordinatorUnavailable(f"no answer within {UNAVAILABLE_AFTER_S:.0f} virtual seconds")
        answer = self.caller.cancel_answer
        return answer.state.value if answer is not None and answer.state is not None else "unknown"

    def grade(self, quality: float) -> None:
        """Say what the task's answer turned out to be worth, 0..1; when this returns it is on the simulated disk.

        Raises:
            ConfigError: it is no number from 0 to 1. GradeRefused: the task is open, or ended without an answer.
        """
        number = check_number("quality", quality, 0.0, 1.0)
        state = self.state
        if state != TaskState.SUCCEEDED.value:
            raise GradeRefused(self.task_id, f"it is {state}")
        self.caller.grade(number)
        if not self._simulation.wait(lambda: self.caller.graded is not None, UNAVAILABLE_AFTER_S):
            raise CoordinatorUnavailable(f"no answer within {UNAVAILABLE_AFTER_S:.0f} virtual seconds")

    def story(self) -> str:
        """What happened to the task so far, one line each, in virtual seconds since it was accepted."""
        lines, _ = self._told()
        return "\n".join(story_line(line, lines[0].at) for line in lines)

    def explain(self) -> str:
        """Why its agents were chosen."""
        lines, choices = self._told()
        started = [line for line in lines if line.what == "started"]
        pairs = zip(started, choices, strict=False)
        return "\n".join(explain_line(line, choice) for line, choice in pairs) or "no agent was chosen yet"

    def _told(self) -> tuple[Sequence[StoryLine], Sequence[Choice]]:
        entry = self._simulation.world.observer.book.open.get(self.caller.follows)
        if entry is not None:
            return entry.story, entry.choices
        outcome = self._simulation.world.disk.outcomes[self.caller.follows]
        return outcome.story, outcome.choices

    def __repr__(self) -> str:
        return f"<Handle {self.task_id} {self.state}>"


class Handles(Sequence[Handle]):
    """Several tasks, in the order in which they were given."""

    def __init__(self, handles: Sequence[Handle]) -> None:
        self._handles = list(handles)

    def as_completed(self, timeout_s: float | None = None, *, progress: bool = False) -> Iterator[Handle]:
        """Each handle as soon as its outcome is here. Raises WaitTimeout when `timeout_s` for all of them is over.

        `progress` is taken so that scripts run unchanged; virtual time needs no bar.
        """
        waiting = list(self._handles)
        if not waiting:
            return
        simulation = waiting[0]._simulation
        until = simulation.now + (86_400.0 if timeout_s is None else timeout_s)
        while waiting:
            if not simulation.world.clock.run(until, lambda: any(handle.done for handle in waiting)):
                raise WaitTimeout(f"no outcome of task {waiting[0].task_id}", timeout_s or 0.0)
            done = next(handle for handle in waiting if handle.done)
            waiting.remove(done)
            yield done

    def results(self, timeout_s: float | None = None, *, progress: bool = False) -> list[Any]:
        """All values, in order. Raises the first error met."""
        for _ in self.as_completed(timeout_s):
            pass
        return [handle.result(0.0) for handle in self._handles]

    def __getitem__(self, index: Any) -> Any:
        found = self._handles[index]
        return Handles(found) if isinstance(index, slice) else found

    def __len__(self) -> int:
        return len(self._handles)


def echo(task: Any) -> Any:
    """The ready-made agent: answers with the payload, or with the prompt."""
    return task.prompt if task.payload is None else task.payload


def refusal_of(command: RefuseTask) -> TaskRefused:
    """The error that `submit` raises for a refusal."""
    return _REFUSALS.get(command.reason, TaskRefused)(command.task_id, command.detail, command.retry_after_s)


def explain_line(line: StoryLine, choice: Choice) -> str:
    """Why one attempt went where it went, for people."""
    loads = ", ".join(f"{agent} at load {load:.2f}" for agent, load in choice.considered)
    return (
        f"attempt {line.attempt} on {line.agent_id}: {choice.policy}, {choice.candidates} with room; compared {loads}"
    )

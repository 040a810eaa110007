"""Many seeds: each draws its own team, load, policies and faults (`drawing`), and must keep every invariant.

Two phases. Safety: faults happen while work arrives. Liveness: the faults stop, and within a bound everything that
was accepted ends, every agent wanted is there, and nothing is left behind.
"""

from __future__ import annotations

import gc
import traceback
from dataclasses import dataclass, field
from random import Random
from time import process_time

from flowray.core.commands import StartAttempt
from flowray.core.model import Failure, Payload, Task
from flowray.testing.agent import AgentProcess, Given, Run
from flowray.testing.callers import Caller, Operator
from flowray.testing.chunks import Piece
from flowray.testing.comparing import value_of
from flowray.testing.drawing import Options
from flowray.testing.idleness import look_for_idleness
from flowray.testing.rarer import RARER_POINTS
from flowray.testing.special import draw_options
from flowray.testing.stateful_worlds import STATEFUL_POINTS
from flowray.testing.tally import faults_struck
from flowray.testing.violations import Violation
from flowray.testing.world import World

# What a large run must come by, or it proves less than it seems to.
SOMETIMES = (
    "a second attempt after a while",
    "a second attempt at once",
    "adopted attempt",
    "agent hung",
    "agent start failed",
    "agent start hung",
    "an attempt was outlived by the one beside it",
    "answer before the report",
    "answer kept for a new coordinator",
    "answer of an ended task",
    "attempt confirmed after restart",
    "attempt handed back",
    "cancel raced with answer",
    "cancelled while running",
    "cancelled while waiting",
    "chunks gone on with",
    "chunks put off",
    "chunks recorded",
    "chunks refused",
    "chunks stale",
    "chunks withdrawn at the end",
    "commit arrived after re-queue",
    "coordinator crashed",
    "coordinator paused",
    "dead: agent_lost",
    "dead: application",
    "dead: no_agent",
    "dead: poison",
    "dead: quality",
    "dead: timeout",
    "estimates came too late",
    "expired while running",
    "expired while waiting",
    "explored",
    "failover attempt",
    "fenced itself off",
    "given to the fallback",
    "held back",
    "older epoch refused by an agent",
    "prefetched",
    "read on with another coordinator",
    "refused: conflict",
    "refused: queue_full",
    "refused: unknown_capability",
    "repeat recognised by its key",
    "reported dead and lives on",
    "restart told to a reader",
    "restarted from the beginning",
    "restarted in the middle",
    "retry attempt",
    "routed",
    "step given to a later attempt",
    "step put off",
    "step recorded",
    "step stale",
    "stopped for giving other chunks",
    "stream broken",
    "tail lost",
    "taken over from a class that was waited for",
    "told to stop what it does not have",
    "waited for a lease",
    "waited for estimates in vain",
    "zombie went on",
    "zombie writer fenced",
    *RARER_POINTS,
    *STATEFUL_POINTS,
)
BUSY_AGAIN_S = 60.0  # after the faults stopped: by then no task waits while an agent that could do it is idle
SETTLE_S = 90.0  # after the last outcome: agents come back, stopped attempts end
LATE_ROUNDS = 3  # of that: by then nothing is on its way any more


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedReport:
    """What became of one seed."""

    seed: int
    virtual_s: float
    events: int  # that the core handled
    steps: int  # of the whole simulated world
    cpu_s: float  # that it took
    digest: str  # of everything that happened: equal for equal runs
    violation: str = ""  # "" when all invariants held
    invariant: str = ""  # the number of the one broken
    options: str = ""
    sometimes: dict[str, int] = field(default_factory=dict)
    tasks: int = 0  # that were accepted
    faults: dict[str, int] = field(default_factory=dict)  # how often each kind struck
    lines: tuple[str, ...] = ()  # the trace, when asked for


class RandomWork:
    """What simulated agents do: answer, fail, fail for good, or take their process down, as the task's labels say."""

    def __init__(self, seed: int, median_s: float) -> None:
        self._rng = Random(f"{seed}/work")
        self._quality = Random(f"{seed}/quality")
        self._median_s = median_s

    def construct(self, process: AgentProcess) -> Failure | None:
        return None

    def begin(self, process: AgentProcess, command: StartAttempt, task: Task, steps: Given) -> Run:
        rng = self._rng
        usual_s = self._median_s * min(10.0, rng.lognormvariate(0.0, 0.8))
        duration_s = usual_s * rng.choices((1.0, 50.0, 0.0), (95, 3, 2))[0]
        heeds = rng.random() < 0.7
        token = value_of(task.id, command.attempt, command.epoch, process.id, process.incarnation)
        names = [f"s{number}" for number in range(int(task.labels.get("steps", "0")))]
        chunks = chunks_of(task, token)
        resumes = "resumes" in task.labels
        takes = tuple((n, Payload(data=token + n.encode(), size_bytes=len(token))) for n in names if n not in steps)
        if task.labels.get("kills") or rng.random() < 0.002:
            return Run(duration_s=duration_s, kills=True, steps=takes, chunks=chunks, resumes=resumes)
        dice = rng.random()
        if dice < 0.12:
            retryable = dice < 0.10
            failure = Failure(kind="application", type="ValueError", message="odd", retryable=retryable)
            return Run(
                duration_s=duration_s,
                failure=failure,
                heeds_cancel=heeds,
                steps=takes,
                chunks=chunks,
                resumes=resumes,
            )
        value = Payload(data=token, size_bytes=len(token))
        quality = self._quality.random() if task.least_quality is not None else None
        return Run(
            duration_s=duration_s,
            value=value,
            quality=quality,
            heeds_cancel=heeds,
            steps=takes,
            chunks=chunks,
            resumes=resumes,
        )


def chunks_of(task: Task, token: bytes) -> tuple[Piece, ...]:
    """What an attempt gives out: as many chunks as its label says, the same each time unless the task is flaky."""
    count = int(task.labels.get("chunks", "0"))
    same = [f"{task.id}/{number}".encode() for number in range(count)]
    if count and "flaky" in task.labels:
        rng = Random(token.decode())
        if rng.random() < 0.7:
            differs, ends = rng.randrange(count), count - rng.choice((0, 0, 0, 1, count))
            same = [data + (token if number >= differs else b"") for number, data in enumerate(same[:ends])]
    return tuple(("msgpack", data) for data in same)


# ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────


def collect_rarely() -> None:
    """For a process that does nothing but simulate: its worlds are small, and looking for garbage takes a tenth."""
    gc.freeze()
    gc.set_threshold(400_000, 5, 1000)


def collect_never() -> None:
    """For one that ends after some hundred seeds: what is left of one is about half a megabyte."""
    gc.freeze()
    gc.disable()


def run_seed(seed: int, *, trace: bool = False, thorough: bool = False) -> SeedReport:
    """Run one seed to its end. Never raises for what the core does wrong: that is in the report."""
    return run_options(draw_options(seed), trace=trace, thorough=thorough)


def run_options(options: Options, *, trace: bool = False, thorough: bool = False) -> SeedReport:
    """Run one world to its end, as `run_seed` does."""
    seed = options.seed
    began = process_time()
    world: World | None = None
    violation = invariant = ""
    try:
        world = World(
            seed=seed,
            behaviour=RandomWork(seed, options.median_s),
            faults=options.faults,
            policy=options.policy,
            trace=trace,
            thorough=thorough,
        )
        _drive(world, options)
    except Violation as broken:
        violation, invariant = str(broken), broken.invariant
    except Exception as error:  # noqa: BLE001 - whatever the core raises is a finding, and the next seed must run
        violation, invariant = "".join(traceback.format_exception(error)), type(error).__name__
    return SeedReport(
        seed=seed,
        virtual_s=world.clock.now if world is not None else 0.0,
        events=world.trace.events if world is not None else 0,
        steps=world.clock.steps if world is not None else 0,
        cpu_s=process_time() - began,
        digest=world.trace.digest if world is not None else "",
        violation=violation,
        invariant=invariant,
        options=options.describe(),
        sometimes=dict(world.sometimes) if world is not None else {},
        tasks=len(world.observer.accepted) if world is not None else 0,
        faults=faults_struck(world) if world is not None else {},
        lines=tuple(world.trace.lines) if world is not None else (),
    )


def _drive(world: World, options: Options) -> None:
    operator, callers = safety(world, options)
    _liveness(world, options, operator, callers)


def safety(world: World, options: Options) -> tuple[Operator, list[Caller]]:
    """Work arrives and faults happen: nothing bad may follow."""
    clock = world.clock
    operator = Operator(world)
    for spec in options.specs:
        operator.add(spec)
    for at_s, spec in options.rescales:
        clock.at(at_s, lambda spec=spec: operator.add(spec))  # type: ignore[misc]
    callers = [Caller(world, plan) for plan in options.plans]
    for caller in callers:
        caller.begin()
    clock.run(options.safety_s)
    return operator, callers


def _liveness(world: World, options: Options, operator: Operator, callers: list[Caller]) -> None:
    """The faults stop: within bounds everything good must follow."""
    clock = world.clock
    world.heal()
    clock.after(BUSY_AGAIN_S, lambda: look_for_idleness(world))
    waiting = list(callers)

    def ended() -> bool:
        leader = world.leader
        if leader is None or leader.core.book.open or not operator.done:
            return False
        while waiting and waiting[-1].done:
            waiting.pop()
        return not waiting

    slots = sum(spec.slots for spec in options.specs)  # of the smallest team there can be
    # All the work one after the other, and one task that meets a slow agent with every attempt.
    bound_s = 300.0 + options.median_s * (200.0 * len(options.plans) / slots + 50_000.0)
    if not clock.run(clock.now + bound_s, ended):
        stuck = [f"{c.task.id} (accepted: {c.accepted})" for c in callers if not c.done]
        world.observer.finish()
        raise Violation("17", f"{bound_s:.0f} s after the faults stopped callers still wait: {stuck[:5]}")
    for _ in range(LATE_ROUNDS):
        clock.run(clock.now + SETTLE_S)
        # A submit that was on its way for long came after its caller had its answer, a refusal: a task like any other,
        # with an outcome and with readers that are waited for.
        waiting[:] = callers
        if ended():
            break
        clock.run(clock.now + bound_s, ended)
    world.observer.finish()

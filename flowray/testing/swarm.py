"""Many seeds: each draws its own team, load, policies and faults, and must keep every invariant.

Two phases. Safety: faults happen while work arrives. Liveness: the faults stop, and within a bound everything that
was accepted ends, every agent wanted is there, and nothing is left behind.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from time import process_time

from msgspec import structs

from flowray.core.acting import ActingPolicy
from flowray.core.admission import AdmissionPolicy
from flowray.core.commands import StartAttempt
from flowray.core.model import AgentSpec, Failure, Payload, Task, TaskId
from flowray.core.placement import PlacementPolicy
from flowray.core.policy import CorePolicy
from flowray.core.registry import RestartPolicy
from flowray.core.retry import RetryPolicy
from flowray.core.routing import RoutingPolicy
from flowray.testing.agent import AgentProcess, Given, Run
from flowray.testing.callers import Caller, Operator, Plan
from flowray.testing.faults import (
    AgentStartFailure,
    CoordinatorCrash,
    CoordinatorZombie,
    Crash,
    Delay,
    Drop,
    Duplicate,
    FalseDeath,
    Fault,
    Hang,
    LostTail,
    Reorder,
    Slow,
    SlowDisk,
)
from flowray.testing.idleness import look_for_idleness
from flowray.testing.invariants import Violation, value_of
from flowray.testing.rarer import RARER_POINTS, draw_rarer_faults
from flowray.testing.tally import faults_struck
from flowray.testing.world import World

CAPABILITIES = ("code", "read", "see", "write")
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
    "refused: conflict",
    "refused: queue_full",
    "refused: unknown_capability",
    "repeat recognised by its key",
    "reported dead and lives on",
    "retry attempt",
    "routed",
    "step given to a later attempt",
    "step put off",
    "step recorded",
    "step stale",
    "stream broken",
    "tail lost",
    "taken over from a class that was waited for",
    "told to stop what it does not have",
    "waited for a lease",
    "waited for estimates in vain",
    "zombie went on",
    "zombie writer fenced",
    *RARER_POINTS,
)
LONG_EVERY = 4  # seeds
BUSY_S = 160.0  # a long world has as many faults as one that lasts so long
BUSY_AGAIN_S = 60.0  # after the faults stopped: by then no task waits while an agent that could do it is idle
SETTLE_S = 90.0  # after the last outcome: agents come back, stopped attempts end


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What one seed has drawn."""

    seed: int
    specs: tuple[AgentSpec, ...]
    plans: tuple[Plan, ...]
    rescales: tuple[tuple[float, AgentSpec], ...]
    faults: tuple[Fault, ...]
    policy: CorePolicy
    safety_s: float
    median_s: float  # of service times

    def describe(self) -> str:
        """A few lines for the person who looks at a failing seed."""
        team = ", ".join(f"{s.count} {s.name} x {s.slots} slots {'/'.join(s.capabilities)}" for s in self.specs)
        faults = "\n".join(f"    {fault}" for fault in self.faults) or "    none"
        return (
            f"  seed {self.seed}: {len(self.plans)} tasks of about {self.median_s:.3g} s, "
            f"faults for {self.safety_s:.0f} s\n  team: {team}\n"
            f"  rescales: {[(round(at, 2), s.name, s.count) for at, s in self.rescales]}\n  faults:\n{faults}\n"
            f"  policy: {self.policy}"
        )


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
        takes = tuple((n, Payload(data=token + n.encode(), size_bytes=len(token))) for n in names if n not in steps)
        if task.labels.get("kills") or rng.random() < 0.002:
            return Run(duration_s=duration_s, kills=True, steps=takes)
        dice = rng.random()
        if dice < 0.12:
            retryable = dice < 0.10
            failure = Failure(kind="application", type="ValueError", message="odd", retryable=retryable)
            return Run(duration_s=duration_s, failure=failure, heeds_cancel=heeds, steps=takes)
        value = Payload(data=token, size_bytes=len(token))
        quality = self._quality.random() if task.least_quality is not None else None
        return Run(duration_s=duration_s, value=value, quality=quality, heeds_cancel=heeds, steps=takes)


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────────


def draw_options(seed: int) -> Options:
    """The options of a seed; the same for ever, as long as this function does not change."""
    rng = Random(f"{seed}/options")
    specs = _draw_specs(rng)
    safety_s = rng.choice((5.0, 15.0, 40.0))
    count = int(20 * 15 ** (rng.random() ** 2))
    if seed % LONG_EVERY == 0:  # now and then a long one: hardly busy, with more lives of everything
        safety_s, count = rng.choice((600.0, 1800.0, 3600.0)), 2 * count
    doubled = Random(f"{seed}/doubled")  # draws of its own: so the seeds of before tell the same stories
    slots = sum(s.count * s.slots for s in specs)
    # Between hardly any load and about twice what the team can do.
    median_s = min(5.0, rng.choice((0.001, 0.05, 0.2, 1.0)) * (1.0 + slots * safety_s / count / 4.0))
    return Options(
        seed=seed,
        specs=specs,
        plans=_doubled(doubled, specs, _draw_plans(rng, specs, count, safety_s, median_s)),
        rescales=_draw_rescales(rng, specs, safety_s),
        faults=(*_draw_faults(rng, safety_s), *draw_rarer_faults(Random(f"{seed}/rarer"), safety_s)),
        policy=structs.replace(_draw_policy(rng), acting=_draw_acting(doubled)),
        safety_s=safety_s,
        median_s=median_s,
    )


def _draw_specs(rng: Random) -> tuple[AgentSpec, ...]:
    total = max(1, int(40 ** rng.random()))
    kinds = rng.randint(1, min(3, total))
    specs = []
    for number in range(kinds):
        capabilities = tuple(sorted(rng.sample(CAPABILITIES, rng.randint(1, 3))))
        count = max(1, total // kinds)
        tier = rng.choice(("primary", "secondary"))
        slots = rng.choice((1, 1, 2, 4))
        specs.append(AgentSpec(name=f"kind{number}", tier=tier, capabilities=capabilities, count=count, slots=slots))
    return tuple(specs)


def _draw_plans(
    rng: Random, specs: tuple[AgentSpec, ...], count: int, safety_s: float, median_s: float
) -> tuple[Plan, ...]:
    plans: list[Plan] = []
    again = Random(f"{count}/{median_s}/again")
    effects = Random(f"{count}/{median_s}/effects")  # on its own, so that more of it changes nothing else
    stepped, alone = effects.choice((0.0, 0.3, 0.8)), effects.choice((0.0, 0.0, 0.3, 1.0))
    priorities = rng.choice(((0,), (0, 5), (-1, 0, 1, 9)))
    burst = rng.random() < 0.3
    keyed, cancelled, twice, killers = rng.random() * 0.4, rng.random() * 0.3, rng.random() * 0.3, rng.random() * 0.02
    deadlined, timed = rng.random() * 0.4, rng.random() * 0.6
    for number in range(count):
        spec = rng.choice(specs)
        needs = tuple(sorted(rng.sample(spec.capabilities, rng.randint(0, len(spec.capabilities)))))
        if rng.random() < 0.01:
            needs = ("fly",)
        key, fingerprint = "", f"f{number}"
        if rng.random() < keyed:
            key = f"k{rng.randrange(max(1, count // 3))}"
            fingerprint = f"f-{key}" if rng.random() < 0.85 else fingerprint
        deadline_s = rng.uniform(0.1, 2.0) * max(0.2, safety_s / 3) if rng.random() < deadlined else None
        attempt_timeout_s = max(0.05, median_s * rng.uniform(1.0, 20.0)) if rng.random() < timed else None
        task = Task(
            id=TaskId(f"t{number:03d}"),
            needs=needs,
            tier=spec.tier if rng.random() < 0.1 and needs != ("fly",) else "",
            agent=spec.name if rng.random() < 0.1 and needs != ("fly",) else "",
            priority=rng.choice(priorities),
            deadline_s=deadline_s,
            attempt_timeout_s=attempt_timeout_s,
            max_attempts=rng.choice((1, 3, 3, 5)),
            key=key,
            fingerprint=fingerprint,
            exclusive=effects.random() < alone,
            labels=({"kills": "yes"} if rng.random() < killers else {}) | _draw_steps(effects, stepped),
        )
        plans.append(
            Plan(
                task=task,
                at_s=1.0 if burst else rng.uniform(0.5, safety_s * 0.8),
                cancel_after_s=rng.random() ** 3 * min(BUSY_S, safety_s) if rng.random() < cancelled else None,
                twice=rng.random() < twice,
                grade=(number % 11) / 10 if number % 3 == 0 else None,
                again_after_s=again.uniform(0.0, 5.0) if again.random() < 0.1 else None,
                again_as=f"{task.id}+" if key and again.random() < 0.5 else "",
            )
        )
    return tuple(plans)


def _doubled(rng: Random, specs: tuple[AgentSpec, ...], plans: tuple[Plan, ...]) -> tuple[Plan, ...]:
    """The same plans, with tasks that may have two attempts, or a fallback, or want an answer of some quality."""
    idempotent, fallen, judged = rng.choice((0.0, 0.5, 1.0)), rng.choice((0.0, 0.0, 0.3)), rng.random() * 0.3
    found = []
    for plan in plans:
        task = structs.replace(
            plan.task,
            idempotent=rng.random() < idempotent,
            fallback=rng.choice(specs).name if rng.random() < fallen else "",
            least_quality=0.4 if rng.random() < judged else None,
        )
        found.append(replace(plan, task=task))
    return tuple(found)


def _draw_acting(rng: Random) -> ActingPolicy:
    return ActingPolicy(
        hedge_factor=rng.choice((1.0, 3.0)),
        hedge_least_s=rng.choice((0.0, 0.05)),
        hedge_share=rng.choice((0.0, 0.1, 1.0)),
        hedge_burst=rng.choice((1.0, 10.0)),
        unsure=rng.choice((0.0, 0.9, 1.0, 1.0)),
        apart=rng.choice((0.5, 1.0, 1.0)),
        copy_gain=rng.choice((0.0, 0.1)),
        copy_share=rng.choice((0.1, 1.0)),
        lost=rng.choice((0.0, 0.1, 0.5)),
    )


def _draw_steps(rng: Random, stepped: float) -> dict[str, str]:
    """A label that says how many steps a task's attempts take."""
    return {"steps": str(rng.choice((1, 2, 5)))} if rng.random() < stepped else {}


def _draw_rescales(rng: Random, specs: tuple[AgentSpec, ...], safety_s: float) -> tuple[tuple[float, AgentSpec], ...]:
    changes = []
    for _ in range(rng.choice((0, 0, 1, 3, 8))):
        spec = rng.choice(specs)
        count = rng.randint(0 if rng.random() < 0.2 else 1, spec.count + 2)
        changes.append((rng.uniform(0.5, safety_s), _with_count(spec, count)))
    return tuple(sorted(changes, key=lambda change: change[0]))


def _with_count(spec: AgentSpec, count: int) -> AgentSpec:
    return AgentSpec(name=spec.name, tier=spec.tier, capabilities=spec.capabilities, count=count, slots=spec.slots)


def _draw_faults(rng: Random, safety_s: float) -> tuple[Fault, ...]:
    def rate(most: float) -> float:
        """Between one in the whole run and `most` per second."""
        return max(1.0 / safety_s, most * min(1.0, BUSY_S / safety_s) * rng.random() ** 2)

    possible: list[Callable[[], Fault]] = [
        lambda: Crash(rate_per_s=rate(2.0), notice_s=rng.choice((0.05, 1.0, 10.0))),
        lambda: Crash(share=rng.random(), at_s=rng.uniform(0.0, safety_s)),
        lambda: FalseDeath(rate_per_s=rate(0.5), lives_on_s=rng.choice((0.5, 5.0, 30.0))),
        lambda: Hang(rate_per_s=rate(0.5), lasts_s=rng.choice((1.0, 20.0, float("inf")))),
        lambda: Slow(factor=rng.choice((3.0, 20.0))),
        lambda: Drop(ratio=rng.random() ** 2 * 0.3),
        lambda: Duplicate(ratio=rng.random() * 0.3),
        lambda: Delay(max_s=rng.choice((0.1, 2.0, 30.0)), ratio=rng.random()),
        lambda: Reorder(ratio=rng.random() * 0.3),
        lambda: CoordinatorCrash(rate_per_s=rate(1.0), down_s=rng.choice((0.1, 1.0, 8.0))),
        lambda: CoordinatorZombie(rate_per_s=rate(0.2), pause_s=rng.uniform(1.0, 15.0), replaced_after_s=1.0),
        lambda: LostTail(ratio=rng.choice((0.5, 1.0))),
        lambda: AgentStartFailure(ratio=rng.random() * 0.5, hang_ratio=rng.choice((0.0, 0.1))),
        lambda: SlowDisk(sync_s=rng.choice((0.05, 0.3, 1.5, 5.0))),
    ]
    chance = rng.choice((0.3, 0.5, 0.7))
    return tuple(make() for make in possible if rng.random() < chance)


def _draw_policy(rng: Random) -> CorePolicy:
    return CorePolicy(
        admission=AdmissionPolicy(
            max_open_tasks=rng.choice((25, 100_000, 100_000, 100_000, 100_000, 100_000)),
            max_open_bytes=rng.choice((16 * 1024, 1 << 30, 1 << 30, 1 << 30)),
            max_recent=rng.choice((1, 20, 2000, 20_000)),
        ),
        retry=RetryPolicy(
            backoff_s=rng.choice((0.05, 0.2)),
            backoff_max_s=rng.choice((1.0, 30.0)),
            max_losses=rng.choice((3, 10)),
            poison_kills=rng.choice((1, 3, 3)),
        ),
        placement=PlacementPolicy(
            prefetch_s=rng.choice((0.0, 0.01, 0.5, 0.5)), max_prefetch=rng.choice((0, 4, 64, 64))
        ),
        routing=_draw_routing(rng),
        restart=RestartPolicy(delay_s=rng.choice((0.1, 0.5)), delay_max_s=5.0, max_start_failures=3),
        cancel_grace_s=rng.choice((0.3, 5.0)),
        adoption_s=rng.choice((0.3, 2.0, 5.0)),
        start_timeout_s=rng.choice((2.0, 10.0)),
        fence_s=Random(f"{rng.random()}/fence").choice((3.0, 11.0)),
    )


def _draw_routing(rng: Random) -> RoutingPolicy:
    return RoutingPolicy(
        enabled=rng.random() < 0.6,
        within_s=rng.choice((0.005, 0.05, 2.0)),
        shortlist=rng.choice((2, 16)),
        newcomers=1,
        slowdown=rng.choice((0.0, 0.02, 0.3)),
        second=rng.choice((0.0, 0.001, 0.1)),
        good=rng.choice((0.0, 0.02, 0.5)),
        explore=rng.choice((0.0, 0.05, 0.5)),
    )


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

    def ended() -> bool:
        leader = world.leader
        if leader is None or leader.core.book.open or not operator.done:
            return False
        while callers and callers[-1].done:
            callers.pop()
        return not callers

    slots = sum(spec.slots for spec in options.specs)  # of the smallest team there can be
    # All the work one after the other, and one task that meets a slow agent with every attempt.
    bound_s = 300.0 + options.median_s * (200.0 * len(options.plans) / slots + 50_000.0)
    if not clock.run(clock.now + bound_s, ended):
        stuck = [f"{c.task.id} (accepted: {c.accepted})" for c in callers if not c.done]
        world.observer.finish()
        raise Violation("17", f"{bound_s:.0f} s after the faults stopped callers still wait: {stuck[:5]}")
    clock.run(clock.now + SETTLE_S)
    world.observer.finish()

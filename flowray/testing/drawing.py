"""A world drawn from a number and from nothing else: a team, work, policies and faults of any kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from msgspec import structs

from flowray.core.acting import ActingPolicy
from flowray.core.admission import AdmissionPolicy
from flowray.core.draining import DrainPolicy
from flowray.core.model import AgentSpec, Task, TaskId
from flowray.core.placement import PlacementPolicy
from flowray.core.policy import CorePolicy
from flowray.core.registry import RestartPolicy
from flowray.core.retry import RetryPolicy
from flowray.core.routing import RoutingPolicy
from flowray.testing.callers import Plan
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
from flowray.testing.rarer import draw_rarer_faults
from flowray.testing.stateful_worlds import draw_stateful
from flowray.testing.stream_worlds import draw_streaming, with_streams

CAPABILITIES = ("code", "read", "see", "write")
LONG_EVERY = 4  # seeds
BUSY_S = 160.0  # a long world has as many faults as one that lasts so long


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


def draw_anything(seed: int) -> Options:
    """Some team, some work, any of the faults; the same for ever, as long as this function does not change."""
    rng = Random(f"{seed}/options")
    specs = _draw_specs(rng)
    safety_s = rng.choice((5.0, 15.0, 40.0))
    count = int(20 * 15 ** (rng.random() ** 2))
    if seed % LONG_EVERY == 0:  # now and then a long one: hardly busy, with more lives of everything
        safety_s, count = rng.choice((600.0, 1800.0, 3600.0)), 2 * count
    stateful = draw_stateful(seed, safety_s)
    doubled = Random(f"{seed}/doubled")  # draws of its own: so the seeds of before tell the same stories
    streamed = Random(f"{seed}/streamed")
    slots = sum(s.count * s.slots for s in specs)
    # Between hardly any load and about twice what the team can do.
    median_s = min(5.0, rng.choice((0.001, 0.05, 0.2, 1.0)) * (1.0 + slots * safety_s / count / 4.0))
    plans = _doubled(doubled, specs, _draw_plans(rng, specs, count, safety_s, median_s))
    return Options(
        seed=seed,
        specs=(*specs, *stateful.specs),
        plans=(*with_streams(streamed, plans, median_s), *stateful.plans),
        rescales=_draw_rescales(rng, specs, safety_s),
        faults=(*_draw_faults(rng, safety_s), *draw_rarer_faults(Random(f"{seed}/rarer"), safety_s), *stateful.faults),
        policy=structs.replace(
            _draw_policy(rng),
            acting=draw_acting(doubled),
            streaming=draw_streaming(streamed),
            stateful=stateful.policy,
        ),
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


def draw_acting(rng: Random) -> ActingPolicy:
    """When two attempts of one task may run."""
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
        changes.append((rng.uniform(0.5, safety_s), with_count(spec, count)))
    return tuple(sorted(changes, key=lambda change: change[0]))


def with_count(spec: AgentSpec, count: int) -> AgentSpec:
    """The same class with so many agents."""
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
    policy = CorePolicy(
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
        routing=draw_routing(rng),
        restart=RestartPolicy(delay_s=rng.choice((0.1, 0.5)), delay_max_s=5.0, max_start_failures=3),
        cancel_grace_s=rng.choice((0.3, 5.0)),
        adoption_s=rng.choice((0.3, 2.0, 5.0)),
        start_timeout_s=rng.choice((2.0, 10.0)),
        fence_s=Random(f"{rng.random()}/fence").choice((3.0, 11.0)),
    )
    restart = structs.replace(policy.restart, max_crashes=rng.choice((2, 8, 1000)))
    drain = DrainPolicy(at_once=rng.choice((0.01, 0.2, 1.0)), grace_s=rng.choice((0.3, 5.0, 30.0)))
    return structs.replace(policy, restart=restart, drain=drain)


def draw_routing(rng: Random) -> RoutingPolicy:
    """Whether a router is asked, and what of."""
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

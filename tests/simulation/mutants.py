"""Planted bugs: each must be found by the swarm within a few hundred seeds, or the swarm proves little.

`python tests/simulation/mutants.py` prints the kill table. A mutant changes a line of the core, or of the protocol
that its driver keeps; half of them are bugs that the simulation found while the core was young.
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from flowray.core.admission import Admission
from flowray.core.book import Book
from flowray.core.commands import AnswerStep, StartAgent
from flowray.core.coordination import Coordination
from flowray.core.fencing import Lease
from flowray.core.queueing import Lane
from flowray.core.registry import Agent, AgentClass
from flowray.testing.agent import AgentProcess
from flowray.testing.coordinator import CoordinatorProcess
from flowray.testing.journal import Writer
from flowray.testing.swarm import run_seed

BUDGET = 2000  # seeds
SEED_S = 0.5  # no seed takes so long on average, even on a busy machine: a mutant that does has made the core hang


@dataclass(frozen=True, slots=True)
class Killed:
    name: str
    seeds: int  # until found; 0 when it survived the budget
    invariant: str
    detail: str
    wall_s: float


def swap(owner: type, method: str, old: str, new: str) -> Callable[[], None]:
    """A mutant: in the source of a method, one text becomes another."""

    def plant() -> None:
        found = inspect.getattr_static(owner, method)
        function = found.__func__ if isinstance(found, classmethod) else found
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(old) != 1:
            raise AssertionError(f"{owner.__name__}.{method} has {old!r} {source.count(old)} times: mend the mutant")
        scope: dict[str, Any] = {}
        code = compile("from __future__ import annotations\n" + source.replace(old, new), f"<mutant {method}>", "exec")
        exec(code, function.__globals__, scope)
        setattr(owner, method, scope[method])

    return plant


def put(owner: type, name: str, value: Any) -> Callable[[], None]:
    """A mutant: an attribute becomes another."""
    return lambda: setattr(owner, name, value)


C, P = Coordination, CoordinatorProcess
MUTANTS: dict[str, Callable[[], None]] = {
    # what the core decides
    "answers of earlier attempts count": swap(C, "_is_current", "and entry.attempt == event.attempt", ""),
    "answers of earlier epochs count": swap(C, "_is_current", "and entry.epoch == event.epoch", ""),
    "idempotency key forgotten": swap(Admission, "opened", "if task.key:", "if False:"),
    "fingerprint not compared": swap(C, "_on_submitted", "if owner[1] == task.fingerprint:", "if True:"),
    "one attempt too many": swap(
        C,
        "_attempt_failed",
        "entry.failures + 1 >= entry.task.max_attempts",
        "entry.failures >= entry.task.max_attempts",
    ),
    "retries unbounded": swap(C, "_attempt_failed", "or entry.failures + 1 >= entry.task.max_attempts", ""),
    "retries what is not retryable": swap(C, "_attempt_failed", "not failure.retryable or ", ""),
    "back-off cut short": swap(
        C, "_attempt_failed", 'set("backoff", task_id, not_before)', 'set("backoff", task_id, self.now)'
    ),
    "poison never found": swap(C, "_attempt_lost", 'counts == "kills" and', "False and"),
    "losses unbounded": swap(C, "_attempt_lost", "elif counts and", "elif False and"),
    "resolved twice": swap(
        C, "_commit", "self._out.append(command)", "self._out.extend([command] * (1 + (type(command) is ResolveTask)))"
    ),
    "tasks lost with their agent": swap(C, "_requeue_all", "held = self._held_or_claimed(agent)", "held = []"),
    "deadline forgotten": swap(C, "_on_submitted", "if entry.deadline_at is not None:", "if False:"),
    "deadline forgotten by recovery": swap(C, "recover", "if entry.deadline_at is not None:", "if False:"),
    "running attempts forgotten by recovery": swap(
        C, "recover", 'core.timers.set("adoption", task_id, now + grace_s)', "pass"
    ),
    "cancel answered, task goes on": swap(
        C, "_on_cancel", "self._withdraw(entry, TaskState.CANCELLED,", "(lambda *_: None)(entry, TaskState.CANCELLED,"
    ),
    "priority inverted": swap(Lane, "push", "(-task.priority, seq, task.id)", "(task.priority, seq, task.id)"),
    "newest first": swap(Lane, "push", "(-task.priority, seq, task.id)", "(-task.priority, -seq, task.id)"),
    "slot of a stopped attempt leaks": swap(C, "_free_slot", "del agent.stopping[token]", "pass"),
    "admission counter leaks": swap(
        Admission, "closed", "self.open_tasks -= 1", "self.open_tasks -= task.priority < 5"
    ),
    "wake-up lost": swap(C, "_backoff_over", "self._commit(WakeTask", "return None and (WakeTask"),
    "adopts what runs elsewhere": swap(
        C,
        "_adopt_or_stop",
        "if entry is None or not fresh or entry.state not in (TaskState.QUEUED, TaskState.BACKING_OFF):",
        "if entry is None or not fresh:",
    ),
    "lost agents stay lost": swap(
        C, "_restart_due", "self._start_agent(agent)", "self.timers.set('restart', key, self.now + 1e6)"
    ),
    "capabilities ignored": swap(AgentClass, "serves", "self.capabilities.issuperset(key.needs)", "True"),
    "hung agents are kept": swap(C, "_grace_over", "due > self.now", "(due := self.now + 1e6)"),
    # steps, fences and exclusive tasks
    "a stale attempt records": swap(C, "_on_step", "self._is_current(entry, event)", "bool(entry.agent_id)"),
    "a step is recorded again": swap(C, "_on_step", "if event.name in entry.steps:", "if False:"),
    "steps are not kept": swap(Book, "_recorded", "entry.record(command.name, command.value)", "pass"),
    "goes on before its step is on disk": put(AnswerStep, "waits", False),
    "is given steps that are not on disk": swap(P, "_starts_late", " or bool(entry.steps)", ""),
    "exclusive tasks do not wait": swap(C, "_attempt_lost", "elif entry.task.exclusive and", "elif False and"),
    "told to stop and not waited for": swap(
        C, "_backoff_over", "if entry.task.exclusive and self._goes_on(entry.task.id):", "if False:"
    ),
    "exclusive attempts start before they are on disk": swap(P, "_starts_late", "entry.task.exclusive or ", ""),
    "nobody fences itself off": swap(AgentProcess, "_fence_off", "if self._lease.valid(now):", "if True:"),
    "leases are for ever": swap(Lease, "granted", "at + self.ttl_s", "at + 1e9"),
    "leases for those given up": swap(C, "may_lease", "return alive and", "return True or"),
    "leases of an epoch that is over": swap(P, "lease", "self._when_synced(grant)", "grant()"),
    # bugs that the simulation found
    "found: adopts with a lower fence": swap(C, "_adopt_or_stop", "entry.epoch <= one.epoch", "one.epoch"),
    "found: claim outlives its answer": swap(C, "_on_finished", "self._unclaim(entry)", "pass"),
    "found: incarnations begin again": swap(C, "_join", "self.book.incarnations.get(agent.id, 0)", "0"),
    "found: agent started before it is on disk": put(StartAgent, "waits", False),
    "found: draining agents are not kept": swap(C, "_on_agents_added", "agent not in surplus", "False"),
    "found: a late report revives the dead": swap(C, "_on_agent_ready", "or over or", "or"),
    "found: drained by a report, never stopped": swap(
        C, "_on_agent_ready", "agent.state is AgentState.DRAINING and", "False and"
    ),
    "found: an old answer frees the new slot": swap(
        C,
        "_free_slot",
        "if current and event.task_id in agent.outstanding:",
        "if agent.outstanding.get(event.task_id) == event.attempt:",
    ),
    "found: stopped for a lost reason is final": swap(C, "_on_finished", 'event.failure.kind == "cancelled"', "False"),
    "found: broken class keeps its tasks": swap(C, "_stop", "self._give_up_hopeless(agent.agent_class)", "pass"),
    "found: prefetch although it is off": swap(
        Agent, "observe", "max_prefetch if prefetch_s > 0 else 0", "max_prefetch"
    ),
    "found: stale list after a hand-back": swap(C, "_on_returned", "agent.agent_class.update(agent)\n", "pass\n"),
    # what the driver must keep
    "no fence": put(Writer, "fenced", property(lambda self: False)),
    "tells before it is on disk": swap(P, "_when_synced", "if self.writer.synced < position:", "if False:"),
    "replies without looking at the fence": swap(P, "_when_synced", "not self.alive or self.writer.fenced", "False"),
    "store not asked for repeats": swap(P, "_remembered", "if task.id in disk.outcomes:", "return None\n    if False:"),
    "snapshot covers what it does not have": swap(
        Writer, "offer", "(self.appended, snapshot)", "(self.appended + 1, snapshot)"
    ),
    "ticks only once": swap(P, "_tick", "self._tick_at = None", "self._tick_at = -1.0"),
}


# Found too, but only after more seeds than a test may take.
RARE = frozenset(
    {
        "answers of earlier epochs count",
        "adopts what runs elsewhere",
        "fingerprint not compared",
        "found: draining agents are not kept",
        "found: a late report revives the dead",
        "found: an old answer frees the new slot",
        "found: broken class keeps its tasks",
        "found: drained by a report, never stopped",
        "found: stopped for a lost reason is final",
        "found: prefetch although it is off",
        "found: stale list after a hand-back",
        "leases of an epoch that is over",
        "replies without looking at the fence",
        "snapshot covers what it does not have",
        # Found at once in worlds made for them (`test_effects`).
        "a stale attempt records",
        "is given steps that are not on disk",
        "exclusive tasks do not wait",
        "exclusive attempts start before they are on disk",
        "nobody fences itself off",
        "leases are for ever",
        "leases for those given up",
        "found: adopts with a lower fence",
    }
)


def hunt(name: str, budget: int = BUDGET) -> Killed:
    """Plant one mutant, in this process and for good, and run seeds until it is found."""
    MUTANTS[name]()
    began = perf_counter()
    for seed in range(budget):
        report = run_seed(seed)
        if report.violation:
            last = report.violation.strip().splitlines()[-1]
            return Killed(name, seed + 1, report.invariant, last, perf_counter() - began)
    return Killed(name, 0, "", "", perf_counter() - began)


def hunt_all(names: list[str], budget: int = BUDGET, jobs: int = 2) -> Iterator[Killed]:
    """Hunt every mutant in a process of its own; one that does not come back in time is found, too."""

    timeout_s = 30.0 + SEED_S * budget

    def one(name: str) -> Killed:
        command = [sys.executable, __file__, "--one", "--budget", str(budget), name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True)
        except subprocess.TimeoutExpired:
            return Killed(name, budget, "hang", f"no end within {timeout_s:.0f} s", timeout_s)
        return Killed(**json.loads(done.stdout))

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(one, names)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=int, default=BUDGET, help="seeds for each mutant")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("names", nargs="*", help="mutants; all by default")
    parser.add_argument("--one", action="store_true", help="hunt one mutant in this process, print JSON")
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(asdict(hunt(options.names[0], options.budget))))
        return 0
    names = options.names or list(MUTANTS)
    width = max(map(len, names))
    sys.stdout.write(f"{'mutant':{width}}  seeds   wall s  found by\n")
    survived = 0
    for one in hunt_all(names, options.budget, options.jobs):
        survived += not one.seeds
        seeds = str(one.seeds) if one.seeds else "-"
        found = f"{one.invariant}: {one.detail}"[:100] if one.seeds else f"SURVIVED {options.budget} seeds"
        sys.stdout.write(f"{one.name:{width}}  {seeds:>5}  {one.wall_s:7.1f}  {found}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(names) - survived} of {len(names)} found\n")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())

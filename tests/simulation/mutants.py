"""Planted bugs: each must be found by the swarm within a few hundred seeds, or the swarm proves little.

`python tests/simulation/mutants.py` prints the kill table and writes it to KILLS.md beside this file. A mutant
changes a line of the core, or of the protocol that its driver keeps; many are bugs that the simulation found while the
core was young. `--shrink NAME` shows the smallest world that finds one.
"""

from __future__ import annotations

import argparse
import inspect
import json
import multiprocessing
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from flowray.core import acting, attempts, book, recording, streaming
from flowray.core.admission import Admission
from flowray.core.adopting import Adopting
from flowray.core.attempts import Attempts
from flowray.core.book import Book, Entry
from flowray.core.commands import (
    AcceptTask,
    AddAgents,
    AnswerCancel,
    AnswerChunks,
    AnswerStep,
    GradeTask,
    KnownTask,
    ResolveTask,
    StartAgent,
)
from flowray.core.coordination import Coordination
from flowray.core.fencing import Lease
from flowray.core.hedging import Credits
from flowray.core.lives import Lives
from flowray.core.placing import Placing
from flowray.core.queueing import Lane
from flowray.core.recording import Recording
from flowray.core.registry import Agent, AgentClass, RestartPolicy
from flowray.core.stopping import Stopping
from flowray.testing import coordinator as testing_coordinator
from flowray.testing.agent import AgentProcess
from flowray.testing.coordinator import CoordinatorProcess
from flowray.testing.journal import Disk, Writer
from flowray.testing.shrinking import shrink
from flowray.testing.swarm import collect_rarely, run_seed

try:
    from .leaving_mutants import leaving_mutants
    from .stateful_mutants import stateful_mutants
except ImportError:  # run as a script
    from leaving_mutants import leaving_mutants
    from stateful_mutants import stateful_mutants

BUDGET = 5000  # seeds
SEED_S = 60.0  # of processor time: a seed that takes longer has made the core hang


@dataclass(frozen=True, slots=True)
class Killed:
    name: str
    seeds: int  # until found; 0 when it survived the budget
    invariant: str
    detail: str
    wall_s: float


def swap(owner: Any, method: str, old: str, new: str) -> Callable[[], None]:
    """A mutant: in the source of a method, or of a module's function, one text becomes another."""

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

    plant.where = f"{owner.__name__.rpartition('.')[2]}.{method}"  # type: ignore[attr-defined]
    return plant


def put(owner: type, name: str, value: Any) -> Callable[[], None]:
    """A mutant: an attribute becomes another."""

    def plant() -> None:
        setattr(owner, name, value)

    plant.where = f"{owner.__name__}.{name}"  # type: ignore[attr-defined]
    return plant


C, P = Coordination, CoordinatorProcess
MUTANTS: dict[str, Callable[[], None]] = {
    # what the core decides
    "answers of earlier attempts count": swap(Attempts, "_is_current", "and entry.attempt == event.attempt", ""),
    "answers of earlier epochs count": swap(Attempts, "_is_current", "and entry.epoch == event.epoch", ""),
    "idempotency key forgotten": swap(Admission, "opened", "if task.key:", "if False:"),
    "fingerprint not compared": swap(C, "_on_submitted", "if owner[1] == task.fingerprint:", "if True:"),
    "one attempt too many": swap(
        Attempts,
        "_failed",
        "entry.failures + 1 >= entry.task.max_attempts",
        "entry.failures >= entry.task.max_attempts",
    ),
    "retries unbounded": swap(Attempts, "_failed", "or entry.failures + 1 >= entry.task.max_attempts", ""),
    "retries what is not retryable": swap(Attempts, "_failed", "not failure.retryable or ", ""),
    "back-off cut short": swap(
        Attempts, "_go_on", 'set("backoff", entry.task.id, over.not_before)', 'set("backoff", entry.task.id, core.now)'
    ),
    "poison never found": swap(Attempts, "lost", 'counts == "kills" and', "False and"),
    "losses unbounded": swap(Attempts, "lost", "elif counts and", "elif False and"),
    "resolved twice": swap(
        C, "commit", "self._out.append(command)", "self._out.extend([command] * (1 + (type(command) is ResolveTask)))"
    ),
    "tasks lost with their agent": swap(Lives, "_requeue_all", "held = core.adopting.held_by(agent)", "held = []"),
    "deadline forgotten": swap(C, "_on_submitted", "if entry.deadline_at is not None:", "if False:"),
    "deadline forgotten by recovery": swap(C, "recover", "if entry.deadline_at is not None)", "if False)"),
    "running attempts forgotten by recovery": swap(
        Adopting, "expect", 'self._timers.set("adoption", attempt_key(task_id, held.attempt), until)', "pass"
    ),
    "cancel answered, task goes on": swap(
        C, "_on_cancel", "self._withdraw(entry, TaskState.CANCELLED,", "(lambda *_: None)(entry, TaskState.CANCELLED,"
    ),
    "priority inverted": swap(Lane, "push", "(-task.priority, seq, task.id)", "(task.priority, seq, task.id)"),
    "newest first": swap(Lane, "push", "(-task.priority, seq, task.id)", "(-task.priority, -seq, task.id)"),
    "slot of a stopped attempt leaks": swap(Stopping, "ended", "del agent.stopping[token]", "pass"),
    "admission counter leaks": swap(
        Admission, "closed", "self.open_tasks -= 1", "self.open_tasks -= task.priority < 5"
    ),
    "wake-up lost": swap(Attempts, "backoff_over", "core.commit(WakeTask", "return None and (WakeTask"),
    "adopts what runs elsewhere": swap(
        Adopting,
        "_adopt_or_stop",
        "if entry is None or not fresh or entry.state not in (TaskState.QUEUED, TaskState.BACKING_OFF):",
        "if entry is None or not fresh:",
    ),
    "lost agents stay lost": swap(
        Lives, "restart_due", "self.start(agent)", "self._timers.set('restart', key, self._core.now + 1e6)"
    ),
    "capabilities ignored": swap(AgentClass, "serves", "self.capabilities.issuperset(key.needs)", "True"),
    "hung agents are kept": swap(Stopping, "grace_over", "due > core.now", "(due := core.now + 1e6)"),
    # two attempts at once
    "the other attempt is not told to stop": swap(C, "resolve", "if entry.extra is not None:", "if False:"),
    "both answers count": swap(
        Book,
        "_resolved",
        "self.open.pop(outcome.task_id)",
        "self.open[outcome.task_id]\n    if entry.extra is None:\n        del self.open[outcome.task_id]",
    ),
    "the second answer does not count": swap(
        Attempts, "_is_current", " or (entry.extra is not None and is_of(entry.extra, event))", ""
    ),
    "tried again while the other attempt goes on": swap(Attempts, "_go_on", "if entry.extra is not None:", "if False:"),
    "given up while the other attempt goes on": swap(Attempts, "_failed", "if alone and (", "if ("),
    "the surviving attempt is forgotten": swap(Book, "_requeued", "if command.attempt == entry.attempt:", "if False:"),
    "second attempt on the same agent": swap(acting, "_free_agent", "if found.id != busy:", "if True:"),
    "second attempt of what is not idempotent": swap(attempts, "may_join", "task.idempotent and ", ""),
    "second attempt where one failure is allowed": swap(
        attempts, "may_join", "failures + 2 <= task.max_attempts", "True"
    ),
    "second attempt not in the snapshot": swap(book, "_frozen", "extra=entry.extra", "extra=None"),
    "second attempt forgotten by recovery": swap(C, "recover", "entry.running():", "entry.running()[:1]:"),
    "number of an attempt used twice": swap(Attempts, "start_on", "entry.attempts + 1", "entry.attempt + 1"),
    "hedge timer outlives its attempt": swap(Attempts, "over", "if task.idempotent:", "if False:"),
    "second attempts cost nothing": put(Credits, "pay", lambda self: None),
    "task stays with a fallback that is gone": swap(
        Placing, "fallback_of", "one is None or one.hopeless", "one is None"
    ),
    "grades answered before they are on disk": put(GradeTask, "waits", False),
    # steps, fences and exclusive tasks
    "a stale attempt records": swap(Recording, "on_step", "is_of(held, event) and ", ""),
    "a step is recorded again": swap(Recording, "on_step", "if event.name in entry.steps:", "if False:"),
    "steps are not kept": swap(Book, "_recorded", "entry.record(command.name, command.value)", "pass"),
    "goes on before its step is on disk": put(AnswerStep, "waits", False),
    "is given steps that are not on disk": swap(P, "_starts_late", " or bool(entry.steps)", ""),
    "exclusive tasks do not wait": swap(Attempts, "lost", "elif task.exclusive and", "elif False and"),
    "told to stop and not waited for": swap(
        Attempts, "backoff_over", "if entry.task.exclusive and core.stopping.goes_on(entry.task.id):", "if False:"
    ),
    "found: second attempt is given steps of later": swap(P, "_given", "dict(", "("),
    "exclusive attempts start before they are on disk": swap(P, "_starts_late", "entry.task.exclusive or ", ""),
    "nobody fences itself off": swap(AgentProcess, "_fence_off", "if self._lease.valid(now):", "if True:"),
    "leases are for ever": swap(Lease, "granted", "at + self.ttl_s", "at + 1e9"),
    "leases for those given up": swap(C, "may_lease", "return alive and", "return True or"),
    "leases of an epoch that is over": swap(P, "lease", "self._when_synced(grant)", "grant()"),
    # bugs that the simulation found
    "found: adopts with a lower fence": swap(Adopting, "_adopt_or_stop", "entry.epoch <= one.epoch", "one.epoch"),
    "found: claim outlives its answer": swap(
        Attempts, "over", "self._core.adopting.release(task.id, attempt, agent_id)", "pass"
    ),
    "found: incarnations begin again": swap(Lives, "_join", "core.book.incarnations.get(agent.id, 0)", "0"),
    "found: agent started before it is on disk": put(StartAgent, "waits", False),
    "found: draining agents are not kept": swap(Lives, "_add", "agent not in surplus", "False"),
    "found: a late report revives the dead": swap(Lives, "on_ready", "or over or", "or"),
    "found: drained by a report, never stopped": swap(
        Lives, "on_ready", "agent.state is AgentState.DRAINING and", "False and"
    ),
    "found: an old answer frees the new slot": swap(
        Attempts,
        "_free_slot",
        "if current and event.task_id in agent.outstanding:",
        "if agent.outstanding.get(event.task_id) == event.attempt:",
    ),
    "found: stopped for a lost reason is final": swap(
        Attempts, "on_finished", 'event.failure.kind == "cancelled"', "False"
    ),
    "found: broken class keeps its tasks": swap(Lives, "stop", "self.give_up(agent.agent_class)", "pass"),
    "found: prefetch although it is off": swap(
        Agent, "observe", "max_prefetch if prefetch_s > 0 else 0", "max_prefetch"
    ),
    "found: stale list after a hand-back": swap(Attempts, "on_returned", "agent.agent_class.update(agent)\n", "pass\n"),
    "found: adopts what it told to stop": swap(Adopting, "_adopt_or_stop", "not in agent.stopping", "not in ()"),
    "found: adopts what has answered": swap(Adopting, "_adopt_or_stop", "and token not in agent.over", ""),
    "found: adopts what was stopped": swap(
        Attempts,
        "_free_slot",
        "if event.epoch < self._core.epoch:",
        "if event.epoch < self._core.epoch and token not in agent.stopping:",
    ),
    # what the driver must keep
    "no fence": put(Writer, "fenced", property(lambda self: False)),
    "tells before it is on disk": swap(P, "_when_synced", "if self.writer.synced < position:", "if False:"),
    "replies without looking at the fence": swap(P, "_when_synced", "not self.alive or self.writer.fenced", "False"),
    "store not asked for repeats": swap(P, "_remembered", "if task.id in disk.outcomes:", "return None\n    if False:"),
    "snapshot covers what it does not have": swap(
        Writer, "offer", "(self.appended, snapshot)", "(self.appended + 1, snapshot)"
    ),
    "ticks only once": swap(P, "_tick", "self._tick_at = None", "self._tick_at = -1.0"),
    "acceptance told before it is on disk": put(AcceptTask, "waits", False),
    "repeat recognised before the first is on disk": put(KnownTask, "waits", False),
    "outcome shown before it is on disk": put(ResolveTask, "waits", False),
    "cancel answered before it is on disk": put(AnswerCancel, "waits", False),
    "team acknowledged before it is on disk": put(AddAgents, "waits", False),
    "answer acknowledged before it is on disk": swap(P, "_handle", "self._when_synced(acknowledge)", "acknowledge()"),
    "ended tasks forgotten before they are on disk": swap(
        Admission, "closed", "= task.key", "= task.key\n    self.on_disk(self.ended)"
    ),
    "time goes back at a restart": swap(P, "__init__", "world.disk.last_at + 1e-6", "0.0"),
    "goes on after a sync that failed": swap(
        Writer,
        "_synced",
        "self._stopped = True\n        self._on_failed()\n        return",
        "[self._waiting.popleft() for _ in range(self._syncing)]\n"
        "        self.synced += self._syncing\n"
        "        self._syncing = 0\n        self._on_synced()\n        return",
    ),
    "epoch not raised": put(Disk, "begin", lambda self: setattr(self, "epoch", 1) or 1),
    "half a group believed": swap(
        Disk, "recall", "self.torn = ()", "self.commands.extend(self.torn)\n    self.torn = ()"
    ),
    "checksum not compared": swap(Disk, "recall", "zlib.crc32(body) != checksum", "False"),
    # what recovery must bring back
    "waiting tasks forgotten by recovery": swap(
        Placing, "recovered", "self.lane(entry.task).push(entry.task, entry.seq)", "pass"
    ),
    "back-offs forgotten by recovery": swap(
        C, "recover", 'core.timers.set("backoff", task_id, max(entry.not_before, now + fence_s))', "pass"
    ),
    "agents that do not report are kept by recovery": swap(
        Lives, "recover", 'self._timers.set("start", agent.id, until)', "pass"
    ),
    "open tasks not counted by recovery": swap(C, "recover", "core.admission.opened(entry.task)", "pass"),
    "counts of losses not in the snapshot": swap(
        book, "_thawed", "entry.losses, entry.kills = saved.failures, saved.losses,", "entry.losses, _ = 0, 0,"
    ),
    "back-off not in the snapshot": swap(
        book, "_thawed", "entry.not_before, entry.extra = saved.not_before,", "entry.extra ="
    ),
    "story not in the snapshot": swap(book, "_frozen", "story=tuple(entry.story)", "story=()"),
    "incarnations not in the snapshot": swap(Book, "restore", "dict(snapshot.incarnations)", "{}"),
    "age of tasks begins again": swap(Book, "restore", "self.next_seq = snapshot.next_seq", "pass"),
    "adopted and still in its lane": swap(Adopting, "_adopt_or_stop", "core.placing.leave(entry)", "pass"),
    # agents, deadlines and what waits
    "death of an old incarnation counts": swap(Lives, "on_lost", "or agent.incarnation != event.incarnation", ""),
    "reports of old incarnations count": swap(Lives, "on_ready", "event.incarnation < known or", ""),
    "crash loops without a pause": put(RestartPolicy, "wait_s", lambda self, losses: 0.0),
    "accepted and then shed": swap(
        C,
        "_on_submitted",
        "self.placing.place(entry, lane)",
        "self.placing.place(entry, lane)\n"
        "    if self.admission.open_tasks > 20 and entry.state is TaskState.QUEUED:\n"
        "        self.placing.leave(entry)\n        self.give_up(entry, Failure(kind='shed', message='full'))",
    ),
    "one task more than admission allows": swap(
        Admission, "full", "self.open_tasks >= policy.max_open_tasks", "self.open_tasks > policy.max_open_tasks"
    ),
    "deadline twice as far": swap(
        Entry, "__init__", "accepted_at + task.deadline_s", "accepted_at + 2 * task.deadline_s"
    ),
    "remaining time told wrong": swap(Entry, "remaining_s", "self.deadline_at - now", "self.task.deadline_s or 0.0"),
    "timer of a deadline outlives its task": swap(C, "resolve", 'self.timers.clear("deadline", task.id)', "pass"),
    "timer of a back-off outlives its task": swap(C, "_withdraw", 'self.timers.clear("backoff", task_id)', "pass"),
    "no time-out for estimates": swap(
        Placing, "place", 'self._timers.set("estimates", "", core.now + core.policy.routing.within_s)', "pass"
    ),
    # chunks
    "chunks acknowledged before they are on disk": put(AnswerChunks, "waits", False),
    "chunks that come again are not compared": swap(
        recording, "fit", "if stream.digests[begin : begin + known * DIGEST_BYTES] == digests", "if True or digests"
    ),
    "chunks of attempts that do not run are recorded": swap(
        Recording, "on_chunks", "if is_of(h, event) and h.incarnation", "if h.incarnation"
    ),
    "readers are not told of restarts": swap(
        testing_coordinator, "standing", "min((seen, *restarts[seen_restarts:]))", "seen"
    ),
    "readers are told of the last restart alone": swap(
        testing_coordinator, "standing", "*restarts[seen_restarts:]", "*restarts[-1:]"
    ),
    "two attempts withdraw each other's chunks": swap(
        Recording, "on_chunks", "fits.gap or (fits.differs and led)", "fits.gap"
    ),
    "chunks that the answer did not give stay": swap(
        Recording, "end_stream", "entry.stream is not None and", "False and"
    ),
    "chunks not in the snapshot": swap(
        book, "_frozen", "entry.stream.save() if entry.stream is not None else None", "None"
    ),
    "restarts not in the snapshot": swap(streaming.Stream, "save", "tuple(self.restarts)", "()"),
    "bytes of chunks leak": swap(C, "resolve", "self.streaming.open_bytes -=", "_ ="),
    "withdrawn chunks are free": swap(
        streaming.Stream, "add", "self.recorded += len(digests) // DIGEST_BYTES", "self.recorded = self.count"
    ),
    "answered before its chunks are on disk": swap(
        AgentProcess, "_end", "if outlet is not None and answers and", "if outlet is not None and False and"
    ),
}

MUTANTS |= leaving_mutants(swap)
MUTANTS |= stateful_mutants(swap, put)


def hunt(name: str, budget: int = BUDGET) -> Killed:
    """Plant one mutant, in this process and for good, and run seeds until it is found."""
    MUTANTS[name]()
    collect_rarely()
    began = perf_counter()

    def hangs(*_: Any) -> None:
        raise TimeoutError(f"a seed took {SEED_S:g} s of processor time")

    signal.signal(signal.SIGVTALRM, hangs)
    for seed in range(budget):
        signal.setitimer(signal.ITIMER_VIRTUAL, SEED_S)
        report = run_seed(seed)
        if report.violation:
            last = report.violation.strip().splitlines()[-1]
            return Killed(name, seed + 1, report.invariant, last, perf_counter() - began)
    return Killed(name, 0, "", "", perf_counter() - began)


def hunt_all(names: list[str], budget: int = BUDGET, jobs: int = 2) -> Iterator[Killed]:
    """Hunt every mutant in a process of its own. One that makes a seed endless is found, too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flowray.testing.swarm", "flowray.testing.shrinking"])
    with context.Pool(jobs, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(partial(hunt, budget=budget), names)  # a slow one holds up no other


def tell(killed: list[Killed], budget: int, path: Path) -> None:
    """Write the kill table. Mutants not hunted this time keep their rows."""
    rows = {one.name: _row(one, budget) for one in killed}
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if line.startswith("| ")]
        rows = {line.split(" | ")[0].removeprefix("| "): line for line in kept} | rows
    lines = [rows[name] for name in MUTANTS if name in rows]
    path.write_text(
        "\n".join((TABLE_HEAD, *lines, f"\n{len(lines)} of {len(MUTANTS)} planted bugs are in the table.\n"))
    )


def _row(one: Killed, budget: int) -> str:
    where, what = getattr(MUTANTS[one.name], "where", ""), one.detail.replace("|", "/")
    what = re.sub(r"^(invariant \w+|[\w.]+(Error|Broken|Transition)): ", "", what)
    found = f"{one.seeds} | {one.invariant} | {what[:110]}" if one.seeds else f"survived {budget} | |"
    return f"| {one.name} | {where} | {found} |"


TABLE_HEAD = """# Planted bugs, and what finds them

Made by `make mutants`. Seeds are run from 0 on until one breaks an invariant of `flowray/testing/invariants.py` (a
number, or a letter and a number), `Coordination.check()` (InvariantBroken), or the core's own arrows and tables (the
other errors).

| planted bug | where | seeds | broken | as it was found |
|---|---|---|---|---|"""
TABLE = Path(__file__).with_name("KILLS.md")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=int, default=BUDGET, help="seeds for each mutant")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("names", nargs="*", help="mutants; all by default")
    parser.add_argument("--summary", type=Path, help="what `flowray.testing --save` wrote; end with one line of JSON")
    parser.add_argument("--shrink", metavar="NAME", help="plant one mutant and make the first seed that finds it small")
    options = parser.parse_args()
    if options.shrink:
        MUTANTS[options.shrink]()
        failing = next(seed for seed in range(options.budget) if run_seed(seed).violation)
        shrunk = shrink(failing)
        assert shrunk is not None
        sys.stdout.write(shrunk.describe() + "\n")
        return 0
    names = options.names or list(MUTANTS)
    width = max(map(len, names))
    sys.stdout.write(f"{'mutant':{width}}  seeds   wall s  found by\n")
    killed: list[Killed] = []
    for one in hunt_all(names, options.budget, options.jobs):
        killed.append(one)
        tell(killed, options.budget, TABLE)
        seeds = str(one.seeds) if one.seeds else "-"
        found = f"{one.invariant}: {one.detail}"[:100] if one.seeds else f"SURVIVED {options.budget} seeds"
        sys.stdout.write(f"{one.name:{width}}  {seeds:>5}  {one.wall_s:7.1f}  {found}\n")
        sys.stdout.flush()
    found_all = sum(one.seeds > 0 for one in killed)
    sys.stdout.write(f"{found_all} of {len(names)} found\n")
    if options.summary is not None:
        swarm = json.loads(options.summary.read_text())
        fields = {"virtual_hours": swarm["virtual_hours"], "violations": len(swarm["violations"])}
        sys.stdout.write(json.dumps({**fields, "mutants": len(names), "mutants_killed": found_all}) + "\n")
    return 0 if found_all == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())

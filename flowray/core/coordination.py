"""THE machine: `handle(event, now) -> commands`. The only place that decides, and the only one that emits commands.

It does no IO and reads no clock. Whoever drives it (the Ray shell, the simulator, a test) tells it what happened and
the time, and does what it says. Times are seconds on one time-line that never goes back.

A task is in exactly one place: a lane (queued), an agent's `outstanding` (running; where it is idempotent perhaps a
second agent's as well, see `flowray.core.acting`), a back-off timer, or gone with an outcome. Every change of a task is
a durable command, applied to the book as it is emitted; what else is kept here (lanes, loads, timers) can be made again
from the book and from what the agents say they are running.

Attempts are told apart by (attempt, epoch). An answer that is not from a running attempt changes nothing but the
load of the agent that sent it, so late, duplicate and reordered answers need no special case. Of two running attempts
either may answer; the other is then told to stop. One that ends without an outcome while the other runs is over and
counts, and that is all: only when none runs is the task tried again, or given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from msgspec import structs

from flowray.core.acting import Acting, is_last, may_join
from flowray.core.admission import Admission
from flowray.core.asking import Asking, Candidate, Standing, tried_by
from flowray.core.book import Book, Entry, asked_of, outcome_of
from flowray.core.commands import (
    AcceptTask,
    AddAgents,
    AnswerCancel,
    AnswerChunks,
    AnswerStep,
    CancelAttempt,
    Command,
    DurableCommand,
    GradeTask,
    KnownTask,
    RecordChunks,
    RecordStep,
    RecordVersion,
    RefuseTask,
    RequestEstimates,
    RequeueTask,
    ResolveTask,
    StartAgent,
    StartAttempt,
    StopAgent,
    WakeTask,
)
from flowray.core.draining import Draining
from flowray.core.escalation import Escalation
from flowray.core.events import (
    AgentLost,
    AgentReady,
    AgentsAdded,
    AgentsDrained,
    AgentStartFailed,
    AttemptFinished,
    AttemptReturned,
    CancelRequested,
    ChunksMade,
    EstimatesFailed,
    EstimatesReady,
    Event,
    GradeGiven,
    MemoryTold,
    NodeDrained,
    OutputGiven,
    SnapshotMade,
    StateRefused,
    StepFinished,
    TaskSubmitted,
    Ticked,
    VersionDecided,
)
from flowray.core.invariants import check_coordination
from flowray.core.model import (
    AgentId,
    AgentSpec,
    Choice,
    Estimate,
    Failure,
    Held,
    Receipt,
    Running,
    Snapshot,
    Task,
    TaskId,
)
from flowray.core.naming import attempt_key
from flowray.core.placement import choose_agent
from flowray.core.policy import CorePolicy
from flowray.core.queueing import Lane, Queue
from flowray.core.refusal import retry_after_s, why_nobody
from flowray.core.registry import Agent, AgentClass, Registry
from flowray.core.retry import Rng
from flowray.core.routing import run_times
from flowray.core.stateful import Stateful, standby_of
from flowray.core.states import AgentState, TaskState
from flowray.core.steps import no_room, step_bytes
from flowray.core.streaming import DIGEST_BYTES, Streaming, fit
from flowray.core.timers import Timers

_LANES_LOOKED_AT = 4  # of those that wait for other classes, by an agent without work
_SOON_S = 0.05  # an attempt that cannot be hedged now is not looked at again before


class Coordination:
    """One team's tasks and agents in one epoch."""

    def __init__(self, *, epoch: int, rng: Rng, policy: CorePolicy | None = None) -> None:
        self.epoch = epoch
        self.policy = policy or CorePolicy()
        self.now = 0.0
        self.book = Book()
        self.registry = Registry(self.policy.restart)
        self.queue = Queue()
        self.admission = Admission(self.policy.admission)
        self.timers = Timers()
        self.asking = Asking(self.policy.routing)
        self.acting = Acting(self.policy.acting, self.policy.routing)
        self.streaming = Streaming(self.policy.streaming)
        self.stateful = Stateful(self)
        self.draining = Draining(self)
        self.escalation = Escalation(self)
        self._rng = rng
        self._out: list[Command] = []
        self._claims: dict[str, dict[TaskId, None]] = {}  # agent -> attempts it has yet to confirm after a restart
        self._handlers: dict[type, Callable[[Any], None]] = {
            TaskSubmitted: self._on_submitted,
            CancelRequested: self._on_cancel,
            AttemptFinished: self._on_finished,
            AttemptReturned: self._on_returned,
            GradeGiven: self._on_graded,
            StepFinished: self._on_step,
            ChunksMade: self._on_chunks,
            OutputGiven: self.stateful.output,
            SnapshotMade: self.stateful.snapshot_made,
            StateRefused: self.stateful.refused,
            EstimatesReady: self._on_estimates,
            EstimatesFailed: self._on_no_estimates,
            AgentsAdded: self._on_agents_added,
            AgentReady: self._on_agent_ready,
            AgentLost: self._on_agent_lost,
            AgentStartFailed: self._on_start_failed,
            MemoryTold: self._on_memory_told,
            VersionDecided: self._on_version,
            AgentsDrained: self.draining.on_agents,
            NodeDrained: self.draining.on_node,
            Ticked: self._on_tick,
        }
        self._timer_handlers: dict[str, Callable[[str], None]] = {
            "deadline": self._deadline_passed,
            "backoff": self._backoff_over,
            "attempt": self._attempt_timed_out,
            "hedge": self._hedge_due,
            "estimates": self._estimates_late,
            "grace": self._grace_over,
            "restart": self._restart_due,
            "start": self._start_timed_out,
            "adoption": self._adoption_over,
            "hopeless": self._hopeless_found,
            "inbox": self.stateful.look,
            "snapshot": self.stateful.snapshot_due,
            "drain": self.draining.overdue,
        }

    # ── the doors ────────────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event in; what to do about it, in order. `now` may repeat but time never goes back."""
        if now > self.now:
            self.now = now
        self._handlers[type(event)](event)
        out, self._out = self._out, []
        return out

    def next_due(self) -> float | None:
        """When a Ticked is wanted next; None while nothing is timed."""
        return self.timers.next_due()

    def task(self, task_id: TaskId) -> Task | None:
        """An open task."""
        entry = self.book.open.get(task_id)
        return entry.task if entry is not None else None

    def snapshot(self) -> Snapshot:
        """The durable part, for the store."""
        return self.book.snapshot(self.now)

    def check(self) -> None:
        """Raise InvariantBroken if the state contradicts itself. Costs as much as everything open."""
        check_coordination(self)

    @classmethod
    def recover(
        cls,
        *,
        epoch: int,
        rng: Rng,
        now: float,
        policy: CorePolicy | None = None,
        snapshot: Snapshot | None = None,
        commands: Iterable[DurableCommand] = (),
        keep_agents: bool = True,
    ) -> Coordination:
        """Rebuild from what the store has.

        Attempts that were running stay running, unconfirmed: their agents have `adoption_s` to say so (AgentReady
        with `running`). The driver reports the agents that it finds first, then ticks. With `keep_agents=False` (a
        new run on an old journal) the agents are gone and not wanted back; the tasks wait for those added next.
        """
        core = cls(epoch=epoch, rng=rng, policy=policy)
        core.now = now
        book = core.book
        if snapshot is not None:
            book.restore(snapshot)
        for command in commands:
            book.apply(command)
        if not keep_agents:
            book.specs.clear()
        grace_s = core.policy.adoption_s if keep_agents else 0.0
        for spec in book.specs.values():
            core._join(spec)
        core.stateful.recover()
        for agent in core.registry.agents():
            if agent.incarnation:
                core.registry.move(agent, "requested")
                core.timers.set("start", agent.id, now + grace_s)
            else:
                core.timers.set("restart", agent.id, now)
        for one in core.registry.classes():
            if one.hopeless:  # scaled to nothing, and the end of what waits for it was in a lost tail
                core.timers.set("hopeless", one.spec.name, now)
        core.timers.set_all(
            "deadline",
            ((task_id, entry.deadline_at) for task_id, entry in book.open.items() if entry.deadline_at is not None),
        )
        for task_id, entry in book.open.items():
            core.admission.opened(entry.task)
            core.admission.grew(entry.grown_bytes)
            core.streaming.open_bytes += entry.stream.size_bytes if entry.stream is not None else 0
            if entry.state is TaskState.QUEUED:
                core._wait_recovered(entry)
            elif entry.state is TaskState.BACKING_OFF:
                # Its last attempt may have been told to stop, and not have said yet that it did.
                fence_s = core.policy.fence_s if entry.task.exclusive and keep_agents else 0.0
                core.timers.set("backoff", task_id, max(entry.not_before, now + fence_s))
            else:
                for held in entry.running():
                    core._claims.setdefault(held.agent_id, {})[task_id] = None
                    core.timers.set("adoption", attempt_key(task_id, held.attempt), now + grace_s)
        return core

    # ── tasks: in ────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_submitted(self, event: TaskSubmitted) -> None:
        task = event.task
        if task.id in self.book.open or self.admission.recent(task.id):
            self._out.append(KnownTask(task.id, task.id))
            return
        owner = self.admission.by_key(task.key)
        if owner is not None:
            if owner[1] == task.fingerprint:
                self._out.append(KnownTask(task.id, owner[0]))
            else:
                detail = f"key {task.key!r} belongs to task {owner[0]}, which asks for something else"
                self._out.append(RefuseTask(task.id, "conflict", detail))
            return
        lane = self._lane(task)
        if (stateful := self.stateful.has(task)) or task.entity:
            why = self.stateful.why_not(task) if stateful else f"entity: no stateful agents called {task.agent!r}"
            if why:
                self._out.append(RefuseTask(task.id, "unknown_capability", why))
                return
        elif not lane.classes or all(one.hopeless for one in lane.classes):
            self._out.append(RefuseTask(task.id, "unknown_capability", why_nobody(lane, self.registry)))
            return
        if task.fallback and not self._may_fall_back(task):
            self._out.append(
                RefuseTask(task.id, "unknown_capability", f"no agents called {task.fallback!r} (fallback)")
            )
            return
        full = self.admission.full(task)
        if full:
            self._out.append(
                RefuseTask(task.id, "queue_full", full, retry_after_s(self.registry, self.admission.open_tasks))
            )
            return
        self._commit(AcceptTask(task, self.now, self.book.next_seq))
        self.admission.opened(task)
        entry = self.book.open[task.id]
        if entry.deadline_at is not None:
            self.timers.set("deadline", task.id, entry.deadline_at)
        if stateful:
            self.stateful.arrive(entry)
        else:
            self._place(entry, lane)

    # ── tasks: placing ───────────────────────────────────────────────────────────────────────────────────────────

    def _lane(self, task: Task) -> Lane:
        found = self.queue.find(task)  # which is falsy when nobody waits there
        return found if found is not None else self.queue.lane(task, self.registry.classes())

    def _lane_of(self, entry: Entry) -> Lane:
        """The lane where a waiting task is."""
        lane = self._lane(entry.task)
        standing = self.asking.standing(entry.task.id)
        one = None if standing is None else self.registry.named(standing.chosen)
        if standing is None or one is None:
            return lane
        return self.queue.of(one) if standing.policy == "fallback" else self.queue.bound(lane, one)

    def _place(self, entry: Entry, lane: Lane) -> None:
        """Find an agent for the task: at once, or with a router's help where there is a choice."""
        if entry.failures and is_last(entry.task, entry.failures) and self._fall_back(entry, None):
            return
        candidates = self.asking.about(lane, self._rng)
        if len(candidates) < 2:
            self._place_anywhere(entry, lane)
            return
        if not self.asking.pays(entry, lane, self._rng):
            self._place_anywhere(entry, lane, "not_worth")
            return
        task_id = entry.task.id
        self.asking.ask(task_id, self.now)
        if ("estimates", "") not in self.timers:
            self.timers.set("estimates", "", self.now + self.policy.routing.within_s)
        self._out.append(RequestEstimates(task_id, candidates, tried_by(entry)))

    def _place_anywhere(self, entry: Entry, lane: Lane, why: str = "", detail: str = "") -> None:
        """Start the task where there is room, or let it wait. Older and more urgent tasks of its lane go first.

        `why` and `detail` say what kept the router from having a word, where it should have had one.
        """
        chosen = None if len(lane) else choose_agent(lane, self.policy.placement, self.now, self._rng)
        if chosen is not None:
            choice = structs.replace(chosen[1], unrouted=why, detail=detail) if why else chosen[1]
            self._start(entry, chosen[0], choice)
        elif lane.classes and all(one.hopeless for one in lane.classes):
            if not self._fall_back(entry, None):
                self._give_up(entry, Failure(kind="no_agent", message=why_nobody(lane, self.registry)))
        else:
            if why:
                self.asking.leave_out(entry.task.id, why, detail)
            lane.push(entry.task, entry.seq)

    def _on_estimates(self, event: EstimatesReady) -> None:
        for task_id, estimates in event.answers:
            asked_at = self.asking.answered(task_id)
            if asked_at is not None:
                self._route(self.book.open[task_id], estimates, event, self.now - asked_at)
        self._forget_late()

    def _on_no_estimates(self, event: EstimatesFailed) -> None:
        for task_id in event.task_ids:
            if self.asking.answered(task_id) is not None:
                entry = self.book.open[task_id]
                self._place_anywhere(entry, self._lane(entry.task), "failed", event.reason)
        self._forget_late()

    def _estimates_late(self, key: str) -> None:
        for task_id in self.asking.late(self.now):
            entry = self.book.open[task_id]
            self._place_anywhere(entry, self._lane(entry.task), "late")
        if (at := self.asking.next_late()) is not None:
            self.timers.set("estimates", "", at)

    def _forget_late(self) -> None:
        """One timer serves all questions: it is not wanted while none is under way."""
        if self.asking.next_late() is None:
            self.timers.clear("estimates", "")

    def _route(self, entry: Entry, estimates: tuple[Estimate, ...], event: EstimatesReady, took_s: float) -> None:
        """Choose a class of agents, and start the task on one of them or let it wait for one."""
        task, lane = entry.task, self._lane(entry.task)
        candidates: list[Candidate] = []
        for estimate, run_s in zip(estimates, run_times(estimates), strict=True):
            one = lane.by_name.get(estimate.candidate)
            if one is not None and one.ready_slots:
                queued = lane.waiting.get(estimate.candidate)
                wait_s = one.wait_s(len(queued) if queued is not None else 0, run_s)
                candidates.append(Candidate(estimate, one, wait_s))
        if not candidates:
            self._place_anywhere(entry, lane, "failed")
            return
        if task.fallback:
            expectations = [(each.estimate, each.wait_s) for each in candidates]
            if self.acting.is_lost(expectations, entry.remaining_s(self.now)):
                receipt = self.asking.given_up(task.fallback, candidates, event, took_s)
                if self._fall_back(entry, receipt):
                    return
        if entry.failures:
            failed = {name for name, _ in tried_by(entry)}
            candidates = [each for each in candidates if each.estimate.candidate not in failed] or candidates
        chosen, standing = self.asking.choose(entry, lane, candidates, event, self.now, took_s, self._rng)
        bound = self.queue.bound(lane, chosen)
        found = None if len(bound) else choose_agent(bound, self.policy.placement, self.now, self._rng)
        if found is not None:
            self._start(entry, found[0], standing.as_choice(found[1].considered))
        else:
            self.asking.decide(task.id, standing)
            bound.push(task, entry.seq)
            lane.bound.add(bound)

    def _take_over(self, agent: Agent) -> bool:
        """Give an idle agent a task that waits for another class, where that is worth as much by now."""
        one = agent.agent_class
        for lane in one.lanes:
            for bound in [lane.bound[at] for at in range(min(len(lane.bound), _LANES_LOOKED_AT))]:
                head = bound.head()
                if head is None:
                    lane.bound.discard(bound)
                    continue
                entry = self.book.open[head[2]]
                standing = self.asking.taken_over(entry, one, bound.classes[0], self.now)
                if standing is not None:
                    bound.pop()
                    self.asking.take(entry.task.id)
                    self._start(entry, agent, standing.as_choice(((agent.id, agent.load),)))
                    return True
        return False

    def _unbind(self, one: AgentClass) -> None:
        """Nobody of the class takes attempts now: what was meant for it is decided again."""
        if one.ready_slots:
            return
        for lane in [lane for lane in one.lanes if lane.key.agent == one.spec.name]:
            for task_id in sorted(lane.ids()):
                if self.asking.standing(task_id) is not None:
                    lane.remove(task_id)
                    self.asking.take(task_id)
                    entry = self.book.open[task_id]
                    self._place(entry, self._lane(entry.task))

    def _start(self, entry: Entry, agent: Agent, choice: Choice) -> None:
        """Start the one attempt of a waiting task; where that is not enough, a second one beside it."""
        self._start_on(
            entry, agent, choice, "first" if not entry.attempts else "retry" if entry.failures else "failover"
        )
        task = entry.task
        if choice.policy == "fallback" or not may_join(task, entry.failures):
            return
        self.acting.started()
        remaining_s, tried = entry.remaining_s(self.now), {name for name, _ in tried_by(entry)}
        second = self.acting.copy(self._lane(task), choice.receipt, agent.id, tried, remaining_s, self._rng)
        if second is not None:
            self._start_on(entry, second.agent, second.choice, "copy", beside=True)
        else:
            self._time_hedge(entry, agent, choice.receipt)

    def _start_on(self, entry: Entry, agent: Agent, choice: Choice, reason: str, *, beside: bool = False) -> None:
        task, attempt, remaining_s = entry.task, entry.attempts + 1, entry.remaining_s(self.now)
        self._commit(
            StartAttempt(
                task.id, attempt, self.epoch, agent.id, agent.incarnation, self.now, reason, choice, remaining_s, beside
            )
        )
        self._hold(agent, task, attempt)
        agent.agent_class.update(agent)

    def _hold(self, agent: Agent, task: Task, attempt: int) -> None:
        """The agent has this attempt from now on."""
        agent.outstanding[task.id] = attempt
        if task.attempt_timeout_s is not None:
            self.timers.set("attempt", attempt_key(task.id, attempt), self.now + task.attempt_timeout_s)

    # ── tasks: a second attempt, and the fallback ────────────────────────────────────────────────────────────────

    def _time_hedge(self, entry: Entry, agent: Agent, receipt: Receipt | None) -> None:
        after_s = self.acting.hedge_after_s(receipt, agent.agent_class)
        if after_s is not None:
            self.timers.set("hedge", entry.task.id, self.now + after_s)

    def _hedge_due(self, key: str) -> None:
        """The attempt runs longer than was expected."""
        entry = self.book.open[TaskId(key)]
        if entry.stream is not None:
            return  # it is seen to go on, and another one would have to give the same chunks
        choice = entry.choice()
        tried = {name for name, _ in tried_by(entry)}
        receipt = None if choice is None else choice.receipt
        second = self.acting.hedge(self._lane(entry.task), receipt, entry.agent_id, tried, self._rng)
        if second is not None:
            self._start_on(entry, second.agent, second.choice, "hedge", beside=True)
        else:  # looked at again when it has run for twice as long
            self.timers.set("hedge", key, self.now + max(_SOON_S, self.now - entry.started_at))

    def _fall_back(self, entry: Entry, receipt: Receipt | None) -> bool:
        """Give the task to its fallback, or let it wait for that; False where there is none that will come."""
        one = self._may_fall_back(entry.task)
        if one is None:
            return False
        lane, standing = self.queue.of(one), Standing(receipt, "fallback", one.spec.name)
        found = None if len(lane) else choose_agent(lane, self.policy.placement, self.now, self._rng)
        if found is not None:
            self._start(entry, found[0], standing.as_choice(found[1].considered))
        else:
            self.asking.decide(entry.task.id, standing)
            lane.push(entry.task, entry.seq)
        return True

    def _may_fall_back(self, task: Task) -> AgentClass | None:
        one = self.registry.named(task.fallback) if task.fallback else None
        return None if one is None or one.hopeless else one

    def _wait_recovered(self, entry: Entry) -> None:
        """A task that waited when an earlier coordinator ended waits again; nobody is there yet to start it."""
        if self.stateful.has(entry.task):
            self.stateful.recovered(entry)
            return
        if is_last(entry.task, entry.failures) and self._fall_back(entry, None):
            return
        if self.policy.routing.enabled:
            self.asking.leave_out(entry.task.id, "recovered")
        self._lane(entry.task).push(entry.task, entry.seq)

    def _fill(self, agent: Agent) -> None:
        """Give an agent with room the best of what waits for its class."""
        one = agent.agent_class
        while agent in one.free or agent in one.spare:
            best: Lane | None = None
            best_head: tuple[int, int, TaskId] | None = None
            for lane in one.lanes:
                if len(lane):
                    head = lane.head()
                    if head is not None and (best_head is None or head < best_head):
                        best, best_head = lane, head
            if best is None:
                if agent in one.free and self._take_over(agent):
                    continue
                return
            entry = self.book.open[best.pop()]
            policy = "next_free" if agent in one.free else "prefetch"
            considered = ((agent.id, agent.load),)
            standing, why, detail = self.asking.take(entry.task.id)
            if standing is not None:
                self._start(entry, agent, standing.as_choice(considered))
            else:
                self._start(entry, agent, Choice(policy, 1, considered, None, why, detail))

    # ── tasks: out ───────────────────────────────────────────────────────────────────────────────────────────────

    def _on_finished(self, event: AttemptFinished) -> None:
        agent = self.registry.agent(event.agent_id)
        entry = self.book.open.get(event.task_id)
        current = entry is not None and self._is_current(entry, event)
        if agent is not None:
            self._free_slot(agent, event, current, event.run_s)
        if entry is not None and current:
            attempt = event.attempt
            self._attempt_over(entry.task, attempt, event.agent_id)
            least = entry.task.least_quality
            if event.failure is None and least is not None and event.quality is not None and event.quality < least:
                self._attempt_failed(entry, attempt, _not_enough(event.quality, least), event)
            elif event.failure is None:
                self._resolve(entry, TaskState.SUCCEEDED, answer=event)
            elif event.failure.kind == "cancelled":
                # Told to stop by an earlier coordinator, whose reason was in a lost tail: so there is none.
                self._attempt_lost(entry, attempt, event.failure, "losses")
            else:
                self._attempt_failed(entry, attempt, event.failure)
        if agent is not None:
            self._fill(agent)

    def _is_current(self, entry: Entry, event: AttemptFinished | AttemptReturned) -> bool:
        return (
            entry.state is TaskState.RUNNING
            and entry.attempt == event.attempt
            and entry.epoch == event.epoch
            and entry.agent_id == event.agent_id
        ) or (entry.extra is not None and _is(entry.extra, event))

    def _on_returned(self, event: AttemptReturned) -> None:
        agent = self.registry.agent(event.agent_id)
        entry = self.book.open.get(event.task_id)
        current = entry is not None and self._is_current(entry, event)
        if agent is not None:
            # Whatever its average says, this agent is not quick now.
            agent.service_s = max(agent.service_s, self.policy.placement.prefetch_s)
            agent.prefetch = 0
            agent.agent_class.update(agent)
            self._free_slot(agent, event, current, None)
        if entry is not None and current:
            self._attempt_over(entry.task, event.attempt, event.agent_id)
            self._go_on(entry, RequeueTask(event.task_id, event.attempt, self.now, "requeued", None))
        if agent is not None:
            self._fill(agent)

    def _on_step(self, event: StepFinished) -> None:
        """Record the first result of each step; only a running attempt's, so what a zombie brings is refused."""
        entry = self.book.open.get(event.task_id)
        verdict, value, detail = "stale", None, ""
        running = entry.running() if entry is not None else ()
        if entry is not None and any(_is(held, event) and held.incarnation == event.incarnation for held in running):
            if event.name in entry.steps:
                verdict, value = "known", entry.steps[event.name]
            elif detail := no_room(entry.steps, event.name, event.value):
                verdict = "refused"
            else:
                verdict = "recorded"
                self._commit(RecordStep(event.task_id, event.attempt, event.epoch, event.name, self.now, event.value))
                self.admission.grew(step_bytes(event.name, event.value))
        token = (event.task_id, event.attempt, event.epoch, event.agent_id, event.incarnation)
        self._out.append(AnswerStep(*token, event.name, verdict, value, detail, event.number))

    def _on_chunks(self, event: ChunksMade) -> None:
        """Record what is new of them; of a task's attempts all are held to the chunks that stand."""
        entry = self.book.open.get(event.task_id)
        running = entry.running() if entry is not None else ()
        held = next((h for h in running if _is(h, event) and h.incarnation == event.incarnation), None)
        verdict, detail = "stale", ""
        if entry is not None and held is not None:
            stream, number = entry.stream, len(event.digests) // DIGEST_BYTES
            fits = fit(stream, event.first, event.digests)
            led = stream is not None and any(stream.leads(other) for other in running if other != held)
            if fits.gap or (fits.differs and led):
                self._displace(entry, held)
            elif fits.skip == number and not fits.differs:
                verdict = "recorded"
            elif detail := self.streaming.no_room(stream, number - fits.skip, len(event.body)):
                verdict = "refused"
            else:
                verdict = "recorded"
                digests = event.digests[fits.skip * DIGEST_BYTES :]
                self._record_chunks(entry, event, fits.at, digests, fits.skip, event.body)
                for other in running if fits.differs else ():
                    if other != held:  # it may have given what is withdrawn now
                        self._displace(entry, other)
        token = (event.task_id, event.attempt, event.epoch, event.agent_id, event.incarnation)
        self._out.append(AnswerChunks(*token, event.number, verdict, detail))

    def _record_chunks(
        self,
        entry: Entry,
        event: ChunksMade | AttemptFinished,
        first: int,
        digests: bytes = b"",
        skip: int = 0,
        body: bytes = b"",
    ) -> None:
        stream, before = entry.stream, entry.grown_bytes
        restarts = 0 if stream is None else len(stream.restarts) + (first < stream.count)
        where = (event.task_id, event.attempt, event.epoch, first, self.now)
        self._commit(RecordChunks(*where, restarts, digests, len(body), skip, body))
        self.admission.grew(entry.grown_bytes - before)
        self.streaming.open_bytes += len(body)

    def _end_stream(self, entry: Entry, answer: AttemptFinished) -> None:
        """What stands at the end is what the attempt that answers has given, and no more."""
        if entry.stream is not None and answer.chunks < entry.stream.count:
            self._record_chunks(entry, answer, answer.chunks)

    def _displace(self, entry: Entry, held: Held) -> None:
        """An attempt gives other chunks than the one that leads, or goes on from chunks that were withdrawn."""
        alone = entry.extra is None
        self._attempt_over(entry.task, held.attempt, held.agent_id)
        self._stop_attempt(entry.task.id, held)
        failure = Failure(kind="diverged", message=f"attempt {held.attempt} gave other chunks than those that stand")
        self._attempt_lost(entry, held.attempt, failure, "losses" if alone else "")

    def _free_slot(
        self, agent: Agent, event: AttemptFinished | AttemptReturned, current: bool, run_s: float | None
    ) -> None:
        token = (event.task_id, event.attempt, event.epoch)
        if event.epoch < self.epoch:
            agent.is_over(token)  # also where it was told to stop: a report from before may still come
        if current and event.task_id in agent.outstanding:
            del agent.outstanding[event.task_id]
        elif token in agent.stopping:
            del agent.stopping[token]
            self._is_over(token)
            run_s = None  # how long it ran until it was stopped says nothing of its agent
            if not agent.stopping:
                self.timers.clear("grace", agent.id)
        else:
            return
        if run_s is not None:
            assert isinstance(event, AttemptFinished)
            worth = event.quality if event.quality is not None else 1.0
            agent.agent_class.graded(worth if event.failure is None else 0.0)
            agent.resolved += 1
            agent.losses = 0
            agent.observe(run_s, self.policy.placement.prefetch_s, self.policy.placement.max_prefetch)
        agent.agent_class.update(agent)
        if agent.state is AgentState.DRAINING and not agent.held:
            self.draining.emptied(agent)

    def _attempt_over(self, task: Task, attempt: int, agent_id: str) -> None:
        """Nothing is expected of this attempt any more: neither its end in time nor its agent's word that it has it."""
        if task.attempt_timeout_s is not None:
            self.timers.clear("attempt", attempt_key(task.id, attempt))
        if task.idempotent:
            self.timers.clear("hedge", task.id)
        self._unclaim(task.id, attempt, agent_id)

    def _attempt_failed(
        self, entry: Entry, attempt: int, failure: Failure, answer: AttemptFinished | None = None
    ) -> None:
        """The agent's own code failed, or its answer is not enough: retry or give up. Only a failure needs a pause."""
        alone = entry.extra is None
        if alone and (not failure.retryable or entry.failures + 1 >= entry.task.max_attempts):
            self._resolve(entry, TaskState.DEAD, answer=answer, failure=failure)
            return
        task_id, not_before = entry.task.id, self.now
        if alone and answer is None:
            not_before += self.policy.retry.delay_s(entry.failures + 1, self._rng)
        failed = RequeueTask(task_id, attempt, self.now, "failed", failure, "failures", not_before)
        if answer is not None:
            failed = structs.replace(failed, quality=answer.quality, cost_usd=answer.cost_usd, run_s=answer.run_s)
        self._go_on(entry, failed)

    def _go_on(self, entry: Entry, over: RequeueTask) -> None:
        """An attempt is over without an outcome: the one beside it goes on, or the task waits for the next."""
        if entry.extra is not None:
            self._commit(structs.replace(over, arrow="outlived", not_before=0.0))
            return
        self._commit(over)
        if over.arrow == "requeued":
            self._place(entry, self._lane(entry.task))
        else:
            self.timers.set("backoff", entry.task.id, over.not_before)

    def _attempt_lost(self, entry: Entry, attempt: int, failure: Failure, counts: str, over_in_s: float = 0.0) -> None:
        """The attempt ended without an answer, through no fault of the agent's code: again, elsewhere, at once.

        Where it may go on for `over_in_s`, or was told to stop and has not answered, an exclusive task waits.
        """
        retry = self.policy.retry
        self._attempt_over(entry.task, attempt, entry.numbered(attempt).agent_id)
        if counts == "kills" and entry.kills + 1 >= retry.poison_kills:
            message = f"{entry.kills + 1} agents died while running it; the last: {failure.message}"
            self._give_up(entry, Failure(kind="poison", message=message))
        elif counts and entry.losses + 1 >= retry.max_losses:
            message = f"{entry.losses + 1} attempts were lost; the last: {failure.message}"
            self._give_up(entry, Failure(kind="agent_lost", message=message))
        elif entry.task.exclusive and (over_in_s or self._goes_on(entry.task.id)):
            not_before = self.now + over_in_s
            why = f"waits {over_in_s:g} s until it must be over" if over_in_s else "waits until it says that it is over"
            failure = structs.replace(failure, message=f"{failure.message}; its task is exclusive and {why}")
            over = RequeueTask(entry.task.id, attempt, self.now, "held_back", failure, counts, not_before)
            self._go_on(entry, over)
        else:
            self._go_on(entry, RequeueTask(entry.task.id, attempt, self.now, "requeued", failure, counts))

    # ── tasks: exclusive ones ────────────────────────────────────────────────────────────────────────────────────

    def _goes_on(self, task_id: TaskId) -> bool:
        """Was an attempt of it told to stop, and has not said yet that it did?"""
        return any(token[0] == task_id for agent in self.registry.agents() for token in agent.stopping)

    def _is_over(self, token: tuple[TaskId, int, int]) -> None:
        """An attempt that was told to stop has ended: an exclusive task need not wait for that any more."""
        entry = self.book.open.get(token[0])
        waits = entry is not None and entry.task.exclusive and entry.state is TaskState.BACKING_OFF
        if entry is not None and waits and token[1:] == (entry.attempt, entry.epoch):
            self.timers.set("backoff", token[0], max(entry.not_before, self.now))

    def _may_go_on(self, task_id: TaskId) -> None:
        """An attempt of it may be running where nobody can stop it: an exclusive task waits until it is over."""
        entry = self.book.open.get(task_id)
        if entry is not None and entry.task.exclusive and entry.state is TaskState.BACKING_OFF:
            self.timers.set("backoff", task_id, max(entry.not_before, self.now + self.policy.fence_s))

    def may_lease(self, agent_id: AgentId, incarnation: int) -> bool:
        """Is this life of the agent one that is given attempts, and has it not been given up?"""
        agent = self.registry.agent(agent_id)
        alive = agent is not None and agent.state in (AgentState.READY, AgentState.DRAINING)
        return alive and agent is not None and agent.incarnation == incarnation

    def _give_up(self, entry: Entry, failure: Failure) -> None:
        self._resolve(entry, TaskState.DEAD, failure=failure)

    def _resolve(
        self,
        entry: Entry,
        state: TaskState,
        *,
        answer: AttemptFinished | None = None,
        failure: Failure | None = None,
    ) -> None:
        task = entry.task
        if answer is not None and failure is None:
            self._end_stream(entry, answer)
        outcome = outcome_of(entry, state, self.now, answer=answer, failure=failure)
        asked = asked_of(entry, self.policy.routing.keep_text)
        self._commit(ResolveTask(outcome, task if state is TaskState.DEAD else None, asked))
        self.admission.closed(task, entry.grown_bytes)
        self.streaming.open_bytes -= entry.stream.size_bytes if entry.stream is not None else 0
        if entry.deadline_at is not None:
            self.timers.clear("deadline", task.id)
        if entry.extra is not None:
            self._stop_attempts(entry)
        if self.stateful.has(task):
            self.stateful.ended(task)

    def _on_graded(self, event: GradeGiven) -> None:
        """An open task has no answer yet that a grade could be about."""
        if event.task_id not in self.book.open:
            self._commit(GradeTask(event.task_id, event.quality, self.now, event.by))

    def _on_cancel(self, event: CancelRequested) -> None:
        entry = self.book.open.get(event.task_id)
        if entry is None:
            self._out.append(AnswerCancel(event.task_id, None))
            return
        if self.stateful.is_logged(entry):  # some process may have applied it already, and all will
            self._out.append(AnswerCancel(event.task_id, TaskState.RUNNING))
            return
        self._withdraw(entry, TaskState.CANCELLED, Failure(kind="cancelled", message="cancelled by its caller"))
        self._out.append(AnswerCancel(event.task_id, TaskState.CANCELLED))

    def _withdraw(self, entry: Entry, state: TaskState, failure: Failure) -> None:
        """End an open task from outside: take it from wherever it is."""
        task_id, was = entry.task.id, entry.state
        if was is TaskState.QUEUED:
            self._leave_queue(entry)
        elif was is TaskState.BACKING_OFF:
            self.timers.clear("backoff", task_id)
        self._resolve(entry, state, failure=failure)
        if was is TaskState.RUNNING and entry.extra is None:
            self._stop_attempts(entry)

    def _leave_queue(self, entry: Entry) -> None:
        """Take a waiting task from wherever it waits: in a lane, or for estimates."""
        task_id = entry.task.id
        if self.stateful.leave(entry):
            return
        if self.asking.answered(task_id) is not None:
            self._forget_late()
            return
        self._lane_of(entry).remove(task_id)
        self.asking.take(task_id)

    def _stop_attempts(self, entry: Entry) -> None:
        """The task has ended: what still runs of it shall stop."""
        for held in entry.running():
            self._attempt_over(entry.task, held.attempt, held.agent_id)
            self._stop_attempt(entry.task.id, held)

    def _stop_attempt(self, task_id: TaskId, held: Held) -> None:
        """Tell its agent to stop an attempt. It holds its slot until the agent says that it is over."""
        agent = self.registry.agent(AgentId(held.agent_id))
        if agent is None or agent.outstanding.get(task_id) != held.attempt:
            return
        del agent.outstanding[task_id]
        self._tell_to_stop(agent, Running(task_id, held.attempt, held.epoch))
        agent.agent_class.update(agent)

    def _tell_to_stop(self, agent: Agent, one: Running) -> None:
        agent.stopping[one.task_id, one.attempt, one.epoch] = self.now
        self._out.append(CancelAttempt(one.task_id, one.attempt, agent.id, agent.incarnation, one.epoch))
        if ("grace", agent.id) not in self.timers:
            self.timers.set("grace", agent.id, self.now + self.policy.cancel_grace_s)

    # ── agents ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_agents_added(self, event: AgentsAdded) -> None:
        spec = event.spec
        if self.book.inboxes.count(spec.name):  # entities are spread over them
            spec = structs.replace(spec, count=self.book.inboxes.count(spec.name))
        self._add_agents(spec)
        if (standbys := standby_of(spec)) is not None:
            self._add_agents(standbys)

    def _add_agents(self, spec: AgentSpec) -> None:
        self._commit(AddAgents(spec, self.now))
        one, added, surplus = self._join(spec)
        for agent in self.registry.broken(spec.name):  # added again: its author may have mended it
            self.registry.move(agent, "retried")
            added.append(agent)
        for agent in added:
            self._start_agent(agent)
        for agent in one.agents:
            if agent.state is AgentState.DRAINING and agent not in surplus and not self.draining.is_leaving(agent.id):
                self.registry.move(agent, "kept")
                one.update(agent)
                self._fill(agent)
                self.draining.ready(agent)
        for agent in surplus:
            self.draining.unwanted(agent)
            if agent.state is AgentState.READY and agent.held:
                self.registry.move(agent, "drain")
                agent.agent_class.update(agent)
                self._unbind(agent.agent_class)
            elif agent.state is not AgentState.DRAINING:
                self._stop(agent, "not wanted any more")

    def _join(self, spec: AgentSpec) -> tuple[AgentClass, list[Agent], list[Agent]]:
        known = len(self.registry.classes())
        one, added, surplus = self.registry.add(spec)
        for agent in added:  # an agent that was stopped once may come back: its numbers go on
            agent.incarnation = self.book.incarnations.get(agent.id, 0)
        if len(self.registry.classes()) > known:
            self.queue.join(one)
        return one, added, surplus

    def _start_agent(self, agent: Agent) -> None:
        self.registry.move(agent, "requested")
        agent.incarnation += 1
        self._commit(StartAgent(agent.id, agent.incarnation, agent.agent_class.spec.name, self.now))
        self.timers.set("start", agent.id, self.now + self.policy.start_timeout_s)

    def _stop(self, agent: Agent, reason: str) -> None:
        self.registry.move(agent, "stopped")
        for kind in ("start", "restart", "grace"):
            self.timers.clear(kind, agent.id)
        agent.agent_class.update(agent)
        if agent.incarnation:
            self._out.append(StopAgent(agent.id, agent.incarnation, reason))
        self.registry.forget(agent)
        self._unbind(agent.agent_class)
        self._give_up_hopeless(agent.agent_class)

    def _on_agent_ready(self, event: AgentReady) -> None:
        agent = self.registry.agent(event.agent_id)
        known = 0 if agent is None else agent.incarnation
        # Waiting with a number: this life of it was declared over, so a late report of it changes nothing.
        over = event.incarnation == known and agent is not None and agent.state is AgentState.WAITING
        if agent is None or event.incarnation < known or over or agent.state is AgentState.BROKEN:
            for one in event.running:
                self._may_go_on(one.task_id)
            self._out.append(StopAgent(event.agent_id, event.incarnation, "not of this team any more"))
            return
        # Higher than ours only when the journal is an older copy: StartAgent waits for the disk.
        agent.incarnation = event.incarnation
        self.registry.move(agent, "ready")
        agent.start_failures, agent.failure = 0, None
        self.timers.clear("start", agent.id)
        self.timers.clear("restart", agent.id)
        self._reconcile(agent, event.running)
        agent.agent_class.update(agent)
        self.stateful.ready(agent, event)
        if agent.state is AgentState.DRAINING and not agent.held:
            self.draining.emptied(agent)
        else:
            self._fill(agent)
        agent.node = event.node
        self.draining.ready(agent)

    def _reconcile(self, agent: Agent, running: tuple[Running, ...]) -> None:
        """Bring the book and what the agent says it runs together."""
        said = {(r.task_id, r.attempt, r.epoch): r for r in running}
        for task_id in self._held_or_claimed(agent):
            entry = self.book.open[task_id]
            held = entry.at(agent.id)
            token = (task_id, held.attempt, held.epoch)
            self._unclaim(task_id, held.attempt, agent.id)
            if token in said and held.incarnation == agent.incarnation:
                del said[token]
                self._confirm(entry, agent, held.attempt)
            else:
                agent.outstanding.pop(task_id, None)
                over_in_s = 0.0
                if held.incarnation != agent.incarnation:
                    over_in_s = self.policy.fence_s
                elif entry.task.exclusive:  # this may be a report from before it had it
                    self._tell_to_stop(agent, Running(*token))
                failure = Failure(kind="agent_lost", message="its agent does not have it")
                self._attempt_lost(entry, held.attempt, failure, "losses", over_in_s)
        for one in said.values():
            self._adopt_or_stop(agent, one)

    def _held_or_claimed(self, agent: Agent) -> list[TaskId]:
        """The attempts that the book has at this agent, whether the agent confirmed them or has yet to."""
        return [*agent.outstanding, *self._claims.get(agent.id, ())]

    def _confirm(self, entry: Entry, agent: Agent, attempt: int) -> None:
        """The agent has what the book says. How long it has been at it is not known: its time begins now."""
        self._hold(agent, entry.task, attempt)
        if attempt == entry.attempt and entry.extra is None and may_join(entry.task, entry.failures):
            choice = entry.choice()
            if choice is not None and choice.policy != "fallback":
                self._time_hedge(entry, agent, choice.receipt)

    def _unclaim(self, task_id: TaskId, attempt: int, agent_id: str) -> None:
        """The attempt needs no confirmation any more."""
        claims = self._claims.get(agent_id)
        if claims is not None and task_id in claims:
            del claims[task_id]
            self.timers.clear("adoption", attempt_key(task_id, attempt))

    def _adopt_or_stop(self, agent: Agent, one: Running) -> None:
        """The agent runs something that the book does not expect there: keep it if nobody else has it."""
        entry = self.book.open.get(one.task_id)
        # Not from an epoch before the last attempt's, whatever its number: its fence would be the lower one. Where the
        # last one started was a second attempt, which has ended, its epoch is not known any more.
        fresh = entry is not None and one.attempt > entry.attempts == entry.attempt
        fresh = fresh and entry is not None and entry.epoch <= one.epoch < self.epoch
        token = (one.task_id, one.attempt, one.epoch)
        # It may have heard already that it shall stop, or have answered since: then this report is from before.
        fresh = fresh and token not in agent.stopping and token not in agent.over
        if entry is None or not fresh or entry.state not in (TaskState.QUEUED, TaskState.BACKING_OFF):
            self._tell_to_stop(agent, one)
            return
        self._leave_queue(entry)
        self.timers.clear("backoff", one.task_id)
        choice = Choice("adopted", 1, ((agent.id, agent.load),))
        self._commit(
            StartAttempt(one.task_id, one.attempt, one.epoch, agent.id, agent.incarnation, self.now, "adopted", choice)
        )
        self._confirm(entry, agent, one.attempt)

    def _on_agent_lost(self, event: AgentLost) -> None:
        agent = self.registry.agent(event.agent_id)
        if agent is None or agent.incarnation != event.incarnation:
            return
        if agent.state in (AgentState.STARTING, AgentState.READY, AgentState.DRAINING):
            crash, cause = self.escalation.is_crash(agent, event), event.cause or "its process ended"
            self._lose(agent, cause, certain=event.certain)
            if crash:
                self.escalation.crashed(agent, cause)

    def _on_start_failed(self, event: AgentStartFailed) -> None:
        agent = self.registry.agent(event.agent_id)
        if agent is None or agent.incarnation != event.incarnation or agent.state is not AgentState.STARTING:
            return
        if not self.registry.start_failed(agent, event.failure):
            self._lose(agent, f"it did not start: {event.failure.type}: {event.failure.message}", certain=False)
            return
        self.registry.move(agent, "gave_up")
        self.timers.clear("start", agent.id)
        self._unbind(agent.agent_class)
        self._requeue_all(agent, "it did not start", blame=False, certain=False)
        self._give_up_hopeless(agent.agent_class)

    def _give_up_hopeless(self, one: AgentClass) -> None:
        """A class lost an agent for good: end what waits for nobody else."""
        self.stateful.hopeless(one)
        for lane in list(one.lanes):
            if all(served_by.hopeless for served_by in lane.classes):
                for task_id in sorted(lane.ids()):
                    entry = self.book.open[task_id]
                    self._leave_queue(entry)
                    if not self._fall_back(entry, None):
                        self._give_up(entry, Failure(kind="no_agent", message=why_nobody(lane, self.registry)))

    def _lose(self, agent: Agent, cause: str, *, certain: bool) -> None:
        """This incarnation is over: its attempts go elsewhere, and it is started again unless it was leaving.

        Where it is not certain that its process has ended, exclusive tasks wait until it must have stopped them.
        """
        leaving = self.draining.is_leaving(agent.id)
        draining = agent.state is AgentState.DRAINING and not leaving
        self.registry.move(agent, "moved" if leaving and agent.state is AgentState.DRAINING else "lost")
        self.draining.lost(agent)
        self.timers.clear("start", agent.id)
        self.timers.clear("grace", agent.id)
        stopping, agent.stopping = agent.stopping, {}
        for token in stopping:
            if certain:
                self._is_over(token)
            else:
                self._may_go_on(token[0])
        agent.prefetch, agent.service_s = 0, -1.0
        agent.agent_class.update(agent)
        if draining:
            self.registry.forget(agent)
        else:
            self.timers.set("restart", agent.id, self.registry.lost(agent, self.now))
        self._unbind(agent.agent_class)
        self._requeue_all(agent, cause, blame=True, certain=certain)
        self.stateful.gone(agent, certain=certain, cause=cause)
        if draining:
            self._give_up_hopeless(agent.agent_class)

    def _requeue_all(self, agent: Agent, cause: str, *, blame: bool, certain: bool) -> None:
        held = self._held_or_claimed(agent)
        agent.outstanding.clear()
        for position, task_id in enumerate(held):
            entry = self.book.open[task_id]
            # An agent takes its attempts in order: only as many as it has slots can have been running.
            counts = ("kills" if position < agent.slots else "losses") if blame else ""
            failure = Failure(kind="agent_lost", message=f"{agent.id} was lost: {cause}")
            over_in_s = 0.0 if certain else self.policy.fence_s
            self._attempt_lost(entry, entry.at(agent.id).attempt, failure, counts, over_in_s)

    def _on_memory_told(self, event: MemoryTold) -> None:
        touched: dict[AgentClass, None] = {}
        for agent_id in event.agent_ids:
            agent = self.registry.agent(agent_id)
            if agent is not None:
                agent.free_memory = event.free
                touched[agent.agent_class] = None
        for one in touched:
            one.memory_told()

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_tick(self, event: Ticked) -> None:
        while (due := self.timers.pop_due(self.now)) is not None:
            self._timer_handlers[due[0]](due[1])

    def _deadline_passed(self, key: str) -> None:
        entry = self.book.open[TaskId(key)]
        message = f"not finished within {entry.task.deadline_s:g} s"
        if self.stateful.is_logged(entry):
            message += "; it has its number, so the state will have it all the same"
        self._withdraw(entry, TaskState.EXPIRED, Failure(kind="deadline", message=message))

    def _backoff_over(self, key: str) -> None:
        entry = self.book.open[TaskId(key)]
        if entry.task.exclusive and self._goes_on(entry.task.id):
            # Looked at again when it says that it is over, or its agent is lost: within this time.
            self.timers.set("backoff", key, self.now + self.policy.cancel_grace_s)
            return
        self._commit(WakeTask(entry.task.id, self.now))
        self._place(entry, self._lane(entry.task))

    def _attempt_timed_out(self, key: str) -> None:
        entry, held = self._meant(key)
        message = f"attempt {held.attempt} did not end within {entry.task.attempt_timeout_s:g} s"
        self._attempt_over(entry.task, held.attempt, held.agent_id)
        self._stop_attempt(entry.task.id, held)
        failure = Failure(kind="timeout", type="TimeoutError", message=message, retryable=True)
        self._attempt_failed(entry, held.attempt, failure)

    def _meant(self, key: str) -> tuple[Entry, Held]:
        """The attempt that a timer of this key is about."""
        task_id, _, attempt = key.rpartition("#")
        entry = self.book.open[TaskId(task_id)]
        return entry, entry.numbered(int(attempt))

    def _grace_over(self, key: str) -> None:
        """An attempt that was told to stop still holds its slot: end the process."""
        agent = self.registry.agent(AgentId(key))
        if agent is None or not agent.stopping:
            return
        due = min(agent.stopping.values()) + self.policy.cancel_grace_s
        if due > self.now:  # the one that set the timer did stop; another was told later
            self.timers.set("grace", agent.id, due)
            return
        self._out.append(StopAgent(agent.id, agent.incarnation, "an attempt that was told to stop goes on"))
        self._lose_quietly(agent, "ended by the coordinator: a stopped attempt went on")

    def _lose_quietly(self, agent: Agent, cause: str) -> None:
        """Lose an agent by our own decision: its other attempts are not to blame."""
        blamed, agent.slots = agent.slots, 0
        self._lose(agent, cause, certain=False)
        agent.slots = blamed

    def _restart_due(self, key: str) -> None:
        agent = self.registry.agent(AgentId(key))
        if agent is not None and agent.state is AgentState.WAITING:
            self._start_agent(agent)

    def _start_timed_out(self, key: str) -> None:
        agent = self.registry.agent(AgentId(key))
        if agent is not None and agent.state is AgentState.STARTING:
            self._out.append(StopAgent(agent.id, agent.incarnation, "it was not ready in time"))
            self._lose_quietly(agent, "it was not ready in time")

    def _adoption_over(self, key: str) -> None:
        entry, held = self._meant(key)
        self._unclaim(entry.task.id, held.attempt, held.agent_id)
        failure = Failure(kind="agent_lost", message=f"{held.agent_id} did not report after a coordinator restart")
        self._attempt_lost(entry, held.attempt, failure, "losses", self.policy.fence_s)

    def _hopeless_found(self, key: str) -> None:
        for one in self.registry.classes():
            if one.spec.name == key:
                self._give_up_hopeless(one)

    # ── the router ───────────────────────────────────────────────────────────────────────────────────────────────

    def _on_version(self, event: VersionDecided) -> None:
        self._commit(RecordVersion(structs.replace(event.record, at=self.now)))

    # ── the one way out ──────────────────────────────────────────────────────────────────────────────────────────

    def _commit(self, command: DurableCommand) -> None:
        """Emit a durable command: applied to the book here, to the journal by the driver."""
        self.book.apply(command)
        self._out.append(command)


def _is(held: Held, event: AttemptFinished | AttemptReturned | StepFinished | ChunksMade) -> bool:
    return (held.attempt, held.epoch, held.agent_id) == (event.attempt, event.epoch, event.agent_id)


def _not_enough(quality: float, least: float) -> Failure:
    message = f"the answer was reported to be worth {quality:g}; at least {least:g} is asked for"
    return Failure(kind="quality", message=message, retryable=True)

"""A simulated agent process: slots, a queue in order of arrival, and answers kept until they are acknowledged.

What an agent must do for the core's promises to hold, in the simulation as in production:

- refuse what a coordinator of an older epoch than the newest seen sends;
- take the same attempt once, however often it arrives, and not after it was told to stop it (which may overtake it
  here; in production a link keeps the order);
- keep an answer, and send it again, until a coordinator acknowledges it;
- to a new coordinator: first the answers kept, then AgentReady with what it holds;
- answer every CancelAttempt, also for what it does not have: the coordinator holds a slot until then;
- hand back what it has not begun when it is stuck;
- run exclusive attempts only under a lease, and end them when it is over;
- go on after a step only when a coordinator has answered that it is recorded, and ask again until one does;
- answer a task that gives out chunks only when all of them are on disk (`chunks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from flowray.core.commands import AnswerChunks, AnswerStep, StartAttempt
from flowray.core.events import AgentReady, AttemptFinished, AttemptReturned, StepFinished
from flowray.core.fencing import STOP_S, Lease
from flowray.core.model import AgentId, AgentSpec, Failure, Payload, Running, Task, TaskId
from flowray.testing.chunks import Outlet, Piece
from flowray.testing.network import Link
from flowray.testing.partitions import DOWN, UP

if TYPE_CHECKING:
    from flowray.testing.coordinator import CoordinatorProcess
    from flowray.testing.world import World

STUCK_S = 1.0  # no attempt ended for so long: hand back what is not begun
RESEND_S = 5.0  # an answer without acknowledgement is sent again
STEP_AGAIN_S = 0.1  # until a coordinator that has not heard of this agent yet is asked again to record a step
SEEN = 1024  # attempts remembered to recognise a repeat
Token = tuple[TaskId, int, int]  # (task, attempt, epoch)
Given = Mapping[str, Payload | None]  # recorded steps, by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What will become of one attempt, decided when it begins."""

    duration_s: float
    value: Payload | None = None
    failure: Failure | None = None
    quality: float | None = None  # what it reports of its answer
    cost_usd: float | None = None
    kills: bool = False  # it takes its process down instead of answering
    heeds_cancel: bool = True  # it stops soon after being told to
    steps: tuple[tuple[str, Payload | None], ...] = ()  # that it takes, one after the other, and what they come to
    chunks: tuple[Piece, ...] = ()  # that it gives out while it runs
    resumes: bool = False  # it leaves out those that stand already


class Behaviour(Protocol):
    """What the agents of a simulation do with a task."""

    def construct(self, process: AgentProcess) -> Failure | None:
        """The process is up: make the agent. What went wrong, or None."""
        ...

    def begin(self, process: AgentProcess, command: StartAttempt, task: Task, steps: Given) -> Run:
        """An attempt begins, with what earlier ones recorded."""
        ...


class Stream:
    """A connection of one agent process to one coordinator process."""

    def __init__(self, number: int, agent: AgentProcess, coordinator: CoordinatorProcess) -> None:
        self.number = number  # later connections have higher ones
        self.agent = agent
        self.coordinator = coordinator
        self._up, self._down = Link(), Link()

    def up(self, deliver: Callable[[], None]) -> None:
        """Agent to coordinator."""
        self._send(deliver, self._up, UP)

    def down(self, deliver: Callable[[], None]) -> None:
        """Coordinator to agent."""
        self._send(deliver, self._down, DOWN)

    def give_up(self) -> None:
        """Nothing gets through any more; the agent connects again."""
        self._up.broken = self._down.broken = True
        self.agent.redial(self)

    def _send(self, deliver: Callable[[], None], link: Link, way: int) -> None:
        world = self.agent.world
        if link.broken:
            return
        if world.partitions.is_cut(self.agent, way):
            world.partitions.hold(deliver, link, self)
        else:
            self.send(deliver, link)

    def send(self, deliver: Callable[[], None], link: Link) -> None:
        """What nothing holds back: when it is lost, both sides learn that the stream is over."""
        if not self.agent.world.network.send(deliver, link):
            self.agent.world.note("stream broken")
            self.give_up()


class AgentProcess:
    """One incarnation of one agent."""

    def __init__(self, world: World, spec: AgentSpec, agent_id: AgentId, incarnation: int, factor: float) -> None:
        self.world = world
        self.spec = spec
        self.id = agent_id
        self.incarnation = incarnation
        self.factor = factor  # its service times are so many times the usual
        self.node = ""  # where it is; "" where nobody knows
        self.alive = True
        self.hung = False
        self.epoch_seen = 0
        self.away_until = 0.0  # whoever is new does not reach it before
        self.ending = False  # it will be ended as soon as it is reached
        self.stream: Stream | None = None
        self.queue: dict[Token, tuple[StartAttempt, Task, Given, int]] = {}  # not begun, oldest first
        self.running: dict[Token, Run] = {}
        self._left: dict[Token, list[tuple[str, Payload | None]]] = {}  # steps that a running attempt has yet to record
        self._asked: dict[Token, StepFinished] = {}  # of those, what it waits for
        self._outlets: dict[Token, Outlet] = {}  # of running attempts that give out chunks
        self._lease = Lease(world.policy.lease_s)
        self._leasing = False
        self.exclusive: set[Token] = set()  # of what it holds
        self.unacknowledged: dict[Token, AttemptFinished] = {}
        self._seen: dict[Token, None] = {}  # attempts taken lately: a repeat is not taken again
        self._held: list[Callable[[], None]] = []  # what arrived or fell due while hung
        self._last_end = 0.0
        self._resending = self._watching = False

    @property
    def idle(self) -> bool:
        """Connected, with a slot free and nothing to do."""
        return not (self.queue or self.hung or self.stream is None) and len(self.running) < self.spec.slots

    @property
    def last_end(self) -> float:
        """When it last began or ended an attempt."""
        return self._last_end

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def hang(self) -> None:
        """Stop without a word."""
        self.hung = True

    def wake(self) -> None:
        """Go on where it was."""
        self.hung = False
        held, self._held = self._held, []
        for do in held:
            self._do(do)
        for token in list(self.running) if self.alive else ():
            self.world.observer.attempts.runs(self, token)

    def _do(self, do: Callable[[], None]) -> None:
        if not self.alive:
            return
        if self.hung:
            self._held.append(do)
        else:
            do()

    # ── connecting ───────────────────────────────────────────────────────────────────────────────────────────────

    def redial(self, broken: Stream | None = None, late_s: float = 0.0) -> None:
        """Connect (again) in a moment, or later than that, unless it has happened already."""

        def dial() -> None:
            if broken is None or self.stream is broken:
                self.dial()

        self.away_until = max(self.away_until, self.world.clock.now + late_s)
        self.world.clock.after(late_s + self.world.rng.uniform(0.02, 0.3), lambda: self._do(dial))

    def dial(self) -> None:
        """Connect to the coordinator there is: the answers kept, then what is held."""
        coordinator = self.world.leader
        if coordinator is None or not coordinator.alive or coordinator.epoch < self.epoch_seen:
            return
        if self.world.partitions.is_cut(self):
            self.redial(self.stream)
            return
        if coordinator.epoch > self.epoch_seen and self.unacknowledged:
            self.world.note("answer kept for a new coordinator")
        self.epoch_seen = coordinator.epoch
        stream = self.stream = self.world.open_stream(self, coordinator)
        self.say_again(stream)
        held = tuple(Running(*token) for token in (*self.running, *self.queue))
        stream.up(partial(coordinator.ready, self.report(held), stream))
        for step in list(self._asked.values()):
            stream.up(partial(coordinator.step, step, stream))
        for outlet in list(self._outlets.values()):
            outlet.send_again()

    def report(self, held: tuple[Running, ...]) -> AgentReady:
        """What it says of itself to a coordinator."""
        return AgentReady(self.id, self.incarnation, held, node=self.node)

    def say_again(self, stream: Stream) -> None:
        """Everything that was said, and is not known to be on disk."""
        for answer in list(self.unacknowledged.values()):
            self._answer(stream, answer)

    # ── what arrives ─────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, stream: Stream, command: StartAttempt, task: Task, steps: Given, cursor: int) -> None:
        """A StartAttempt."""
        self._do(partial(self._start, stream, command, task, steps, cursor))

    def step_answered(self, answer: AnswerStep) -> None:
        """What became of a step."""
        self._do(partial(self._go_on, answer))

    def chunks_answered(self, answer: AnswerChunks) -> None:
        """What became of a batch of chunks."""
        self._do(partial(self._chunks_answered, answer))

    def _chunks_answered(self, answer: AnswerChunks) -> None:
        outlet = self._outlets.get((answer.task_id, answer.attempt, answer.epoch))
        if outlet is not None:
            outlet.answered(answer)

    def cancel(self, stream: Stream, token: Token) -> None:
        """A CancelAttempt."""
        self._do(partial(self._cancel, stream, token))

    def acknowledged(self, token: Token) -> None:
        """An answer is on the coordinator's disk."""
        self._do(partial(self._forget, token))

    def _accepts(self, stream: Stream) -> bool:
        if stream.coordinator.epoch < self.epoch_seen:
            self.world.note("older epoch refused by an agent")
            return False
        return stream is self.stream

    def _start(self, stream: Stream, command: StartAttempt, task: Task, steps: Given, cursor: int) -> None:
        token = command.task_id, command.attempt, command.epoch
        if not self._accepts(stream) or token in self._seen:
            return
        self._remember(token)
        self.queue[token] = command, task, steps, cursor
        if task.exclusive:
            self.exclusive.add(token)
            if not self._leasing:
                self._leasing = True
                self._renew()
        self._begin()
        if token in self.queue and not self._watching:
            self._watching = True
            self.world.clock.after(STUCK_S, lambda: self._do(self._hand_back))

    def _remember(self, token: Token) -> None:
        """What comes of this attempt from now on is a repeat, or too late."""
        self._seen[token] = None
        if len(self._seen) > SEEN:
            del self._seen[next(iter(self._seen))]

    def _cancel(self, stream: Stream, token: Token) -> None:
        if not self._accepts(stream):
            return
        stopped = Failure(kind="cancelled", type="TaskCancelled", message="stopped")
        run = self.running.get(token)
        if run is not None:
            if run.heeds_cancel:
                soon = self.world.rng.uniform(0.0, 0.2)
                self.world.clock.after(soon, lambda: self._do(lambda: self._end(token, run, soon, stopped)))
        elif token in self.queue:
            del self.queue[token]
            self.exclusive.discard(token)
            self._keep(token, AttemptFinished(*token, self.id, failure=stopped))
        elif token not in self.unacknowledged:
            self.world.note("told to stop what it does not have")
            self._remember(token)
            self._answer(stream, AttemptFinished(*token, self.id, failure=stopped))

    def _forget(self, token: Token) -> None:
        self.unacknowledged.pop(token, None)

    # ── running ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self) -> None:
        while self.queue and len(self.running) < self.spec.slots:
            token, (command, task, steps, cursor) = next(iter(self.queue.items()))
            if task.exclusive and not self._lease.valid(self.world.clock.now):
                self.world.note("waited for a lease")
                return
            del self.queue[token]
            self.world.observer.attempts.begun(self, command, steps)
            run = self.world.behaviour.begin(self, command, task, steps)
            self.running[token] = run
            self._left[token] = list(run.steps)
            self.world.observer.attempts.runs(self, token)
            self._last_end = self.world.clock.now
            if run.chunks:
                self._give(token, run, cursor if run.resumes else 0)
            self._work(token, run)

    def _give(self, token: Token, run: Run, first: int) -> None:
        """Chunks of an attempt that begins."""
        if first:
            self.world.note("chunks gone on with")
        outlet = self._outlets[token] = Outlet(self, token, run.chunks, first)
        self.world.observer.chunks.begun(token, outlet)

        def lost(verdict: str) -> None:
            stale = Failure(kind="application", type="StaleAttempt", message=f"chunks: {verdict}")
            self._end(token, run, run.duration_s * self.factor, stale)

        outlet.begin(run.duration_s * self.factor, lost)

    # ── exclusive attempts ───────────────────────────────────────────────────────────────────────────────────────

    def _renew(self) -> None:
        """Ask for a lease, and again as long as there is something exclusive."""
        self._leasing = bool(self.exclusive)
        if not self._leasing:
            return
        if self.stream is not None:
            number = self._lease.ask(self.world.clock.now)
            grant = partial(self.stream.down, partial(self._do, partial(self._leased, number)))
            self.stream.up(partial(self.stream.coordinator.lease, self.id, self.incarnation, grant))
        self.world.clock.after(self._lease.renew_every_s, partial(self._do, self._renew))

    def _leased(self, number: int) -> None:
        before = self._lease.until
        self._lease.granted(number)
        if self._lease.until > before:
            until = self._lease.until
            self.world.clock.at(until, partial(self._do, self._fence_off))
            self._begin()

    def _fence_off(self) -> None:
        """The lease may be over: what must not run without one is ended, with its process if it does not stop."""
        now = self.world.clock.now
        if self._lease.valid(now):
            return
        stopped = Failure(kind="cancelled", type="TaskCancelled", message="no word from a coordinator")
        until = self._lease.until + 0.9 * STOP_S
        for token in [token for token in self.running if token in self.exclusive]:
            self.world.note("fenced itself off")
            if self.running[token].heeds_cancel:
                self._end(token, self.running[token], 0.0, stopped)
            elif now < until:
                self.world.clock.at(until, partial(self._do, partial(self._end_with_all, token)))
            else:  # the process was stopped, and only now goes on
                self._end_with_all(token)

    def _end_with_all(self, token: Token) -> None:
        if token in self.running:
            self.world.crash(self)

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _work(self, token: Token, run: Run) -> None:
        """Until the next step, or to the end: the steps part the attempt's time evenly."""
        took_s = run.duration_s * self.factor
        part_s = took_s / (len(run.steps) + 1)
        if self._left[token]:
            self.world.clock.after(part_s, partial(self._do, partial(self._take_step, token, run)))
        else:
            self.world.clock.after(part_s, partial(self._do, partial(self._end, token, run, took_s)))

    def _take_step(self, token: Token, run: Run) -> None:
        if self.running.get(token) is not run:
            return
        name, value = self._left[token][0]
        self._asked[token] = StepFinished(*token, self.id, self.incarnation, name, value)
        self._ask(token, name)

    def _ask(self, token: Token, name: str) -> None:
        """Have a step recorded, and again until that is answered."""
        step = self._asked.get(token)
        if step is None or step.name != name:
            return
        if self.stream is not None:
            self.stream.up(partial(self.stream.coordinator.step, step, self.stream))
        self.world.clock.after(RESEND_S, partial(self._do, partial(self._ask, token, name)))

    def _go_on(self, answer: AnswerStep) -> None:
        token = answer.task_id, answer.attempt, answer.epoch
        step, run = self._asked.get(token), self.running.get(token)
        if step is None or run is None or step.name != answer.name:
            return
        if answer.verdict == "later":
            self.world.note("step put off")
            self.world.clock.after(STEP_AGAIN_S, partial(self._do, partial(self._ask, token, step.name)))
            return
        del self._asked[token]
        if answer.verdict in ("recorded", "known"):
            self.world.observer.attempts.step_taken(answer, answer.value if answer.verdict == "known" else step.value)
            del self._left[token][0]
            self._work(token, run)
        else:
            self.world.note(f"step {answer.verdict}")
            took_s = run.duration_s * self.factor
            stale = Failure(kind="application", type="StaleAttempt", message=f"step {step.name}: {answer.verdict}")
            self._end(token, run, took_s, stale)

    def _end(self, token: Token, run: Run, took_s: float, stopped: Failure | None = None) -> None:
        if self.running.get(token) is not run:
            return
        outlet = self._outlets.get(token)
        answers = stopped is None and run.failure is None and not run.kills
        if outlet is not None and answers and not outlet.finish(partial(self._end, token, run, took_s)):
            return
        self._outlets.pop(token, None)
        if outlet is not None:
            outlet.stop()
        del self.running[token], self._left[token]
        self.exclusive.discard(token)
        self._asked.pop(token, None)
        self._last_end = self.world.clock.now
        if run.kills and stopped is None:
            self.world.crash(self)
            return
        if stopped is not None:
            answer = AttemptFinished(*token, self.id, failure=stopped, run_s=took_s)
        else:
            answer = AttemptFinished(
                *token,
                self.id,
                value=run.value,
                failure=run.failure,
                run_s=took_s,
                quality=run.quality,
                cost_usd=run.cost_usd,
                chunks=outlet.next if outlet is not None else 0,
            )
        self._keep(token, answer)
        self._begin()

    def _keep(self, token: Token, answer: AttemptFinished) -> None:
        self.unacknowledged[token] = answer
        if self.stream is not None:
            self._answer(self.stream, answer)
        if not self._resending:
            self._resending = True
            self.world.clock.after(RESEND_S, lambda: self._do(self._resend))

    def _answer(self, stream: Stream, answer: AttemptFinished) -> None:
        stream.up(partial(stream.coordinator.finished, answer, partial(self._acknowledge, stream, answer)))

    def _acknowledge(self, stream: Stream, answer: AttemptFinished) -> None:
        """At the coordinator: everything that the answer led to is on disk."""
        self.world.observer.acknowledged_answer(answer)
        stream.down(partial(self.acknowledged, (answer.task_id, answer.attempt, answer.epoch)))

    def _resend(self) -> None:
        self._resending = False
        if self.unacknowledged:
            self._resending = True
            self.world.clock.after(RESEND_S, lambda: self._do(self._resend))
            if self.stream is not None:
                for answer in list(self.unacknowledged.values()):
                    self._answer(self.stream, answer)

    def _hand_back(self) -> None:
        self._watching = False
        if not self.queue:
            return
        if self.world.clock.now - self._last_end < STUCK_S or self.stream is None:
            self._watching = True
            self.world.clock.after(STUCK_S, lambda: self._do(self._hand_back))
            return
        for token in list(self.queue):
            del self.queue[token]
            self.exclusive.discard(token)
            self.world.note("attempt handed back")
            self.stream.up(partial(self.stream.coordinator.hear, AttemptReturned(*token, self.id)))

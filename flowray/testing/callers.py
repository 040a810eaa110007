"""Simulated callers: they submit, repeat themselves when nobody answers, cancel, wait, and lose their patience."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from msgspec import structs

from flowray.core.commands import AcceptTask, AddAgents, AnswerCancel, Command, GradeTask, KnownTask, RefuseTask
from flowray.core.model import AgentSpec, Outcome, Task, TaskId
from flowray.core.states import TaskState
from flowray.testing.chunks import Reader

if TYPE_CHECKING:
    from flowray.testing.coordinator import CoordinatorProcess
    from flowray.testing.world import World

WATCH_MAX_S = 160.0  # it asks twice as late each time, until then
PATIENCE_S = 1.0  # without an answer for so long, a caller asks again
WATCH_S = 10.0  # and for an outcome after this long, as the coordinator that was asked may be gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one caller will do."""

    task: Task
    at_s: float
    cancel_after_s: float | None = None  # after the acceptance; None for never
    twice: bool = False  # two submits at once, as by an impatient proxy
    resubmits: int = 2  # when refused because there is no room
    grade: float | None = None  # that its answer gets later; None for never
    again_after_s: float | None = None  # so long after its outcome the same is submitted once more; None for never
    again_as: str = ""  # under which id; "" for the same one
    readers: tuple[tuple[float, float], ...] = ()  # of its chunks: (how long after the acceptance, pause at each page)


class Caller:
    """One task, from its caller's side."""

    def __init__(self, world: World, plan: Plan) -> None:
        self.world = world
        self.task = plan.task
        self.follows: TaskId = plan.task.id  # the task whose outcome it wants: another one when its key is known
        self.accepted = False
        self.refusal: RefuseTask | None = None
        self.outcome: Outcome | None = None
        self.cancel_answer: AnswerCancel | None = None
        self.cancelling = False
        self.grading = False
        self.graded: GradeTask | None = None
        self._opinions = 0
        self._plan = plan
        self._trying = False  # it was refused and will submit again
        self._resubmits = plan.resubmits
        self._watch_s = WATCH_S
        self._readers: list[Reader] = []
        self._later: Caller | None = None  # the same request, made once more

    @property
    def done(self) -> bool:
        """Nothing more will be asked."""
        if self._later is not None and not self._later.done:
            return False
        if not all(reader.ended for reader in self._readers):
            return False
        answered = (not self.cancelling or self.cancel_answer is not None) and (
            not self.grading or self.graded is not None
        )
        return self.refused or (self.outcome is not None and answered)

    @property
    def refused(self) -> bool:
        """For good: there is nothing left to try."""
        refusal = self.refusal
        return refusal is not None and (refusal.retry_after_s is None or not self._trying)

    def begin(self) -> None:
        """Submit when it is time."""
        self.world.clock.at(self._plan.at_s, self.submit)

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self) -> None:
        """Hand the task in, and again as long as nobody answers."""
        if self.accepted or self.refusal is not None:
            return
        coordinator = self.world.reach()
        if coordinator is not None:
            for _ in range(2 if self._plan.twice else 1):
                reply = partial(self._reply, coordinator)
                self.world.network.send(partial(coordinator.submit, self.task, reply))
        self.world.clock.after(PATIENCE_S, self.submit)

    def watch(self) -> None:
        """Ask for the outcome until it is there."""
        if self.outcome is not None:
            return
        coordinator = self.world.reach()
        if coordinator is not None:
            self.world.network.send(partial(coordinator.watch, self.follows, self._watched))
        self.world.clock.after(self._watch_s, self.watch)
        self._watch_s = min(2 * self._watch_s, WATCH_MAX_S)

    def cancel(self) -> None:
        """Ask to cancel until that is answered."""
        self.cancelling = True
        if self.cancel_answer is not None:
            return
        coordinator = self.world.reach()
        if coordinator is not None:
            reply = partial(self._reply, coordinator)
            self.world.network.send(partial(coordinator.cancel, self.follows, reply))
        self.world.clock.after(PATIENCE_S, self.cancel)

    def grade(self, quality: float) -> None:
        """Say what the answer was worth until that is answered. Another opinion replaces an earlier one."""
        self.grading, self.graded = True, None
        self._opinions += 1
        self._grade(quality, self._opinions)

    def _grade(self, quality: float, opinion: int) -> None:
        if self.graded is not None or opinion != self._opinions:
            return
        coordinator = self.world.reach()
        if coordinator is not None:
            reply = partial(self._reply, coordinator)
            self.world.network.send(partial(coordinator.grade, self.follows, quality, reply))
        self.world.clock.after(PATIENCE_S, partial(self._grade, quality, opinion))

    # ── what is said: at the coordinator, then here ──────────────────────────────────────────────────────────────

    def _reply(self, coordinator: CoordinatorProcess, command: Command) -> None:
        self.world.observer.answered(coordinator.epoch, command, self.task)
        self.world.network.send(partial(self._told, command))

    def _watched(self, outcome: Outcome | None) -> None:
        self.world.observer.shown(self.follows, outcome)
        self.world.network.send(partial(self._seen, outcome))

    def _told(self, command: Command) -> None:
        if type(command) is AcceptTask:
            self._accepted(command.task.id)
        elif type(command) is KnownTask:
            self._accepted(command.task_id)
        elif type(command) is RefuseTask:
            self._refused(command)
        elif type(command) is AnswerCancel:
            self.cancel_answer = command
        elif type(command) is GradeTask:
            self.graded = command

    def _accepted(self, task_id: TaskId) -> None:
        if self.accepted:
            return
        self.accepted, self.refusal, self.follows = True, None, task_id
        self.watch()
        for after_s, pause_s in self._plan.readers:
            reader = Reader(self.world, task_id, pause_s=pause_s)
            self._readers.append(reader)
            self.world.observer.chunks.follow(task_id, reader)
            self.world.clock.after(after_s, reader.ask)
        if self._plan.cancel_after_s is not None:
            self.cancelling = True
            self.world.clock.after(self._plan.cancel_after_s, self.cancel)

    def _refused(self, command: RefuseTask) -> None:
        if self.accepted or self.refusal is not None:
            return
        self.refusal = command
        if command.retry_after_s is not None and self._resubmits:
            self._resubmits -= 1
            self._trying = True
            self.world.clock.after(command.retry_after_s, self._resubmit)

    def _resubmit(self) -> None:
        self._trying = False
        if not self.accepted:
            self.refusal = None
            self.submit()

    def _seen(self, outcome: Outcome | None) -> None:
        if outcome is None or self.outcome is not None:
            return
        self.outcome = outcome
        if self._plan.grade is not None and outcome.state is TaskState.SUCCEEDED:
            self.grade(self._plan.grade)
        if self._plan.again_after_s is not None:
            self.world.note("submitted again after its end")
            task = structs.replace(self.task, id=TaskId(self._plan.again_as or self.task.id))
            self._later = Caller(self.world, Plan(task=task, at_s=self.world.clock.now + self._plan.again_after_s))
            self._later.begin()


class Operator:
    """Adds agents, until that is acknowledged."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._wanted: dict[str, AgentSpec] = {}

    @property
    def done(self) -> bool:
        """Everything is acknowledged."""
        return not self._wanted

    def add(self, spec: AgentSpec) -> None:
        """The team shall have these agents; a later call for the same class overrides an earlier one."""
        self._wanted[spec.name] = spec
        if self.world.partitions.active:
            self.world.note("agents scaled while some were cut off")
        self._ask(spec)

    def _ask(self, spec: AgentSpec) -> None:
        if self._wanted.get(spec.name) is not spec:
            return
        coordinator = self.world.reach()
        if coordinator is not None:
            reply = partial(self._reply, coordinator)
            self.world.network.send(partial(coordinator.add, spec, reply))
        self.world.clock.after(PATIENCE_S, partial(self._ask, spec))

    def _reply(self, coordinator: CoordinatorProcess, command: Command) -> None:
        self.world.observer.answered(coordinator.epoch, command)
        self.world.network.send(partial(self._told, command))

    def _told(self, command: Command) -> None:
        if isinstance(command, AddAgents) and self._wanted.get(command.spec.name) == command.spec:
            del self._wanted[command.spec.name]

"""What is worth having seen: races between what the core is told, and decisions of every kind.

A large run must come by each (`flowray.testing.swarm.SOMETIMES`). On the way it judges what only the order of events
tells: that nobody adopts what is over (3), how many attempts run beside others (C1), and chances of estimates (R1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from flowray.core.commands import Command, KnownTask, RefuseTask, RequeueTask, ResolveTask, StartAttempt
from flowray.core.events import AgentReady, AttemptFinished, AttemptReturned, EstimatesReady, Event
from flowray.core.model import Choice, Outcome, TaskId
from flowray.core.naming import attempt_key
from flowray.core.states import TaskState
from flowray.testing.violations import Violation

if TYPE_CHECKING:
    from flowray.testing.coordinator import CoordinatorProcess
    from flowray.testing.world import World

_EPSILON = 1e-6
NOTED = frozenset({StartAttempt, RequeueTask, ResolveTask, RefuseTask, KnownTask})  # the kinds of them
_ACTED = {
    "hedge": "a second attempt after a while",
    "copy": "a second attempt at once",
    "fallback": "given to the fallback",
}


class Races:
    """See the module. One of the observer (`flowray.testing.invariants`)."""

    def __init__(self, world: World, resolved: Mapping[TaskId, Outcome]) -> None:
        """`resolved` are the outcomes on disk."""
        self._world, self._resolved = world, resolved
        self._doubled: Counter[tuple[int, str]] = Counter()  # (epoch, hedge | copy | one) -> starts
        # What a coordinator was told is over of an earlier one's: (its epoch, agent, task, attempt, epoch of that)
        self._over: set[tuple[int, str, TaskId, int, int]] = set()

    def told(self, coordinator: CoordinatorProcess, event: Event) -> None:
        """The core is about to be told this: note the races worth having seen."""
        note, core = self._world.note, coordinator.core
        if (type(event) is AttemptFinished or type(event) is AttemptReturned) and event.epoch < coordinator.epoch:
            self._over.add((coordinator.epoch, event.agent_id, event.task_id, event.attempt, event.epoch))
        if type(event) is AttemptFinished:
            entry = core.book.open.get(event.task_id)
            if entry is None and event.failure is None:
                outcome = self._resolved.get(event.task_id)
                ended = outcome.state.value if outcome is not None else ""
                note("cancel raced with answer" if ended == "cancelled" else "answer of an ended task")
            elif entry is not None and all(
                (held.attempt, held.epoch) != (event.attempt, event.epoch) for held in entry.running()
            ):
                note("commit arrived after re-queue")
            elif ("adoption", attempt_key(event.task_id, event.attempt)) in core.timers:
                note("answer before the report")
        elif type(event) is EstimatesReady:
            if not any(core.asking.is_asked(task_id) for task_id, _ in event.answers):
                note("estimates came too late")
        elif type(event) is AgentReady:
            for one in event.running:
                if ("adoption", attempt_key(one.task_id, one.attempt)) in core.timers:
                    note("attempt confirmed after restart")

    def decided(self, epoch: int, command: Command) -> None:
        """The core of an epoch has decided this: one of `NOTED`."""
        note = self._world.note
        if type(command) is StartAttempt:
            self._count_second(epoch, command)
            if command.reason == "adopted":
                self._adopted(epoch, command)
            if command.reason != "first":
                note(f"{command.reason} attempt")
            elif command.choice.policy == "prefetch":
                note("prefetched")
            elif command.choice.policy == "batch":
                note("sent together")
            elif command.choice.policy == "recent":
                note("kept with few agents")
            self._note_routing(command.choice)
        elif type(command) is RequeueTask and command.arrow == "outlived":
            note("an attempt was outlived by the one beside it")
            if command.failure is not None and command.failure.kind == "diverged":
                note("stopped for giving other chunks")
        elif type(command) is ResolveTask:
            self._note_end(command.outcome)
        elif type(command) is RefuseTask:
            note(f"refused: {command.reason}")
        elif type(command) is RequeueTask and command.arrow == "held_back":
            note("held back")
        elif type(command) is KnownTask and command.task_id != command.submitted_id:
            note("repeat recognised by its key")

    def _adopted(self, epoch: int, command: StartAttempt) -> None:
        """Nobody is at it any more where its agent has said so, even if a report from before comes afterwards."""
        if (epoch, command.agent_id, command.task_id, command.attempt, command.epoch) in self._over:
            name = f"{command.task_id} attempt {command.attempt} of epoch {command.epoch}"
            raise Violation("3", f"{name} was adopted by epoch {epoch}, which was told before that it is over")

    def _count_second(self, epoch: int, command: StartAttempt) -> None:
        """Second attempts stay within their shares of those that may have one, and what can be saved up."""
        started, policy = self._doubled, self._world.policy.acting
        started[epoch, command.reason if command.beside else "one"] += 1
        if not command.beside:  # that allows more of them, and is none
            return
        for reason, share, burst in (
            ("hedge", policy.hedge_share, policy.hedge_burst),
            ("copy", policy.copy_share, policy.copy_burst),
        ):
            allowed = burst + share * started[epoch, "one"] if share else 0.0
            count = started[epoch, reason]
            if count > allowed + _EPSILON:
                raise Violation("C1", f"{count} attempts were started as {reason}, {allowed} are allowed")

    def _note_routing(self, choice: Choice) -> None:
        note, receipt = self._world.note, choice.receipt
        if choice.policy in _ACTED:
            note(_ACTED[choice.policy])
            return
        if choice.unrouted == "late":
            note("waited for estimates in vain")
        if receipt is None:
            return
        note(choice.policy if choice.policy == "routed" else "taken over from a class that was waited for")
        chosen = [estimate.candidate for estimate in receipt.estimates].index(receipt.chosen)
        if choice.policy == "routed":
            if abs(sum(receipt.propensities) - 1.0) >= 1e-9:
                raise Violation("R1", f"propensities {receipt.propensities}")
            if receipt.propensities[chosen] <= 0:
                raise Violation("R1", f"{receipt.chosen} was chosen and could not be: {receipt}")
        if receipt.explored:
            note("explored")

    def _note_end(self, outcome: Outcome) -> None:
        note, failure = self._world.note, outcome.failure
        if outcome.state is TaskState.DEAD and failure is not None:
            note(f"dead: {failure.kind}")
        elif outcome.state in (TaskState.EXPIRED, TaskState.CANCELLED):
            running = outcome.agent_id != ""
            note(f"{outcome.state.value} while {'running' if running else 'waiting'}")

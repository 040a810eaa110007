"""What an epoch does with the attempts of the one before: which of them still run is known to their agents alone.

A coordinator that recovers finds in its book attempts that were running (`expect`). It claims them: each agent has
`adoption_s` to say that it has them, and what it does not name is lost. The other way round, an agent may run what the
book does not expect there, where a start was in a lost tail of the journal. It is kept if nobody else has the task and
it is not older than what the book knows, and stopped otherwise.

    claimed ▶ its agent says that it has it   ▶ running as before, its time begins anew
            ▶ its agent says what it has      ▶ lost, tried elsewhere
            ▶ its answer comes first          ▶ over
            ▶ `adoption_s` over, nothing said ▶ lost (an exclusive task waits until it must be over)

The same is done with each later report of an agent, which may be from before something that is known here already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowray.core.commands import StartAttempt
from flowray.core.model import Choice, Failure, Held, Running, TaskId
from flowray.core.naming import attempt_key
from flowray.core.states import TaskState

if TYPE_CHECKING:
    from flowray.core.coordination import Coordination
    from flowray.core.registry import Agent


class Adopting:
    """A part of Coordination: what agents have yet to confirm, and what becomes of what they say."""

    __slots__ = ("_claims", "_core", "_timers")

    def __init__(self, core: Coordination) -> None:
        self._core = core
        self._timers = core.timers
        self._claims: dict[str, dict[TaskId, None]] = {}  # agent -> attempts it has yet to confirm after a restart

    def expect(self, task_id: TaskId, held: Held, until: float) -> None:
        """An earlier coordinator's attempt: its agent shall say that it has it."""
        self._claims.setdefault(held.agent_id, {})[task_id] = None
        self._timers.set("adoption", attempt_key(task_id, held.attempt), until)

    def release(self, task_id: TaskId, attempt: int, agent_id: str) -> None:
        """The attempt needs no confirmation any more."""
        claims = self._claims.get(agent_id)
        if claims is not None and task_id in claims:
            del claims[task_id]
            self._timers.clear("adoption", attempt_key(task_id, attempt))

    def overdue(self, key: str) -> None:
        """An agent has not said in time that it has the attempt of this key."""
        core = self._core
        entry, held = core.attempts.meant(key)
        self.release(entry.task.id, held.attempt, held.agent_id)
        failure = Failure(kind="agent_lost", message=f"{held.agent_id} did not report after a coordinator restart")
        core.attempts.lost(entry, held.attempt, failure, "losses", core.policy.fence_s)

    def held_by(self, agent: Agent) -> list[TaskId]:
        """The attempts that the book has at this agent, whether the agent confirmed them or has yet to."""
        return [*agent.outstanding, *self._claims.get(agent.id, ())]

    def reconcile(self, agent: Agent, running: tuple[Running, ...]) -> None:
        """Bring the book and what the agent says it runs together."""
        core = self._core
        said = {(r.task_id, r.attempt, r.epoch): r for r in running}
        for task_id in self.held_by(agent):
            entry = core.book.open[task_id]
            held = entry.at(agent.id)
            token = (task_id, held.attempt, held.epoch)
            self.release(task_id, held.attempt, agent.id)
            if token in said and held.incarnation == agent.incarnation:
                del said[token]
                core.attempts.confirm(entry, agent, held.attempt)
            else:
                agent.outstanding.pop(task_id, None)
                over_in_s = 0.0
                if held.incarnation != agent.incarnation:
                    over_in_s = core.policy.fence_s
                elif entry.task.exclusive:  # this may be a report from before it had it
                    core.stopping.tell(agent, Running(*token))
                failure = Failure(kind="agent_lost", message="its agent does not have it")
                core.attempts.lost(entry, held.attempt, failure, "losses", over_in_s)
        for one in said.values():
            self._adopt_or_stop(agent, one)

    def _adopt_or_stop(self, agent: Agent, one: Running) -> None:
        """The agent runs something that the book does not expect there: keep it if nobody else has it."""
        core = self._core
        entry = core.book.open.get(one.task_id)
        # Not from an epoch before the last attempt's, whatever its number: its fence would be the lower one. Where the
        # last one started was a second attempt, which has ended, its epoch is not known any more.
        fresh = entry is not None and one.attempt > entry.attempts == entry.attempt
        fresh = fresh and entry is not None and entry.epoch <= one.epoch < core.epoch
        token = (one.task_id, one.attempt, one.epoch)
        # It may have heard already that it shall stop, or have answered since: then this report is from before.
        fresh = fresh and token not in agent.stopping and token not in agent.over
        if entry is None or not fresh or entry.state not in (TaskState.QUEUED, TaskState.BACKING_OFF):
            core.stopping.tell(agent, one)
            return
        core.placing.leave(entry)
        self._timers.clear("backoff", one.task_id)
        choice = Choice("adopted", 1, ((agent.id, agent.load),))
        core.commit(
            StartAttempt(one.task_id, one.attempt, one.epoch, agent.id, agent.incarnation, core.now, "adopted", choice)
        )
        core.attempts.confirm(entry, agent, one.attempt)

"""`--kill-one`: end one busy agent with SIGKILL while a run is under way, and tell what became of its tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flowray.errors import FlowrayError

if TYPE_CHECKING:
    from flowray.core.model import Outcome
    from flowray.runtime.jobs import JobEvent
    from flowray.runtime.runtime import Runtime

_SHARE = 0.3  # of the tasks that must be done before


@dataclass(slots=True)
class KillOne:
    """Kills once, then watches."""

    runtime: Runtime
    remark: Callable[[str], None]
    killed: str = ""  # the agent; "" until it is
    moved: list[str] = field(default_factory=list)  # tasks that went elsewhere

    def __call__(self, event: JobEvent) -> None:
        """Look at one event of the job."""
        if not self.killed:
            own, all_own = event.done - event.resumed, event.expected - event.resumed
            if own >= 1 and own >= _SHARE * all_own and event.open:
                self._kill()
        elif event.outcome is not None and event.outcome.attempts > 1:
            self._tell(event.outcome)

    def facts(self) -> dict[str, object]:
        """For the report: who was killed and what became of its tasks."""
        return {"killed": self.killed, "tasks_moved": len(self.moved)}

    def _kill(self) -> None:
        """The agent with the most to lose; none busy at this moment means another try at the next event."""
        busy = [a for a in self.runtime.status().agents if a.state == "ready" and a.held and a.pid]
        if not busy:
            return
        victim = max(busy, key=lambda a: (a.held, a.tier == "secondary", a.agent_id))
        try:
            self.runtime.kill_agent(victim.agent_id)
        except FlowrayError as error:  # it went by itself, or lives on another node
            self.remark(f"could not kill {victim.agent_id}: {error}")
            return
        self.killed = victim.agent_id
        tasks = f"{victim.held} task{'' if victim.held == 1 else 's'}"
        self.remark(f"killed {victim.tier}/{victim.agent_id} (process {victim.pid}) while it held {tasks}")

    def _tell(self, outcome: Outcome) -> None:
        lost = [line for line in outcome.story if line.what == "requeued" and line.agent_id == self.killed]
        if not lost or outcome.task_id in self.moved:
            return
        self.moved.append(outcome.task_id)
        again = next((line for line in outcome.story if line.what == "started" and line.at >= lost[0].at), None)
        if again is not None:
            took = f"{1000 * (again.at - lost[0].at):.0f} ms after the loss was noticed"
            self.remark(f"failover: task {outcome.task_id} went on to {again.agent_id}, {took}")

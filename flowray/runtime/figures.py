"""What the core decided since this coordinator began, counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flowray.core.commands import Command, Promote, RecordMismatch, RequeueTask, StartAgent, StartAttempt


@dataclass(slots=True)
class Figures:
    """Counts since this coordinator began; an observer of the pump."""

    attempts: int = 0
    failovers: int = 0  # attempts lost with their agent
    retries: int = 0  # attempts that failed and are tried again
    hedges: int = 0  # attempts beside one that took long
    copies: int = 0  # attempts at the same time as another
    restarts: int = 0  # agents started again
    promotions: int = 0  # processes of stateful agents that took over from another
    mismatches: int = 0  # standbys that had another state than the active process

    def __call__(self, command: Command) -> None:
        """One more command. Two of three are of kinds that nothing is counted of."""
        count = _COUNTED.get(type(command))
        if count is not None:
            count(self, command)

    def _started(self, command: StartAttempt) -> None:
        self.attempts += 1
        if command.reason == "hedge":
            self.hedges += 1
        elif command.reason == "copy":
            self.copies += 1

    def _requeued(self, command: RequeueTask) -> None:
        self.retries += command.arrow == "failed"
        self.failovers += command.counts in ("kills", "losses")

    def _agent_started(self, command: StartAgent) -> None:
        self.restarts += command.incarnation > 1

    def _promoted(self, command: Promote) -> None:
        self.promotions += command.term > 1

    def _mismatched(self, command: RecordMismatch) -> None:
        self.mismatches += 1

    def counts(self) -> dict[str, int]:
        """All of them, by name."""
        return {
            "attempts": self.attempts,
            "failovers": self.failovers,
            "retries": self.retries,
            "hedges": self.hedges,
            "copies": self.copies,
            "restarts": self.restarts,
            "promotions": self.promotions,
            "mismatches": self.mismatches,
        }


_COUNTED: dict[type, Callable[[Figures, Any], None]] = {
    StartAttempt: Figures._started,
    RequeueTask: Figures._requeued,
    StartAgent: Figures._agent_started,
    Promote: Figures._promoted,
    RecordMismatch: Figures._mismatched,
}

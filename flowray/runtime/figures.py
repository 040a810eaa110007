"""What the core decided since this coordinator began, counted."""

from __future__ import annotations

from dataclasses import dataclass

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
        if isinstance(command, StartAttempt):
            self.attempts += 1
            self.hedges += command.reason == "hedge"
            self.copies += command.reason == "copy"
        elif isinstance(command, RequeueTask):
            self.retries += command.arrow == "failed"
            self.failovers += command.counts in ("kills", "losses")
        elif isinstance(command, StartAgent):
            self.restarts += command.incarnation > 1
        elif isinstance(command, Promote):
            self.promotions += command.term > 1
        elif isinstance(command, RecordMismatch):
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

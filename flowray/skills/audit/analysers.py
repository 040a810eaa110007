"""What the job needs to know of each analyser: what calls for it, and how much source makes one task.

Measured on the standard library without its tests (734 files, 12.1 MB, CPython 3.11, seconds of one core, parsing
included): security 8.9, complexity 6.9, deadcode 6.4, names 5.5, exceptions 3.6, documentation 2.5, cycles 2.3,
duplicates 1.0, blocking 0.2, unicode 0.2. `pace` makes the tasks of the slow and the fast about equally long, and the
copies in `team.py` follow the totals.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Analyser:
    """One analysis, as the planner of tasks sees it."""

    skill: str
    scope: str  # files: chunks of a package; triggered: those that call for it; package: all at once; tree: several
    pace: float  # source in one task, in units of `chunk_kb`; 1 for the slowest
    options: tuple[str, ...] = ()  # of AuditOptions, that go into its tasks

    @property
    def capability(self) -> str:
        """What an agent must have to do it."""
        return f"audit.{self.skill}"


ANALYSERS: tuple[Analyser, ...] = (
    Analyser("security", "files", 1.0),
    Analyser("complexity", "files", 1.25),
    Analyser("deadcode", "files", 1.25, ("dead_code_confidence",)),
    Analyser("names", "files", 1.5),
    Analyser("exceptions", "files", 2.0),
    Analyser("documentation", "files", 2.5),
    Analyser("blocking", "triggered", 2.0),
    Analyser("unicode", "triggered", 2.0),
    Analyser("duplicates", "package", 1.0),
)
CYCLES = Analyser("cycles", "tree", 1.0)

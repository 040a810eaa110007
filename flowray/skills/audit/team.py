"""Who does an audit: the default tiered team of 24 agents.

The copies of the secondaries follow the measured cost of their analyses (`analysers.py`), so that no analyser is the
one that everybody waits for. Importing this module imports none of the third-party analysers.
"""

from __future__ import annotations

from dataclasses import dataclass

from flowray.agents import describe
from flowray.jobs import LocalAgent
from flowray.skills.audit.blocking import BlockingSpecialist
from flowray.skills.audit.combining import Combiner
from flowray.skills.audit.complexity import ComplexityAnalyser
from flowray.skills.audit.cycles import CyclesSpecialist
from flowray.skills.audit.deadcode import DeadCodeAnalyser
from flowray.skills.audit.documentation import DocumentationAnalyser
from flowray.skills.audit.duplicates import DuplicatesSpecialist
from flowray.skills.audit.exceptions import ExceptionsAnalyser
from flowray.skills.audit.names import NamesAnalyser
from flowray.skills.audit.planning import Orchestrator
from flowray.skills.audit.security import SecurityAnalyser
from flowray.skills.audit.unicode import UnicodeSpecialist


@dataclass(frozen=True, slots=True)
class Member:
    """One kind of agent of the team, and how many of it."""

    name: str
    agent: type  # its constructor takes no arguments
    count: int

    @property
    def tier(self) -> str:
        """As the class declares it."""
        return describe(self.agent).tier

    @property
    def capabilities(self) -> tuple[str, ...]:
        """As the class declares them, sorted."""
        return tuple(sorted(describe(self.agent).capabilities))

    @property
    def path(self) -> str:
        """`module:Class`, for a team file."""
        return f"{self.agent.__module__}:{self.agent.__qualname__}"


TEAM: tuple[Member, ...] = (
    Member("orchestrator", Orchestrator, 1),
    Member("combiner", Combiner, 3),
    Member("complexity", ComplexityAnalyser, 3),
    Member("names", NamesAnalyser, 3),
    Member("security", SecurityAnalyser, 4),
    Member("deadcode", DeadCodeAnalyser, 3),
    Member("documentation", DocumentationAnalyser, 1),
    Member("exceptions", ExceptionsAnalyser, 2),
    Member("blocking", BlockingSpecialist, 1),
    Member("cycles", CyclesSpecialist, 1),
    Member("duplicates", DuplicatesSpecialist, 1),
    Member("unicode", UnicodeSpecialist, 1),
)


def local_team() -> list[LocalAgent]:
    """One of each in this process, for `run_sequentially`.

    Raises:
        MissingExtra: an analyser is not installed.
    """
    return [LocalAgent.make(member.name, member.agent) for member in TEAM]

"""Test agents, tasks and failures without Ray: a simulated cluster with virtual time and faults on demand.

    from flowray.testing import Crash, Simulation

`python -m flowray.testing --seeds 1000` runs flowray's own swarm of simulations.
"""

from flowray.testing.clock import Distribution, Fixed, LogNormal, Uniform
from flowray.testing.faults import (
    AgentStartFailure,
    CoordinatorCrash,
    CoordinatorZombie,
    Crash,
    Delay,
    Drop,
    Duplicate,
    FalseDeath,
    Fault,
    Hang,
    LostTail,
    Reorder,
    Slow,
    SlowDisk,
)
from flowray.testing.invariants import Violation
from flowray.testing.simulation import Handle, Handles, Simulation
from flowray.testing.swarm import SeedReport, run_seed

__all__ = [
    "AgentStartFailure",
    "CoordinatorCrash",
    "CoordinatorZombie",
    "Crash",
    "Delay",
    "Distribution",
    "Drop",
    "Duplicate",
    "FalseDeath",
    "Fault",
    "Fixed",
    "Handle",
    "Handles",
    "Hang",
    "LogNormal",
    "LostTail",
    "Reorder",
    "SeedReport",
    "Simulation",
    "Slow",
    "SlowDisk",
    "Uniform",
    "Violation",
    "run_seed",
]

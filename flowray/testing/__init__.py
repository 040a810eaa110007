"""Test agents, tasks and failures without Ray: a simulated cluster with virtual time and faults on demand.

    from flowray.testing import Crash, Simulation

`python -m flowray.testing --seeds 1000` runs flowray's own swarm of simulations.

`ReplayAgent` answers from a set of recorded outcomes, here or in a real runtime: `replay_specs` gives a class of agents
for each recorded agent, `replay_requests` the tasks. `make_outcomes` makes a small set.
"""

from flowray.testing.clock import Distribution, Fixed, LogNormal, Uniform
from flowray.testing.faults import (
    AgentCrashLoop,
    AgentStartFailure,
    BitFlip,
    ClockJump,
    CoordinatorCrash,
    CoordinatorCrashLoop,
    CoordinatorZombie,
    Crash,
    CrashMidway,
    Delay,
    Drain,
    Drop,
    Duplicate,
    FalseDeath,
    Fault,
    FullDisk,
    Hang,
    LateNews,
    LostTail,
    Partition,
    Reorder,
    Slow,
    SlowDisk,
    SyncError,
    TornWrite,
)
from flowray.testing.outcome_sets import make_outcomes
from flowray.testing.replay import Recorded, ReplayAgent, ReplaySpec, replay_requests, replay_specs, replay_tasks
from flowray.testing.simulation import Handle, Handles, Simulation
from flowray.testing.swarm import SeedReport, run_seed
from flowray.testing.violations import Violation

__all__ = [
    "AgentCrashLoop",
    "AgentStartFailure",
    "BitFlip",
    "ClockJump",
    "CoordinatorCrash",
    "CoordinatorCrashLoop",
    "CoordinatorZombie",
    "Crash",
    "CrashMidway",
    "Delay",
    "Distribution",
    "Drain",
    "Drop",
    "Duplicate",
    "FalseDeath",
    "Fault",
    "Fixed",
    "FullDisk",
    "Handle",
    "Handles",
    "Hang",
    "LateNews",
    "LogNormal",
    "LostTail",
    "Partition",
    "Recorded",
    "Reorder",
    "ReplayAgent",
    "ReplaySpec",
    "SeedReport",
    "Simulation",
    "Slow",
    "SlowDisk",
    "SyncError",
    "TornWrite",
    "Uniform",
    "Violation",
    "make_outcomes",
    "replay_requests",
    "replay_specs",
    "replay_tasks",
    "run_seed",
]

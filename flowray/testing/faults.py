"""What can go wrong, as values: `Simulation(seed=7, agents=8, faults=[Crash(share=0.5, at_s=3)])`.

A fault with `at_s` happens once; one with `rate_per_s` happens again and again, at random times with that mean rate,
until the faults are stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from flowray.errors import ConfigError


class Fault:
    """The root of all faults: it checks the ranges that its fields' names imply."""

    __slots__ = ()

    def __post_init__(self) -> None:
        name = type(self).__name__
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        for field, value in values.items():
            if value is None:
                continue
            if field in ("share", "ratio", "hang_ratio") and not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name}.{field}", f"must be within [0, 1], got {value}")
            if value < 0:
                raise ConfigError(f"{name}.{field}", f"must not be negative, got {value}")
        if "at_s" in values and (values["at_s"] is None) == (values["rate_per_s"] is None):
            raise ConfigError(name, "say either at_s or rate_per_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash(Fault):
    """Agent processes end, as by `kill -9`. The notice of it comes up to `notice_s` later."""

    share: float = 0.0  # of the agents alive at `at_s`; with a rate, one agent each time
    at_s: float | None = None
    rate_per_s: float | None = None
    notice_s: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class FalseDeath(Fault):
    """An agent is reported dead and lives on for up to `lives_on_s`: for a while there are two of it."""

    at_s: float | None = None
    rate_per_s: float | None = None
    lives_on_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain(Fault):
    """Somebody wants an agent to leave its process. (No fault, but it comes when nobody counts on it.)"""

    at_s: float | None = None
    rate_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang(Fault):
    """Agent processes stop without a word, as by `kill -STOP`; nobody is told."""

    share: float = 0.0
    at_s: float | None = None
    rate_per_s: float | None = None
    lasts_s: float = 10.0  # then they go on where they were; they stay hung with float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow(Fault):
    """A share of the agents takes `factor` times as long for everything."""

    factor: float
    share: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop(Fault):
    """Messages are lost. Between coordinator and agent that breaks the stream, and the agent connects again."""

    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate(Fault):
    """Messages arrive twice."""

    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay(Fault):
    """Messages take up to `max_s` longer; most of them far less."""

    max_s: float
    ratio: float = 0.2  # of the messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Reorder(Fault):
    """Messages overtake those sent before them on the same stream."""

    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorCrash(Fault):
    """The coordinator ends and is started again, in a new epoch, after `down_s`."""

    at_s: float | None = None
    rate_per_s: float | None = None
    down_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorZombie(Fault):
    """The coordinator is paused and replaced; then the old one goes on with its old memory."""

    at_s: float | None = None
    rate_per_s: float | None = None
    pause_s: float = 5.0
    replaced_after_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LostTail(Fault):
    """At a crash of the coordinator nothing that was not synced survives, with this probability."""

    ratio: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStartFailure(Fault):
    """Constructors raise (`ratio`) or never return (`hang_ratio`)."""

    ratio: float = 0.2
    hang_ratio: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowDisk(Fault):
    """Every sync of the journal takes up to this long."""

    sync_s: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashMidway(Fault):
    """The coordinator ends between two effects of one event: after so many events on average."""

    ratio: float
    down_s: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorCrashLoop(Fault):
    """A coordinator that was just started ends again within `within_s`, with this probability."""

    ratio: float
    within_s: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCrashLoop(Fault):
    """Processes of agents that were just started end within `within_s`, with this probability."""

    ratio: float
    within_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition(Fault):
    """A share of the agents and the coordinator do not reach each other; with `one_way`, in one direction only.

    What is sent meanwhile is held, and arrives afterwards unless the stream was given up. With `staggered` the agents
    are cut off one after another, and come back in another order.
    """

    share: float = 0.5
    at_s: float | None = None
    rate_per_s: float | None = None
    lasts_s: float = 5.0
    one_way: bool = False
    staggered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockJump(Fault):
    """The clock of each life of the coordinator is wrong by up to this much, either way."""

    max_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncError(Fault):
    """A sync of the journal fails: the process must end, for what was in it may be gone."""

    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FullDisk(Fault):
    """No sync of the journal ends for up to `lasts_s`: the disk is full, or stalls."""

    at_s: float | None = None
    rate_per_s: float | None = None
    lasts_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TornWrite(Fault):
    """At a crash of the coordinator a part of the group being written is on disk, with this probability."""

    ratio: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BitFlip(Fault):
    """A coordinator that starts reads one wrong bit of the journal, with this probability."""

    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OddState(Fault):
    """A process of a stateful agent tells, as a standby, not the digest of its state, with this probability."""

    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFailure(Fault):
    """A snapshot of a stateful agent fails, with this probability."""

    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LateNews(Fault):
    """Agents hear of a new coordinator up to `max_s` late, and stay with the one that they know until then."""

    max_s: float = 15.0

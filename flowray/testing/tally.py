"""How often each kind of fault struck a world: what is drawn says little of what befell it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowray.testing.world import World

_POINTS = {  # fault -> the points that a world comes by when it strikes
    "AgentCrashLoop": ("agent crashed again",),
    "AgentStartFailure": ("agent start failed", "agent start hung"),
    "BitFlip": ("damaged journal refused",),
    "ClockJump": ("clock ahead", "clock behind"),
    "CoordinatorCrash": ("coordinator crashed",),
    "CoordinatorCrashLoop": ("coordinator crashed again",),
    "CoordinatorZombie": ("coordinator paused",),
    "CrashMidway": ("crashed between two effects",),
    "Drain": ("asked to leave", "node drained"),
    "FalseDeath": ("reported dead and lives on",),
    "FullDisk": ("disk full",),
    "Hang": ("agent hung",),
    "LateNews": ("heard late of a new coordinator",),
    "LostTail": ("tail lost",),
    "SyncError": ("sync failed",),
    "TornWrite": ("torn write dropped",),
}


def faults_struck(world: World) -> dict[str, int]:
    """Kind of fault -> how often it struck; messages, processes and syncs are counted one by one."""
    network, sometimes = world.network, world.sometimes
    counts = {kind: sum(sometimes[point] for point in points) for kind, points in _POINTS.items()}
    counts |= {
        "Crash": world.crashes,
        "Delay": network.delayed,
        "Drop": network.dropped,
        "Duplicate": network.duplicated,
        "Partition": world.partitions.cuts,
        "Reorder": network.reordered,
        "Slow": world.slowed,
        "SlowDisk": world.slow_syncs,
    }
    return {kind: count for kind, count in sorted(counts.items()) if count}

"""All policies of the core in one value, and the few bounds that belong to no part."""

from __future__ import annotations

from msgspec import Struct

from flowray.core.acting import ActingPolicy
from flowray.core.admission import AdmissionPolicy
from flowray.core.draining import DrainPolicy
from flowray.core.fencing import STOP_S
from flowray.core.placement import PlacementPolicy
from flowray.core.registry import RestartPolicy
from flowray.core.retry import RetryPolicy
from flowray.core.routing import RoutingPolicy
from flowray.core.stateful import StatefulPolicy
from flowray.core.streaming import StreamingPolicy
from flowray.errors import ConfigError


class CorePolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All policies of the core, and the few bounds that belong to no part."""

    admission: AdmissionPolicy = AdmissionPolicy()
    retry: RetryPolicy = RetryPolicy()
    placement: PlacementPolicy = PlacementPolicy()
    routing: RoutingPolicy = RoutingPolicy()
    restart: RestartPolicy = RestartPolicy()
    drain: DrainPolicy = DrainPolicy()
    acting: ActingPolicy = ActingPolicy()
    streaming: StreamingPolicy = StreamingPolicy()
    stateful: StatefulPolicy = StatefulPolicy()
    cancel_grace_s: float = 5.0  # a cancelled attempt may hold its slot this long; then its agent is restarted
    adoption_s: float = 5.0  # after a restart: how long agents have to say what they are running
    fence_s: float = 11.0  # an exclusive task waits so long where its last attempt may go on; agents end it 1 s before
    fence_all: bool = False  # agents end all attempts so, not exclusive ones alone: a node that is cut off does nothing
    # more by then, but neither does one whose coordinator is only away for longer than that
    start_timeout_s: float = 120.0  # an agent asked for must be ready within this, or it is asked for again

    def __post_init__(self) -> None:
        for name in ("cancel_grace_s", "adoption_s", "start_timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(name, f"must be positive, got {getattr(self, name)}")
        if self.fence_s < 2 * STOP_S:
            raise ConfigError("fence_s", f"must be at least {2 * STOP_S:g}, got {self.fence_s}", "11 is usual")

    @property
    def lease_s(self) -> float:
        """How long an agent's process may run exclusive attempts after its coordinator's last word."""
        return self.fence_s - STOP_S

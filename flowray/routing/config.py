"""How a router is served, and how patient those are who ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from msgspec import Struct

from flowray.core.breaker import BreakerPolicy
from flowray.core.hedging import HedgePolicy
from flowray.errors import ConfigError


class ServingConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Ray Serve application that answers for a router."""

    router: str  # directory of the router, the same on every node
    history: str = ""  # directory of outcomes, the same on every node; "" for none
    precision: Literal["auto", "float32", "int8"] = "auto"
    name: str = "flowray-router"  # of the Serve application
    min_replicas: int = 1
    max_replicas: int = 2
    target_ongoing: float = 2.0  # calls per replica, above which Serve adds replicas and below which it takes some away
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 60.0
    num_cpus: float = 0.1  # reserved for each replica
    max_ongoing: int = 4  # calls at one replica at once; they are computed one after another
    max_queued: int = 32  # calls of one caller that wait for a replica; more are refused at once
    max_tasks: int = 256  # in one call
    health_check_period_s: float = 2.0  # a replica that fails three in a row is replaced
    health_check_timeout_s: float = 5.0
    ready_s: float = 120.0  # for a version to be loaded everywhere; a long history takes its time

    def __post_init__(self) -> None:
        for name in ("router", "history"):
            directory = getattr(self, name)
            if directory and not Path(directory).is_absolute():
                raise ConfigError(f"serving.{name}", f"wants an absolute path, got {directory!r}")
        if not self.router or not self.name:
            raise ConfigError("serving.router" if self.name else "serving.name", "must not be empty")
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ConfigError("serving.min_replicas", f"must be between 1 and max_replicas, got {self.min_replicas}")
        for name in ("max_ongoing", "max_queued", "max_tasks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"serving.{name}", f"must be at least 1, got {getattr(self, name)}")
        for name in ("upscale_delay_s", "downscale_delay_s", "num_cpus"):
            if getattr(self, name) < 0:
                raise ConfigError(f"serving.{name}", f"must not be negative, got {getattr(self, name)}")
        for name in ("target_ongoing", "health_check_period_s", "health_check_timeout_s", "ready_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"serving.{name}", f"must be positive, got {getattr(self, name)}")


class AskingConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long to wait for a served router, and when to leave it alone."""

    deadline_s: float = 0.25  # for callers that say nothing
    hedge: HedgePolicy = HedgePolicy()  # when to ask a second time without waiting any longer for the first
    breaker: BreakerPolicy = BreakerPolicy()  # when to stop asking who does not answer

    def __post_init__(self) -> None:
        if self.deadline_s <= 0:
            raise ConfigError("asking.deadline_s", f"must be positive, got {self.deadline_s}")

"""Who is measured against whom: a side is a worker, its settings, and the environment it runs in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench.environments import python_of, versions_of
from bench.measure import Figures, Plan
from bench.processes import run_worker

_PACKAGES = {"xoscar": ("xoscar",), "autogen": ("autogen-core", "autogen-ext", "grpcio")}


@dataclass(frozen=True, slots=True)
class Side:
    """How one side of a measurement is run."""

    worker: str  # in bench.workers
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: str = ""  # a peer's, see bench.environments; "" is the project's own

    def turn(self, length: Mapping[str, Any], timeout_s: float) -> Figures:
        """Run it once, for as long as `length` says.

        Raises:
            SideAbsent: it cannot take part; its environment cannot be made, or it says so.
            SideFailed: it gave no figures.
        """
        settings = {**length, **self.settings}
        if not self.environment:
            return run_worker(self.worker, settings, timeout_s=timeout_s)
        return run_worker(self.worker, settings, timeout_s=timeout_s, python=python_of(self.environment))


def turns_of(
    sides: Mapping[str, Side], plan: Plan, length: Mapping[str, Any], timeout_s: float
) -> dict[str, Callable[[], Figures]]:
    """The sides that the plan wants, ready to be called."""
    return {name: partial(side.turn, length, timeout_s) for name, side in sides.items() if plan.wants(name)}


def versions(sides: Mapping[str, Side], present: Iterable[str]) -> dict[str, str]:
    """Of what only those who were there use."""
    environments = dict.fromkeys(sides[name].environment for name in present)
    return {
        package: version
        for environment in environments
        if environment
        for package, version in versions_of(environment, _PACKAGES[environment]).items()
    }

"""Placement groups, as rows of places for processes.

A placement group cannot be resized and is scarce, so a pool is a row of small detached groups ("blocks"), each with
`agents_per_block` places for processes of one agent class: a pool grows and shrinks by blocks. A place that a process
has left is taken again before a block is added.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import ray
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group

from flowray.config import Config, TierConfig
from flowray.core.model import AgentSpec


class Place(NamedTuple):
    """Room for one process: a bundle of a placement group."""

    block: str  # full name of the group
    bundle: int


class Blocks:
    """All blocks of one runtime. Its methods call Ray's control plane and block; they may be called from threads."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._prefix = f"flowray/{config.name}/"
        self._groups: dict[str, PlacementGroup] = {}
        self._free: dict[str, list[Place]] = {}  # class -> places that nobody has
        self._made: dict[str, int] = {}  # class -> number of its next block
        self._lock = threading.Lock()
        self._cluster: dict[str, float] = {}

    def tier(self, spec: AgentSpec) -> TierConfig:
        """The tier of a class."""
        return self._config.tiers.get(spec.tier, TierConfig())

    def take(self, spec: AgentSpec) -> tuple[PlacementGroup, Place]:
        """A place for a process of this class; a block is added where there is none."""
        with self._lock:
            self._learn(spec)
            free = self._free[spec.name]
            if not free:
                self._add_block(spec)
            place = free.pop(0)
            return self._groups[place.block], place

    def has_room(self, spec: AgentSpec) -> bool:
        """Could one more process be placed now, as far as the cluster's free resources say?"""
        with self._lock:
            self._learn(spec)
            if self._free[spec.name]:
                return True
            bundle = self.bundle(spec)
            free = ray.available_resources()
            return all(free.get(name, 0.0) >= amount for name, amount in bundle.items())

    def give_back(self, spec_name: str, place: Place) -> None:
        """The process there is gone."""
        with self._lock:
            free = self._free.setdefault(spec_name, [])
            if place not in free:
                free.append(place)

    def claim(self, spec: AgentSpec, place: Place) -> None:
        """A process was found there after a restart of the coordinator."""
        with self._lock:
            self._learn(spec)
            if place in self._free[spec.name]:
                self._free[spec.name].remove(place)

    def bundle(self, spec: AgentSpec) -> dict[str, float]:
        """What one process reserves: its agents' own figure, or their share of their tier's part of the cluster."""
        if not self._cluster:
            self._cluster = ray.cluster_resources()
        tier = self.tier(spec)
        cpus = spec.num_cpus or tier.cpu_share * self._cluster.get("CPU", 1.0) / tier.agents
        memory = spec.memory_bytes or int(tier.memory_share * self._cluster.get("memory", 0.0) / tier.agents)
        bundle = {"CPU": max(0.001, int(cpus * tier.agents_per_actor * 1000) / 1000)}
        if memory >= 1 << 20:
            bundle["memory"] = float(memory * tier.agents_per_actor >> 20 << 20)
        return bundle

    def missing(self) -> dict[str, str]:
        """Blocks that are not in place -> their state."""
        tables = ray.util.placement_group_table().values()
        return {
            t["name"].removeprefix(self._prefix): t["state"]
            for t in tables
            if t["name"].startswith(self._prefix) and t["state"] not in ("CREATED", "REMOVED")
        }

    def remove_all(self) -> None:
        """Every block of this runtime, known here or not."""
        for table in ray.util.placement_group_table().values():
            if table["name"].startswith(self._prefix) and table["state"] != "REMOVED":
                remove_placement_group(get_placement_group(table["name"]))

    def _class_prefix(self, spec: AgentSpec) -> str:
        return f"{self._prefix}{spec.tier}/{spec.name}/"

    def _learn(self, spec: AgentSpec) -> None:
        """The blocks that an earlier coordinator made."""
        if spec.name in self._made:
            return
        prefix = self._class_prefix(spec)
        places: list[Place] = self._free.setdefault(spec.name, [])
        number = 0
        for table in ray.util.placement_group_table().values():
            if table["name"].startswith(prefix) and table["state"] != "REMOVED":
                group = get_placement_group(table["name"])
                self._groups[table["name"]] = group
                places.extend(Place(table["name"], index) for index in range(group.bundle_count))
                number = max(number, int(table["name"].removeprefix(prefix)) + 1)
        places.sort()
        self._made[spec.name] = number

    def _add_block(self, spec: AgentSpec) -> None:
        tier, number = self.tier(spec), self._made[spec.name]
        known = sum(1 for name in self._groups if name.startswith(self._class_prefix(spec)))
        wanted = -(-spec.count // tier.agents_per_actor)  # processes
        size = max(1, min(tier.agents_per_block, wanted - known * tier.agents_per_block))
        name = f"{self._class_prefix(spec)}{number}"
        self._groups[name] = placement_group(
            [self.bundle(spec)] * size,
            strategy="SPREAD" if tier.spread and size > 1 else "PACK",
            name=name,
            lifetime="detached",
            bundle_label_selector=[tier.labels] * size if tier.labels else None,
        )
        self._made[spec.name] = number + 1
        self._free[spec.name].extend(Place(name, index) for index in range(size))

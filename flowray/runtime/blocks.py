"""Placement groups, as rows of places for processes.

A placement group cannot be resized and is scarce, so a pool is a row of small detached groups ("blocks"), each with
`agents_per_block` places for processes of one agent class: a pool grows and shrinks by blocks. A place that a process
has left is taken again before a block is added.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from typing import NamedTuple

import ray
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group

from flowray.config import Config, TierConfig
from flowray.core.model import AgentSpec

# Ray's words for what becomes of a placement group, and which is to be preferred.
LATELY_S = 0.2  # what Ray's control plane has said so lately is not asked again: many agents start at once
ROOM_S = 1.0  # for Ray to find room for a block, where there is some
_IN_PLACE, _ITS_NODE_WAS_LOST, _WAITS = "CREATED", "RESCHEDULING", "PENDING"
_RANK = {_IN_PLACE: 0, _ITS_NODE_WAS_LOST: 1}


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
        self._tried: set[str] = set()  # blocks for which room is looked for that nobody needs
        self._lock = threading.Lock()
        self._cluster: dict[str, float] = {}
        self._states_known: dict[str, str] = {}
        self._states_at = float("-inf")  # monotonic

    def tier(self, spec: AgentSpec) -> TierConfig:
        """The tier of a class."""
        return self._config.tiers.get(spec.tier, TierConfig())

    def take(self, spec: AgentSpec, avoid: Collection[str] = ()) -> tuple[PlacementGroup, Place]:
        """A place for a process of this class, on none of the nodes `avoid`; a block is added where there is none.

        A place that is there goes before one that Ray has found no room for yet.
        """
        with self._lock:
            self._learn(spec)
            free = self._usable(spec, avoid)
            if not free:
                self._add_block(spec, 1 if avoid else 0, _off(avoid))
                free = self._usable(spec, avoid)
            place = free[0]
            if len(free) > 1:
                states = self._states_lately()
                place = min(free, key=lambda one: _RANK.get(states.get(one.block, ""), len(_RANK)))
            self._free[spec.name].remove(place)
            return self._groups[place.block], place

    def take_apart(
        self, spec: AgentSpec, node_id: str, wait_s: float, avoid: Collection[str] = ()
    ) -> tuple[PlacementGroup, Place] | None:
        """A place on any node but this one and those to `avoid`; None when there is none in `wait_s`.

        Places of the class on that node are given up then: whoever needs them needs them elsewhere. Where there is
        none, those are that no node has: they may wait for one that is lost, apart from this one.
        """
        with self._lock:
            self._learn(spec)
            here = self._nodes()
            for place in self._free[spec.name]:
                if here.get(place, node_id) not in (node_id, *avoid):
                    self._free[spec.name].remove(place)
                    return self._groups[place.block], place
            wrong = [place for place in self._free[spec.name] if here.get(place) == node_id]
            nowhere = [place for place in self._free[spec.name] if place not in here]
            self._add_block(spec, 1, _off((node_id, *avoid)))
            place = self._free[spec.name].pop()
            group = self._groups[place.block]
            self._tried.add(place.block)
        try:
            if group.wait(wait_s):
                for one in wrong:
                    self.remove(spec.name, one)
                return group, place
            for one in (place, *nowhere):
                self.remove(spec.name, one)
            return None
        finally:
            self._tried.discard(place.block)

    def vacate(self, node_id: str) -> None:
        """Give up the places on this node that nobody has, as far as their blocks have nobody elsewhere."""
        with self._lock:
            here = self._nodes()
            there = [(name, one) for name, free in self._free.items() for one in free if here.get(one) == node_id]
        for name, place in there:
            self.remove(name, place)

    def _usable(self, spec: AgentSpec, avoid: Collection[str]) -> list[Place]:
        """The places of a class that nobody has, without those on nodes to avoid."""
        free = self._free[spec.name]
        if not avoid or not free:
            return list(free)
        here = self._nodes()
        return [place for place in free if here.get(place) not in avoid]

    def _nodes(self) -> dict[Place, str]:
        """Where the places are that Ray has found room for."""
        return {
            Place(table["name"], index): node_id
            for table in ray.util.placement_group_table().values()
            if table["name"] in self._groups and table["state"] == _IN_PLACE
            for index, node_id in table["bundles_to_node_id"].items()
        }

    def take_spare(self, spec: AgentSpec, wait_s: float, avoid: Collection[str] = ()) -> Place | None:
        """A place that nobody needs, for a process that is only to be ready. None when there is none in `wait_s`.

        A block that is not in place by then is removed: it would wait for room that agents need later, and take it
        from them. (Ray's free resources alone do not tell: they may lie on nodes where the tier is not allowed.)
        """
        with self._lock:
            self._learn(spec)
            free = self._usable(spec, avoid)
            states = self._states() if free else {}
            for place in free:
                if states.get(place.block) == _IN_PLACE:
                    self._free[spec.name].remove(place)
                    return place
            available = ray.available_resources()
            if free or any(available.get(name, 0.0) < amount for name, amount in self.bundle(spec).items()):
                return None
            self._add_block(spec, 1, _off(avoid))
            place = self._free[spec.name].pop()
            group = self._groups[place.block]
            self._tried.add(place.block)
        try:
            if group.wait(wait_s):
                return place
            self.remove(spec.name, place)
            return None
        finally:
            self._tried.discard(place.block)

    def group(self, place: Place) -> PlacementGroup:
        """The placement group that a taken place is in."""
        with self._lock:
            return self._groups[place.block]

    def waits_for_room(self, place: Place) -> bool:
        """Is its block one that Ray has not found room for yet? (One whose node was lost is another matter.)"""
        return self._states().get(place.block) == _WAITS

    def remove(self, spec_name: str, place: Place) -> None:
        """Give up a place that nobody has; its block goes if that was all of it."""
        with self._lock:
            free = self._free.setdefault(spec_name, [])
            group = self._groups.get(place.block)
            if group is None:
                return
            others = {Place(place.block, bundle) for bundle in range(group.bundle_count)} - {place}
            if not others.issubset(free):
                return
            self._free[spec_name] = [one for one in free if one.block != place.block]
            del self._groups[place.block]
        remove_placement_group(group)

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
        """Blocks that are not in place, and are needed -> their state."""
        return {
            name.removeprefix(self._prefix): state
            for name, state in self._states().items()
            if state != _IN_PLACE and name not in self._tried
        }

    def _states(self) -> dict[str, str]:
        """Every block of this runtime -> Ray's word for its state."""
        self._states_known = {
            table["name"]: table["state"]
            for table in ray.util.placement_group_table().values()
            if table["name"].startswith(self._prefix) and table["state"] != "REMOVED"
        }
        self._states_at = time.monotonic()
        return self._states_known

    def _states_lately(self) -> dict[str, str]:
        """The same as it was a moment ago."""
        return self._states_known if time.monotonic() - self._states_at < LATELY_S else self._states()

    def remove_all(self) -> None:
        """Every block of this runtime, known here or not."""
        for table in ray.util.placement_group_table().values():
            if table["name"].startswith(self._prefix) and table["state"] != "REMOVED":
                remove_placement_group(get_placement_group(table["name"]))

    def _class_prefix(self, spec: AgentSpec) -> str:
        return f"{self._prefix}{spec.tier}/{spec.name}/"

    def _learn(self, spec: AgentSpec) -> None:
        """The blocks that an earlier coordinator made, and got."""
        if spec.name in self._made:
            return
        prefix = self._class_prefix(spec)
        places: list[Place] = self._free.setdefault(spec.name, [])
        number = 0
        for name, state in self._states().items():
            if not name.startswith(prefix):
                continue
            group = get_placement_group(name)
            number = max(number, int(name.removeprefix(prefix)) + 1)
            if state == _WAITS:
                remove_placement_group(group)  # nobody is there, and nobody may want it any more
                continue
            self._groups[name] = group
            places.extend(Place(name, index) for index in range(group.bundle_count))
        places.sort()
        self._made[spec.name] = number

    def _add_block(self, spec: AgentSpec, size: int = 0, where: dict[str, str] | None = None) -> None:
        tier, number = self.tier(spec), self._made[spec.name]
        prefix = self._class_prefix(spec)
        known = sum(group.bundle_count for name, group in self._groups.items() if name.startswith(prefix))
        wanted = -(-spec.count // tier.agents_per_actor)  # processes
        size = size or max(1, min(tier.agents_per_block, wanted - known))
        name = f"{self._class_prefix(spec)}{number}"
        self._groups[name] = placement_group(
            [self.bundle(spec)] * size,
            strategy="SPREAD" if tier.spread and size > 1 else "PACK",
            name=name,
            lifetime="detached",
            bundle_label_selector=[labels] * size if (labels := {**tier.labels, **(where or {})}) else None,
        )
        self._made[spec.name] = number + 1
        self._free[spec.name].extend(Place(name, index) for index in range(size))


def _off(nodes: Collection[str]) -> dict[str, str]:
    """For Ray: on none of these nodes."""
    return {"ray.io/node-id": f"!in({','.join(sorted(nodes))})"} if nodes else {}

"""What the coordinator shows of itself: its runtime, its agents, the story of a task."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from msgspec import structs

from flowray.core.coordination import Coordination
from flowray.core.model import TaskId
from flowray.core.states import TaskState
from flowray.runtime.lookout import Lookout
from flowray.runtime.pools import Pools
from flowray.runtime.routing import RoutingDesk
from flowray.runtime.views import AgentView, RouterVersions, Status, Story, story_between, story_of
from flowray.store import Store


class Overview:
    """Reads only. Use only from the coordinator's event loop."""

    def __init__(
        self,
        name: str,
        epoch: int,
        node_id: str,
        journal: str,
        core: Coordination,
        store: Store,
        pools: Pools,
        routing: RoutingDesk | None,
    ) -> None:
        """`node_id`, `journal`: Ray's id of the coordinator's node, and where the journal is, for people."""
        self._name, self._epoch, self._node_id, self._journal = name, epoch, node_id, journal
        self._core = core
        self._store = store
        self._pools = pools
        self._routing = routing
        self._lookout = Lookout(pools.blocks)

    async def status(self) -> Status:
        """The runtime as it is."""
        core = self._core
        states = [entry.state for entry in core.book.open.values()]
        sight = await self._lookout.look()
        return Status(
            name=self._name,
            epoch=self._epoch,
            at_utc=datetime.now(UTC).isoformat(timespec="milliseconds"),
            journal=self._journal,
            journal_failed=str(self._store.failure or ""),
            ray_failed=sight.failed,
            queued=states.count(TaskState.QUEUED),
            running=states.count(TaskState.RUNNING),
            backing_off=states.count(TaskState.BACKING_OFF),
            ended={state.value: count for state, count in self._store.counts().items()},
            open_bytes=core.admission.open_bytes,
            agents=self._agents(),
            nodes=tuple(
                structs.replace(node, drained=True) if node.node_id in core.book.drained else node
                for node in sight.nodes
            ),
            blocks=sight.blocks,
            pid=os.getpid(),
            node=self._node_id,
            router=self._routing.version if self._routing is not None else "",
            router_failed=self._routing.trouble if self._routing is not None else "",
            router_trial=self._trial(),
        )

    def router_versions(self) -> RouterVersions:
        """What was decided about the router, oldest first."""
        return RouterVersions(records=tuple(self._core.book.routers))

    def _trial(self) -> str:
        versions = self._routing.versions if self._routing is not None else None
        if versions is None or versions.other_place is None:
            return ""
        return f"{versions.stage.value}: {versions.other_place.version}"

    def story(self, task_id: str) -> Story | None:
        """The log of a task, open or ended; None where nobody has heard of it."""
        entry = self._core.book.open.get(TaskId(task_id))
        if entry is not None:
            return story_between(task_id, entry.state.value, entry.accepted_at, entry.story, entry.choices, 0.0, 0.0)
        outcome = self._store.outcome(task_id)
        return None if outcome is None else story_of(outcome, self._store.grade(task_id))

    def _agents(self) -> tuple[AgentView, ...]:
        views = []
        for agent in self._core.registry.agents():
            process = self._pools.process(agent.id, agent.incarnation)
            made = process.made if process is not None else None
            spec = agent.agent_class.spec
            views.append(
                AgentView(
                    agent_id=agent.id,
                    name=spec.name,
                    tier=spec.tier,
                    state=agent.state.value,
                    incarnation=agent.incarnation,
                    node=made.address if made is not None else "",
                    pid=made.pid if made is not None else 0,
                    held=agent.held,
                    slots=agent.slots,
                    resolved=agent.resolved,
                    service_s=agent.service_s if agent.service_s >= 0 else None,
                    capabilities=spec.capabilities,
                    failure=f"{agent.failure.type}: {agent.failure.message}" if agent.failure is not None else "",
                )
            )
        return tuple(views)

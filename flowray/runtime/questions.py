"""What clients ask of the coordinator besides submitting and waiting, and what may be asked from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from flowray.core.coordination import Coordination
from flowray.core.events import AgentsAdded, AgentsDrained, CancelRequested, NodeDrained
from flowray.core.model import AgentId, AgentSpec, TaskId
from flowray.core.stateful import STANDBY
from flowray.errors import ConfigError, FlowrayError, StoreError
from flowray.runtime.figures import Figures
from flowray.runtime.grading import GradeBook
from flowray.runtime.messages import Introduction, Question, Reply
from flowray.runtime.overview import Overview
from flowray.runtime.pools import Pools
from flowray.runtime.pump import Pump
from flowray.runtime.showing import ShowDesk
from flowray.runtime.views import DeadLetter, DeadLetters
from flowray.store import Store

_FOR_ALL = frozenset(
    (
        "introduce",
        "status",
        "story",
        "outcome",
        "state",
        "cancel",
        "dead_letters",
        "dead_letter",
        "figures",
        "grade",
        "asked",
        "chunks",
    )
)  # what clients that come over the network may ask


class Questions:
    """Use only from the coordinator's event loop."""

    def __init__(
        self,
        core: Coordination,
        store: Store,
        pump: Pump,
        pools: Pools,
        figures: Figures,
        overview: Overview,
        showing: ShowDesk,
        *,
        introduce: Callable[[str], Awaitable[Introduction]],
        stop: Callable[[], Awaitable[bool]],
        offer: Callable[[str, str], Awaitable[str]],
    ) -> None:
        """`introduce` says to the client of this name who the coordinator is; `stop` ends the runtime.

        `offer` begins the trial of the router in one directory with the history in another.
        """
        self._core = core
        self._store = store
        self._pump = pump
        self._pools = pools
        self._figures = figures
        self._overview = overview
        self._showing = showing
        self._grades = GradeBook(core, store, pump)
        self._introduce = introduce
        self._stop = stop
        self._offer = offer
        self._cancels: dict[str, list[asyncio.Future[str]]] = {}  # task -> those who wait for what comes of it

    async def reply(self, client: str, question: Question, *, outside: bool) -> Reply:
        """The answer, or the error that says why there is none. `outside`: it came over the network."""
        try:
            if outside and question.what not in _FOR_ALL:
                raise ConfigError(question.what, "is not for clients outside the cluster", "do it where the runtime is")
            if question.what == "introduce":
                view: Any = await self._introduce(client)
            else:
                view = await self._answer(question)
        except FlowrayError as error:
            return Reply(error=type(error).__name__, detail=str(error), number=question.number)
        if view is None:
            detail = f"no task has the id {question.task_id}"
            return Reply(error="UnknownTask", detail=detail, number=question.number)
        return Reply(msgspec.msgpack.encode(view), number=question.number)

    def cancelled(self, task_id: str, state: str) -> None:
        """A task's cancellation was decided: its state, or "" if the core knows no such task."""
        for future in self._cancels.pop(task_id, ()):
            if not future.done():
                future.set_result(state)

    async def _answer(self, question: Question) -> Any:
        what, task_id = question.what, question.task_id
        if what == "stop":
            return await self._stop()
        if what == "status":
            return await self._overview.status()
        if what == "story":
            return self._overview.story(task_id)
        if what == "outcome":
            return self._store.outcome(task_id)
        if what == "state":
            entry = self._core.book.open.get(TaskId(task_id))
            outcome = self._store.outcome(task_id) if entry is None else None
            return entry.state.value if entry is not None else outcome.state.value if outcome is not None else None
        if what == "chunks":
            return await self._showing.page(task_id, question.first, question.restarts)
        if what == "cancel":
            return await self._cancel(task_id)
        if what == "grade":
            return await self._grades.give(task_id, question.quality, question.by)
        if what == "asked":
            asked = self._store.asked(task_id)
            return asked.text if asked is not None else "" if self._store.outcome(task_id) is not None else None
        if what == "dead_letters":
            found = self._store.dead_letters(question.limit, question.after)
            return DeadLetters(letters=tuple(DeadLetter(task=task, outcome=outcome) for task, outcome in found))
        if what == "dead_letter":
            one = self._store.dead_letter(task_id)
            return DeadLetter(task=one[0], outcome=one[1]) if one is not None else None
        if what == "purge":
            return await self._purge(task_id)
        if what == "figures":
            return {**self._figures.counts(), "warm": self._pools.warm()}
        if what == "offer_router":
            return await self._offer(question.artifact, question.history)
        if what == "router_versions":
            return self._overview.router_versions()
        if what == "add_agents" and question.spec is not None:
            return await self._add_agents(question.spec)
        if what == "drain_agents":
            self._pump.put(AgentsDrained(tuple((AgentId(name), number) for name, number in question.agents)))
            await self._pump.synced()
            return True
        if what in ("drain_node", "keep_node"):
            drained = what == "drain_node"
            self._pump.put(NodeDrained(question.node, drained))
            await self._pump.synced()
            return await self._pools.vacate(question.node) if drained else []
        if what == "process":
            process = self._pools.current(question.agent_id)
            made = process.made if process is not None and not process.gone else None
            return [made.address, made.pid] if made is not None else ["", 0]
        raise FlowrayError(f"the coordinator does not know the question {what!r}")

    async def _add_agents(self, spec: AgentSpec) -> str:
        known = self._core.book.specs.get(spec.name)
        # Two pickles of one class differ; where the class has a place of its own, that is what names it.
        code = spec.code if spec.target or known is None else known.code
        instances = self._core.book.inboxes.count(spec.name)
        standbys = self._core.book.specs.get(spec.name + STANDBY) if spec.stateful is not None else None
        if standbys is not None and standbys.stateful is None:
            raise ConfigError("name", f"{standbys.name!r} would be the standbys of {spec.name!r}, and are other agents")
        if instances and spec.stateful is None:
            raise ConfigError("name", f"{spec.name!r} is the name of stateful agents, whose state is here")
        if instances and spec.count != instances:
            problem = f"{spec.name!r} has {instances} instances with a state, over which entities are spread"
            raise ConfigError("count", f"{problem}: it cannot be {spec.count}")
        if known is not None and msgspec.structs.replace(known, count=spec.count, paths=spec.paths, code=code) != spec:
            problem = f"there are other agents called {spec.name!r}: give these another name, or change only the count"
            raise ConfigError("name", problem)
        self._pump.put(AgentsAdded(spec))
        await self._pump.synced()
        return spec.name

    async def _cancel(self, task_id: str) -> str | None:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._cancels.setdefault(task_id, []).append(future)
        self._pump.put(CancelRequested(TaskId(task_id)))
        state = await future
        if not state:
            outcome = self._store.outcome(task_id)
            return None if outcome is None else outcome.state.value
        return state

    async def _purge(self, task_id: str) -> bool:
        if self._store.dead_letter(task_id) is None:
            return False
        loop = asyncio.get_running_loop()
        future: asyncio.Future[StoreError | None] = loop.create_future()
        self._store.purge_dead_letter(task_id, _resolving(loop, future))
        error = await future
        if error is not None:
            raise error
        return True


def _resolving(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[StoreError | None]
) -> Callable[[StoreError | None], None]:
    def done(error: StoreError | None) -> None:
        loop.call_soon_threadsafe(future.set_result, error)

    return done

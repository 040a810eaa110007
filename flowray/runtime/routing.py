"""The coordinator's router: answers the core's questions in batches, and learns from what became of them.

It scores in this process: a question to another one takes as long as the answer. What comes in while one batch is
answered is the next batch. A router that is not loaded yet, or raises, costs no task: the core decides without it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flowray.core.book import Entry
from flowray.core.commands import Command, GradeTask, RequestEstimates, RequeueTask, ResolveTask
from flowray.core.events import EstimatesFailed, EstimatesReady, Event
from flowray.core.model import AGENTS_FAULT, Outcome, Task, TaskId
from flowray.core.naming import class_of
from flowray.core.states import TaskState
from flowray.routing.queries import Query, count_tools

if TYPE_CHECKING:
    from flowray.config import RouterConfig
    from flowray.routing.live import LiveRouter

BATCH = 64  # questions answered together at most: bounds how long the event loop is held


class RoutingDesk:
    """See the module. Use only from the coordinator's event loop; it is an observer of the pump too."""

    def __init__(
        self,
        load: Callable[[], LiveRouter],
        put: Callable[[Event], None],
        find: Callable[[TaskId], Entry | None],
        is_asked: Callable[[TaskId], bool],
    ) -> None:
        """`load` makes the router, in a thread; `put` hands an event to the core; `find` finds an open task.

        `is_asked` tells whether the core still waits for the estimates of a task: if not, none are made.
        """
        self._load = load
        self._put = put
        self._find = find
        self._is_asked = is_asked
        self._router: LiveRouter | None = None
        self._trouble = ""
        self._asked: deque[RequestEstimates] = deque()
        self._loading: asyncio.Task[None] | None = None
        self._settling = False  # it will be, when this turn is over

    @property
    def version(self) -> str:
        """Of the router; "" until it is loaded, and where it could not be."""
        return self._router.version if self._router is not None else ""

    @property
    def trouble(self) -> str:
        """Why the router could not be loaded; "" where it was, or is not yet."""
        return self._trouble

    def begin(self) -> None:
        """Load the router beside everything else."""
        self._loading = asyncio.get_running_loop().create_task(self._begin())

    async def _begin(self) -> None:
        try:
            self._router = await asyncio.to_thread(self._load)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with an artifact, tasks go on without it
            self._trouble = f"{type(error).__name__}: {error}"
            print(f"flowray coordinator: the router could not be loaded: {self._trouble}", file=sys.stderr, flush=True)  # noqa: T201

    def ask(self, command: RequestEstimates) -> None:
        """The core wants estimates."""
        if not self._asked:
            asyncio.get_running_loop().call_soon(self._answer)
        self._asked.append(command)

    def _answer(self) -> None:
        batch: list[RequestEstimates] = []
        while self._asked and len(batch) < BATCH:
            command = self._asked.popleft()
            if self._is_asked(command.task_id):
                batch.append(command)
        if self._asked:
            asyncio.get_running_loop().call_soon(self._answer)
        if not batch:
            return
        if self._router is None:
            self._fail(batch, self._trouble or "the router is not loaded yet")
            return
        asked = [(entry.task, each) for each in batch if (entry := self._find(each.task_id)) is not None]
        task_ids = [task.id for task, _ in asked]
        try:
            found = self._router.estimate(task_ids, [_query(task, each) for task, each in asked])
        except Exception as error:  # noqa: BLE001 - a router must not take the coordinator down
            print(f"flowray coordinator: no estimates: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
            self._fail(batch, f"{type(error).__name__}: {error}")
            return
        self._put(EstimatesReady(tuple(zip(task_ids, found, strict=True)), "local", self._router.version))

    def _fail(self, batch: Sequence[RequestEstimates], reason: str) -> None:
        self._put(EstimatesFailed(tuple(command.task_id for command in batch), reason))

    # ── learning ─────────────────────────────────────────────────────────────────────────────────────────────────

    def __call__(self, command: Command) -> None:
        """Learn from what became of attempts."""
        router = self._router
        if router is None:
            return
        if isinstance(command, ResolveTask):
            self._resolved(router, command.outcome)
        elif isinstance(command, GradeTask):
            router.regrade(command.task_id, command.quality)
        elif isinstance(command, RequeueTask) and command.counts == "failures":
            entry = self._find(command.task_id)
            if entry is not None:
                self._learn(
                    router,
                    command.task_id,
                    class_of(entry.story[-1].agent_id),
                    False,
                    quality=command.quality,
                    run_s=command.run_s or None,
                    cost_usd=command.cost_usd,
                )

    def _resolved(self, router: LiveRouter, outcome: Outcome) -> None:
        succeeded, failure = outcome.state is TaskState.SUCCEEDED, outcome.failure
        if succeeded or (failure is not None and failure.kind in AGENTS_FAULT):
            self._learn(
                router,
                outcome.task_id,
                class_of(outcome.agent_id),
                succeeded,
                quality=outcome.quality,
                run_s=outcome.run_s or None,
                cost_usd=outcome.cost_usd,
            )
        router.forget(outcome.task_id)

    def _learn(
        self,
        router: LiveRouter,
        task_id: TaskId,
        agent: str,
        succeeded: bool,
        *,
        quality: float | None,
        run_s: float | None,
        cost_usd: float | None,
    ) -> None:
        learned = router.learn(task_id, agent, succeeded, quality=quality, run_s=run_s, cost_usd=cost_usd)
        if learned and not self._settling:
            self._settling = True
            asyncio.get_running_loop().call_soon(self._settle)

    def _settle(self) -> None:
        """What came of one turn's outcomes is taken in together, when that turn is over."""
        self._settling = False
        if self._router is not None:
            self._router.settle()


def _query(task: Task, asked: RequestEstimates) -> Query:
    return Query(
        task.prompt,
        asked.candidates,
        choices=task.choices,
        tools=task.tools,
        n_tools=count_tools(task.tools),
        tried=asked.tried,
    )


def load_router(config: RouterConfig) -> LiveRouter:
    """What the configuration names. Takes seconds: the past is read, and the network gets acquainted with it.

    Raises:
        MissingExtra: torch is not installed. ArtifactError, ConfigError: the router or the history cannot be read.
    """
    from flowray.routing import live

    return live.load(config.artifact, config.history) if config.artifact else live.LiveRouter()

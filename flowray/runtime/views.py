"""What a runtime tells about itself: frozen pictures of a moment, never live internals. `render` draws them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

from flowray.core.model import Choice, Grade, Outcome, RouterRecord, StoryLine, Task


class View(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A picture that draws itself in terminals (rich) and notebooks (HTML)."""

    def __rich__(self) -> Any:
        from flowray.runtime import render  # rich is loaded when something is drawn, not with every agent

        return render.rich(self)

    def _repr_html_(self) -> str:
        from flowray.runtime import render

        return render.html(self)


class AgentView(View, frozen=True, kw_only=True, omit_defaults=True):
    """One agent."""

    agent_id: str
    name: str  # of its class
    tier: str
    state: str
    incarnation: int  # of its process, from 1; 0 before the first
    node: str = ""  # node's address; "" until its process is up
    pid: int = 0
    held: int = 0  # attempts it has now
    slots: int = 1
    resolved: int = 0  # attempts it finished since the coordinator started
    service_s: float | None = None  # moving average of its run times
    capabilities: tuple[str, ...] = ()
    failure: str = ""  # why it does not start


class AgentsView(View, frozen=True, kw_only=True):
    """All agents."""

    agents: tuple[AgentView, ...] = ()


class NodeView(View, frozen=True, kw_only=True, omit_defaults=True):
    """One node of the cluster."""

    node_id: str
    address: str
    alive: bool
    cpus: float = 0.0
    memory_bytes: int = 0
    labels: dict[str, str] = {}
    drained: bool = False  # it shall have no agents


class Status(View, frozen=True, kw_only=True, omit_defaults=True):
    """The runtime at a moment."""

    name: str
    epoch: int
    at_utc: str  # ISO 8601
    journal: str  # directory
    ray_failed: str = ""  # why Ray says nothing; `nodes` and `blocks` are as last known then
    journal_failed: str = ""  # why the journal takes nothing any more; "" while it does
    queued: int = 0
    running: int = 0
    backing_off: int = 0
    ended: dict[str, int] = {}  # terminal state -> tasks, over the journal's retention
    open_bytes: int = 0
    agents: tuple[AgentView, ...] = ()
    nodes: tuple[NodeView, ...] = ()
    blocks: dict[str, str] = {}  # placement group -> its state, where it is not CREATED
    pid: int = 0  # of the coordinator
    node: str = ""
    router: str = ""  # version of the router in use, and how many outcomes it learned; "" where none is
    router_failed: str = ""  # why there are no estimates; "" while there are, or where nobody routes
    router_trial: str = ""  # stage and version of the router's trial: shadow | canary | watched; "" while there is none


class RouterVersions(View, frozen=True, kw_only=True):
    """What was decided about the router, oldest first. The last one stands."""

    records: tuple[RouterRecord, ...] = ()


class Story(View, frozen=True, kw_only=True, omit_defaults=True):
    """The ordered log of one task, and why each of its agents was chosen."""

    task_id: str
    state: str
    accepted_at_utc: str
    lines: tuple[StoryLine, ...] = ()
    choices: tuple[Choice, ...] = ()
    accepted_at: float = 0.0  # on the coordinator's time-line: subtract it from the lines' `at`
    queue_s: float = 0.0
    run_s: float = 0.0
    grade: Grade | None = None  # the newest one of its answer


def story_of(outcome: Outcome, grade: Grade | None = None) -> Story:
    """The story of a task that has ended."""
    told = story_between(
        outcome.task_id,
        outcome.state.value,
        outcome.accepted_at,
        outcome.story,
        outcome.choices,
        outcome.queue_s,
        outcome.run_s,
    )
    return told if grade is None else msgspec.structs.replace(told, grade=grade)


def story_between(
    task_id: str,
    state: str,
    accepted_at: float,
    lines: Iterable[StoryLine],
    choices: Iterable[Choice],
    queue_s: float = 0.0,
    run_s: float = 0.0,
) -> Story:
    """A story from its parts, open or ended."""
    return Story(
        task_id=task_id,
        state=state,
        accepted_at_utc=datetime.fromtimestamp(accepted_at, UTC).isoformat(timespec="milliseconds"),
        lines=tuple(lines),
        choices=tuple(choices),
        accepted_at=accepted_at,
        queue_s=queue_s,
        run_s=run_s,
    )


class DeadLetter(View, frozen=True, kw_only=True):
    """A task that failed for good: what was asked, and what came of it."""

    task: Task
    outcome: Outcome


class DeadLetters(View, frozen=True, kw_only=True):
    """Dead letters, newest first."""

    letters: tuple[DeadLetter, ...] = ()

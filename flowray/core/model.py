"""The nouns of the core: tasks, outcomes, agents and what is remembered of them.

Everything here is frozen and crosses boundaries (journal, processes), so fields are only ever added, with defaults.
Times named `_at` are seconds on the coordinator's time-line: monotonic within one life of the coordinator, and
never going back from one life to the next.

They are trees, as are commands, events and messages, so the garbage collector has nothing to find in them (`gc=False`):
who keeps thousands of outcomes would otherwise stand still for a tenth of a second while it looks through them.
"""

from __future__ import annotations

from typing import NewType

from msgspec import Struct

from flowray.core.rollout import Evidence, RolloutStage
from flowray.core.states import TaskState
from flowray.core.streaming import SavedStream

TaskId = NewType("TaskId", str)
AgentId = NewType("AgentId", str)


class Payload(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A task's input or result: small ones inline, large ones by reference."""

    codec: str = "msgpack"  # how the bytes were made: "msgpack" (plain data) or "pickle" (any other Python object)
    data: bytes | None = None  # the bytes themselves; None when by reference
    ref: str | None = None  # content address in the payload store, "sha256:<hex>"; None when inline
    size_bytes: int = 0  # of the encoded bytes, wherever they are


class Task(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What a caller wants done. Built by the shell from user input, so it is valid by construction."""

    id: TaskId
    prompt: str = ""
    payload: Payload | None = None
    needs: tuple[str, ...] = ()  # capabilities required, sorted and unique
    tier: str = ""  # only agents of this tier; "" for any
    agent: str = ""  # only agents of this class name; "" for any
    priority: int = 0  # higher runs first
    deadline_s: float | None = None  # seconds from acceptance to the end, > 0; None for no deadline
    attempt_timeout_s: float | None = None  # longest one attempt may run, > 0; None for no limit
    max_attempts: int = 3  # attempts that may fail by the agent's own code; lost agents do not count
    key: str = ""  # idempotency key; "" for none
    fingerprint: str = ""  # digest of what was asked, to tell a repeat from a conflict
    replay_of: str = ""  # the dead letter that this task tries again
    labels: dict[str, str] = {}  # the caller's own marks; never interpreted
    choices: str = ""  # answers to choose from, where the prompt does not list them; for the router's eyes
    tools: str = ""  # "name: description" of each tool offered, separated by " ; "; for the router's eyes
    counts: dict[str, float] = {}  # `flowray.offers.COUNTS` of both, as far as they are known
    quality: float | None = None  # the cheapest candidate with this share of the best expected success is enough
    least_quality: float | None = None  # 0..1; an answer that its agent reports to be worth less is a failed attempt
    max_cost_usd: float | None = None  # what one attempt should cost at most, > 0; None for no limit
    weights: dict[str, float] = {}  # of the routing policy, for this task alone (`flowray.core.routing.WEIGHTS`)
    idempotent: bool = False  # running it twice does no harm: only then may two attempts run at the same time
    fallback: str = ""  # class of agents that gets it when the others are not up to it; "" for none
    exclusive: bool = False  # no two attempts may run at the same time, whatever that costs in time
    builds_on: str = ""  # the class of agents whose answer this task goes on from; "" for none
    entity: str = ""  # what an input of a stateful agent is about: those of one entity go to one instance

    @property
    def size_bytes(self) -> int:
        """Memory that holding this task open takes, roughly: its inline bytes and a fixed overhead."""
        payload = self.payload
        inline = len(payload.data) if payload is not None and payload.data is not None else 0
        return 512 + len(self.prompt) + len(self.choices) + len(self.tools) + inline


class Failure(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Why an attempt, a start or a task failed."""

    kind: str  # application | quality | agent_lost | diverged | timeout | deadline | cancelled | poison | no_agent
    type: str = ""  # class name of the exception, where there was one
    message: str = ""
    traceback: str = ""  # as text, from the process where it happened
    retryable: bool = False


AGENTS_FAULT = frozenset({"application", "quality", "timeout"})  # kinds of failure that say something of the agent


class StoryLine(Struct, frozen=True, array_like=True, gc=False):
    """One line of a task's story."""

    at: float
    what: str  # past tense: accepted, started, attempt_failed, resolved ...
    attempt: int = 0  # 0 when the line is not about an attempt
    agent_id: str = ""
    detail: str = ""


class Estimate(Struct, frozen=True, array_like=True, gc=False):
    """What to expect of one candidate, a class of agents, at one task. None: not known."""

    candidate: str  # name of the agent class
    success: float  # probability, 0..1
    deviation: float = 0.0  # standard deviation of `success`: how unsure it is
    quality: float | None = None  # 0..1
    latency_s: float | None = None  # median of the run time
    cost_usd: float | None = None
    related: float = 0.0  # of `success`, what is due to whose answer the task goes on from


class Receipt(Struct, frozen=True, array_like=True, gc=False):
    """The record of one routed choice: what was estimated, what it was worth, and what part chance had in it.

    `estimates`, `values` and `propensities` are of the candidates that could be chosen, in the same order. What the
    router read of the task is the task itself, which the journal has under the same id.
    """

    path: str  # who made the estimates: local | serve
    version: str  # of the router
    estimates: tuple[Estimate, ...]
    values: tuple[float, ...]  # by the policy, in units of success
    propensities: tuple[float, ...]  # of each, given loads and estimates; they sum to 1; () where nothing was drawn
    chosen: str
    explored: bool  # it was not among the good ones, and was chosen to learn of it
    confidence: float  # 0..1 that nobody else among them is better, by the estimates' own deviations
    wait_s: float  # expected for the chosen one, on top of its latency
    took_s: float  # from asking for estimates to having them
    # What the policy was told beside the estimates, so that the choice can be made again:
    waits_s: tuple[float, ...] | None = None  # expected of each candidate, in their order; () where nobody would have
    # waited, None where it was not recorded
    remaining_s: float | None = None  # of the task's deadline
    thrift: float | None = None  # the task's `quality`, where it counted: at first attempts
    max_cost_usd: float | None = None  # the task's
    extras: tuple[float, ...] = ()  # what the policy added to each candidate's value; () where it added nothing
    weights: dict[str, float] = {}  # the task's own, of the policy
    detail: str = ""  # why Serve did not answer, where it was to


class Choice(Struct, frozen=True, array_like=True, gc=False):
    """Why this agent: what `explain()` says of one attempt."""

    # only_one | power_of_two | prefetch | same | batch | recent | adopted | next_free | routed | taken_over,
    # hedge | copy (a second attempt beside a running one), fallback
    policy: str
    candidates: int  # agents that had the capabilities and room
    considered: tuple[tuple[str, float], ...] = ()  # (agent, load) of those compared; load is outstanding per slot
    receipt: Receipt | None = None  # where a router had a word in it
    unrouted: str = ""  # why it had none, where it should have: late | failed | recovered | not_worth
    detail: str = ""  # what failed then, in words


class NotEnough(Struct, frozen=True, array_like=True, gc=False):
    """An answer that fell short of its task's `least_quality`: what it was worth, and what making it took."""

    attempt: int
    quality: float  # 0..1
    run_s: float = 0.0
    cost_usd: float | None = None


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The one final result of a task. Recorded before anyone sees it and never changed after."""

    task_id: TaskId
    state: TaskState  # a terminal one
    value: Payload | None = None  # set when succeeded
    failure: Failure | None = None  # set when not
    agent_id: str = ""  # who answered; "" when nobody did
    attempts: int = 0  # attempts started, whatever became of them
    accepted_at: float = 0.0
    resolved_at: float = 0.0
    queue_s: float = 0.0  # time spent not running
    run_s: float = 0.0  # of the attempt that was accepted, as its agent measured it
    key: str = ""
    fingerprint: str = ""
    labels: dict[str, str] = {}
    quality: float | None = None  # 0..1, as its agent reported it
    cost_usd: float | None = None  # of the attempt that was accepted, as its agent reported it
    story: tuple[StoryLine, ...] = ()
    choices: tuple[Choice, ...] = ()  # one for each attempt started, in order
    not_enough: tuple[NotEnough, ...] = ()  # of earlier attempts
    chunks: int = 0  # that it gave out while it ran, and stand
    restarts: tuple[int, ...] = ()  # for each time that chunks were withdrawn, how many stood after it


class Asked(Struct, frozen=True, array_like=True, gc=False):
    """What a router read of a task, cut to what is kept: recorded beside the outcome, which has none of it."""

    text: str  # the prompt
    choices: str = ""
    tools: str = ""
    builds_on: str = ""  # the class of agents whose answer it went on from
    counts: dict[str, float] = {}  # of what was offered, uncut


class Grade(Struct, frozen=True, array_like=True, gc=False):
    """What an answer turned out to be worth, said later."""

    task_id: TaskId
    quality: float  # 0..1
    at: float  # when it was said
    by: str = ""  # who or what said so


class Recorded(Struct, frozen=True, kw_only=True, gc=False):
    """All that is kept of a task that has ended."""

    outcome: Outcome
    asked: Asked | None = None  # of tasks that a router had a word in
    grade: Grade | None = None  # the newest


class StatefulSpec(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """How the state of a class of stateful agents is kept (see `flowray.core.stateful`)."""

    standby: str = "cold"  # cold: a new process restores the state; warm: a second process has it already
    snapshot_every: int = 100  # inputs, >= 1
    snapshot_every_s: float = 5.0  # after an input, at the latest; > 0
    of: str = ""  # set for the standbys of a class: its name


class AgentSpec(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A class of agents that should exist: `count` of them, in one tier. The shell knows how to start one."""

    name: str  # unique; agents are called "<name>-<n>"
    tier: str
    capabilities: tuple[str, ...] = ()  # sorted, unique
    count: int = 1  # target
    slots: int = 1  # attempts that one agent runs at once
    target: str = ""  # "module:Class" or "" when `code` carries it
    code: bytes = b""  # the pickled class or function, for those that cannot be imported (notebooks, __main__)
    paths: tuple[str, ...] = ()  # directories to import `target` from, besides the installed packages
    options: dict[str, float | int | str | bool | list[str] | None] = {}  # constructor arguments from a team file
    num_cpus: float = 0.0  # reserved in the placement group; 0 means the tier's share divided by its agents
    memory_bytes: int = 0  # reserved (Ray admits by it, it is no limit); 0 means none
    stateful: StatefulSpec | None = None  # set where its agents keep a state


class Held(Struct, frozen=True, array_like=True, gc=False):
    """An attempt that the book has at an agent."""

    attempt: int
    epoch: int  # of the coordinator that started it
    agent_id: str
    incarnation: int
    started_at: float


class Running(Struct, frozen=True, array_like=True, gc=False):
    """What an agent says it is running, when a new coordinator asks."""

    task_id: TaskId
    attempt: int
    epoch: int


class OpenTask(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A task that is not yet terminal, as a snapshot keeps it."""

    task: Task
    state: TaskState
    seq: int
    accepted_at: float
    attempt: int = 0
    epoch: int = 0
    agent_id: str = ""
    incarnation: int = 0
    started_at: float = 0.0
    failures: int = 0
    losses: int = 0
    kills: int = 0
    not_before: float = 0.0
    story: tuple[StoryLine, ...] = ()
    choices: tuple[Choice, ...] = ()
    not_enough: tuple[NotEnough, ...] = ()
    attempts: int = 0  # started so far, where that is more than `attempt`
    extra: Held | None = None  # a second attempt that runs beside the current one
    steps: dict[str, Payload | None] = {}  # recorded so far, by name
    stream: SavedStream | None = None  # of its chunks, where it has given out some


class Logged(Struct, frozen=True, array_like=True, gc=False):
    """One input of a stateful agent, with its number."""

    seq: int  # from 1 in the life of the instance
    task: Task
    at: float  # when it was given its number


class StateSnapshot(Struct, frozen=True, array_like=True, gc=False):
    """The state of a stateful agent after an input."""

    seq: int  # of the last input that it has
    digest: str  # of the encoded state
    value: Payload | None = None


class OpenInbox(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What is kept of one stateful agent, as a snapshot of the core has it."""

    agent_id: AgentId
    term: int = 0
    seat: str = ""
    seat_incarnation: int = 0
    next_seq: int = 1
    applied: int = 0
    inputs: tuple[Logged, ...] = ()
    snapshot: StateSnapshot | None = None
    mismatches: int = 0
    barred: dict[str, int] = {}


class RouterPlace(Struct, frozen=True, array_like=True, gc=False):
    """One version of the router, and where it lies."""

    version: str  # as `flowray.routing.versions` makes it; "none" of a router that was never trained
    artifact: str = ""  # directory; "" for one that knows only what it learns
    history: str = ""  # directory; "" for none


class RouterRecord(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A decision about which version of the router is in force, and what was so from then on."""

    at: float
    arrow: str  # configured | noted | what `flowray.core.rollout` says: offered, passed, promoted ...
    stage: RolloutStage
    live: RouterPlace  # answers all tasks, or nearly all
    other: RouterPlace | None = None  # on trial; while watched, the version that was in force before
    why: str = ""
    configured: RouterPlace | None = None  # what the configuration named: when it names another, that one is in force
    evidence: Evidence | None = None  # of the stage, so that a restarted coordinator goes on with it


class Snapshot(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The durable part of the core at a moment: what a restarted coordinator must know again."""

    at: float
    next_seq: int
    tasks: tuple[OpenTask, ...] = ()
    specs: tuple[AgentSpec, ...] = ()
    incarnations: dict[str, int] = {}  # agent id -> highest incarnation ever asked for
    routers: tuple[RouterRecord, ...] = ()  # the newest decisions about the router, oldest first
    inboxes: tuple[OpenInbox, ...] = ()  # of stateful agents
    drained: tuple[str, ...] = ()  # nodes that shall have no agents, the newest last

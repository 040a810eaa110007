"""`Runtime`: what a driver script, a job or a notebook holds. Starts or joins a coordinator and talks to it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from flowray import errors
from flowray.agents import Awaited
from flowray.config import Config, load
from flowray.core.model import AgentSpec, Payload, Task
from flowray.errors import (
    ConfigError,
    FlowrayError,
    GradeRefused,
    NotConnected,
    RouterRefused,
    StoreError,
    UnknownTask,
    WaitTimeout,
)
from flowray.mesh.bulk import BulkClient
from flowray.mesh.identities import outside_credentials, target_options
from flowray.mesh.tickets import Ticket, split_address
from flowray.runtime import leaving
from flowray.runtime.driver import Driver
from flowray.runtime.graders import Graded, Grader, check_grade, grade_all
from flowray.runtime.handle import Handle, Handles
from flowray.runtime.link import Way
from flowray.runtime.messages import Introduction, Question, Reply
from flowray.runtime.payloads import IN_DATABASE, NoShelf, PayloadDesk, Shelf
from flowray.runtime.specs import make_spec
from flowray.runtime.views import AgentsView, AgentView, DeadLetter, DeadLetters, RouterVersions, Status, Story
from flowray.store import PayloadStore
from flowray.tasks import make_task, new_task_id

if TYPE_CHECKING:
    from flowray.bridges import BridgeConfig
    from flowray.runtime.bridging import RunningBridge
    from flowray.runtime.listening import Subscription
    from flowray.runtime.starting import Started
    from flowray.runtime.talking import Speaker

_REACH_S = 10.0  # for a coordinator that is said to be there


class Agents:
    """The agents of a runtime: `rt.agents`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def add(
        self,
        target: Any,
        *,
        name: str | None = None,
        count: int = 1,
        tier: str | None = None,
        capabilities: Iterable[str] | None = None,
        slots: int | None = None,
        num_cpus: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Add agents of a class or function (or "module:Class"); returns the name of their class.

        What is left out comes from the class's own `@flowray.agent(...)`. Adding a known name again changes its count.
        Agents start in the background; `wait_ready` waits for them.

        Raises:
            ConfigError: an argument is out of range, or the target is no agent.
        """
        spec = make_spec(
            target,
            tiers=self._runtime.config.tiers,
            name=name,
            count=count,
            tier=tier,
            capabilities=capabilities,
            slots=slots,
            num_cpus=num_cpus,
            options=options,
        )
        self._runtime._add(spec)
        return spec.name

    def drain(self, *names: str, timeout_s: float = 120.0) -> list[str]:
        """Have agents leave their processes, and be started again, without anything failing; their ids.

        They take nothing new, finish what they have, and come back as their next incarnations; others take what waits
        meanwhile. Of each class a fifth leaves at a time (`core.drain.at_once`). What is not finished after
        `core.drain.grace_s` (30 s) is handed over to others.

        Args:
            names: agents ("writer-0"), or classes of agents ("writer") for all of theirs.
            timeout_s: how long to wait until all have come back.

        Raises:
            ConfigError: there is nobody of such a name.
            WaitTimeout: not within `timeout_s`; those that have not come back go on with it.
        """
        return leaving.drain_agents(self._runtime, names, timeout_s)

    def view(self) -> AgentsView:
        """All agents at this moment."""
        return AgentsView(agents=self._runtime.status().agents)

    def __iter__(self) -> Iterator[AgentView]:
        return iter(self.view().agents)

    def __len__(self) -> int:
        return len(self.view().agents)

    def __repr__(self) -> str:
        return repr(self.view())

    def __rich__(self) -> Any:
        return self.view().__rich__()

    def _repr_html_(self) -> str:
        return self.view()._repr_html_()


class Runtime:
    """A team of agents on Ray, and the tasks it is given. Use as a context manager."""

    def __init__(self, way: Way, started: Started | None = None) -> None:
        """Not for callers: see `start` and `connect`."""
        self.name = way.runtime
        self.agents = Agents(self)
        self._voice: Speaker | None = None
        self._started = started  # what this process has to end when it leaves
        self._driver = Driver(self, way)
        try:
            self._driver.wait_connected(_REACH_S)
            found: Introduction = self._ask(Question("introduce"), Introduction)
        except BaseException:
            self._driver.close("it could not be reached")
            raise
        config = self.config = msgspec.msgpack.decode(found.config, type=Config)
        self._driver.link.introduced(found, config.mesh.talk, moves=bool(config.store.url))
        self._driver.limits = config.limits
        self._desk = self._make_desk(found, way)

    def _make_desk(self, found: Introduction, way: Way) -> PayloadDesk:
        """Large payloads: into the runtime's own directory where this process sees it, else to the payload keeper."""
        directory = str(Path(found.journal) / "payloads")
        shelf: Shelf | None = PayloadStore.found(Path(directory), found.payloads) if found.payloads else None
        if self.config.store.url:
            directory, shelf = IN_DATABASE, NoShelf() if way.outside else None
        elif found.bulk_port:
            host = split_address("address", way.address)[0]
            shelf = BulkClient(
                f"[{host}]:{found.bulk_port}" if ":" in host else f"{host}:{found.bulk_port}",
                token=way.token,
                credentials=outside_credentials(way.roots_pem),
                server_options=target_options(way.runtime, "payloads"),
            )
        limits = self.config.limits
        return PayloadDesk(
            runtime=self.name,
            node_id=found.node_id,
            directory=directory,
            inline_bytes=limits.inline_bytes,
            payload_bytes=limits.payload_bytes,
            shelf=shelf,
            plain_only=way.outside,
        )

    # ── beginning and end ────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def start(
        cls,
        config: str | Path | Config | None = None,
        *,
        overrides: Mapping[str, Any] | None = None,
        keep: bool = False,
    ) -> Runtime:
        """Start a runtime, on the cluster that the configuration names (`ray.address`, RAY_ADDRESS) or an embedded one.

        Where a runtime of this name is there already, it is joined, and the configuration's agents are added to it.
        With `keep` it outlives this process until somebody calls `stop`.

        Raises:
            ConfigError: the configuration is wrong.
            NotConnected: the cluster cannot be joined.
            StoreError: the journal cannot be used.
        """
        from flowray.runtime import starting  # Ray, which those who only connect do without

        settings = config if isinstance(config, Config) else load(config, os.environ, overrides)
        specs = [make_spec(one.use, tiers=settings.tiers, **_spec_arguments(one)) for one in settings.agents]
        started = starting.start(settings, keep=keep)
        try:
            runtime = cls(started.way, started)
        except BaseException:
            started.end()
            raise
        try:
            for spec in specs:
                runtime._add(spec)
        except BaseException:
            runtime.stop()
            raise
        return runtime

    @classmethod
    def connect(cls, name: str = "default", *, address: str = "") -> Runtime:
        """Join a running runtime, without Ray. Leaving it stops nothing.

        The way there is a ticket: the one that every runtime leaves for its user on its own machine (found by the
        name), or the file that `address` names, made by `flowray ticket` for another machine. Where there is no
        ticket, and this process is on a Ray cluster (or RAY_ADDRESS names one), or `address` is that of one
        ("host:port", "auto"), the runtime is found through Ray.

        Raises:
            NotConnected: there is no such runtime, or the ticket opens nothing any more.
        """
        address = address or os.environ.get("FLOWRAY_TICKET", "")
        if not address or "/" in address or address.endswith(".json"):
            try:
                return cls(Way.by_ticket(Ticket.load(address or name)))
            except NotConnected:
                # On another node of the cluster, in a job for example, there is no ticket, but there is Ray.
                # Never any Ray that happens to run here: another's takes minutes to say that it lets nobody in.
                if address or not (os.environ.get("RAY_ADDRESS") or _is_on_ray()):
                    raise
        from flowray.runtime import starting

        return cls(starting.join(name, address or "auto"))

    def stop(self) -> None:
        """End the runtime for everyone: agents, blocks, coordinator. Open tasks stay in a journal that was named."""
        if self._driver.closed:
            return
        with contextlib.suppress(FlowrayError):
            self._driver.ask(Question("stop"))
        self._driver.close("the runtime was stopped")
        if self._started is not None:
            self._started.end()

    def disconnect(self) -> None:
        """Leave the runtime as it is; it goes on for others."""
        self._driver.close("this process disconnected")

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started is not None and self._started.owns:
            self.stop()
        else:
            self.disconnect()

    def wait_ready(self, timeout_s: float = 120.0, agents: int | None = None) -> None:
        """Wait until all agents (or `agents` of them) are ready, and the router is loaded where there is one.

        Raises:
            AgentStartFailed: a class does not start; the message says why.
            RouterRefused: the router cannot be loaded; the message says why. Tasks go on without it.
            WaitTimeout: not within `timeout_s`; the message says what is missing.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            ready = [a for a in status.agents if a.state == "ready"]
            broken = [a for a in status.agents if a.state == "broken"]
            if broken:
                raise errors.AgentStartFailed(f"{broken[0].agent_id} does not start: {broken[0].failure}")
            if status.router_failed and not status.router:
                raise errors.RouterRefused(self.config.router.artifact or "without a network", status.router_failed)
            # Serve may come later, and nobody waits for it.
            waited_for = self.config.router.artifact or self.config.router.through == "local"
            routed = status.router or not (self.config.core.routing.enabled and waited_for)
            if routed and len(ready) >= (len(status.agents) if agents is None else agents):
                return
            if time.monotonic() > deadline:
                missing = [a.agent_id for a in status.agents if a.state != "ready"]
                missing += [] if routed else ["the router"]
                shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
                no_room = f"no room for the blocks {', '.join(sorted(status.blocks))}"
                raise WaitTimeout(f"not ready: {shown}", timeout_s, no_room if status.blocks else "they go on starting")
            time.sleep(0.05)

    # ── tasks ────────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(
        self,
        work: Any = None,
        *,
        prompt: str | None = None,
        payload: Any = None,
        needs: Iterable[str] = (),
        priority: int = 0,
        deadline_s: float | None = None,
        attempt_timeout_s: float | None = None,
        max_attempts: int = 3,
        key: str = "",
        tier: str = "",
        agent: str = "",
        labels: Mapping[str, str] | None = None,
        choices: str | Iterable[str] = "",
        tools: str | Iterable[str | Mapping[str, Any]] = "",
        counts: Mapping[str, float] | None = None,
        quality: float | None = None,
        least_quality: float | None = None,
        max_cost_usd: float | None = None,
        weights: Mapping[str, float] | None = None,
        idempotent: bool = False,
        fallback: str = "",
        exclusive: bool = False,
        builds_on: str = "",
        entity: str = "",
    ) -> Handle:
        """Hand in one task. When this returns the task is on disk and will reach exactly one outcome.

        `work` is the prompt when it is a str, otherwise the payload. The same `key` with the same content gives the
        task accepted earlier.

        Where a router chooses (`core.routing.enabled`), it reads the prompt, and `choices` (answers to choose from) and
        `tools` where the prompt does not list them: "name: description" of each, or a mapping of `name`, `description`
        and `parameters` (a JSON schema, or names). What is given one by one is counted; `counts` says, or corrects, how
        many `n_tools`, `n_params` (of all tools together) and `n_options` there are. `weights` are the policy's for the
        task: what a dollar (`usd`) or a second (`second`) is worth, and the others of `core.routing`. `quality` (0..1)
        asks for the cheapest class of agents that reaches this share of the best expected success, and `max_cost_usd`
        is what an attempt should cost at most. An answer that its agent reports (`ctx.report`) to be worth less than
        `least_quality` is a failed attempt: another class of agents is asked, as long as `max_attempts` allows, and
        then without thrift.

        `idempotent=True` says that running the task twice does no harm. Then, and only then, a second attempt may run
        beside the first on another agent: later, when that takes much longer than expected, or at once, where a router
        is unsure who can do it (`core.acting`). The first good answer counts and the other attempt is told to stop.
        `fallback` names the class of agents (a stronger one, a desk of people) that gets the task when the router gives
        all others up, and gets the last of `max_attempts` when theirs failed; it needs none of the `needs`.

        Attempts of one task may overlap for a moment: where its agent cannot be reached, and lives, the next attempt
        begins all the same (only one outcome counts). With `exclusive` that cannot be: where it is not certain that an
        attempt is over, the next waits for `core.fence_s`, and an agent that hears nothing of the coordinator for so
        long ends what is exclusive. It cannot be `idempotent` as well.

        `builds_on` is the id of the agent whose answer the task goes on from (`Outcome.agent_id`): a router learns who
        makes more of whose work.
        A task for a stateful `agent` is an input of it (`flowray.stateful`): applied once, in the order of numbers that
        inputs are given when there is room. `entity` is what it is about: inputs of one entity go to the same one of
        several instances. An input with a number is applied whatever happens; to cancel it is answered with "running".

        Raises:
            InvalidTask: an argument is out of range; PayloadError: the payload cannot be serialised.
            QueueFull, UnknownCapability, IdempotencyConflict: refused; nothing is stored.
            CoordinatorUnavailable: no answer within `limits.unavailable_after_s`.
        """
        task = make_task(
            self._desk.pack,
            work,
            prompt=prompt,
            payload=payload,
            needs=needs,
            priority=priority,
            deadline_s=deadline_s,
            attempt_timeout_s=attempt_timeout_s,
            max_attempts=max_attempts,
            key=key,
            tier=tier,
            agent=agent,
            labels=labels,
            choices=choices,
            tools=tools,
            counts=counts,
            quality=quality,
            least_quality=least_quality,
            max_cost_usd=max_cost_usd,
            weights=weights,
            idempotent=idempotent,
            fallback=fallback,
            exclusive=exclusive,
            builds_on=builds_on,
            entity=entity,
        )
        return self._driver.submit([task], wait_for_room=False)[0]

    def map(self, items: Iterable[Any], **arguments: Any) -> Handles:
        """Hand in one task for each item, in batches, all with the same arguments (those of `submit`).

        Where the queue is full it waits for room. A refusal of another kind is raised at once; the batches before it
        have been accepted.
        """
        return self._submit_all(make_task(self._desk.pack, item, **arguments) for item in items)

    def submit_many(self, requests: Sequence[Mapping[str, Any]]) -> Handles:
        """Hand in tasks with arguments of their own (those of `submit`, by name), in batches as `map` does."""
        return self._submit_all(make_task(self._desk.pack, **request) for request in requests)

    def _submit_all(self, tasks: Iterator[Task]) -> Handles:
        limits = self.config.limits
        handles: list[Handle] = []
        batch: list[Task] = []
        size = 0
        for task in tasks:
            batch.append(task)
            size += task.size_bytes
            if len(batch) >= limits.batch_tasks or size >= limits.batch_bytes:
                handles.extend(self._driver.submit(batch, wait_for_room=True))
                batch, size = [], 0
        if batch:
            handles.extend(self._driver.submit(batch, wait_for_room=True))
        return Handles(handles)

    def handle(self, task_id: str) -> Handle:
        """A handle for a task known by its id. An id that no task has shows when the handle is used."""
        return self._driver.attach(task_id)

    def grade(self, task_id: str, quality: float, *, by: str = "") -> None:
        """Say what the answer of a task turned out to be worth, 0..1. See `Handle.grade`."""
        number, by = check_grade(quality, by)
        self._ask(Question("grade", task_id, quality=number, by=by), float)

    def grade_with(
        self,
        handles: Iterable[Handle],
        grader: Grader | str,
        *,
        by: str = "",
        prompt: Callable[[Handle], str] | None = None,
        in_flight: int = 8,
        timeout_s: float | None = None,
    ) -> list[Graded]:
        """Grade the answers of tasks as they come; each one's grade, or why it has none, in the order of the handles.

        `grader` is a function of the answer that returns a number from 0 to 1 (run in threads of this process; or
        async, all on one event loop), or the name of an agent class. Its agents get a task with the original prompt,
        `{"answer": ...}` as its payload, and return the number. The prompt is what is kept of a routed task's text
        (`core.routing.keep_text`), or what `prompt` says of the handle. `by` is who the grades are by: the grader.

        `timeout_s` is for all outcomes together, and for each answer of an agent.

        Raises:
            ConfigError: the grader is neither, or `in_flight` is out of range.
        """
        return grade_all(self, handles, grader, by=by, prompt=prompt, in_flight=in_flight, timeout_s=timeout_s)

    def dead_letters(self, limit: int = 100, after: str = "") -> DeadLetters:
        """Tasks that failed for good, newest first; `after` is the id of the last one of the page before."""
        return self._ask(Question("dead_letters", limit=limit, after=after), DeadLetters)

    def dead_letter(self, task_id: str) -> DeadLetter:
        """One dead letter. Raises UnknownTask when there is none of this id."""
        return self._ask(Question("dead_letter", task_id), DeadLetter)

    def replay(self, task_id: str) -> Handle:
        """Submit a dead letter again, as a new task that names it. Raises UnknownTask when there is none of this id."""
        task = self.dead_letter(task_id).task
        renewed = msgspec.structs.replace(task, id=new_task_id(), replay_of=task.id, key="", fingerprint="")
        return self._driver.submit([renewed], wait_for_room=False)[0]

    def purge(self, task_id: str) -> bool:
        """Forget a dead letter; its outcome stays. False when there was none of this id."""
        return self._ask(Question("purge", task_id), bool)

    # ── talking ──────────────────────────────────────────────────────────────────────────────────────────────────

    def ask(self, agent: str, body: Any = None, *, timeout_s: float | None = None) -> Awaited:
        """Ask an agent ("echo-0"); the value is what its `on_message` returns. See Context.ask."""
        return self._speaker().ask(agent, body, timeout_s)

    def send(self, agent: str, body: Any) -> Awaited:
        """Send an agent a message that nobody answers. See Context.send."""
        return self._speaker().send(agent, body)

    def publish(self, topic: str, body: Any, *, message_id: str = "") -> Awaited:
        """Send a message to all subscribers of a topic; the value is how many they were. See Context.publish."""
        return self._speaker().publish(topic, body, message_id)

    @contextlib.contextmanager
    def subscribe(self, *topics: str) -> Iterator[Subscription]:
        """Hear what is published to these topics from now on: an iterator of messages, also an async one.

        Its `id` is a name that agents can `ctx.send` to.
        """
        subscription = self._driver.link.subscribe(topics)
        try:
            yield subscription
        finally:
            self._driver.link.unsubscribe(subscription)

    @contextlib.contextmanager
    def bridge(self, config: BridgeConfig) -> Iterator[RunningBridge]:
        """Carry topics to and from a Redis or RabbitMQ server while the block runs, in a thread of this process.

        Raises:
            ConfigError: the configuration, or its secret, is wrong. MissingExtra: `pip install 'flowray[bus]'`.
        """
        from flowray.runtime.bridging import running

        with running(self, config) as bridge:
            yield bridge

    def _speaker(self) -> Speaker:
        if self._voice is None:
            self._voice = self._driver.link.talks().talking.speaker(self._driver.link.name)
        return self._voice

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────

    def status(self) -> Status:
        """The runtime at this moment."""
        return self._ask(Question("status"), Status)

    def drain_node(self, node: str, *, timeout_s: float = 120.0) -> str:
        """Have all agents leave a node, and none be started there, without anything failing; gives the node's id.

        They leave as by `agents.drain`, and start on other nodes. When this returns no process of this runtime is on
        the node. That none shall be is on disk, and holds until `keep_node`.

        Args:
            node: its address, or its id in Ray (or the beginning of that), as `status()` has them.
            timeout_s: how long to wait until the node is empty.

        Raises:
            ConfigError: no living node is called so, or it is the coordinator's.
            WaitTimeout: not within `timeout_s`; agents go on leaving.
        """
        return leaving.drain_node(self, node, timeout_s)

    def keep_node(self, node: str) -> str:
        """Take `drain_node` back: agents may be started there again. Gives the node's id."""
        return leaving.keep_node(self, node)

    def offer_router(self, artifact: Path | str, history: Path | str = "") -> str:
        """Begin the trial of another version of the router; gives the version.

        Args:
            artifact: directory of a trained router, on the coordinator's node.
            history: directory of a set of outcomes there; "" for none.

        Raises:
            RouterRefused: it cannot be loaded, is in force already, or another trial is under way.
        """
        where = [str(Path(place).absolute()) if place else "" for place in (artifact, history)]
        return str(self._ask(Question("offer_router", artifact=where[0], history=where[1]), str))

    def router_versions(self) -> RouterVersions:
        """What was decided about the router's versions, oldest first."""
        found: RouterVersions = self._ask(Question("router_versions"), RouterVersions)
        return found

    def figures(self) -> dict[str, int]:
        """Counts since the coordinator began: attempts, failovers, retries, restarts (of agents).

        Of stateful agents promotions (a process took over) and mismatches (a standby had another state).

        And how many processes are warm at this moment: started, their class loaded, and without an agent.
        """
        return self._ask(Question("figures"), dict[str, int])

    def __repr__(self) -> str:
        return f"<Runtime {self.name!r}{' closed' if self._driver.closed else ''}>"

    def __rich__(self) -> Any:
        return self.status().__rich__()

    def _repr_html_(self) -> str:
        return self.status()._repr_html_()

    def kill_agent(self, agent_id: str) -> None:
        """End an agent's process with SIGKILL: to see what failover does. Raises ConfigError if there is none."""
        address, pid = self._ask(Question("process", agent_id=agent_id), tuple[str, int])
        if not pid:
            raise ConfigError("agent_id", f"no agent {agent_id!r} has a process now")
        here = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses}
        if address not in here:
            raise ConfigError("agent_id", f"{agent_id} runs on another node ({address})")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    # ── for handles ──────────────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, question: Question, kind: Any) -> Any:
        reply = self._driver.ask(question)
        if reply.error:
            raise _error_named(reply, question)
        return msgspec.msgpack.decode(reply.body, type=kind)

    async def _ask_beside(self, question: Question, kind: Any) -> Any:
        """`_ask` for code on an event loop, which goes on meanwhile."""
        reply = await self._driver.ask_beside(question)
        if reply.error:
            raise _error_named(reply, question)
        return msgspec.msgpack.decode(reply.body, type=kind)

    def _add(self, spec: AgentSpec) -> None:
        self._ask(Question("add_agents", spec=spec), str)

    def _state(self, task_id: str) -> str:
        return str(self._ask(Question("state", task_id), str))

    def _cancel(self, task_id: str) -> str:
        return str(self._ask(Question("cancel", task_id), str))

    def _story(self, task_id: str) -> Story:
        story: Story = self._ask(Question("story", task_id), Story)
        return story

    def _asked(self, task_id: str) -> str:
        """What is kept of a task's prompt."""
        return str(self._ask(Question("asked", task_id), str))

    def _unpack(self, payload: Payload | None) -> Any:
        return self._desk.unpack(payload)


def _error_named(reply: Reply, question: Question) -> FlowrayError:
    """The error that a Reply carries by name."""
    if reply.error == "UnknownTask":
        return UnknownTask(reply.detail)
    if reply.error == "GradeRefused":
        return GradeRefused(question.task_id, reply.detail.partition(": ")[2])
    if reply.error == "ConfigError":
        field, _, problem = reply.detail.partition(": ")
        return ConfigError(field, problem)
    if reply.error == "RouterRefused":
        return RouterRefused.told(reply.detail)
    kind = getattr(errors, reply.error, FlowrayError)
    if isinstance(kind, type) and issubclass(kind, StoreError):
        return kind(reply.detail)
    return FlowrayError(f"{question.what}: {reply.error}: {reply.detail}")


def _is_on_ray() -> bool:
    """Whether this process has joined a Ray cluster (or is one of its workers). Asking does not import Ray."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _spec_arguments(one: Any) -> dict[str, Any]:
    return {
        "name": one.name or None,
        "count": one.count,
        "tier": one.tier or None,
        "capabilities": one.capabilities,
        "slots": one.slots,
        "num_cpus": one.num_cpus,
        "options": one.options,
    }

"""The coordinator actor: named, detached, restarted by Ray, and nothing but wiring.

It owns the journal and drives the core through the pump. Whatever it must not forget is in the journal; the rest
(which processes live, who waits for what) it learns again from agents and clients after a restart. When the journal
fails it ends its process at once: a successor recovers, and nobody acts on what was not recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import ray

from flowray.config import Config
from flowray.core.book import is_running
from flowray.core.commands import (
    AcceptTask,
    AnswerCancel,
    AnswerChunks,
    AnswerStep,
    CancelAttempt,
    Command,
    KnownTask,
    RecordChunks,
    RecordMismatch,
    RefuseTask,
    RequestEstimates,
    ResolveTask,
    StartAgent,
    StartAttempt,
    StopAgent,
    ToSeat,
)
from flowray.core.events import AgentLost
from flowray.core.model import AgentId, Outcome, Payload, TaskId
from flowray.core.states import AgentState
from flowray.errors import MeshError, PayloadError, RouterRefused, StoreError
from flowray.mesh.doors import OUTSIDE
from flowray.mesh.endpoint import Endpoint, MeshEvent, PeerGone, StreamBroken
from flowray.mesh.peer import Peer
from flowray.mesh.tickets import split_address
from flowray.runtime import emitting, messages
from flowray.runtime.acknowledging import Acknowledgements
from flowray.runtime.belongings import Belongings, fetched
from flowray.runtime.clients import Client, Clients
from flowray.runtime.directory import TalkDirectory
from flowray.runtime.doorway import Doorway
from flowray.runtime.figures import Figures
from flowray.runtime.intake import BACKLOG_RATIO, Intake
from flowray.runtime.lifetime import leave_with_owner
from flowray.runtime.messages import (
    Admission,
    Answer,
    Cancel,
    Emit,
    Emitted,
    Farewell,
    Introduction,
    Learn,
    Leased,
    Listening,
    Question,
    Reach,
    Read,
    Renew,
    Renewed,
    Reply,
    Report,
    Start,
    Step,
    StepAnswer,
    Submit,
    Subscribe,
    Want,
)
from flowray.runtime.overview import Overview
from flowray.runtime.paths import paths_of
from flowray.runtime.payload_keeper import keeper_of
from flowray.runtime.payloads import IN_DATABASE
from flowray.runtime.places import COORDINATOR
from flowray.runtime.pools import Pools
from flowray.runtime.pump import Observer, Pump
from flowray.runtime.questions import Questions
from flowray.runtime.recording import answer_of, event_of
from flowray.runtime.recovering import prepare_process, recover
from flowray.runtime.reports import results_as_events
from flowray.runtime.retention import sweep_for_ever, swept
from flowray.runtime.retraining import Retrainer
from flowray.runtime.rollout import load_versions
from flowray.runtime.routing import RoutingDesk
from flowray.runtime.showing import ShowDesk
from flowray.runtime.standin import StandIn
from flowray.runtime.stateful import message_of
from flowray.runtime.subscribers import SubscriberFile
from flowray.runtime.trainer import train_on_ray
from flowray.store import PayloadStore, open_store
from flowray.store.reading import describe

_FORGET_S = 6 * 3600.0  # a process that cannot be reached for this long is given up
_TRY_AGAIN_S = 2.0  # to open a journal that could not be used
STORE_FAILED = 71  # exit status of a coordinator whose journal failed or belongs to a successor


class CoordinatorActor:
    """The Ray actor: only doors. Ray wraps every method of an actor class for tracing, so the work is elsewhere."""

    async def __init__(self, body: bytes, journal: str, life: str, owner_job: str) -> None:  # type: ignore[misc]
        self._unusable: StoreError | None = None
        self._trying: asyncio.Task[None] | None = None
        try:
            self._coordinator = Coordinator(body, journal, life)
            await self._coordinator.open()
        except StoreError as error:
            self._unusable = error  # told to whoever calls: an exception here would only say that an actor died
            self._trying = asyncio.get_running_loop().create_task(self._try_again(body, journal, life))
        self._leaving = asyncio.get_running_loop().create_task(leave_with_owner(owner_job, self._leave))

    async def _leave(self) -> None:
        await self.shut_down()
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

    async def _try_again(self, body: bytes, journal: str, life: str) -> None:
        """Tell those who come why the journal cannot be used, until it can. (A full disk has room again one day.)"""
        assert self._unusable is not None
        config = msgspec.msgpack.decode(body, type=Config)
        standin = await StandIn.open(config, Path(journal), self._unusable)
        while type(self._unusable) is StoreError:  # what is corrupt, or does not fit, stays so
            await asyncio.sleep(_TRY_AGAIN_S)
            try:
                self._coordinator = Coordinator(body, journal, life)
            except StoreError as error:
                self._unusable = error
                standin.reason = str(error)
                continue
            await standin.close()
            self._unusable = None
            await self._coordinator.open()
            return

    def _usable(self) -> Coordinator:
        if self._unusable is not None:
            raise self._unusable
        return self._coordinator

    async def ready(self) -> bytes:
        """Is the journal usable? The first call of whoever started this actor."""
        if self._unusable is not None:
            return messages.encode(Reply(error=type(self._unusable).__name__, detail=str(self._unusable)))
        return self._coordinator.introduce()

    async def admit(self, client: str) -> bytes:
        """A client on another node will come, called this: where to, and with which certificate."""
        return await self._usable().admit(client)

    async def report(self, body: bytes) -> None:
        """An agent whose event loop is blocked reports this way."""
        await self._usable().report(messages.decode(body, Report))

    async def ended(self, process: str, cause: str) -> None:
        """A keeper is about to end a process of agents, and says why."""
        self._usable().ended(process, cause)

    async def died(self, process: str, pid: int) -> None:
        """A keeper has seen that a process of agents is dead."""
        self._usable().died(process, pid)

    async def memory(self, node_id: str, free: float) -> None:
        """A keeper says how much of its node's memory (0..1) is free."""
        self._usable().memory(node_id, free)

    async def shut_down(self) -> None:
        """See Coordinator.shut_down."""
        if self._trying is not None:
            self._trying.cancel()
        if self._unusable is None:
            await self._coordinator.shut_down()


class Coordinator:
    """What the actor does. Everything runs on its one event loop."""

    def __init__(self, body: bytes, journal: str, life: str) -> None:
        """Open the journal and recover. Raises StoreError when it cannot be used."""
        self._config = msgspec.msgpack.decode(body, type=Config)
        self._journal = Path(journal)
        prepare_process()
        loop = asyncio.get_running_loop()
        self._store = open_store(self._journal, self._config.store)
        self._belongings: Belongings | None = None
        try:
            core, clock = recover(self._store, life=life, policy=self._config.core, seed=self._config.seed)
            if self._config.store.url:
                self._belongings = fetched(self._store, self._journal)
        except StoreError:
            self._store.close()
            raise
        self._core, self._epoch = core, core.epoch
        payloads = str(self._journal / "payloads") if self._belongings is None else IN_DATABASE
        figures = Figures()
        self._acknowledgements = Acknowledgements()
        self._showing = ShowDesk(core, self._store, on_read=self._tell_read)
        self._clients = Clients(loop.call_soon, self._await_room, self._load_outcomes)
        self._routing: RoutingDesk | None = None
        observers: list[Observer] = [figures]
        if self._config.core.routing.enabled:
            paths = paths_of(self._config.router, self._config.core.routing.within_s)
            records = tuple(core.book.routers)
            self._routing = RoutingDesk(
                partial(load_versions, self._config.router, self._config.core.routing, records),
                lambda event: self._pump.put(event),
                core.book.open.get,
                core.asking.is_asked,
                paths,
            )
            observers.append(self._routing)
        answers = self._routing.answers if self._routing is not None else tuple
        self._pump = Pump(core, self._store, self._perform, clock, self._store_failed, observers, answers)
        self._intake = Intake(core, self._store, self._clients, self._pump.put)
        context = ray.get_runtime_context()
        self._node_id = context.get_node_id()
        self._doorway = Doorway(self._config.name, self._journal, self._node_id, ray.util.get_node_ip_address())
        self._endpoint = self._doorway.endpoint = Endpoint(
            COORDINATOR,
            runtime=self._config.name,
            on_messages=self._on_messages,
            on_event=self._on_event,
            gate=self._doorway,
            # User code that blocks its event loop keeps its process silent for long: that is no reason to give it up.
            # Its death, and that of its node, are seen otherwise.
            forget_after_s=_FORGET_S,
        )
        self._pools = Pools(
            self._config,
            self._epoch,
            context.current_actor,
            self._doorway,
            payloads,
            self._pump.put,
            lambda name: self._core.book.specs.get(name),
            TalkDirectory(
                self._epoch,
                self._send,
                self._lives,
                loop.call_later,
                SubscriberFile(self._journal / "subscribers", life),
            ),
            lambda: core.book.drained,
        )
        self._doorway.on_renewal = self._renew_certificates
        overview = Overview(
            self._config.name,
            self._epoch,
            self._node_id,
            describe(self._journal, self._config.store),
            core,
            self._store,
            self._pools,
            self._routing,
        )
        self._questions = Questions(
            core,
            self._store,
            self._pump,
            self._pools,
            figures,
            overview,
            self._showing,
            introduce=self._introduction,
            stop=self._stop,
            offer=self._offer_router,
        )
        self._calls: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._keeper: Any = None  # for clients outside
        self._retraining: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None  # what lies beside the journal
        self._running = loop.create_task(self._run())
        self._sweeping = loop.create_task(
            sweep_for_ever(
                self._config.retention,
                core,
                self._store,
                swept(self._config.store, self._journal / "payloads"),
                clock,
                self._store_failed,
            )
        )

    async def open(self) -> None:
        """Let agents and clients in."""
        listen = self._config.mesh.listen
        if self._belongings is not None:
            keeper_of(self._config.name, self._node_id, IN_DATABASE, config=self._config.store)
            await self._belongings.keep()
            keeping = self._belongings.keep_for_ever(self._store_failed)
            self._keeping = asyncio.get_running_loop().create_task(keeping)
        elif listen:
            host = split_address("mesh.listen", listen)[0]
            directory = str(self._journal / "payloads")
            self._keeper = keeper_of(self._config.name, self._node_id, directory, host)
        await self._doorway.open(listen)
        if self._routing is not None:
            self._routing.begin()
            if self._config.router.retrain.enabled:
                train = partial(train_on_ray, self._journal, self._node_id)
                retrainer = Retrainer(self._config.router.retrain, self._routing, train)
                self._retraining = asyncio.get_running_loop().create_task(retrainer.run())

    async def _run(self) -> None:
        try:
            if self._epoch > 1:
                await self._pools.find()
                self._miss_agents()
            else:
                self._pools.directory.complete()
            await self._pump.run()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is reported and ends the process
            # A core that broke an invariant must not go on: its successor starts again from the journal.
            print(f"flowray coordinator stops: {type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(70)

    def _miss_agents(self) -> None:
        """Agents that died while no coordinator was there to see it: their tasks need not wait for `adoption_s`."""
        for agent in self._core.registry.agents():
            gone = self._pools.process(agent.id, agent.incarnation) is None
            if agent.state is AgentState.STARTING and gone and not self._pools.may_come(agent.agent_class.spec.name):
                cause = "it was gone when the coordinator came back"
                self._pump.put(AgentLost(agent.id, agent.incarnation, cause, certain=False))

    def _store_failed(self, error: StoreError) -> None:
        print(f"flowray coordinator stops: {error}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(STORE_FAILED)

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _perform(self, command: Command) -> None:
        # Of each task there are three commands, so these come first.
        if isinstance(command, StartAttempt):
            self._start_attempt(command)
        elif isinstance(command, ResolveTask):
            self._clients.resolved(command.outcome)
            self._showing.resolved(command.outcome)
        elif isinstance(command, AcceptTask):
            task_id = command.task.id
            self._clients.answer(task_id, Answer(task_id))
        elif isinstance(command, RequestEstimates):
            assert self._routing is not None  # the core asks only where routing is on
            self._routing.ask(command)
        elif isinstance(command, KnownTask):
            self._clients.answer(command.submitted_id, Answer(command.task_id))
            self._intake.catch_up(command.task_id)
        elif isinstance(command, RefuseTask):
            answer = Answer(command.task_id, command.reason, command.detail, command.retry_after_s)
            self._clients.answer(command.task_id, answer)
        elif isinstance(command, CancelAttempt):
            process = self._pools.process(command.agent_id, command.incarnation)
            if process is not None:
                process.link.send(
                    Cancel(command.agent_id, command.task_id, command.attempt, command.epoch, self._epoch)
                )
        elif isinstance(command, AnswerStep):
            process = self._pools.process(command.agent_id, command.incarnation)
            if process is not None:
                process.link.send(answer_of(command))
        elif isinstance(command, ToSeat):
            process = self._pools.process(command.agent_id, command.incarnation)
            if process is not None:
                self._acknowledgements.tell(command.agent_id)
                process.link.send(message_of(command))
        elif isinstance(command, AnswerCancel):
            self._questions.cancelled(command.task_id, command.state.value if command.state is not None else "")
        elif isinstance(command, StartAgent):
            self._pools.start(command.agent_id, command.incarnation, self._core.book.specs[command.spec_name])
        elif isinstance(command, RecordChunks):
            self._showing.recorded(command)
        elif isinstance(command, AnswerChunks):
            process = self._pools.process(command.agent_id, command.incarnation)
            if process is not None:
                process.link.send(emitting.answer_of(command, self._showing.read(command.task_id)))
        elif isinstance(command, StopAgent):
            self._pools.stop(command.agent_id, command.incarnation)
        elif isinstance(command, RecordMismatch):
            what = f"{command.seat} has another state after input {command.seq} than the active process"
            print(f"flowray: {what}: its class is not deterministic", file=sys.stderr, flush=True)  # noqa: T201

    def _start_attempt(self, command: StartAttempt) -> None:
        entry = self._core.book.open.get(command.task_id)
        if entry is None:
            return
        # As they are now: what an attempt beside it records from here on is on disk later than this start.
        steps = dict(entry.steps) if entry.steps else {}
        cursor = entry.stream.count if entry.stream is not None else 0
        if not (steps or cursor or entry.task.exclusive):
            self._send_attempt(command, steps, cursor)
        else:  # what it is given must be on disk first; of an exclusive one the next coordinator must know
            self._pump.when_synced(lambda: self._send_attempt(command, steps, cursor))

    def _send_attempt(self, command: StartAttempt, steps: dict[str, Payload | None], cursor: int) -> None:
        if command.reason == "adopted":
            return  # the agent has it already
        agent_id = command.agent_id
        process = self._pools.process(agent_id, command.incarnation)
        entry = self._core.book.open.get(command.task_id)
        # One that waited for the disk may be over by now: its agent has been told so, and has answered.
        if process is not None and entry is not None and is_running(entry, command.attempt, command.epoch):
            self._acknowledgements.tell(agent_id)
            process.link.send(
                Start(agent_id, entry.task, command.attempt, self._epoch, command.remaining_s, steps, cursor)
            )

    # ── drivers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def introduce(self) -> bytes:
        """Where its door is, for a driver that starts it or finds it through Ray."""
        return messages.encode(Reply(messages.encode(self._doorway.door())))

    async def admit(self, client: str) -> bytes:
        """See CoordinatorActor.admit. Only who is in the Ray cluster can ask for this."""
        await self._doorway.open_to_nodes()
        door, credentials = self._doorway.door(), self._doorway.issue(client)
        assert credentials is not None  # the port is open
        host = f"[{door.host}]" if ":" in door.host else door.host
        return messages.encode(Admission(f"{host}:{door.port}", credentials))

    async def _introduction(self, client: str) -> Introduction:
        config, journal = msgspec.msgpack.encode(self._config), str(self._journal)
        in_database = self._belongings is not None
        if self._doorway.is_outside(client):
            port = 0 if in_database else await self._keeper.bulk_port.remote()
            return Introduction(config, self._node_id, journal, bulk_port=port)
        identity = "" if in_database else PayloadStore(self._journal / "payloads").identity()
        credentials = self._doorway.issue(client)
        return Introduction(config, self._node_id, journal, self._doorway.host, credentials, identity)

    def _on_messages(self, peer: Peer, batch: list[bytes]) -> None:
        for body in batch:
            try:
                message = messages.decode_to_coordinator(body)
            except msgspec.DecodeError as error:
                self._endpoint.forget(peer.name, f"it sent something that is no message: {error}")
                return
            if isinstance(message, Report | Step | Emit | Renew):
                if self._doorway.is_outside(peer.name):
                    self._endpoint.forget(peer.name, "clients outside the cluster have no agents to report of")
                    return
                if isinstance(message, Step):
                    self._take_step(peer, message)
                elif isinstance(message, Emit):
                    self._take_chunks(peer, message)
                elif isinstance(message, Renew):
                    self._lease(message)
                else:
                    self._take_report(peer, message)
            elif isinstance(message, Submit):
                self._clients.client(peer.name, peer)
                try:
                    self._intake.submit(peer.name, message, outside=self._doorway.is_outside(peer.name))
                except PayloadError as error:
                    self._endpoint.forget(peer.name, str(error))
                    return
            elif isinstance(message, Want):
                self._clients.client(peer.name, peer)
                self._intake.want(peer.name, message.task_ids)
            elif isinstance(message, Question):
                self._later(self._ask(peer, message))
            else:
                self._help_to_talk(peer, message)
        peer.consumed(len(batch), sum(map(len, batch)))

    async def _ask(self, peer: Peer, question: Question) -> None:
        outside = self._doorway.is_outside(peer.name)
        reply = await self._questions.reply(peer.name, question, outside=outside)
        peer.send_anyway(messages.encode(reply))

    def _help_to_talk(self, peer: Peer, message: Learn | Reach | Listening | Subscribe) -> None:
        directory = self._pools.directory
        if self._doorway.is_outside(peer.name):
            self._endpoint.forget(peer.name, "clients outside the cluster cannot talk to its agents")
        elif isinstance(message, Learn):
            directory.learn(peer.name, message)
        elif isinstance(message, Reach):
            directory.reach(peer.name, message)
        elif isinstance(message, Listening):
            directory.listening(peer.name, message)
        else:
            directory.subscribe(peer.name, message)

    def _renew_certificates(self) -> None:
        """Of all who belong to the cluster."""
        self._pools.renew_certificates()
        for peer in self._endpoint.peers():
            if peer.name.startswith(OUTSIDE) and not self._doorway.is_outside(peer.name):
                self._send(peer.name, Renewed(self._doorway.issued(peer.name)))

    def _send(self, process: str, message: Any) -> None:
        peer = self._endpoint.known(process)
        if peer is not None:
            peer.send_anyway(messages.encode(message))

    def _lives(self, process: str) -> bool:
        peer = self._endpoint.known(process)
        return peer is not None and not peer.gone

    def _on_event(self, event: MeshEvent) -> None:
        if isinstance(event, PeerGone):
            self._pools.directory.process_gone(event.peer, event.reason)
            self._clients.forget(event.peer)
            self._doorway.left(event.peer)
            self._pools.peer_gone(event)
        elif isinstance(event, StreamBroken):
            self._pools.stream_broken(event.peer)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def _await_room(self, client: Client) -> None:
        async def wait() -> None:
            peer = self._endpoint.known(client.name)
            if peer is not None:
                with contextlib.suppress(MeshError):  # it is gone, and forgotten by the event that says so
                    await peer.room()
                    self._clients.flush(client)

        self._later(wait())

    def _load_outcomes(self, task_ids: list[str]) -> list[Outcome]:
        return list(self._store.outcomes(task_ids).values())

    # ── agents ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _take_report(self, peer: Peer, message: Report) -> None:
        """An agent's results. Acknowledged once they are on disk: until then the agent keeps them."""
        self._put_results(message)
        agent_id, last = message.agent_id, message.last
        self._pump.when_synced(lambda: self._acknowledgements.on_disk(peer, agent_id, last))

    def _take_step(self, peer: Peer, message: Step) -> None:
        """An agent wants a step recorded.

        Whether its attempt is a current one is known once its process has said what it holds: one that this
        coordinator has not found yet, after a restart, is asked to come again.
        """
        if self._pools.process(message.agent_id, message.incarnation) is not None:
            self._pump.put(event_of(message))
        else:
            peer.send_anyway(messages.encode(StepAnswer(message.agent_id, message.number, "later")))

    def _take_chunks(self, peer: Peer, message: Emit) -> None:
        """An agent gives out chunks: as with steps. It comes again where the journal is behind, too."""
        found = self._pools.process(message.agent_id, message.incarnation) is not None
        if found and self._store.backlog_ratio <= BACKLOG_RATIO:
            if message.paced:
                self._showing.paced(TaskId(message.task_id))
            self._pump.put(emitting.event_of(message))
        else:
            peer.send_anyway(messages.encode(Emitted(message.agent_id, message.number, "later")))

    def _tell_read(self, task_id: TaskId, seq: int) -> None:
        """Agents that wait for readers of this task may go on."""
        for held in self._core.book.open[task_id].running():
            process = self._pools.process(held.agent_id, held.incarnation)
            if process is not None:
                process.link.send(Read(held.agent_id, task_id, seq))

    def _lease(self, message: Renew) -> None:
        """An agent asks whether its attempts may go on. Answered only in an epoch that is in force."""
        loop = asyncio.get_running_loop()

        def done(error: StoreError | None) -> None:
            loop.call_soon_threadsafe(self._leased, message, error)

        if self._core.may_lease(AgentId(message.agent_id), message.incarnation):
            self._store.confirm_epoch(done)

    def _leased(self, message: Renew, error: StoreError | None) -> None:
        if error is not None:
            self._store_failed(error)
        process = self._pools.process(message.agent_id, message.incarnation)
        if process is not None:
            process.link.send(Leased(message.agent_id, message.number, message.ordinary))

    async def report(self, message: Report) -> None:
        """The same from an agent whose event loop is blocked. Returns once the results are on disk."""
        self._put_results(message)
        await self._pump.synced()

    def ended(self, process: str, cause: str) -> None:
        """See Pools.ended."""
        self._pools.ended(process, cause)

    def died(self, process: str, pid: int) -> None:
        """See Pools.died."""
        self._pools.died(process, pid)

    def memory(self, node_id: str, free: float) -> None:
        """See Pools.memory."""
        self._pools.memory(node_id, free)

    def _put_results(self, message: Report) -> None:
        for event in results_as_events(message.agent_id, message.incarnation, message.results):
            self._pump.put(event)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def shut_down(self) -> None:
        """End every agent, let go of every block, close the journal. Whoever asked kills this actor afterwards."""
        if self._stopping:
            return
        self._stopping = True
        self._sweeping.cancel()
        if self._routing is not None:
            self._routing.end()
        for task in (self._retraining, self._keeping):
            if task is not None:
                task.cancel()
        self._pump.stop()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        await self._pools.kill_all()
        self._store.close()
        self._clients.tell_all(messages.encode(Farewell("the runtime was stopped")))
        self._doorway.close()

    async def _offer_router(self, artifact: str, history: str) -> str:
        """For a client: begin the trial of another version of the router, once that is on disk."""
        if self._routing is None:
            raise RouterRefused(artifact, "this runtime asks no router: core.routing.enabled is off")
        version = await self._routing.offer(artifact, history)
        await self._pump.synced()
        return version

    async def _stop(self) -> bool:
        """For a client: it hears of the end before this process ends itself."""
        await self.shut_down()
        self._later(self._leave())
        return True

    async def _leave(self) -> None:
        await self._endpoint.close()
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

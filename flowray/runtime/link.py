"""A driver's way to the coordinator: requests that are answered once, outcomes that come by themselves. No Ray.

The link survives lost streams by itself. What it cannot survive is a new coordinator: then every request under way
fails with `LinkLost`, to be asked again, and `on_renewed` tells the driver to say again what it waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from flowray.agents import check_topics
from flowray.errors import CoordinatorUnavailable, FlowrayError, NotConnected
from flowray.mesh.endpoint import Endpoint, MeshEvent, PeerGone, SharedSecret, StreamBroken, StreamUp
from flowray.mesh.identities import Credentials, channel_credentials, dns_name_of, outside_credentials
from flowray.mesh.lanes import TalkLimits
from flowray.mesh.peer import Peer
from flowray.mesh.tickets import Ticket
from flowray.runtime import messages
from flowray.runtime.listening import Subscription
from flowray.runtime.loops import LoopThread
from flowray.runtime.messages import (
    Answers,
    Farewell,
    Introduction,
    Listen,
    Lost,
    Outcomes,
    Question,
    Reached,
    Renewed,
    Reply,
    Submit,
    Subscribe,
    Told,
    Want,
)
from flowray.runtime.places import COORDINATOR, socket_directory
from flowray.runtime.talks import Talks

_OPEN_S = 10.0
_RESTART_S = 3.0  # a coordinator is back within about a second
_LOOK_S = 0.1  # how often a link without a stream looks what becomes of its dialling
_FORGET_S = 1e9  # a coordinator that comes back, whenever that is, is the one that this client waits for


class Way(Struct, frozen=True, kw_only=True):
    """How to reach a coordinator: by its socket on its own machine, else by TLS.

    On another node of the cluster by a certificate, which is for one name; from outside by a token.
    """

    runtime: str
    token: str
    path: str = ""
    address: str = ""  # host:port
    roots_pem: str = ""  # for a client outside
    credentials: Credentials | None = None  # of a client on another node,
    node_id: str = ""  # Ray's id of that node,
    host: str = ""  # and its address
    through_ray: bool = False  # Ray has told it, and can tell another one

    @property
    def outside(self) -> bool:
        """Does it lead into the cluster from outside?"""
        return not self.path and self.credentials is None

    @classmethod
    def by_ticket(cls, ticket: Ticket) -> Way:
        """The way that a ticket opens."""
        here = ticket.socket if ticket.socket and _is_answered(ticket.socket) else ""
        if not here and not ticket.address:
            raise NotConnected(f"the runtime {ticket.runtime!r} does not run any more: nothing is at {ticket.socket}")
        return cls(
            runtime=ticket.runtime,
            token=ticket.token,
            path=here,
            address=ticket.address,
            roots_pem=ticket.roots_pem,
        )

    def __repr__(self) -> str:
        return f"Way(to {self.runtime!r} at {self.path or self.address})"


def _is_answered(path: str) -> bool:
    """Does somebody listen at this socket? One that nobody answers may be a coordinator's that is being restarted."""
    deadline = time.monotonic() + _RESTART_S
    while Path(path).exists():
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == 0:
                return True
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return False


class LinkLost(FlowrayError):
    """No answer: the coordinator was replaced, or cannot be reached now. The same request may be sent again."""


class LinkGone(FlowrayError):
    """The coordinator has left for good."""


def new_name() -> str:
    """What a client is called in the mesh: no other one is, ever."""
    return f"client-{secrets.token_hex(8)}"


class CoordinatorLink:
    """One driver's link. Its methods may be called from any thread."""

    def __init__(
        self,
        way: Way,
        on_outcomes: Callable[[Outcomes], None],
        on_renewed: Callable[[], None],
        on_farewell: Callable[[str], None],
        on_outage: Callable[[float, str], None],
    ) -> None:
        """`on_outage` is told, now and then, for how many seconds there has been no stream, and why."""
        self.name = way.credentials.name if way.credentials is not None else new_name()
        self._on_outcomes = on_outcomes
        self._on_renewed = on_renewed
        self._on_farewell = on_farewell
        self._on_outage = on_outage
        self._numbers = itertools.count(1)
        self._calls: dict[int, Future[Any]] = {}
        self._queue: deque[bytes] = deque()  # messages from other threads
        self._asked = False  # the loop has been asked to send them
        self._lock = threading.Lock()  # guards the three above
        self._gone = ""
        self._renewed = False  # the coordinator we knew is gone, and no new one is connected yet
        self._way = way
        self._moves = False
        self._introduction: Introduction | None = None
        self._credentials = way.credentials
        self._limits = TalkLimits()
        self._talks: Talks | None = None
        self._subscriptions = itertools.count()
        self._subscribed: dict[str, list[str]] = {}
        self._listening: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[None] | None = None  # for another stream
        self._thread = LoopThread("flowray-mesh")
        try:
            self._endpoint = self._thread.call(lambda: self._open(way), _OPEN_S)
        except BaseException:
            self._thread.end()
            raise

    def talks(self) -> Talks:
        """To talk to agents from this process. Raises NotConnected where they cannot be reached."""
        if self._gone:
            raise NotConnected(f"there is no way to the agents any more: {self._gone}")
        if self._talks is not None and self._talks.has_learnt.is_set():
            return self._talks
        if self._way.outside:
            raise NotConnected("a client outside the cluster cannot talk to its agents; give them tasks")
        return self._thread.call(self._open_talks)

    def introduced(self, found: Introduction, limits: TalkLimits, *, moves: bool = False) -> None:
        """The coordinator has said where it is, and what the bounds are; `moves`: the next one may be elsewhere."""
        self._moves = moves and self._way.through_ray
        self._introduction, self._limits = found, limits
        self._credentials = found.credentials or self._credentials

    async def _open_talks(self) -> Talks:
        found = self._introduction
        assert found is not None
        if self._talks is None:
            self._talks = Talks(
                self._endpoint,
                node=self._way.node_id or found.node_id,
                socket=socket_directory(self._way.runtime, found.journal) / f"{self.name[-8:]}.sock",
                tell=self._tell,
                credentials=lambda: self._credentials,
                limits=self._limits,
                host=self._way.host or found.host,
            )
            self._talks.learn()
        async with _answered("talking to agents"):
            await self._talks.has_learnt.wait()
        return self._talks

    def subscribe(self, topics: Iterable[str]) -> Subscription:
        """What is published to these topics from now on, as an iterator.

        Whoever is given a task after this knows of it. Raises CoordinatorUnavailable, NotConnected.
        """
        names = check_topics(topics)
        talks = self.talks()
        with self._lock:
            number = next(self._subscriptions)
        agent_id = self.name if number == 0 else f"{self.name}.{number}"

        async def begin() -> Subscription:
            subscription = talks.talking.subscribe(agent_id)
            self._subscribed[agent_id] = list(names)
            self._tell(Subscribe(agent_id, list(names)))
            try:
                async with _answered("subscribing"):
                    await talks.until_listed(agent_id)
            except BaseException:
                self._unsubscribe(subscription)
                raise
            return subscription

        return self._thread.call(begin)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Hear nothing more of it."""
        self._thread.soon(self._unsubscribe, subscription)
        subscription.close()

    def _unsubscribe(self, subscription: Subscription) -> None:
        if self._subscribed.pop(subscription.id, None) is not None and not self._gone:
            self._tell(Subscribe(subscription.id, gone=True))
        subscription.close()

    def _tell(self, message: Any) -> None:
        self._endpoint.peer(COORDINATOR).send_anyway(messages.encode(message))

    async def _open(self, way: Way) -> Endpoint:
        endpoint = Endpoint(
            self.name,
            runtime=way.runtime,
            on_messages=self._on_messages,
            on_event=self._on_event,
            gate=SharedSecret(way.token),
            token=way.token,
            forget_after_s=_FORGET_S,
        )
        self._dial(endpoint, way)
        return endpoint

    def _dial(self, endpoint: Endpoint, way: Way) -> None:
        if way.path:
            endpoint.dial(COORDINATOR, f"unix:{way.path}")
        elif way.credentials is not None:
            endpoint.dial(COORDINATOR, way.address, self._channel_credentials)
        else:
            server_name = dns_name_of(way.runtime, COORDINATOR)
            endpoint.dial(COORDINATOR, way.address, outside_credentials(way.roots_pem), server_name)

    async def _look_elsewhere(self) -> None:
        """The coordinator may have begun on another node: Ray knows."""
        from flowray.runtime import starting

        way = await asyncio.to_thread(starting.again, self._way.runtime, self.name)
        if way is not None and not self._gone and (way.path, way.address) != (self._way.path, self._way.address):
            self._way, self._credentials = way, way.credentials or self._credentials
            self._dial(self._endpoint, way)

    def _channel_credentials(self) -> Any:
        assert self._credentials is not None  # once there are some, there are always newer ones
        return channel_credentials(self._credentials)

    def wait_connected(self, timeout_s: float) -> None:
        """Wait for the first stream. Raises LinkLost with the reason when there is none in time."""

        async def wait() -> str:
            peer = self._endpoint.peer(COORDINATOR)
            give_up_at = self._thread.loop.time() + timeout_s
            while not await _is_connected(peer):
                if peer.unwelcome or self._thread.loop.time() > give_up_at:
                    return peer.refused or "it does not answer"
            return ""

        problem = self._thread.call(wait)
        if problem:
            raise LinkLost(problem)

    # ── any thread ───────────────────────────────────────────────────────────────────────────────────────────────

    def request(self, message: Submit | Question, timeout_s: float) -> Any:
        """Ask and wait for the answer: `list[Answer]` or `Reply`.

        Raises:
            LinkLost: no answer within `timeout_s`, or the coordinator was replaced meanwhile.
            LinkGone: it has left for good.
        """
        with self._asking(message, timeout_s) as answer:
            return answer.result(timeout_s)

    async def request_beside(self, message: Question, timeout_s: float) -> Any:
        """`request` for code on an event loop, which goes on meanwhile."""
        with self._asking(message, timeout_s) as answer:
            answer.set_running_or_notify_cancel()  # whoever gives up waiting leaves it alone
            async with asyncio.timeout(timeout_s):
                return await asyncio.wrap_future(answer)

    @contextlib.contextmanager
    def _asking(self, message: Submit | Question, timeout_s: float) -> Iterator[Future[Any]]:
        number = next(self._numbers)
        answer: Future[Any] = Future()
        with self._lock:
            self._calls[number] = answer
        try:
            self._post(messages.encode(msgspec.structs.replace(message, number=number)))
            yield answer
        except TimeoutError:
            peer = self._endpoint.known(COORDINATOR)
            refused = f"; the last thing heard from there: {peer.refused}" if peer is not None and peer.refused else ""
            raise LinkLost(f"no answer for {timeout_s:g} s{refused}") from None
        finally:
            with self._lock:
                self._calls.pop(number, None)

    def want(self, task_ids: Sequence[str]) -> None:
        """Have the outcomes of these tasks sent. Raises LinkGone."""
        for first in range(0, len(task_ids), 4096):
            self._post(messages.encode(Want(list(task_ids[first : first + 4096]))))

    def close(self) -> None:
        """Leave. Calls under way fail with LinkGone."""
        self._leave("this process left")
        if not self._thread.loop.is_closed():
            if self._talks is not None:
                self._thread.call(self._talks.close, 5.0)
            self._thread.call(self._endpoint.close, 5.0)
            self._thread.end()

    def _post(self, body: bytes) -> None:
        if self._gone:
            raise LinkGone(self._gone)
        with self._lock:
            self._queue.append(body)
            asked, self._asked = self._asked, True
        if not asked and not self._thread.soon(self._send_queued):
            raise LinkGone(self._gone or "this process left")

    # ── on the loop ──────────────────────────────────────────────────────────────────────────────────────────────

    def _send_queued(self) -> None:
        with self._lock:
            bodies, self._queue = self._queue, deque()
            self._asked = False
        peer = self._endpoint.peer(COORDINATOR)
        for body in bodies:
            peer.send_anyway(body)  # bounded: each of the callers' threads waits for its answer

    def _on_messages(self, peer: Peer, batch: list[bytes]) -> None:
        if peer.name != COORDINATOR:
            if self._talks is not None:
                self._talks.receive(peer, batch)
            return
        for body in batch:
            message = messages.decode_to_client(body)
            if isinstance(message, Outcomes):
                self._on_outcomes(message)
            elif isinstance(message, Answers):
                self._answer(message.number, message.answers)
            elif isinstance(message, Reply):
                self._answer(message.number, message)
            elif isinstance(message, Farewell):
                self._dismissed(message.reason)
            elif isinstance(message, Renewed):
                self._renewed_credentials(message.credentials)
            elif self._talks is not None:
                self._help_to_talk(self._talks, message)
        peer.consumed(len(batch), sum(map(len, batch)))

    def _renewed_credentials(self, credentials: Credentials) -> None:
        self._credentials = credentials
        if self._talks is not None:
            self._listening = self._thread.loop.create_task(self._talks.renewed())

    def _answer(self, number: int, value: Any) -> None:
        with self._lock:
            call = self._calls.get(number)
        if call is not None and not call.done():
            call.set_result(value)

    def _help_to_talk(self, talks: Talks, message: Listen | Reached | Told | Lost) -> None:
        if isinstance(message, Told):
            talks.learnt(message.changes)
        elif isinstance(message, Lost):
            talks.lost(message)
        elif isinstance(message, Reached):
            talks.reached(message)
        else:
            self._listening = self._thread.loop.create_task(talks.listen())

    def _on_event(self, event: MeshEvent) -> None:
        if event.peer != COORDINATOR:
            if self._talks is not None:
                self._talks.on_event(event)
            return
        if isinstance(event, PeerGone):
            self._renewed = True
            self._fail_calls(LinkLost(f"the coordinator was replaced: {event.reason}"))
        elif isinstance(event, StreamBroken):
            if not self._gone and (self._waiting is None or self._waiting.done()):
                self._waiting = self._thread.loop.create_task(self._wait_for_stream(event.reason))
        elif isinstance(event, StreamUp) and self._renewed:
            self._renewed = False
            if self._talks is not None:
                self._talks.another_coordinator()
                for agent_id, topics in self._subscribed.items():
                    self._tell(Subscribe(agent_id, topics))
            self._on_renewed()

    async def _wait_for_stream(self, reason: str) -> None:
        """The stream is lost. Somebody should hear when there will be no other one, or none for long."""
        peer, lost_at = self._endpoint.peer(COORDINATOR), self._thread.loop.time()
        while not peer.connected.is_set() and not self._gone:
            if await _is_connected(peer):
                continue  # unless it is lost again already
            if peer.unwelcome:
                self._dismissed(peer.refused)  # its token was revoked, or has expired
            else:
                self._on_outage(self._thread.loop.time() - lost_at, peer.refused or reason)
                if self._moves:
                    await self._look_elsewhere()

    def _dismissed(self, reason: str) -> None:
        """There is no runtime any more, or not for this client: nobody must wait for it, nor dial it."""
        self._leave(reason)
        if self._talks is not None:
            self._talks.talking.close()
        self._thread.loop.call_soon(self._endpoint.forget, COORDINATOR, reason)

    def _leave(self, reason: str) -> None:
        if not self._gone:
            self._gone = reason
            self._fail_calls(LinkGone(reason))
            self._on_farewell(reason)

    def _fail_calls(self, error: FlowrayError) -> None:
        with self._lock:
            calls = list(self._calls.values())
        for call in calls:
            if not call.done():
                call.set_exception(error)


@contextlib.asynccontextmanager
async def _answered(doing: str) -> AsyncIterator[None]:
    """For what only the coordinator can bring about. Raises CoordinatorUnavailable when it takes too long."""
    try:
        async with asyncio.timeout(_OPEN_S):
            yield
    except TimeoutError:
        raise CoordinatorUnavailable(f"{doing}: the coordinator did not answer for {_OPEN_S:g} s") from None


async def _is_connected(peer: Peer) -> bool:
    """Whether there is a stream, once there is one or a moment has passed."""
    try:
        await asyncio.wait_for(peer.connected.wait(), _LOOK_S)
    except TimeoutError:
        return False
    return True

"""The coordinator's part in what agents say to one another: who is where, and how processes find each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowray.errors import ConfigError
from flowray.mesh.topics import Directory, Listing
from flowray.runtime.messages import Learn, Listen, Listening, Lost, Reach, Reached, Subscribe, Told
from flowray.runtime.subscribers import SubscriberFile

_TOGETHER_S = 0.005  # changes within this time travel together: many agents start at once
_RETURN_S = 30.0  # for drivers to come back to a new coordinator; they dial every 0.5 s


class TalkDirectory:
    """Use only from the coordinator's event loop."""

    def __init__(
        self,
        epoch: int,
        send: Callable[[str, Any], None],
        lives: Callable[[str], bool],
        later: Callable[[float, Callable[[], None]], object],
        subscribers: SubscriberFile,
    ) -> None:
        """`send` sends a message to a process, `lives` says whether there is such a process.

        Drivers that `subscribers` knows from the coordinator before are listed until it is clear that they are gone.
        """
        self._directory = Directory(epoch)
        self._send = send
        self._lives = lives
        self._later = later
        self._told: dict[str, tuple[int, int]] = {}  # process that keeps a copy -> (epoch, version) it has
        self._due = False
        self._complete = False
        self._then: list[Callable[[], None]] = []  # to call when they have been told
        self._places: dict[str, Listening] = {}  # where processes listen
        self._wanted: dict[str, list[str]] = {}  # process that was told to listen -> those who want to reach it
        self._subscribers = subscribers
        self._subscribed = {listing.agent: listing for listing in subscribers.load()}  # drivers
        self._awaited = {one.agent: one.process for one in self._subscribed.values()}  # that have not come back yet
        self._saved = True  # the file has what is in `_subscribed`
        for listing in self._subscribed.values():
            self._directory.put(listing.agent, listing.process, listing.topics)

    def complete(self) -> None:
        """All agents that were there before this coordinator are listed.

        Nobody is told anything before: whom a new directory does not list counts as gone, and would only not have been
        found yet.
        """
        self._complete = True
        self._tell_all()
        if self._awaited:
            self._later(_RETURN_S, self._wait_no_longer)

    def _wait_no_longer(self) -> None:
        """For drivers that were there before this coordinator."""
        for agent, process in list(self._awaited.items()):
            if self._lives(process):
                self.remove(agent)  # it came back without this subscription
            else:
                self.process_gone(process, "it did not come back to a new coordinator")

    # ── agents ───────────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, agent: str, process: str, topics: tuple[str, ...]) -> None:
        """This agent (or driver) hears messages there."""
        if self._directory.put(agent, process, topics):
            self._tell_soon()

    def remove(self, agent: str) -> None:
        """It does not any more."""
        self._forget(agent)
        if self._directory.remove(agent):
            self._tell_soon()

    def _forget(self, agent: str) -> None:
        self._awaited.pop(agent, None)
        if self._subscribed.pop(agent, None) is not None:
            self._saved = False

    def process_gone(self, process: str, reason: str) -> None:
        """A process is gone, with all who were in it."""
        if self._told.pop(process, None) is not None or process in self._awaited.values():  # others may talk to it
            for other in self._told:
                self._send(other, Lost(process, reason))
        self._places.pop(process, None)
        for asker in self._wanted.pop(process, ()):
            self._send(asker, Reached(process, reason=reason))
        for askers in self._wanted.values():
            if process in askers:
                askers.remove(process)
        if agents := self._directory.remove_process(process):
            for agent in agents:
                self._forget(agent)
            self._tell_soon()

    def subscribe(self, process: str, message: Subscribe) -> None:
        """A driver hears messages under its own name. Raises ConfigError for what is no topic."""
        if not message.agent_id.startswith(process):
            raise ConfigError("agent_id", f"{message.agent_id!r} is not a name that {process!r} may take")
        if message.gone:
            self.remove(message.agent_id)
            return
        listing = Listing(message.agent_id, process, tuple(message.topics))
        self.put(listing.agent, listing.process, listing.topics)
        self._awaited.pop(listing.agent, None)
        if self._subscribed.get(listing.agent) != listing:
            self._subscribed[listing.agent] = listing
            self._saved = False

    # ── copies ───────────────────────────────────────────────────────────────────────────────────────────────────

    def learn(self, process: str, message: Learn) -> None:
        """A process wants to be told of every change from now on."""
        self._told[process] = (message.epoch, message.version)
        if self._complete:
            self._tell(process)
        if process in self._wanted and process not in self._places:
            self._send(process, Listen())  # it is back, and there are those who asked for it meanwhile

    def _tell_soon(self) -> None:
        if not self._due and self._complete and self._told:
            self._due = True
            self._later(_TOGETHER_S, self._tell_all)

    def when_told(self, call: Callable[[], None]) -> None:
        """Call once all that is known so far is on its way to those who keep copies.

        What is sent to them after that arrives later: whoever is given a task when an agent is ready knows that agent.
        """
        if self._due or not self._complete:
            self._then.append(call)
        else:
            call()

    def _tell_all(self) -> None:
        self._due = False
        for process in list(self._told):
            self._tell(process)
        then, self._then = self._then, []
        for call in then:
            call()

    def _tell(self, process: str) -> None:
        if not self._saved:
            self._subscribers.save(self._subscribed.values())
            self._saved = True
        changes = self._directory.changes_since(*self._told[process])
        if changes is not None:
            self._told[process] = (changes.epoch, changes.version)
            self._send(process, Told(changes))

    # ── ways ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def reach(self, asker: str, message: Reach) -> None:
        """A process wants to dial another one, which may have to be told to listen first."""
        process = message.process
        place = self._places.get(process)
        if place is not None:
            self._send(asker, Reached(process, place.node, place.path, place.host, place.port))
        elif not self._lives(process) and process not in self._awaited.values():
            self._send(asker, Reached(process, reason="there is no such process any more"))
        elif process in self._wanted:
            self._wanted[process].append(asker)
        else:
            self._wanted[process] = [asker]
            self._send(process, Listen())

    def listening(self, process: str, message: Listening) -> None:
        """A process says where it can be dialled."""
        self._places[process] = message
        for asker in self._wanted.pop(process, ()):
            self._send(asker, Reached(process, message.node, message.path, message.host, message.port))

"""The coordinator's part in what agents say to one another: who is where, and how processes find each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowray.errors import ConfigError
from flowray.mesh.topics import Directory
from flowray.runtime.messages import Learn, Listen, Listening, Lost, Reach, Reached, Subscribe, Told

_TOGETHER_S = 0.005  # changes within this time travel together: many agents start at once


class TalkDirectory:
    """Use only from the coordinator's event loop."""

    def __init__(
        self,
        epoch: int,
        send: Callable[[str, Any], None],
        lives: Callable[[str], bool],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        """`send` sends a message to a process, `lives` says whether there is such a process."""
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

    def complete(self) -> None:
        """All who were there before this coordinator are listed.

        Nobody is told anything before: whom a new directory does not list counts as gone, and would only not have been
        found yet.
        """
        self._complete = True
        self._tell_all()

    # ── agents ───────────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, agent: str, process: str, topics: tuple[str, ...]) -> None:
        """This agent (or driver) hears messages there."""
        if self._directory.put(agent, process, topics):
            self._tell_soon()

    def remove(self, agent: str) -> None:
        """It does not any more."""
        if self._directory.remove(agent):
            self._tell_soon()

    def process_gone(self, process: str, reason: str) -> None:
        """A process is gone, with all who were in it."""
        if self._told.pop(process, None) is not None:  # others may talk to it
            for other in self._told:
                self._send(other, Lost(process, reason))
        self._places.pop(process, None)
        for asker in self._wanted.pop(process, ()):
            self._send(asker, Reached(process, reason=reason))
        for askers in self._wanted.values():
            if process in askers:
                askers.remove(process)
        if self._directory.remove_process(process):
            self._tell_soon()

    def subscribe(self, process: str, message: Subscribe) -> None:
        """A driver hears messages under its own name. Raises ConfigError for what is no topic."""
        if not message.agent_id.startswith(process):
            raise ConfigError("agent_id", f"{message.agent_id!r} is not a name that {process!r} may take")
        if message.gone:
            self.remove(message.agent_id)
        else:
            self.put(message.agent_id, process, tuple(message.topics))

    # ── copies ───────────────────────────────────────────────────────────────────────────────────────────────────

    def learn(self, process: str, message: Learn) -> None:
        """A process wants to be told of every change from now on."""
        self._told[process] = (message.epoch, message.version)
        if self._complete:
            self._tell(process)

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
        elif not self._lives(process):
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

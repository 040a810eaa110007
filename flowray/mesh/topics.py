"""Who is where, and who wants to hear of what: a directory kept in one place and copied to all who send.

The coordinator keeps the `Directory`. Every change has a version; who has version v is sent what has changed since,
as one `Changes`, or everything where too much has changed or the directory is a new one (`epoch`). A process keeps a
`DirectoryCopy`, so that finding an agent, or all subscribers of a topic, asks nobody.

A copy lags behind. What is published reaches those who had subscribed as far as the publisher's copy knows, each at
most once: not at all if its process, or the publisher's, dies meanwhile. Messages of one publisher to one subscriber
arrive in the order in which they were published.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from flowray.agents import check_topics

_MAX_LEFT = 4_096  # agents that went and are remembered; a copy from before those is sent everything


class Listing(Struct, frozen=True, array_like=True):
    """Where an agent (or a driver) is, and what it has subscribed to."""

    agent: str
    process: str  # "" when it is gone
    topics: tuple[str, ...] = ()  # sorted, unique


class Changes(Struct, frozen=True, array_like=True):
    """What a copy needs to get from one version to another."""

    epoch: int  # of the directory: versions of different epochs cannot be compared
    since: int  # for copies that have this version; 0: for all, and agents that are not listed are gone
    version: int  # that the copy has afterwards
    listings: tuple[Listing, ...]


class Directory:
    """The one that counts. `epoch` must be another one each time a directory is made."""

    __slots__ = ("_changed_at", "_floor", "_left", "_listings", "epoch", "version")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.version = 1  # 0 is what a copy has that has heard nothing
        self._listings: dict[str, Listing] = {}
        self._changed_at: dict[str, int] = {}  # agent -> version, oldest change first; those that left included
        self._left: dict[str, None] = {}  # agents that are gone, oldest first
        self._floor = 1  # copies older than this need everything

    def put(self, agent: str, process: str, topics: Iterable[str] = ()) -> bool:
        """The agent is in this process, with these subscriptions. False if that was known."""
        listing = Listing(agent, process, check_topics(topics))
        if self._listings.get(agent) == listing:
            return False
        self._listings[agent] = listing
        self._left.pop(agent, None)
        self._touch(agent)
        return True

    def remove(self, agent: str) -> bool:
        """The agent is gone. False if it was not listed."""
        if self._listings.pop(agent, None) is None:
            return False
        self._left[agent] = None
        self._touch(agent)
        while len(self._left) > _MAX_LEFT:
            oldest = next(iter(self._left))
            del self._left[oldest]
            self._floor = max(self._floor, self._changed_at.pop(oldest))
        return True

    def remove_process(self, process: str) -> list[str]:
        """A process is gone, and all agents in it. Their names."""
        agents = [listing.agent for listing in self._listings.values() if listing.process == process]
        for agent in agents:
            self.remove(agent)
        return agents

    def _touch(self, agent: str) -> None:
        self.version += 1
        self._changed_at.pop(agent, None)
        self._changed_at[agent] = self.version

    def changes_since(self, epoch: int, version: int) -> Changes | None:
        """What a copy of this version needs; None when it is up to date."""
        if epoch != self.epoch or version < self._floor or version > self.version:
            return Changes(self.epoch, 0, self.version, tuple(self._listings.values()))
        if version == self.version:
            return None
        changed: list[Listing] = []
        for agent, at in reversed(self._changed_at.items()):
            if at <= version:
                break
            changed.append(self._listings.get(agent) or Listing(agent, ""))
        return Changes(self.epoch, version, self.version, tuple(reversed(changed)))


class DirectoryCopy:
    """What a process knows of it."""

    __slots__ = ("_listings", "_subscribers", "_topics", "epoch", "version")

    def __init__(self) -> None:
        self.epoch = 0
        self.version = 0
        self._listings: dict[str, Listing] = {}
        self._topics: dict[str, dict[str, None]] = {}  # topic -> its subscribers, in the order they came to be known
        self._subscribers: dict[str, tuple[str, ...]] = {}  # the same as tuples, made when asked for

    def apply(self, changes: Changes) -> list[str] | None:
        """Take changes in: the agents of which they say something.

        None when something is missing before them: ask for the changes since (`epoch`, `version`).
        """
        if changes.since == 0:
            stays = {listing.agent for listing in changes.listings}
            gone = tuple(Listing(agent, "") for agent in self._listings if agent not in stays)
            listings = gone + changes.listings
        elif changes.epoch != self.epoch or changes.since > self.version:
            return None
        elif changes.version <= self.version:
            return []  # known already
        else:
            listings = changes.listings
        for listing in listings:
            self._take(listing)
        self.epoch, self.version = changes.epoch, changes.version
        return [listing.agent for listing in listings]

    def _take(self, listing: Listing) -> None:
        agent = listing.agent
        before = self._listings.pop(agent, None)
        old = before.topics if before is not None else ()
        for topic in old:
            if topic not in listing.topics:
                subscribers = self._topics[topic]
                del subscribers[agent]
                if not subscribers:
                    del self._topics[topic]
                self._subscribers.pop(topic, None)
        if listing.process:
            self._listings[agent] = listing
            for topic in listing.topics:
                self._topics.setdefault(topic, {})[agent] = None
                self._subscribers.pop(topic, None)

    def process_of(self, agent: str) -> str:
        """Where an agent is; "" if that is not known."""
        found = self._listings.get(agent)
        return found.process if found is not None else ""

    def subscribers(self, topic: str) -> tuple[str, ...]:
        """Agents that want what is published to a topic."""
        found = self._subscribers.get(topic)
        if found is None:
            if topic not in self._topics:
                return ()
            found = self._subscribers[topic] = tuple(self._topics[topic])
        return found

    def agents(self) -> list[str]:
        """All that are known."""
        return list(self._listings)

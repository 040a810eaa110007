"""What a bridge needs of flowray: to publish into a topic and to follow one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct


class TopicMessage(Struct, frozen=True):
    """One message of a topic, as a subscriber sees it."""

    topic: str
    body: bytes
    message_id: str  # of the publisher's choosing; the same message published again carries the same one
    publisher: str = ""  # the agent or client that published it


OnMessage = Callable[[TopicMessage], Awaitable[None]]


class Subscription(Protocol):
    """One running subscription."""

    async def close(self) -> None:
        """No further calls after this returns. Calls that run already may go on."""


class Topics(Protocol):
    """flowray's topics."""

    async def publish(self, topic: str, body: bytes, *, message_id: str) -> None:
        """Returns once flowray has taken the message over; waits while it has no room (that is the back pressure).

        After a crash the bridge may publish a message again, with the same `message_id`: drop it by that if it matters.

        Raises:
            PayloadError: the message can never be taken; the bridge puts it to its dead letters.
            FlowrayError, OSError: it was not taken now; the bridge tries again, later and later.
        """

    async def subscribe(self, topic: str, on_message: OnMessage) -> Subscription:
        """Call `on_message` for each message of the topic, in their order.

        A call returns once the message is safe at the other server, and raises when the bridge stops before that: the
        message was not taken. Calls should overlap (start the next before the last has returned), within a window of
        the caller's: that window is what a batch to the other server is made of.
        """
